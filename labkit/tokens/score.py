"""What a token is worth: functions `(evidence, prefix) → (b, patches)`, high for tokens that should stay.

The class token's attention is the score of "Not All Patches are What You Need: Expediting Vision Transformers via
Token Reorganizations", 2022 (EViT, S029); times the norm of the value, that of "Adaptive Token Sampling For
Efficient Vision Transformers", 2021 (ATS, S011). A rank on the graph that attention draws is from "Zero-TPrune:
Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers", 2023 (S066). The
energy, high where a token has many neighbours like itself, is from "Accelerating Transformers with
Spectrum-Preserving Token Merging", 2024 (PiToMe, S322). `random`, `reverse` and `known` are the controls that a
score has to beat, or to meet.

    Keep(0.7, class_value)      Keep(0.7, page_rank())      Keep(0.7, reverse(energy()))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.tokens.energy import energy_score

Score = Callable[[Evidence, int], Tensor]  # (evidence, prefix) → (b, patches)


def highest(scores: Tensor, count: int, prefix: int) -> Tensor:
    """(b, prefix + count): the places of the prefix tokens and of the `count` best patches, in order.

    Of equal scores the earlier is the better one.
    """
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
    return torch.cat([torch.arange(prefix, device=best.device).expand(len(best), -1), best + prefix], dim=1)


def present(scores: Tensor, sizes: Tensor | None, prefix: int) -> Tensor:
    """(b, patches) scores, lower than all others where a place is empty."""
    return scores if sizes is None else scores.masked_fill(sizes[:, prefix:] == 0, -torch.inf)


def class_attention(evidence: Evidence, prefix: int) -> Tensor:
    """How much the class token looks at each patch, the mean over heads."""
    if prefix == 0:
        raise LabkitError("class_attention reads the class token's row and there is none; use attention_received.")
    return evidence.attention(slice(0, 1)).mean(dim=1)[:, 0, prefix:]


def class_value(evidence: Evidence, prefix: int) -> Tensor:
    """How much the class token takes from each patch: attention times the norm of the value, as shares of one.

    A patch that is looked at but has nothing to say is worth nothing. Each head looks and says for itself.
    """
    if prefix == 0:
        raise LabkitError(
            "class_value reads the class token's attention and there is none; score by attention_received."
        )
    if evidence.v is None:
        raise LabkitError("class_value needs the values, and the evidence of this attention holds none.")
    taken = evidence.attention(slice(0, 1))[:, :, 0] * evidence.v.norm(dim=-1)
    scores = taken.sum(dim=1)[:, prefix:]
    return scores / scores.sum(dim=1, keepdim=True)


def attention_received(evidence: Evidence, prefix: int) -> Tensor:
    """How much all look at each patch, the mean over heads and over tokens, each as the patches that it stands for.

    It needs no class token.
    """
    attn = evidence.attention().mean(dim=1)
    return (attn.mean(dim=1) if evidence.sizes is None else (_shares(evidence.sizes) @ attn)[:, 0])[:, prefix:]


def _shares(amounts: Tensor) -> Tensor:
    """(b, n) → (b, 1, n), which sum to one."""
    return (amounts / amounts.sum(dim=1, keepdim=True))[:, None]


def stationary(attn: Tensor, iterations: int, damping: float = 1.0, there: Tensor | None = None) -> Tensor:
    """(..., n, n) → (..., n): where a walker is who starts anywhere and follows attention `iterations` times.

    Anywhere is `there` (b, n), when some places are empty. With probability 1 - damping a step leads anywhere instead.
    The limit is the left eigenvector of the damped matrix to the eigenvalue 1; the error shrinks like the power of
    damping times its second eigenvalue.
    """
    n = attn.shape[-1]
    start = attn.new_full((*attn.shape[:-2], 1, n), 1 / n) if there is None else _shares(there.to(attn))
    rank = start
    for _ in range(iterations):
        rank = damping * (rank @ attn) + (1 - damping) * start
    return rank[..., 0, :]


def page_rank(iterations: int = 30, damping: float = 1.0) -> Score:
    """A token matters if tokens that matter look at it; heads are averaged into one graph.

    Attention is positive, so the walk settles without damping, which is the paper's.
    """
    if iterations < 0 or not 0 <= damping <= 1:
        raise LabkitError(
            f"page_rank(iterations={iterations}, damping={damping}) is not a walk; "
            "expected iterations of at least 0 and a damping from 0 to 1."
        )

    def score(evidence: Evidence, prefix: int) -> Tensor:
        there = None if evidence.sizes is None else evidence.sizes > 0
        return stationary(evidence.attention().mean(dim=1), iterations, damping, there)[:, prefix:]

    return score


def energy(margin: float = 0.5, alpha: float = 1.0) -> Score:
    """How crowded the place of a patch is among the keys: high for those that others can stand in for.

    What is dropped first should be what is crowded: keep by `reverse(energy())`.
    """
    return lambda evidence, prefix: energy_score(evidence.k.mean(dim=1)[:, prefix:], margin, alpha)


def key_norm(evidence: Evidence, prefix: int) -> Tensor:
    """The norm of each patch's key over all heads: it costs no attention at all."""
    return evidence.k.square().sum(dim=(1, 3)).sqrt()[:, prefix:]


def random(generator: torch.Generator) -> Score:
    """Chance: the control that every score must beat."""

    def score(evidence: Evidence, prefix: int) -> Tensor:
        b, _, n, _ = evidence.k.shape
        return torch.rand(b, n - prefix, generator=generator, device=generator.device).to(evidence.k)

    return score


def reverse(score: Score) -> Score:
    """The other way round: what was worth most is worth least."""
    return lambda evidence, prefix: -score(evidence, prefix)


def known(scores: Tensor) -> Score:
    """An oracle: (1 or b, patches) scores from elsewhere, say a mask of the object; the block sees every patch."""

    def score(evidence: Evidence, prefix: int) -> Tensor:
        b, _, n, _ = evidence.k.shape
        if scores.ndim != 2 or scores.shape[0] not in (1, b) or scores.shape[1] != n - prefix:
            raise LabkitError(
                f"The known scores have shape {tuple(scores.shape)}, but the block sees {b} images of {n - prefix} "
                f"patches; expected ({b}, {n - prefix})."
            )
        return scores.to(evidence.k).expand(b, -1)

    return score
