"""Pooling between stages: HVT against its own equations, the plain poolings of the grid against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit import tokens
from labkit.errors import LabkitError
from labkit.tokens.pool import AveragePool, MaxPool, StridedPool, token_max_pool
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

GRID = (4, 6)


def model(**kwargs):
    kwargs = {"pool": "avg"} | kwargs
    return randomized(ViT((32, 48), 8, 5, dim=32, depth=3, heads=2, **kwargs))


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reduced(reducer, x, prefix=0, sizes=None):
    return reducer.reduce(x, None, sizes, prefix)


def on_image(x):
    """(b, h*w, d) → (b, d, h, w), as torch pools it."""
    return x.transpose(1, 2).unflatten(2, GRID)


@pytest.mark.paper("S204")
@pytest.mark.parametrize("kwargs", [{}, {"class_token": True}, {"pool": "class", "registers": 2}], ids=str)
@pytest.mark.parametrize("reducer", [MaxPool(1, 1), AveragePool(GRID, 1), StridedPool(GRID, 1)], ids=str)
def test_at_stride_one_it_is_the_plain_model_bit_for_bit(reducer, kwargs, images):
    plain = model(layer_scale=0.1, **kwargs)
    slim = tokens.attach(plain, reducer, range(3))
    assert torch.equal(slim(images), plain(images))
    assert all(step.sizes is None for step in slim.observe(images).steps), "attention needs no bias"


@pytest.mark.paper("S204")
@pytest.mark.parametrize("kernel, stride", [(3, 2), (2, 2), (3, 1), (5, 3), (1, 2)])
def test_tokens_follow_the_arithmetic_of_pooling_stage_by_stage(kernel, stride, images):
    slim = tokens.attach(model(registers=1), MaxPool(kernel, stride), [0, 1])
    first = (24 - kernel) // stride + 1
    second = (first - kernel) // stride + 1
    assert [s.x.shape[1] for s in slim.observe(images).steps] == [1 + first, 1 + second, 1 + second]


@pytest.mark.paper("S204")
@pytest.mark.parametrize("kernel, stride", [(3, 2), (4, 1), (2, 3)])
def test_pooled_values_are_members_of_their_window(kernel, stride):
    x = normal(2, 11, 8)
    pooled, share = token_max_pool(x, kernel, stride)
    windows = x.unfold(1, kernel, stride)
    assert (pooled[..., None] == windows).any(-1).all() and (pooled[..., None] >= windows).all()
    for i in range(pooled.shape[1]):  # what each old token gave, counted channel by channel
        given = (x == pooled[:, i : i + 1]).double().mean(2)
        checks.equal(share[:, i], given, 1e-7, f"the shares of window {i}")
    checks.rows_sum_to_one(share, 1e-6)
    checks.batch_independent(lambda x: token_max_pool(x, kernel, stride), x, 0.0)
    coarse = token_max_pool(normal(2, 11, 100).bfloat16(), kernel, stride)[1]
    checks.rows_sum_to_one(coarse.double(), 1e-6)


@pytest.mark.paper("S204")
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_cost_is_a_linear_and_a_quadratic_term_for_each_stage(stages):
    """Halved in stage s, N/2^s tokens pay the linear term and N²/4^s the quadratic one.

    A reducer acts between attention and MLP, so the MLP of a stage's last block already has the tokens of the next.
    """
    d, n, blocks = 32, 24, 2
    plain = ViT((32, 48), 8, 0, dim=d, depth=blocks * stages, heads=2, pool="avg").eval()
    slim = tokens.attach(plain, MaxPool(2, 2), [blocks * s - 1 for s in range(1, stages)])
    macs = 3 * 8 * 8 * d * n
    for s in range(stages):
        macs += blocks * (12 * d**2 * (n / 2**s) + 2 * d * (n**2 / 4**s))
    for before in (n / 2**s for s in range(stages - 1)):
        macs -= 8 * d**2 * (before - before / 2)
    checks.cost_law(macs, slim, torch.randn(1, 3, 32, 48))


@pytest.mark.paper("S204")
def test_two_stages_are_the_papers_equations(images):
    """Max-pool, add the positions of the stage, go on with plain attention; read the mean of the last tokens."""
    plain, position = model(), normal(1, 11, 32)
    slim = tokens.attach(plain, MaxPool(3, 2, position), [1])
    x, grid = plain.embed(images)
    x = plain.blocks[0](x, grid).x
    second, third = plain.blocks[1:]
    x = F.max_pool1d((x + second.mix(x, grid, None)[0]).mT, 3, 2).mT + position
    x = x + second.mlp(second.norm2(x))
    x = third(x, grid).x
    checks.equal(slim(images), plain.head(plain.norm(x).mean(1)), 1e-10)


def test_the_prefix_is_neither_pooled_nor_moved(images):
    for reducer in (MaxPool(3, 2), MaxPool(1, 2), AveragePool(GRID, 2), StridedPool(GRID, 3)):
        step = tokens.attach(model(pool="class", registers=2), reducer, [0]).observe(images).steps[0]
        checks.rows_sum_to_one(step.map, 1e-6)
        alone = torch.eye(3, step.map.shape[2]).expand(2, -1, -1)
        checks.equal(step.map[:, :3], alone, 0.0, f"the prefix under {reducer}")
        assert not step.map[:, 3:, :3].any()
        x = normal(2, 27, 32)
        checks.equal(reduced(reducer, x, 3)[0][:, :3], x[:, :3], 0.0)
        checks.equal(reduced(reducer, x, 3)[0][:, 3:], reduced(reducer, x[:, 3:])[0], 0.0, "with and without prefix")
        checks.follows_dtype_and_device(lambda x, r=reducer: reduced(r, x, 3)[0], x)


@pytest.mark.parametrize("stride", [2, 3, 4, 7])
def test_the_mean_and_the_first_of_a_square_are_torchs(stride, images):
    """A square that the border cuts holds fewer patches and is their mean."""
    x = normal(2, 24, 8)
    mean, groups = reduced(AveragePool(GRID, stride), x)
    expected = F.avg_pool2d(on_image(x), stride, ceil_mode=True, count_include_pad=False)
    checks.equal(mean, expected.flatten(2).mT, 1e-12)
    checks.equal(groups.matrix().double() @ x, mean, 1e-6, "the map and what was done")
    first, choice = reduced(StridedPool(GRID, stride), x)
    checks.equal(first, on_image(x)[:, :, ::stride, ::stride].flatten(2).mT, 0.0)
    checks.equal(choice.mean(x), first, 0.0, "the map and what was done")
    sizes = tokens.attach(model(), AveragePool(GRID, stride), [0]).observe(images).steps[0].sizes
    checks.equal(sizes.sum(1), torch.full((2,), 24.0), 0.0, "every patch counted once")


def test_pooling_twice_is_the_mean_of_all_the_patches():
    """Squares of unequal size count by their size: 6 columns in squares of 4, then all of them."""
    x = normal(1, 24, 8)
    mean, groups = reduced(AveragePool(GRID, 4), x)
    sizes = groups.total(torch.ones(1, 24, 1).double())[..., 0]
    assert sizes.tolist() == [[16, 8]]
    checks.equal(reduced(AveragePool((1, 2), 2), mean, sizes=sizes)[0], x.mean(1, keepdim=True), 1e-12)


def test_what_cannot_be_pooled_is_refused():
    x = normal(1, 24, 8)
    with pytest.raises(LabkitError, match="grid of 5x5 has 25 patches, but 24 arrived"):
        reduced(AveragePool((5, 5)), x)
    with pytest.raises(LabkitError, match="grid of 4x6 has 24 patches, but 23 arrived"):
        reduced(StridedPool(GRID), x, prefix=1)
    with pytest.raises(LabkitError, match="stride=0 does not move"):
        reduced(AveragePool(GRID, 0), x)
    with pytest.raises(LabkitError, match="kernel=25, stride=2 cannot pool 24 patch tokens"):
        reduced(MaxPool(25), x)
