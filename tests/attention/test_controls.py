"""The controls move tokens by fixed maps: each is compared with that map, written out, and with timm's module."""

from __future__ import annotations

import pytest
import torch
from timm.models import metaformer
from torch import nn

from labkit.attention import controls as mine
from labkit.attention.grid import to_map, to_tokens
from labkit.attention.matrix import effective_matrix, receptive_field
from labkit.errors import LabkitError
from labkit.vit import Block
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 8, 2, (3, 5)
N = GRID[0] * GRID[1]


def block_around(mixer: nn.Module):
    """A whole transformer block as a mixer: (x, grid) → x."""
    block = randomized(Block(DIM, HEADS, mixer=mixer))
    return lambda x, grid: block(x, grid).x


def near(k: int) -> torch.Tensor:
    """(n, n): 1 where the token of the column lies in the k x k cells around that of the row."""
    cells = torch.cartesian_prod(*(torch.arange(side) for side in GRID))
    return ((cells[:, None] - cells).abs().amax(dim=-1) <= k // 2).double()


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S122")
def test_a_block_that_mixes_nothing_keeps_every_token_to_itself():
    field = receptive_field(block_around(mine.ContentFree(DIM, HEADS)), normal(1, N, DIM), GRID)
    assert torch.equal(field > 0, torch.eye(N, dtype=torch.bool))
    checks.equal(effective_matrix(mine.ContentFree(DIM, HEADS), normal(1, N, DIM), GRID)[0, 1], torch.eye(N))


@pytest.mark.paper("S122")
def test_the_random_matrix_is_row_stochastic_and_learns_nothing():
    mixer = mine.RandomMixing(DIM, HEADS, N).double()
    checks.rows_sum_to_one(mixer.matrix, tol=1e-6)
    assert not list(mixer.parameters()) and not mixer.matrix.requires_grad
    assert mixer.matrix.std(dim=1).min() > 0, "the rows are uniform: it would be an average."
    x = normal(2, N, DIM)
    checks.equal(mixer(x, GRID), torch.einsum("ij,bjc->bic", mixer.matrix, x), tol=1e-12)
    checks.equal(effective_matrix(mixer, x, GRID), mixer.matrix.expand(2, HEADS, N, N), tol=1e-12)
    again = mine.RandomMixing(DIM, HEADS, N).double()
    again.load_state_dict(mixer.state_dict())
    checks.equal(again(x, GRID), mixer(x, GRID), what="the map before and after it was saved")


@pytest.mark.paper("S122")
def test_star_relu_turns_a_standard_normal_into_mean_zero_and_variance_one():
    """E relu(x)² = 1/2 and E relu(x)⁴ = 3/2, hence variance 5/4; the integral is taken by a fine sum."""
    act = mine.StarReLU().double().requires_grad_(False)
    assert (round(float(act.scale), 4), round(float(act.bias), 4)) == (0.8944, -0.4472)
    x = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
    density = (-x.square() / 2).exp() / (2 * torch.pi) ** 0.5 * (x[1] - x[0])
    mean = (density * act(x)).sum()
    checks.equal(mean, torch.zeros(()), tol=1e-7, what="the mean and 0")
    checks.equal((density * (act(x) - mean).square()).sum(), torch.ones(()), tol=1e-7, what="the variance and 1")
    theirs = metaformer.StarReLU().double()
    theirs.load_state_dict(act.state_dict())
    checks.equal(act(x), theirs(x), tol=1e-12, what="our StarReLU and timm's")


@pytest.mark.paper("S122")
@pytest.mark.parametrize("k", [3, 7])
def test_the_separable_convolution_is_the_one_of_timm(k):
    theirs = randomized(metaformer.SepConv(DIM, kernel_size=k, padding=k // 2))
    ours = mine.SepConv(DIM, k).double()
    ours.load_state_dict(theirs.state_dict())
    x = normal(2, N, DIM)
    checks.exact_limit(lambda x: ours(x, GRID), lambda x: to_tokens(theirs(to_map(x, GRID))), x, tol=1e-12)


@pytest.mark.paper("S146")
@pytest.mark.parametrize("k", [1, 3, 5])
def test_pooling_is_that_of_timm_and_a_banded_matrix_minus_the_identity(k):
    mixer, x = mine.PoolMixer(DIM, HEADS, k), normal(2, N, DIM)
    assert not list(mixer.parameters())
    checks.equal(mixer(x, GRID), to_tokens(metaformer.Pooling(k)(to_map(x, GRID))))
    band = near(k) / near(k).sum(dim=1, keepdim=True)  # a token at the border has fewer neighbours
    checks.equal(effective_matrix(mixer, x, GRID)[1, 0], band - torch.eye(N), tol=1e-12)
    checks.equal(mixer(torch.full((1, N, DIM), 0.75), GRID), torch.zeros(1, N, DIM), what="a constant's pool and 0")


@pytest.mark.paper("S146")
def test_the_cost_of_pooling_is_linear_in_the_tokens():
    prices = [mine.PoolMixer(DIM).cost((side, side)) for side in (4, 8, 16)]
    assert [p.macs for p in prices] == [0, 0, 0]
    assert prices[1].bytes == 4 * prices[0].bytes and prices[2].bytes == 16 * prices[0].bytes
    assert prices[0].bytes == laws.FLOAT * 16 * DIM


class GroupNorm(nn.GroupNorm):
    """One group over all tokens and channels, as PoolFormer has it, for tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, dim, eps=1e-6)

    def forward(self, x):
        return super().forward(x.mT).mT


@pytest.mark.paper("S146")
def test_a_block_with_pooling_is_that_of_poolformer_in_timm():
    theirs = metaformer.MetaFormerBlock(
        DIM, metaformer.Pooling, nn.GELU, True, metaformer.GroupNorm1, layer_scale_init_value=0.1
    )
    theirs = randomized(theirs)
    for norm in (theirs.norm1, theirs.norm2):
        norm.eps = 1e-6
    ours = Block(DIM, HEADS, layer_scale=0.1, norm=GroupNorm, mixer=mine.PoolMixer(DIM)).double().eval()
    weights = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("layer_scale1.scale", "ls1.gamma").replace("layer_scale2.scale", "ls2.gamma")
        weights[name] = value.flatten(1) if value.ndim == 4 else value
    ours.load_state_dict(weights)
    x = normal(2, N, DIM)
    checks.equal(ours(x, GRID).x, to_tokens(theirs(to_map(x, GRID))), tol=1e-12)


def test_a_depthwise_kernel_of_one_tap_moves_every_token_by_that_tap():
    mixer, x = mine.DepthwiseMixer(DIM, HEADS, k=3).double(), normal(2, N, DIM)
    with torch.no_grad():
        mixer.kernel.zero_()[:, 0, 0, 2] = 1.0  # one row up, one column to the right
    out, picture = to_map(mixer(x, GRID), GRID), to_map(x, GRID)
    checks.equal(out[..., 1:, :-1], picture[..., :-1, 1:], tol=1e-12)
    assert not out[..., 0, :].any() and not out[..., -1].any(), "zeros lie behind the border."


def test_a_depthwise_kernel_reaches_its_cells_and_no_channel_but_its_own():
    mixer = randomized(mine.DepthwiseMixer(DIM, HEADS, k=5))
    assert torch.equal(receptive_field(mixer, normal(1, N, DIM), GRID) > 0, near(5) > 0)
    x = normal(1, N, DIM)
    changed = mixer(x, GRID) != mixer(x + torch.eye(DIM)[2].double(), GRID)
    assert torch.equal(changed.any(dim=1)[0], torch.eye(DIM)[2].bool())


@pytest.mark.parametrize("dim", [7, 8])
@pytest.mark.parametrize("grid", [(3, 5), (4, 2), (1, 1)])
def test_fourier_mixing_is_the_real_part_of_the_three_transforms_written_as_matrices(dim, grid):
    x = normal(2, grid[0] * grid[1], dim)
    over_rows, over_columns, over_channels = (transform(side) for side in (*grid, dim))
    picture = x.unflatten(1, grid).to(torch.complex128)
    out = torch.einsum("uh,vw,dc,bhwc->buvd", over_rows, over_columns, over_channels, picture)
    checks.equal(mine.FourierMixing(dim)(x, grid), out.real.flatten(1, 2), tol=1e-12)


def transform(n: int) -> torch.Tensor:
    """(n, n): exp(-2πi jk/n) / √n."""
    places = torch.arange(n, dtype=torch.float64)
    return torch.exp(-2j * torch.pi * torch.outer(places, places) / n) / n**0.5


def test_the_matrix_of_fourier_mixing_is_the_cosines():
    mixer, x = mine.FourierMixing(DIM), normal(1, N, DIM)
    cosines = torch.kron(transform(GRID[0]), transform(GRID[1])).real / DIM**0.5
    checks.equal(effective_matrix(mixer, x, GRID)[0, 0], cosines, tol=1e-12)


def test_what_cannot_work_is_said():
    with pytest.raises(LabkitError, match="drawn for 12 tokens and there are 15; make RandomMixing with n=15"):
        mine.RandomMixing(DIM, HEADS, 12)(torch.zeros(1, N, DIM), GRID)
    for make in (mine.PoolMixer, mine.DepthwiseMixer, lambda d, h, k: mine.SepConv(d, k)):
        with pytest.raises(LabkitError, match="4x4 cells has no middle one; choose an odd k"):
            make(DIM, HEADS, 4)
    with pytest.raises(LabkitError, match="Width 8 does not divide into 3 heads"):
        mine.ContentFree(DIM, 3)
    for variant in mine.GALLERY:
        with pytest.raises(LabkitError, match="without a class token"):
            variant.make(DIM, HEADS, GRID)(torch.zeros(1, N + 1, DIM), GRID)


def test_it_compiles():
    mixer, x = mine.SepConv(DIM, 3), normal(1, N, DIM).float()
    checks.compiles(mixer, x, GRID, tol=1e-5)
