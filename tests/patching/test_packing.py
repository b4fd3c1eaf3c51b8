"""Packed images are as they would be alone: values, gradients, positions; and what a row costs is counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from labkit import tokens
from labkit.blocks import parallel
from labkit.errors import LabkitError
from labkit.patching.packing import (
    Bill,
    EachAlone,
    bills,
    block_diagonal_bias,
    fill,
    layout,
    pack,
    packed_forward,
    places,
    unpack,
)
from labkit.patching.patches import uncut
from labkit.positions.conditional import PEG
from labkit.positions.relative import RelativeBias
from labkit.positions.rope import RoPEAxial
from labkit.vit import Attention, ViT
from tests import checks
from tests.weights import normal, randomized

P, DIM, HEADS = 4, 16, 2
SIZES = [(8, 12), (4, 4), (16, 8), (12, 12)]  # 6, 1, 8 and 9 patches
LENGTHS = [6, 1, 8, 9]


def images(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    noise = normal(len(SIZES), 3, 16, 16).to(dtype)
    return [image[:, :h, :w] for image, (h, w) in zip(noise, SIZES, strict=True)]


def vit(**options) -> ViT:
    return randomized(ViT((8, 12), P, 5, DIM, 2, HEADS, **options))


@pytest.mark.paper("S374")
@pytest.mark.parametrize("length", [None, 10, 14])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"registers": 2, "pool": "avg", "class_token": True},
        {"prefix_positions": False, "layer_scale": 0.1},
        {"position": RoPEAxial(DIM // HEADS)},
        {"position": [RelativeBias((4, 3), HEADS) for _ in range(2)]},
        {"position": PEG(DIM)},
    ],
    ids=["class", "average", "layer scale", "rotary", "bias", "convolution"],
)
def test_packed_is_as_one_by_one(options, length):
    model = vit(**options)
    length = length and length + model.prefix
    alone = torch.cat([model(image[None]) for image in images()])
    checks.equal(packed_forward(model, images(), length), alone, 1e-12)
    checks.equal(packed_forward(model.set_impl("plain"), images(), length), alone, 1e-12)
    checks.equal(packed_forward(model.float(), images(torch.float32), length), alone, 1e-5)


@pytest.mark.paper("S374")
def test_no_gradient_crosses_between_images():
    model, inputs = vit(), [image.requires_grad_(True) for image in images()]
    packed_forward(model, inputs, 15)[2].sum().backward()
    assert all((image.grad == 0).all() for i, image in enumerate(inputs) if i != 2)
    assert (inputs[2].grad != 0).all()


@pytest.mark.paper("S374")
@pytest.mark.parametrize("length", [None, 9, 13])
def test_packing_loses_nothing(length):
    packed = pack(images(), P, length)
    for part, image in zip(unpack(packed.x, packed.segments), images(), strict=True):
        grid = (image.shape[1] // P, image.shape[2] // P)
        assert torch.equal(uncut(part[None], P, grid)[0], image)
    for coords, (h, w) in zip(unpack(packed.coords, packed.segments), SIZES, strict=True):
        assert coords.tolist() == [[r, c] for r in range(h // P) for c in range(w // P)]
    assert (packed.x[packed.segments < 0] == 0).all()


def test_rows_are_filled_longest_first_and_no_sequence_is_split():
    segments = layout([3, 5, 2, 1], 6)
    assert segments.tolist() == [[1, 1, 1, 1, 1, 3], [0, 0, 0, 2, 2, -1]]
    assert places(segments) == [(1, slice(0, 3)), (0, slice(0, 5)), (1, slice(3, 5)), (0, slice(5, 6))]
    parts = [normal(n, 2) for n in (3, 5, 2, 1)]
    checks.equal(unpack(fill(parts, segments), segments), parts)


@pytest.mark.paper("S374")
@pytest.mark.parametrize("length", [None, 9, 12, 17])
def test_the_waste_is_counted_exactly(length):
    bill, packed = bills(LENGTHS, length), pack(images(), P, length)
    assert bill["alone"] == Bill(24, 36 + 1 + 64 + 81)
    assert bill["padded"] == Bill(4 * 9, 4 * 81)
    assert bill["packed"].tokens - bill["alone"].tokens == int((packed.segments < 0).sum())
    bias = block_diagonal_bias(packed.segments, torch.float64)
    assert bill["packed"].pairs == bias.numel()
    own = (bias == 0)[(packed.segments >= 0)[:, None, :, None].expand_as(bias)]
    assert bill["alone"].pairs == int(own.sum())


def test_known_bills():
    assert bills([6, 1, 8, 9], 9)["packed"] == Bill(27, 243)  # 9 | 8 + 1 | 6, and three places wasted
    assert bills([4] * 8, 16)["packed"] == Bill(32, 512)
    assert bills([4] * 8)["packed"] == Bill(32, 1024)  # one row of all images: tokens saved, pairs not


def test_a_row_costs_what_its_bill_says():
    model, length = vit(pool="avg", class_token=True).float(), 10
    bill = bills([n + 1 for n in LENGTHS], length)["packed"]
    blocks = 2 * (12 * bill.tokens * DIM**2 + 2 * bill.pairs * DIM)
    ends = sum(LENGTHS) * 3 * P**2 * DIM + len(LENGTHS) * DIM * 5
    some = images(torch.float32)
    checks.cost_law(blocks + ends, lambda _: packed_forward(model, some, length), torch.zeros(1))


@pytest.mark.paper("S374")
def test_attention_through_the_mask_is_attention_of_each():
    attn, segments = randomized(Attention(DIM, HEADS)), layout(LENGTHS, 10)
    parts = [normal(n, DIM) + i for i, n in enumerate(LENGTHS)]
    out, evidence = attn.attend(fill(parts, segments), block_diagonal_bias(segments, torch.float64))
    checks.equal(unpack(out, segments), [attn(part[None])[0] for part in parts], 1e-12)
    other = segments[:, None, :, None] != segments[:, None, None, :]
    assert (evidence.attention()[other.expand(-1, HEADS, -1, -1)] == 0).all()
    assert not out.isnan().any()  # not even where there is nobody


@pytest.mark.paper("S374")
def test_rotary_scores_depend_on_differences_of_coordinates_alone():
    """The same query and key at every place: equal displacements give equal scores, within and across images."""
    packed = pack(images(), P, 17)
    grids = [(h // P, w // P) for h, w in SIZES]
    q, k = (normal(2, HEADS, 1, DIM)[i].expand(len(packed.x), HEADS, 17, DIM) for i in range(2))
    bias = block_diagonal_bias(packed.segments, torch.float64)
    q, k, bias = EachAlone(RoPEAxial(DIM), packed.segments, grids)(q, k, bias, (0, 0), 0)
    scores, seen = q @ k.transpose(-2, -1) + bias, {}
    for (row, where), coords in zip(places(packed.segments), unpack(packed.coords, packed.segments), strict=True):
        steps = (coords[:, None] - coords[None]).flatten(0, 1).tolist()
        for step, pair in zip(steps, scores[row, :, where, where].flatten(1).T, strict=True):
            checks.equal(seen.setdefault(tuple(step), pair), pair, 1e-12, f"displacement {step}")
    assert len(seen) > 20 and torch.stack(list(seen.values())).std(dim=0).min() > 0.1


def test_the_model_is_as_it_was():
    model = vit(position=RoPEAxial(DIM // HEADS))
    packed_forward(model, images())
    assert all(isinstance(block.attn.position, RoPEAxial) for block in model.blocks)
    checks.gradients_flow(_Packed(model.float()), torch.zeros(1))
    checks.follows_dtype_and_device(_Packed(model), torch.zeros(1))


class _Packed(torch.nn.Module):
    def __init__(self, model: ViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, like: Tensor) -> Tensor:
        return packed_forward(self.model, [image.to(like) for image in images()], 12)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: layout([3, 5], 4), r"\[3, 5\] tokens do not fit into rows of 4"),
        (lambda: layout([]), "do not fit"),
        (lambda: pack([torch.zeros(3, 10, 8)], 4), "10x8 is not divisible by the patch size 4x4"),
        (lambda: packed_forward(tokens.attach(vit(), tokens.Keep(0.5), [0]), images()), "no token reducer"),
        (lambda: packed_forward(parallel(vit()), images()), "plain attention"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
