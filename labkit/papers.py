"""The papers whose ideas the code holds: title, year, family and, in one line of ours, the idea.

`cite("S207")` is how a lesson, a figure or `labkit.show` names a paper; the year is the first version's.
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.errors import LabkitError, closest


@dataclass(frozen=True)
class Paper:
    id: str  # the catalogue id
    title: str
    year: int
    family: str
    idea: str


PAPERS = (
    Paper(
        "S029",
        "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
        2022,
        "token-reduction",
        "The class token's attention says which patches matter; keep those and melt the rest into one token.",
    ),
    Paper(
        "S092",
        "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers",
        2023,
        "architecture",
        "Fold the mean out of the weights and LayerNorm becomes RMSNorm: the same function for less work.",
    ),
    Paper(
        "S182",
        "Going deeper with Image Transformers",
        2021,
        "architecture",
        "A learned gain per channel, near zero at first, lets deep stacks train; the class token comes late.",
    ),
    Paper(
        "S203",
        "Training data-efficient image transformers & distillation through attention",
        2020,
        "distillation",
        "A second token with its own head learns from a teacher while the class token learns from labels.",
    ),
    Paper(
        "S207",
        "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        2020,
        "architecture",
        "Cut the image into squares, treat each square as a word, and use a plain transformer.",
    ),
    Paper(
        "S226",
        "Three things everyone should know about Vision Transformers",
        2022,
        "architecture",
        "Blocks may run side by side, tuning only attention is enough, and a patch stem may be an MLP.",
    ),
    Paper(
        "S311",
        "RePaViT: Scalable Vision Transformer Acceleration via Structural Reparameterization on Feedforward "
        "Network Layers",
        2025,
        "weight-compression",
        "Some hidden channels skip the activation; after training their linear path folds into one matrix.",
    ),
    Paper(
        "S383",
        "On the Efficiency of Convolutional Neural Networks",
        2024,
        "architecture",
        "Latency is operations / (peak x efficiency), and the bytes that move say where the efficiency goes.",
    ),
)


def find(id: str) -> Paper:
    """The facts about one paper, by its catalogue id."""
    for paper in PAPERS:
        if paper.id == id:
            return paper
    hint = closest(id, [paper.id for paper in PAPERS])
    raise LabkitError(f'No paper "{id}" is described in labkit/papers.py; add it there.{hint}')


def cite(id: str) -> str:
    """`'"Going deeper with Image Transformers", 2021 (S182)'`: title, year and catalogue id."""
    paper = find(id)
    return f'"{paper.title}", {paper.year} ({paper.id})'
