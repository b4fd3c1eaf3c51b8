"""The pre-norm block: two branches, each normalised on its way in and added to the stream on its way out."""

from __future__ import annotations

import torch

from labkit import vit
from labkit.check.exercise import Exercise, normal


class OnTokens(torch.nn.Module):
    """A part that asks for no grid, where `Block` hands one over."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x, grid):
        return self.part(x)


def reference(x, norm1, attn, norm2, mlp):
    block = vit.Block(x.shape[-1], 1, mixer=OnTokens(attn), mlp=mlp)
    block.norm1, block.norm2 = norm1, norm2
    return block(x, (1, x.shape[1])).x


task = Exercise(
    lesson="04_build_a_vit",
    reference=reference,
    source="labkit.vit.Block",
    axes=("batch", "token", "d"),
    hints=(
        "The first branch reads norm1 of the stream; what it gives is added to the stream, not to norm1 of it.",
        "The second branch does the same with norm2 and mlp, and reads what the first addition has made.",
    ),
    praise="Stack twelve of these and you have the body of a ViT.",
)


@task.stub
def transformer_block(x, norm1, attn, norm2, mlp):
    """Write `transformer_block(x, norm1, attn, norm2, mlp)`: one pre-norm block on tokens x (batch, n, d). The four
    parts are functions of tokens, and each returns the shape that it gets.
    """
    return torch.zeros_like(x)


@task.cases
def cases(dice):
    for batch, n, d in ((1, 2, 4), (2, 5, 4), (3, 3, 8)):
        with torch.random.fork_rng(devices=[]):
            parts = [torch.nn.LayerNorm(d), vit.Attention(d, 2), torch.nn.LayerNorm(d), vit.MLP(d, 2 * d)]
        for weight in (weight for part in parts for weight in part.parameters()):
            weight.requires_grad_(False).copy_(normal(dice, *weight.shape))
        yield normal(dice, batch, n, d), *parts


@task.mistake(
    "Nothing is added: your block replaces the tokens, twice. Each branch adds its result to the stream, x = x + "
    "attn(norm1(x)), so that whatever came in can pass."
)
def no_residual(x, norm1, attn, norm2, mlp):
    return mlp(norm2(attn(norm1(x))))


@task.mistake(
    "This is a post-norm block: the norms stand in the stream, and nothing passes them unchanged. In a pre-norm "
    "block they sit on the branches, in front of attn and mlp."
)
def post_norm(x, norm1, attn, norm2, mlp):
    x = norm1(x + attn(x))
    return norm2(x + mlp(x))


@task.mistake(
    "Your MLP reads the tokens from before the attention, so the branches run side by side. It should read the "
    "stream to which attention has already added."
)
def side_by_side(x, norm1, attn, norm2, mlp):
    return x + attn(norm1(x)) + mlp(norm2(x))


@task.mistake("The norms are missing: each branch reads its normalised tokens, attn(norm1(x)) and mlp(norm2(x)).")
def no_norms(x, norm1, attn, norm2, mlp):
    x = x + attn(x)
    return x + mlp(x)


@task.mistake(
    "You add each branch to the normalised tokens. The stream itself is never normalised inside a block: add to x, "
    "and give norm1(x) to attn alone."
)
def normalised_stream(x, norm1, attn, norm2, mlp):
    x = norm1(x)
    x = x + attn(x)
    x = norm2(x)
    return x + mlp(x)


@task.mistake(
    "The second addition is missing: what the MLP gives replaces the stream, and all that the attention has added is "
    "lost with it."
)
def second_not_added(x, norm1, attn, norm2, mlp):
    x = x + attn(norm1(x))
    return mlp(norm2(x))


@task.mistake(
    "The second branch is missing: behind the attention, each token goes through norm2 and the MLP on its own."
)
def attention_alone(x, norm1, attn, norm2, mlp):
    return x + attn(norm1(x))


@task.mistake("Both branches go through norm1; the MLP has learned a norm of its own, norm2.")
def first_norm_twice(x, norm1, attn, norm2, mlp):
    x = x + attn(norm1(x))
    return x + mlp(norm1(x))
