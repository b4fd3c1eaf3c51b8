"""What every scheme keeps inside a ViT: both implementations, the class-row shortcut, unseen grids, gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from labkit.errors import LabkitError
from labkit.positions.probe import permutation_gap
from labkit.tokens import Keep, Merge, attach
from tests import checks
from tests.positions.schemes import AT_THE_TOKENS, BOUNDED, GRID, MIXERS, POSITIONS, SCHEMES, build, vit
from tests.weights import normal, randomized

SIZES = {"as trained": (32, 32), "smaller": (24, 16), "larger": (48, 40)}


def images(size: str = "as trained") -> torch.Tensor:
    return normal(2, 3, *SIZES[size])


@pytest.mark.parametrize("unseen", [False, True], ids=["as trained", "unseen"])
@pytest.mark.parametrize("options", [{"registers": 2}, {"pool": "avg"}], ids=["class", "avg"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_written_out_fused_and_shortcut_agree(scheme, options, unseen):
    x = images(("smaller" if scheme in BOUNDED else "larger") if unseen else "as trained")
    model = randomized(build(scheme, **options))
    full, plain = copy.deepcopy(model), copy.deepcopy(model).set_impl("plain")
    full.last = "full"
    logits = model(x)
    checks.equal(logits, full(x), 1e-11, "the class row alone and the full last block")
    checks.equal(logits, plain(x), 1e-11, "fused and written out")
    assert model.pool == "avg" or model.features(x).shape[1] == 1, "the shortcut computes the class row and no other"
    checks.equal(logits, model.observe(x).logits, 1e-11, "the model and its observation")
    checks.batch_independent(model, x, tol=1e-11)


@pytest.mark.parametrize("scheme", BOUNDED)
def test_a_table_of_displacements_refuses_a_larger_grid(scheme):
    with pytest.raises(LabkitError, match="made for a grid of 4x4 knows none of the longer ones on 6x5"):
        build(scheme)(images("larger").float())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_reach_every_parameter_and_the_input(scheme):
    torch.manual_seed(0)
    model = randomized(build(scheme, pool="avg")).train()
    checks.gradients_flow(model, images())
    pixels = images().requires_grad_(True)
    model(pixels).square().sum().backward()
    assert pixels.grad.isfinite().all() and (pixels.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dtype_and_device_follow_the_input(scheme):
    checks.follows_dtype_and_device(build(scheme).eval(), images().float())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_notices_shuffled_patches_and_no_scheme_does_not(scheme):
    def gap(model):
        return permutation_gap(randomized(model), images(), torch.Generator().manual_seed(3), GRID)

    assert gap(build(scheme, pool="avg")) > 1e-3
    assert gap(vit(pool="avg")) < 1e-12


@pytest.mark.parametrize("reducer", [Keep(0.5), Merge(2)], ids=["pruned", "merged"])
@pytest.mark.parametrize("scheme", [name for name in (*POSITIONS, *MIXERS) if name not in AT_THE_TOKENS])
def test_schemes_that_ask_where_a_token_is_refuse_tokens_without_a_place(scheme, reducer):
    slim = attach(build(scheme).eval(), reducer, layers=[0])
    with pytest.raises(LabkitError, match="do not prune or merge tokens before it"):
        slim(images().float())


@pytest.mark.parametrize("scheme", AT_THE_TOKENS)
def test_schemes_at_the_tokens_leave_the_blocks_free_to_reduce_them(scheme):
    assert attach(build(scheme).eval(), Keep(0.5), layers=[0])(images("larger").float()).shape == (2, 5)
