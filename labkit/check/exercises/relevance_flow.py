"""Relevance: what raises the class is passed on layer by layer, and added to what was there."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.explain.relevance import relevance_matrix

task = Exercise(
    lesson="05_seeing_attention",
    reference=relevance_matrix,
    axes=("image", "last token", "first token"),
    hints=(
        "`(attn * gradient).clamp(min=0)` is what helps, head by head; the mean over the heads comes after it.",
        "Start with the identity and add: `total = total + helps @ total`, from the first block to the last.",
    ),
    praise="A block that does not matter for the class leaves everything as it was: there rollout is different.",
)


@task.stub
def relevance_flow(attns, gradients):
    """Write `relevance_flow(attns, gradients)`: the relevance R, (images, n, n), of each first token (columns) to each
    last one (rows). At the start every token is relevant to itself alone, R = I. Each block then adds to R what R gives
    when it is passed along the attention that helps: attention times gradient, where that is positive, as the mean
    over the heads. Both lists hold (images, heads, n, n), the first block first.
    """
    return torch.ones_like(attns[0][:, 0])


@task.cases
def cases(dice):
    for images, heads, n, depth in ((1, 2, 2, 2), (1, 3, 4, 3), (2, 2, 5, 4)):
        shape = images, heads, n, n
        attns = [(2 * normal(dice, *shape)).softmax(dim=-1) for _ in range(depth)]
        yield attns, [normal(dice, *shape) for _ in range(depth)]


def walk(attns, gradients, step, keep=True, from_the_left=True, start=1.0):
    total = start * torch.eye(attns[0].shape[-1]).expand(attns[0][:, 0].shape)
    for attn, gradient in zip(attns, gradients, strict=True):
        passed = step(attn, gradient)
        new = passed @ total if from_the_left else total @ passed
        total = total + new if keep else new
    return total


def helps(attn, gradient):
    return (attn * gradient).clamp(min=0).mean(dim=1)


@task.mistake(
    "You took the mean over the heads first and dropped the negative part then: heads for and against the class "
    "cancel each other. Clamp each head, then take the mean."
)
def mean_before_clamp(attns, gradients):
    return walk(attns, gradients, lambda attn, gradient: (attn * gradient).mean(dim=1).clamp(min=0))


@task.mistake(
    "The negative part is still there. Attention that lowers the class should not be passed on: clamp attention "
    "times gradient at 0."
)
def not_clamped(attns, gradients):
    return walk(attns, gradients, lambda attn, gradient: (attn * gradient).mean(dim=1))


@task.mistake(
    "You kept the size of what is negative, as if it helped. Attention that lowers the class counts nothing: clamp "
    "at 0, do not take the absolute value."
)
def absolute(attns, gradients):
    return walk(attns, gradients, lambda attn, gradient: (attn * gradient).abs().mean(dim=1))


@task.mistake(
    "Each block replaces R; it should add to it, R + passed @ R. As it is, one block that does not matter for the "
    "class wipes out all relevance."
)
def replaced(attns, gradients):
    return walk(attns, gradients, helps, keep=False)


@task.mistake(
    "You divide the rows by their sums, as in gradient rollout. Relevance is not shared out: a block that hardly "
    "matters should hardly change R."
)
def normalised(attns, gradients):
    def share(attn, gradient):
        mix = helps(attn, gradient) + torch.eye(attn.shape[-1])
        return mix / mix.sum(dim=-1, keepdim=True)

    return walk(attns, gradients, share, keep=False)


@task.mistake(
    "The product is the wrong way round: a later token asks its own block first, so the new block stands on the "
    "left, passed @ R."
)
def from_the_right(attns, gradients):
    return walk(attns, gradients, helps, from_the_left=False)


@task.mistake(
    "The gradients meet the wrong blocks: block 0 has the gradient of the last one. Backward hooks fill a list in "
    "that order; here both lists begin with the first block."
)
def gradients_reversed(attns, gradients):
    return walk(attns, gradients[::-1], helps)


@task.mistake(
    "It is 0 everywhere, since R starts at 0 and every block multiplies it. At the start each token is relevant to "
    "itself: R is the identity."
)
def starts_with_nothing(attns, gradients):
    return walk(attns, gradients, helps, start=0.0)
