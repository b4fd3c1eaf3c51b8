"""Heads on slices of the channels: timm's modules and models, whole heads in the limit, and who can see whom."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from timm.models import create_model, efficientvit_msra, shvit
from torch import Tensor, nn

from labkit.attention import sliced
from labkit.attention.conv_norm import fuse
from labkit.attention.dense import MultiHead, scaled_dot_product
from labkit.attention.sliced import CascadedGroupAttention, SingleHeadPartialAttention
from labkit.errors import LabkitError
from labkit.patching.conv_stem import ConvStem
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (4, 4)
N = GRID[0] * GRID[1]


class OnImages(nn.Module):
    """A mixer in the place of timm's module, which maps images (b, c, h, w)."""

    def __init__(self, mixer: nn.Module, theirs: nn.Module) -> None:
        super().__init__()
        weights = {name.replace(".c.", ".conv."): value for name, value in theirs.state_dict().items()}
        mixer.double().load_state_dict(weights)
        self.mixer, self.resolution = mixer.eval(), getattr(theirs, "resolution", None)

    def forward(self, images: Tensor) -> Tensor:
        grid = tuple(images.shape[-2:])
        out = self.mixer(rearrange(images, "b c h w -> b (h w) c"), grid)
        return rearrange(out, "b (h w) c -> b c h w", h=grid[0])


def single(theirs: shvit.SHSA) -> OnImages:
    return OnImages(SingleHeadPartialAttention(theirs.dim, theirs.pdim, theirs.qk_dim), theirs)


def cascaded(theirs: efficientvit_msra.CascadedGroupAttention) -> OnImages:
    dim, grid = theirs.proj[1].bn.num_features, (theirs.resolution, theirs.resolution)
    return OnImages(CascadedGroupAttention(dim, theirs.num_heads, grid, theirs.key_dim), theirs)


def swapped(model: nn.Module, kind: type[nn.Module], ours) -> None:
    """Every module of this kind in the model becomes ours, with its weights."""
    for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, kind)]:
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent).add_module(child, ours(module))


@pytest.mark.parametrize("variant", sliced.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S056")
@pytest.mark.parametrize("pdim", [6, DIM])
def test_a_single_head_is_that_of_timm(pdim):
    theirs, x = randomized(shvit.SHSA(DIM, 16, pdim)), normal(2, DIM, 3, 5)
    checks.exact_limit(single(theirs), theirs, x, tol=1e-12)


@pytest.mark.paper("S056")
def test_shvit_is_that_of_timm_and_survives_the_fusion():
    """The logits with our heads, and with every batch norm of the model folded into its convolution."""
    model, x = randomized(create_model("shvit_s1", num_classes=5), std=0.05), normal(2, 3, 64, 96)
    expected = model(x)
    swapped(model, shvit.SHSA, single)
    assert sum(isinstance(m, SingleHeadPartialAttention) for m in model.modules()) == 9
    checks.equal(model(x), expected, 1e-9, "the logits with our heads and timm's")
    fused = fuse(model)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    checks.equal(fused(x), expected, 1e-9, "the logits with and without batch norms")


@pytest.mark.paper("S056")
def test_on_all_channels_it_is_one_head_of_attention():
    mixer, x = randomized(SingleHeadPartialAttention(DIM, DIM, DIM)), normal(2, N, DIM)
    plain = MultiHead(DIM, heads=1).double()
    qkv = fuse(mixer).qkv.conv
    plain.qkv.weight.data, plain.qkv.bias.data = qkv.weight.data[:, :, 0, 0], qkv.bias.data
    nn.init.eye_(plain.proj.weight)
    nn.init.zeros_(plain.proj.bias)
    mixer.pre_norm = nn.Identity()
    checks.exact_limit(lambda x: mixer.gather(x, GRID), lambda x: plain(x, GRID), x, tol=1e-12)


@pytest.mark.paper("S056")
def test_the_other_channels_pass_by_bit_for_bit():
    mixer, x = randomized(SingleHeadPartialAttention(DIM, 6)), normal(2, N, DIM)
    gathered = mixer.gather(x, GRID)
    checks.equal(gathered[..., 6:], x[..., 6:], what="the channels beside the slice")
    other = x.clone()
    other[..., 6:] += normal(2, N, DIM - 6)
    checks.equal(mixer.gather(other, GRID)[..., :6], gathered[..., :6], what="the slice, whatever is beside it")


@pytest.mark.paper("S056")
def test_a_stem_of_stride_16_leaves_a_sixteenth_of_the_tokens():
    images = torch.zeros(1, 3, 64, 96)
    coarse, fine = (ConvStem(stride, 32).eval()(images)[0].shape[1] for stride in (16, 4))
    assert (coarse, fine) == (24, 16 * 24)


@pytest.mark.paper("S035")
@pytest.mark.parametrize("resolution", [3, 5])
def test_a_cascade_is_that_of_timm(resolution):
    make = efficientvit_msra.CascadedGroupAttention
    theirs = randomized(nn.Sequential(make(DIM, 16, HEADS, DIM / HEADS / 16, resolution)))[0]
    checks.exact_limit(cascaded(theirs), theirs, normal(2, DIM, resolution, resolution), tol=1e-12)


@pytest.mark.paper("S035")
def test_efficientvit_is_that_of_timm():
    model, x = randomized(create_model("efficientvit_m0", num_classes=5), std=0.05), normal(1, 3, 224, 224)
    expected = model(x)
    swapped(model, efficientvit_msra.CascadedGroupAttention, cascaded)
    assert sum(isinstance(m, CascadedGroupAttention) for m in model.modules()) == 6
    checks.equal(model(x), expected, 1e-9, "the logits with our heads and timm's")


@pytest.mark.paper("S035")
@pytest.mark.parametrize("cascade", [True, False])
def test_a_head_sees_the_slices_up_to_its_own(cascade):
    """The heads' Jacobian in blocks: lower-triangular; alone, diagonal."""
    mixer = randomized(CascadedGroupAttention(DIM, HEADS, GRID, cascade=cascade))
    jacobian = torch.func.jacrev(lambda x: mixer.gather(x[None], GRID)[0])(normal(N, DIM))
    blocks = rearrange(jacobian, "n (head d) m (part e) -> head part (n d m e)", head=HEADS, part=HEADS)
    seen = (blocks != 0).any(dim=-1)
    expected = torch.ones(HEADS, HEADS, dtype=torch.bool).tril() if cascade else torch.eye(HEADS, dtype=torch.bool)
    checks.equal(seen, expected, what="which head depends on which slice")


@pytest.mark.paper("S035")
def test_the_weights_of_q_k_v_fall_by_the_number_of_heads():
    for heads in (1, 2, 4):
        mixer = CascadedGroupAttention(32, heads, GRID, key_dim=16)
        ours = sum(qkv.conv.weight.numel() for qkv in mixer.qkvs)
        each_head_reads_all = heads * 32 * (2 * 16 + 32 // heads)
        assert ours * heads == each_head_reads_all


def test_one_slice_without_looking_around_is_one_head_of_attention():
    mixer = randomized(CascadedGroupAttention(DIM, 1, GRID, key_dim=8, kernel=1))
    with torch.no_grad():
        mixer.attention_biases.zero_()
    mixer.dws[0] = nn.Identity()
    x = normal(2, N, DIM)
    qkv = fuse(mixer).qkvs[0].conv
    q, k, v = (x @ qkv.weight[:, :, 0, 0].T + qkv.bias).split([8, 8, DIM], dim=-1)
    checks.exact_limit(lambda x: mixer.gather(x, GRID), lambda _: scaled_dot_product(q, k, v), x, tol=1e-12)


def test_the_bias_depends_on_the_distance_along_both_axes():
    """On a grid that is not square: equal distances share a bias, others do not."""
    mixer = CascadedGroupAttention(DIM, HEADS, (2, 5))
    apart = {
        (abs(i // 5 - j // 5), abs(i % 5 - j % 5), int(mixer.distance[i, j])) for i in range(10) for j in range(10)
    }
    assert len(apart) == len({number for *_, number in apart}) == len({(dy, dx) for dy, dx, _ in apart}) == 10


def test_it_compiles():
    mixer, x = randomized(SingleHeadPartialAttention(DIM, 6)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


def test_what_cannot_work_is_a_sentence():
    with pytest.raises(LabkitError, match=r"A slice of 32 of 24 channels is none; choose pdim from 1 to 24\."):
        SingleHeadPartialAttention(DIM, 32)
    with pytest.raises(LabkitError, match=r"Width 24 does not divide into 5 slices; choose a multiple of 5\."):
        CascadedGroupAttention(DIM, 5, GRID)
    with pytest.raises(LabkitError, match=r"A kernel of 4 has no middle and shifts the grid; choose an odd one\."):
        CascadedGroupAttention(DIM, HEADS, GRID, kernel=4)
    with pytest.raises(LabkitError, match=r"distances of the grid 4x4, and the tokens are on 2x8; make the mixer"):
        CascadedGroupAttention(DIM, HEADS, GRID).double()(normal(1, N, DIM), (2, 8))
