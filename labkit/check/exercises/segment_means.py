"""One token a segment, whatever its shape: the mean of the features of its pixels."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.patching.segments import segment_tokens


def reference(features, labels, n):
    return segment_tokens(features, labels, n).x


task = Exercise(
    lesson="02_images_to_tokens",
    reference=reference,
    source="labkit.patching.segments.segment_tokens",
    axes=("images", "segments", "d"),
    hints=(
        "Which pixel is in which segment is a matrix of zeros and ones: `labels.flatten(1)[:, None] == "
        "torch.arange(n)[:, None]` "
        "is (b, n, pixels).",
        "That matrix times the features (b, pixels, d) is the sum over each segment; its row sums are the pixels of "
        "each. "
        "`clamp(min=1)` saves the empty ones from 0 / 0.",
    ),
    praise="A square grid is the special case in which all segments are equally large.",
)


@task.stub
def segment_means(features, labels, n):
    """Write `segment_means(features, labels, n)`: features (b, d, h, w), and for each pixel the number of its segment,
    labels (b, h, w) from 0 to n - 1. Return the mean of each segment, (b, n, d); a segment without pixels gets zeros.
    """
    return torch.zeros(len(features), n, features.shape[1])


@task.cases
def cases(dice):
    for b, d, h, w, n in ((1, 2, 2, 3, 2), (2, 3, 4, 5, 4), (3, 4, 3, 6, 5)):
        labels = torch.randint(n, (b, h, w), generator=dice)
        labels[:, 0, :2] = torch.tensor([0, 1])
        if b > 1:
            labels[-1][labels[-1] == n - 1] = 0  # one segment is empty
        yield normal(dice, b, d, h, w), labels, n


def members(labels, n):
    """(b, n, pixels): 1 where the pixel is in the segment."""
    return (labels.flatten(1)[:, None] == torch.arange(n)[:, None]).float()


def rows(features):
    return features.flatten(2).transpose(1, 2)


@task.mistake("These are sums: a large segment would speak louder than a small one. Divide by its number of pixels.")
def sums(features, labels, n):
    return members(labels, n) @ rows(features)


@task.mistake("You divided by the pixels of the whole image; each segment has its own number of pixels.")
def over_all_pixels(features, labels, n):
    return members(labels, n) @ rows(features) / labels[0].numel()


@task.mistake("A segment without pixels becomes 0 / 0, NaN: divide by at least 1, and it stays at zero.")
def empty_is_nan(features, labels, n):
    inside = members(labels, n)
    return inside @ rows(features) / inside.sum(dim=-1, keepdim=True)


@task.mistake("All images get the segments of the first: right for one image alone. Each has labels of its own.")
def first_labels(features, labels, n):
    return reference(features, labels[:1].expand_as(labels), n)


@task.mistake(
    "`reshape` to (b, pixels, d) mixes channels and pixels: the d features of a pixel do not lie side by side in (b, "
    "d, h, "
    "w). Flatten the pixels, then transpose."
)
def reshaped(features, labels, n):
    inside = members(labels, n)
    flat = features.reshape(len(features), -1, features.shape[1])
    return inside @ flat / inside.sum(dim=-1, keepdim=True).clamp(min=1)


@task.mistake("You took the first pixel of each segment; its token should be the mean of all of them.")
def first_pixel(features, labels, n):
    inside = members(labels, n)
    first = torch.nn.functional.one_hot(inside.argmax(dim=-1), inside.shape[-1]) * inside
    return first @ rows(features)
