"""Soft clustering: means of tokens, means of slots, and one hard assignment when the scale is large."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.attention import slots as mine
from labkit.attention.mixer import Mixer
from labkit.attention.slots import GLMixBlock, dispatch, membership, soft_cluster
from labkit.errors import LabkitError
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (6, 8)
N, M = math.prod(GRID), 16


def tokens_and_slots() -> tuple[Tensor, Tensor]:
    return normal(2, N, DIM), normal(2, M, DIM).flip(1)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S351")
def test_constant_maps_pass_through_unchanged():
    x, slots = tokens_and_slots()
    constant = x[:, :1].expand_as(x)
    z, logits = soft_cluster(constant, slots, 3.0)
    checks.equal(z, constant[:, :M], tol=1e-12)
    checks.equal(dispatch(z, logits), constant, tol=1e-12)


@pytest.mark.paper("S351")
@pytest.mark.parametrize("scale", [0.0, 0.2, 5.0])
def test_slots_and_tokens_are_means_of_what_they_are_made_of(scale):
    """The weights themselves, read off one-hot tokens and slots: no row leaves the convex hull."""
    x, slots = tokens_and_slots()
    z, logits = soft_cluster(x, slots, scale)
    cosine = F.cosine_similarity(slots[:, :, None], x[:, None], dim=-1)
    checks.equal(logits, scale * cosine, tol=1e-12)
    of_tokens, of_slots = logits.softmax(-1), dispatch(torch.eye(M).double().expand(2, M, M), logits)
    for weights in (of_tokens, of_slots):
        checks.rows_sum_to_one(weights, tol=1e-12)
    checks.equal(z, of_tokens @ x, tol=1e-12)
    checks.equal(dispatch(z, logits), of_slots @ of_tokens @ x, tol=1e-12)
    out = dispatch(z, logits)
    assert bool((out <= x.amax(1, keepdim=True)).all()) and bool((out >= x.amin(1, keepdim=True)).all())


@pytest.mark.paper("S351")
def test_a_large_scale_is_one_assignment_of_k_means():
    """Each token goes to the nearest slot, on the sphere; each slot becomes the token that is nearest to it."""
    x, slots = tokens_and_slots()
    far = torch.cdist(F.normalize(slots, dim=-1), F.normalize(x, dim=-1))  # (b, m, n)
    z, logits = soft_cluster(x, slots, 1e8)
    checks.equal(membership(logits), F.one_hot(far.argmin(1), M).double(), tol=1e-12)
    checks.equal(z, x.gather(1, far.argmin(2)[..., None].expand(-1, -1, DIM)), tol=1e-12)
    checks.equal(dispatch(slots, logits), slots.gather(1, far.argmin(1)[..., None].expand(-1, -1, DIM)), tol=1e-12)


@pytest.mark.paper("S351")
def test_the_logits_are_a_segmentation_of_the_image():
    block, x = randomized(GLMixBlock(DIM, HEADS)), normal(2, N, DIM)
    with torch.no_grad():
        block.scale.fill_(20.0)
    maps = block.segments(x, GRID)
    assert maps.shape == (2, M, *GRID)
    checks.rows_sum_to_one(maps.permute(0, 2, 3, 1), tol=1e-12)
    membership_of = membership(block.cluster(x, GRID)[1])
    checks.equal(maps[:, :, 2, 5], membership_of[:, 2 * GRID[1] + 5])
    assert maps.amax(1).mean() > 2 / M  # it does take sides


@pytest.mark.paper("S351")
def test_the_slots_cost_a_line_in_the_tokens():
    block, counts = GLMixBlock(DIM, HEADS), []
    for grid in ((8, 8), (8, 16), (16, 16)):
        n = math.prod(grid)
        steps = operations(block, torch.zeros(1, n, DIM), grid)
        between = sum(step.macs for step in steps if step.weight_bytes == 0)
        assert between == 3 * n * M * DIM + 2 * M**2 * DIM  # compare, sum up, give back; attention among the slots
        counts.append(sum(step.macs for step in steps))
        assert counts[-1] == block.cost(grid).macs
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])


@pytest.mark.paper("S351")
def test_with_a_slot_for_every_token_and_a_large_scale_the_block_is_dense_attention():
    """Every token is then its own slot, there and back."""
    block, x = randomized(GLMixBlock(DIM, HEADS, slots=GRID)), normal(2, N, DIM)
    with torch.no_grad():
        block.scale.fill_(1e8)
        block.after.weight.zero_()
        block.after.bias.zero_()
    dense: Mixer = block.attn
    checks.exact_limit(lambda x: block(x, GRID), lambda x: dense(x, GRID), x, tol=1e-10)


@pytest.mark.paper("S351")
def test_without_attention_the_block_is_a_convolution_and_with_it_the_sum_of_both():
    block, x = randomized(GLMixBlock(DIM, HEADS)), normal(2, N, DIM)
    z, logits = block.cluster(x, GRID)
    image = block.before(x).mT.unflatten(2, GRID)
    near = block.after(block.conv(image).flatten(2).mT)
    checks.equal(block(x, GRID), near + dispatch(block.attn(z, block.slots), logits), tol=1e-12)
    block.attn = Silent()
    checks.equal(block(x, GRID), near, tol=1e-12)


class Silent(nn.Module):
    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.paper("S351")
def test_the_slots_start_as_the_means_of_regions():
    block, x = randomized(GLMixBlock(DIM, HEADS, slots=(2, 4))), normal(2, N, DIM)
    means = x.unflatten(1, (2, 3, 4, 2)).mean((2, 4)).flatten(1, 2)  # regions of 3 x 2 tokens
    checks.equal(block.cluster(x, GRID), soft_cluster(x, means, block.scale), tol=1e-12)


def test_it_compiles():
    block, x = randomized(GLMixBlock(DIM, HEADS)), normal(1, N, DIM)
    with torch.no_grad():
        checks.compiles(block, x, GRID)


def test_what_does_not_fit_is_refused():
    with pytest.raises(LabkitError, match="A kernel of 4 has no centre"):
        GLMixBlock(DIM, HEADS, kernel=4)
    with pytest.raises(LabkitError, match=r"expected \(batch, 48, width\) for the grid 6x8"):
        GLMixBlock(DIM, HEADS)(torch.zeros(1, 49, DIM), GRID)
