"""The learned table is what it is at its own grid, and timm's resampling of it at another."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from labkit.positions.learned import LearnedTable
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized


@pytest.mark.paper("S207")
@pytest.mark.parametrize("new", [(4, 6), (8, 12), (5, 3), (2, 9)])
def test_another_grid_reads_the_table_as_timm_does(new):
    table = randomized(LearnedTable((4, 6), 8)).float()
    x = normal(2, new[0] * new[1], 8).float()
    theirs = resample_abs_pos_embed(table.table, list(new), [4, 6], num_prefix_tokens=0)
    checks.equal(table(x, new) - x, theirs.expand(2, -1, -1), 1e-6, "our positions and timm's")


@pytest.mark.paper("S207")
def test_in_a_vit_it_is_the_vits_own_table():
    own = randomized(ViT(32, 8, 5, 16, 2, 4, prefix_positions=False))
    ours = randomized(ViT(32, 8, 5, 16, 2, 4, position=LearnedTable((4, 4), 16)))
    ours.load_state_dict({"position.table" if k == "pos_embed" else k: v for k, v in own.state_dict().items()})
    for size in (32, 48):
        checks.exact_limit(ours, own, normal(2, 3, size, size), tol=0)


def test_its_own_grid_reads_the_table_itself():
    table = LearnedTable((4, 6), 8)
    checks.equal(table(torch.zeros(1, 24, 8), (4, 6)), table.table)
