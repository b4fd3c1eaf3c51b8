"""The score that costs nothing: how much the class token looks at each patch, which attention has computed anyway."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.evidence import Evidence
from labkit.tokens.score import class_attention


def class_row(attn, prefix):
    return class_attention(Evidence(attn, attn, attn=attn), prefix)


task = Exercise(
    lesson="07_token_pruning",
    reference=class_row,
    axes=("images", "patches"),
    hints=(
        "Row i of attn[image, head] says where token i looks; the class token is token 0.",
        "`attn.mean(dim=1)` is the mean over heads; the patches come behind the first `prefix` tokens.",
    ),
    praise="It costs nothing more: the block has computed this row anyway.",
    source="labkit.tokens.score.class_attention",
)


@task.stub
def class_scores(attn, prefix):
    """Write `class_scores(attn, prefix)`: from attention (images, heads, tokens, tokens), how much the class token
    looks at each patch, the mean over heads: (images, patches). The first `prefix` tokens are no patches.
    """
    return torch.zeros(attn.shape[0], attn.shape[-1] - prefix)


@task.cases
def cases(dice):
    for images, heads, tokens, prefix in ((1, 2, 4, 1), (2, 3, 7, 1), (3, 4, 11, 2)):
        yield (2 * normal(dice, images, heads, tokens, tokens)).softmax(dim=-1), prefix


@task.mistake(
    "That is the column: how much each patch looks at the class token. Where a token looks stands in its row, which "
    "sums to 1."
)
def column(attn, prefix):
    return attn.mean(dim=1)[:, prefix:, 0]


@task.mistake(
    "The class token's look at itself is still among the scores: the score of every patch stands too late in the "
    "row. Cut off the prefix."
)
def with_prefix(attn, prefix):
    return attn.mean(dim=1)[:, 0]


@task.mistake(
    "You cut off one token, always. With a second token in front (a register, a distillation token) that one becomes "
    "a patch: cut off `prefix`."
)
def one_cut(attn, prefix):
    return attn.mean(dim=1)[:, 0, 1:]


@task.mistake("You took the first head alone; heads look at different things, so ask for their mean.")
def first_head(attn, prefix):
    return attn[:, 0, 0, prefix:]


@task.mistake(
    "You summed the heads: the order of the patches is right, but these are no shares of one look any more. Take the "
    "mean."
)
def summed(attn, prefix):
    return attn.sum(dim=1)[:, 0, prefix:]


@task.mistake(
    "That is the attention received from all tokens. It is a score too, but another one: you want row 0 alone, the "
    "class token's."
)
def received(attn, prefix):
    return attn.mean(dim=(1, 2))[:, prefix:]
