"""Zero padding tells position: the convolution is timm's, and without an edge it tells nothing."""

from __future__ import annotations

import pytest
import torch
from timm.models.twins import PosConv
from torch import Tensor

from labkit.errors import LabkitError
from labkit.positions.conditional import PEG
from labkit.positions.probe import permutation_gap
from tests import checks
from tests.positions.schemes import vit
from tests.weights import normal, randomized

GRID, DIM = (6, 7), 8


def shifted(x: Tensor, by: tuple[int, int] = (2, 3)) -> Tensor:
    return x.unflatten(1, GRID).roll(by, dims=(1, 2)).flatten(1, 2)


def interior(x: Tensor, margin: int = 3) -> Tensor:
    return x.unflatten(1, GRID)[:, margin:-1, margin + 1 : -1]


@pytest.mark.paper("S285")
@pytest.mark.parametrize("grid", [(6, 7), (3, 14), (1, 42)])
def test_it_is_timms_for_any_grid_and_a_residual_depthwise_convolution(grid):
    ours, theirs, x = randomized(PEG(DIM)), PosConv(DIM, DIM).double(), normal(2, 42, DIM)
    theirs.load_state_dict({name.replace("proj", "proj.0"): value for name, value in ours.state_dict().items()})
    checks.equal(ours(x, grid), theirs(x.clone(), grid), 1e-12, "ours and timm's")
    image = x.transpose(1, 2).unflatten(2, grid)
    plain = image + torch.conv2d(image, ours.proj.weight, ours.proj.bias, padding=1, groups=DIM)
    checks.equal(ours(x, grid), plain.flatten(2).transpose(1, 2), 1e-12, "ours and x + conv(x)")


@pytest.mark.paper("S285")
def test_without_an_edge_it_only_moves_with_the_image():
    circular, zeros, x = randomized(PEG(DIM, padding="circular")), randomized(PEG(DIM)), normal(2, 42, DIM)
    checks.equal(circular(shifted(x), GRID), shifted(circular(x, GRID)), 1e-12, "circular: shift first, or last")
    first, last = zeros(shifted(x), GRID), shifted(zeros(x, GRID))
    checks.equal(interior(first), interior(last), 1e-12, "zeros: the interior, shift first, or last")
    assert not torch.allclose(first, last)


@pytest.mark.paper("S285")
def test_a_constant_image_has_a_border_and_nothing_else():
    peg, x = randomized(PEG(DIM)), torch.ones(1, 42, DIM, dtype=torch.float64)
    out = peg(x, GRID).unflatten(1, GRID)[0]
    middle = out[1:-1, 1:-1]
    checks.equal(middle, middle[:1, :1].expand_as(middle), 1e-12, "the interior and one of its tokens")
    border = torch.ones(GRID, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert ((out - middle[0, 0]).abs().amax(dim=-1) > 1e-3)[border].all()
    flat = randomized(PEG(DIM, padding="circular"))(x, GRID)
    checks.equal(flat, flat[:, :1].expand_as(flat), 1e-12, "without an edge: every token and the first")


@pytest.mark.paper("S285")
def test_a_vit_without_positions_does_not_notice_shuffled_patches_until_it_has_one():
    def gap(position):
        model = randomized(vit(position, pool="avg"))
        return permutation_gap(model, normal(4, 3, 32, 32), torch.Generator().manual_seed(0))

    assert gap(None) < 1e-12 < 1e-3 < gap(PEG(16))


@pytest.mark.paper("S285")
def test_zero_weights_are_the_identity():
    peg, x = PEG(DIM), normal(2, 42, DIM).float()
    for parameter in peg.parameters():
        torch.nn.init.zeros_(parameter)
    checks.equal(peg(x, GRID), x)


@pytest.mark.paper("S285")
@pytest.mark.parametrize("k", [3, 5])
def test_its_parameters_and_its_cost(k):
    peg = PEG(DIM, k)
    assert sum(p.numel() for p in peg.parameters()) == DIM * k * k + DIM
    checks.cost_law(lambda b, n, d: n * d * k * k, lambda x: peg(x, GRID), torch.zeros(1, 42, DIM))


def test_an_even_kernel_and_missing_patches_are_refused():
    with pytest.raises(LabkitError, match="A kernel of 4 has no centre"):
        PEG(DIM, k=4)
    with pytest.raises(LabkitError, match="41 tokens are not the 0 before the patches and the 6x7 patches"):
        PEG(DIM)(torch.zeros(1, 41, DIM), GRID)
