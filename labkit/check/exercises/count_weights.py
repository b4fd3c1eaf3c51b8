"""Every learned number of a ViT, counted by hand: what grows with the width, the depth, the patches and the image."""

from __future__ import annotations

from labkit import vit
from labkit.check.exercise import Exercise


def reference(image, patch, classes, d, depth):
    network = vit.ViT(image, patch, classes, d, depth, heads=1)
    return sum(weight.numel() for weight in network.parameters())


task = Exercise(
    lesson="04_build_a_vit",
    reference=reference,
    source="labkit.vit.ViT",
    tolerance=1e-9,  # counts, not measurements
    hints=(
        "A linear layer from a to b numbers has a · b + b weights; a norm has 2d: a gain and a bias for each channel.",
        "A block has 12d² + 13d. Around the blocks stand patches, class token, positions (of all tokens), norm, head.",
    ),
    praise="Width counts squared, depth once, and the image only through its positions.",
)


@task.stub
def count_weights(image, patch, classes, d, depth):
    """Write `count_weights(image, patch, classes, d, depth)`: how many numbers does this ViT learn? Its images have
    image × image pixels in 3 colours and are cut into squares of patch × patch. There is a class token; every token
    has a learned position; each of the blocks has two norms, attention and an MLP of width 4d; behind them stand one
    more norm and the head. All linear layers have a bias, the patches' too.
    """
    return 0


@task.cases
def cases(dice):
    yield from ((4, 2, 2, 2, 1), (8, 4, 10, 6, 2), (12, 2, 3, 4, 3), (16, 4, 7, 12, 4), (24, 4, 20, 10, 3))


def count(image, patch, classes, d, depth, in_block, colours=3, more_tokens=1, bias=1):
    tokens = (image // patch) ** 2 + more_tokens
    return colours * patch**2 * d + bias * d + d + tokens * d + depth * in_block + 2 * d + classes * (d + bias)


@task.mistake(
    "The class token has a position of its own: there are as many positions as tokens, one more than there are patches."
)
def no_position_for_the_class(image, patch, classes, d, depth):
    return count(image, patch, classes, d, depth, 12 * d**2 + 13 * d, more_tokens=0)


@task.mistake(
    "The biases of the linear layers are missing: 3d for qkv, d for the projection, 4d + d in the MLP, d for the "
    "patches and one for each class."
)
def no_biases(image, patch, classes, d, depth):
    return count(image, patch, classes, d, depth, 12 * d**2 + 4 * d, bias=0)


@task.mistake("The norms of the blocks learn too: two in each block, with a gain and a bias for every channel, 4d.")
def no_norms(image, patch, classes, d, depth):
    return count(image, patch, classes, d, depth, 12 * d**2 + 9 * d)


@task.mistake(
    "A patch has three colours: 3 · patch² numbers go into each token, so the first matrix is three times as large."
)
def one_colour(image, patch, classes, d, depth):
    return count(image, patch, classes, d, depth, 12 * d**2 + 13 * d, colours=1)


@task.mistake(
    "You counted the n × n attention among the weights. It is computed anew for every image and learned nowhere; the "
    "weights of attention are 4d² + 4d."
)
def learned_maps(image, patch, classes, d, depth):
    tokens = (image // patch) ** 2 + 1
    return count(image, patch, classes, d, depth, 12 * d**2 + 13 * d + tokens**2)


@task.mistake("The projection behind the heads is missing from your blocks: another d × d matrix with its bias.")
def no_projection(image, patch, classes, d, depth):
    return count(image, patch, classes, d, depth, 11 * d**2 + 12 * d)
