"""The law of a ViT's cost: what is linear in the number of tokens, and what is quadratic."""

from __future__ import annotations

from labkit import cost
from labkit.check.exercise import Exercise


def reference(n, d, depth):
    return depth * sum(cost.block_macs(n, d).values())


task = Exercise(
    lesson="04_build_a_vit",
    reference=reference,
    source="labkit.cost.block_macs",
    tolerance=1e-9,  # counts, not measurements
    hints=(
        "The four parts are in section 7.",
        "3nd² + nd² + 8nd² = 12nd², and 2n²d for the pairs.",
    ),
    praise="2n²d = 12nd² at n = 6d: for d = 384 the pairs take over at 2,304 tokens, an image of 768 × 768 pixels.",
)


@task.stub
def block_work(n, d, depth):
    """Write `block_work(n, d, depth)`: the MACs of all `depth` blocks of a ViT with n tokens of width d and an MLP
    four times as wide.
    """
    return 0


@task.cases
def cases(dice):
    yield from ((2, 3, 1), (5, 4, 2), (65, 128, 6), (197, 384, 12), (2304, 384, 2))


@task.mistake(
    "Each pair of tokens meets twice: once in q kᵀ, and once when the values are mixed, attn v. That is 2n²d, and "
    "you counted n²d."
)
def pairs_once(n, d, depth):
    return depth * (12 * n * d**2 + n**2 * d)


@task.mistake("The projection behind the heads is missing: joined, their channels go through one more matrix, nd².")
def no_projection(n, d, depth):
    return depth * (11 * n * d**2 + 2 * n**2 * d)


@task.mistake("q, k and v are three products with a d × d matrix for each token, 3nd² in all; you counted one.")
def one_of_three(n, d, depth):
    return depth * (10 * n * d**2 + 2 * n**2 * d)


@task.mistake("The MLP has two matrices, d × 4d on the way up and 4d × d on the way down: 8nd², and you counted 4nd².")
def half_an_mlp(n, d, depth):
    return depth * (8 * n * d**2 + 2 * n**2 * d)


@task.mistake("This is one block; there are `depth` of them.")
def one_block(n, d, depth):
    return 12 * n * d**2 + 2 * n**2 * d


@task.mistake(
    "It is exactly twice too much: a multiplication and the addition that follows are one MAC together (you counted "
    "floating-point operations)."
)
def operations(n, d, depth):
    return 2 * depth * (12 * n * d**2 + 2 * n**2 * d)


@task.mistake(
    "The pairs are missing: beside the products with weights, every query meets every key, and every weight a value. "
    "That part has no parameters, but it costs 2n²d."
)
def no_pairs(n, d, depth):
    return depth * 12 * n * d**2
