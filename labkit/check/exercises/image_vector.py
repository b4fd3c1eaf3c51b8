"""Who speaks for the image: from the tokens behind the last block to the one vector that the head reads."""

from __future__ import annotations

import torch
from torch import nn

from labkit import vit
from labkit.check.exercise import Exercise, normal


def reference(x, prefix, pool):
    """A ViT without blocks, whose norm and head do nothing: its logits are the vector."""
    network = vit.ViT(
        1, 1, classes=0, dim=x.shape[-1], depth=0, pool=pool, class_token=prefix > 0, registers=max(prefix - 1, 0)
    )
    network.norm = nn.Identity()
    return network.read(x)


task = Exercise(
    lesson="04_build_a_vit",
    reference=reference,
    source="labkit.vit.ViT.read",
    axes=("batch", "d"),
    hints=(
        "`x[:, 0]` is the first token of every image.",
        "`x[:, prefix:]` are the patches; their mean runs over the tokens, axis 1.",
    ),
    praise="Whoever speaks, the head sees one vector of width d for each image.",
)


@task.stub
def image_vector(x, prefix, pool):
    """Write `image_vector(x, prefix, pool)`: the one vector of each image, (batch, d), from the tokens x (batch, n, d)
    behind the last block. The first `prefix` tokens are no patches: the class token, if there is one, and registers
    behind it. With pool = "class" the class token speaks, with "avg" the mean of the patches.
    """
    return torch.zeros(x.shape[0], x.shape[2])


@task.cases
def cases(dice):
    for batch, n, d, prefix, pool in (
        (2, 3, 2, 1, "class"),
        (1, 4, 3, 0, "avg"),
        (2, 5, 4, 1, "avg"),
        (3, 9, 4, 5, "avg"),
        (2, 7, 5, 3, "class"),
    ):
        yield normal(dice, batch, n, d), prefix, pool


@task.mistake(
    "Your average takes in the first `prefix` tokens. Class token and registers stand for no place in the image: cut "
    "them off before the mean."
)
def averages_everything(x, prefix, pool):
    return x[:, 0] if pool == "class" else x.mean(dim=1)


@task.mistake(
    "You cut off one token always. Count on `prefix`: with registers there are more to leave out, and without a "
    "class token the first one is a patch."
)
def cuts_one(x, prefix, pool):
    return x[:, 0] if pool == "class" else x[:, 1:].mean(dim=1)


@task.mistake(
    'You read the class token whatever `pool` says. With "avg" the patches speak; there may not even be a class '
    "token, and then x[:, 0] is the first patch."
)
def always_the_class_token(x, prefix, pool):
    return x[:, 0]


@task.mistake('You average the patches whatever `pool` says; with "class" one token speaks alone, the first.')
def always_the_average(x, prefix, pool):
    return x[:, prefix:].mean(dim=1)


@task.mistake(
    "x[0] is the first image with all its tokens. The first axis counts images: the class token of every image is "
    "x[:, 0]."
)
def reads_the_first_image(x, prefix, pool):
    return x[0] if pool == "class" else x[:, prefix:].mean(dim=1)


@task.mistake("The last of the extra tokens is a register, which nobody reads; the class token comes first, x[:, 0].")
def reads_a_register(x, prefix, pool):
    return x[:, prefix - 1] if pool == "class" else x[:, prefix:].mean(dim=1)


@task.mistake(
    "The class token is not the last token: it was put in front of the patches, so x[:, 0] is it, and x[:, -1] is "
    "the patch in the lower right corner."
)
def reads_the_last(x, prefix, pool):
    return x[:, -1] if pool == "class" else x[:, prefix:].mean(dim=1)
