"""Rollout with the residual made a dial: how much of a token is itself, and how much is what it attends to."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.explain import attention


def reference(attns, alpha):
    mixes = (alpha * attention.fuse(attn) + (1 - alpha) * torch.eye(attn.shape[-1]) for attn in attns)
    return attention.flow(mixes, [None] * len(attns))


task = Exercise(
    lesson="05_seeing_attention",
    reference=reference,
    source="labkit.explain.attention.rollout_matrix, where alpha is a half",
    axes=("image", "last token", "first token"),
    hints=(
        "`alpha * attn.mean(dim=1) + (1 - alpha) * torch.eye(n)` mixes one block, and its rows sum to 1 again.",
        "Start with the first block; each later block multiplies from the left.",
    ),
    praise="With alpha = 0 every token stays itself; with 1 only what was attended to is left.",
)


@task.stub
def mixed_rollout(attns, alpha):
    """Write `mixed_rollout(attns, alpha)`: how much of each first token is in each last one, (images, n, n), when a
    share `alpha` of a token is what it attends to and the rest is itself. `attns` is a list of (images, heads, n, n),
    the first block first; the heads of a block count alike.
    """
    return torch.ones_like(attns[0][:, 0])


@task.cases
def cases(dice):
    for images, heads, n, depth, alpha in (
        (1, 1, 2, 2, 0.25),
        (1, 2, 3, 2, 0.5),
        (2, 3, 4, 3, 0.75),
        (2, 2, 5, 6, 1.0),
    ):
        yield [(2 * normal(dice, images, heads, n, n)).softmax(dim=-1) for _ in range(depth)], alpha


def product(attns, mix, from_the_left=True):
    total = torch.eye(attns[0].shape[-1]).expand(attns[0][:, 0].shape)
    for attn in attns:
        total = mix(attn) @ total if from_the_left else total @ mix(attn)
    return total


def eye(attn):
    return torch.eye(attn.shape[-1])


@task.mistake(
    "The blocks are in the wrong order. A token of the last block asks its own block first, so the later block "
    "stands on the left: total = mix @ total."
)
def from_the_right(attns, alpha):
    return product(attns, lambda attn: alpha * attn.mean(dim=1) + (1 - alpha) * eye(attn), from_the_left=False)


@task.mistake(
    "You exchanged the two shares: `alpha` belongs to the attention, 1 - alpha to the token itself. Look at alpha = 1."
)
def shares_exchanged(attns, alpha):
    return product(attns, lambda attn: (1 - alpha) * attn.mean(dim=1) + alpha * eye(attn))


@task.mistake(
    "You add the whole identity to a share of the attention: the rows sum to 1 + alpha, and more with every block. "
    "The token itself gets the rest, 1 - alpha."
)
def whole_identity(attns, alpha):
    return product(attns, lambda attn: alpha * attn.mean(dim=1) + eye(attn))


@task.mistake(
    "You mix in the same half and half for every `alpha`; that is the rollout of the paper, and the dial does nothing."
)
def always_a_half(attns, alpha):
    return product(attns, lambda attn: (attn.mean(dim=1) + eye(attn)) / 2)


@task.mistake(
    "You added the heads up instead of taking their mean: with h heads each row of attention sums to h, not to 1."
)
def summed_heads(attns, alpha):
    return product(attns, lambda attn: alpha * attn.sum(dim=1) + (1 - alpha) * eye(attn))


@task.mistake(
    "You took the mean of the blocks. What a token attends to in the second block is already a mixture made by the "
    "first: the blocks are multiplied."
)
def averaged_blocks(attns, alpha):
    return sum(alpha * attn.mean(dim=1) + (1 - alpha) * eye(attn) for attn in attns) / len(attns)
