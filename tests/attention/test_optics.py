"""A convolution without padding is the linear layer, hence attention is attention; with padding it is another map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import nn

from labkit.attention import optics as mine
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

H, W, HEADS, GRID = 3, 4, 2, (2, 5)
DIM, N = H * W, 10


def as_pictures(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, 1, H, W)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S346")
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_a_valid_convolution_weight_for_weight(bias):
    linear, x = randomized(nn.Linear(DIM, 7, bias=bias)), normal(5, DIM)
    conv = mine.linear_as_valid_conv(linear, H, W)
    checks.equal(conv(as_pictures(x))[..., 0, 0], linear(x), tol=1e-12)
    assert (conv.kernel_size, conv.padding) == ((H, W), (0, 0))
    assert [p.numel() for p in conv.parameters()] == [p.numel() for p in linear.parameters()]
    checks.equal(conv.weight.flatten(1), linear.weight, what="the two layers' weights")


@pytest.mark.paper("S346")
def test_padded_its_features_are_shifts_of_one_kernel_and_no_linear_layer():
    """Feature (y, x) is the picture times the kernel moved to (y, x): it sees what lies around that place."""
    mixer, x = randomized(mine.ConvShareAttention(H, W, HEADS, "same")), normal(N, DIM)
    kernel, bias = mixer.proj.weight, mixer.proj.bias
    out = mixer.convolve(x[None], mixer.proj)[0]
    matrix = mixer.convolve(torch.eye(DIM, dtype=torch.float64)[None], mixer.proj)[0].mT - bias
    before = (H - 1) // 2, (W - 1) // 2  # cells before the middle of a kernel with even sides
    for row in range(DIM):
        for column in range(DIM):
            tap = column // W - row // W + before[0], column % W - row % W + before[1]
            inside = 0 <= tap[0] < H and 0 <= tap[1] < W
            expected = kernel[0, 0, tap[0], tap[1]] if inside else torch.zeros(())
            checks.equal(matrix[row, column], expected, tol=1e-12, what=f"the weight from {column} to {row}")
    middle = before[0] * W + before[1]
    checks.equal(out[:, middle], F.linear(x, kernel.flatten()[None], bias)[:, 0], tol=1e-12)
    distance = (out - out[:, middle, None]).abs().amax(dim=0)  # unpadded, every feature of this kernel would be that
    assert distance[middle] < 1e-12 and (distance[torch.arange(DIM) != middle] > 1e-3).all()


@pytest.mark.paper("S346")
def test_one_pass_through_the_lens_per_output_feature():
    assert mine.optical_passes(mine.linear_as_valid_conv(nn.Linear(DIM, 7), H, W)) == 7
    for padding, passes in (("valid", 4 * DIM), ("same", 4)):
        mixer = mine.ConvShareAttention(H, W, HEADS, padding, bias=False)
        assert mine.optical_passes(mixer.qkv) + mine.optical_passes(mixer.proj) == passes
        weights = mixer.qkv.weight.numel() + mixer.proj.weight.numel()
        assert weights == passes * DIM, "a pass has one mask as large as the aperture."


@pytest.mark.paper("S346")
def test_valid_it_is_the_attention_of_timm_with_the_same_weights():
    theirs, ours = (
        randomized(Attention(DIM, HEADS, qkv_bias=True)),
        mine.ConvShareAttention(H, W, HEADS).double(),
    )
    shapes = ours.state_dict()
    ours.load_state_dict({name: value.reshape(shapes[name].shape) for name, value in theirs.state_dict().items()})
    x = normal(2, N, DIM)
    checks.exact_limit(lambda x: ours(x, GRID), theirs, x, tol=1e-10)
    q, k, v = ours.project(x, GRID)
    checks.equal(ours.mix(q, k, v, GRID), F.scaled_dot_product_attention(q, k, v), tol=1e-12)
    same = mine.ConvShareAttention(H, W, HEADS, "same").double()
    for ours_part, part in ((same.qkv, ours.qkv), (same.proj, ours.proj)):
        ours_part.weight.data.copy_(part.weight[::DIM])
        ours_part.bias.data.copy_(part.bias[::DIM])
    assert (same(x, GRID) - theirs(x)).abs().max() > 1e-2


@pytest.mark.paper("S346")
@pytest.mark.parametrize(("h", "w"), [(3, 4), (6, 5), (4, 7), (9, 9)])
def test_the_lens_gives_the_valid_convolution_where_nothing_wraps(h, w):
    pictures, kernel = normal(5, 1, h, w), normal(7, 1, 3, 4)
    valid = F.conv2d(pictures, kernel)
    seen = mine.lens_convolution(pictures, kernel)
    assert seen.shape == (5, 7, h, w)
    rows, columns = h - 2, w - 3
    checks.equal(seen[..., :rows, :columns], valid, tol=1e-10, what="the crop and the valid convolution")
    wrapped = F.conv2d(F.pad(pictures, (0, 3, 0, 2), mode="circular"), kernel)
    checks.equal(seen, wrapped, tol=1e-10, what="the whole aperture and the circular convolution")
    padded = mine.lens_convolution(F.pad(pictures, (0, 3, 0, 2)), kernel)
    checks.equal(padded[..., :h, :w], F.conv2d(F.pad(pictures, (0, 3, 0, 2)), kernel), tol=1e-10, what="zero padded")


@pytest.mark.paper("S346")
def test_a_linear_layer_through_the_lens():
    linear, x = randomized(nn.Linear(DIM, 7, bias=False)), normal(5, DIM)
    conv = mine.linear_as_valid_conv(linear, H, W)
    checks.equal(mine.lens_convolution(as_pictures(x), conv.weight)[..., 0, 0], linear(x), tol=1e-12)


def test_the_picture_of_a_token_is_as_square_as_can_be():
    assert [mine.picture_of(dim) for dim in (1, 7, 12, 32, 64)] == [(1, 1), (1, 7), (3, 4), (4, 8), (8, 8)]


def test_what_cannot_work_is_said():
    with pytest.raises(LabkitError, match="The layer reads 12 numbers and a picture 3x5 has 15"):
        mine.linear_as_valid_conv(nn.Linear(DIM, 2), 3, 5)
    with pytest.raises(LabkitError, match='padding=\'full\' is unknown; choose "valid" or "same"'):
        mine.ConvShareAttention(H, W, HEADS, "full")
    with pytest.raises(LabkitError, match="for the grid 2x5"):
        mine.ConvShareAttention(H, W, HEADS)(torch.zeros(1, N + 1, DIM), GRID)


def test_it_compiles():
    mixer, x = randomized(mine.ConvShareAttention(H, W, HEADS)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
