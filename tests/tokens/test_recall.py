"""Object recall: of what was kept, of what was merged, of what was fused away."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.evidence import provenance
from labkit.tokens import Fuse, Keep, Merge, attach
from labkit.tokens.recall import object_recall
from labkit.tokens.score import known
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

INSIDE = torch.zeros(2, 16, dtype=torch.bool)
INSIDE[0, [5, 6, 9, 10]] = INSIDE[1, [0, 1]] = True


def seen(reducer, layers=(0,)) -> torch.Tensor:
    model = randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, registers=1))
    observed = attach(model, reducer, layers).observe(normal(2, 3, 32, 32))
    return provenance(observed.maps, 16, 2, 2)


def test_pruning_recalls_what_it_kept():
    scores = torch.zeros(2, 16)
    scores[0, [5, 6, 9, 1]] = scores[1, [0, 1, 2, 3]] = 1
    checks.equal(object_recall(seen(Keep(0.25, known(scores))), INSIDE), torch.tensor([0.75, 1.0]))
    checks.equal(object_recall(seen(Keep(0.25, known(-scores))), INSIDE), torch.zeros(2))
    checks.equal(object_recall(seen(Merge(0)), INSIDE), torch.ones(2))


def test_a_fused_token_recalls_only_if_it_is_mostly_object():
    few = torch.zeros(2, 16)
    few[:, 10:] = 1  # everything before the 10th is fused: 3 of 10 and 2 of 10 are object
    checks.equal(object_recall(seen(Fuse(6 / 16, known(few))), INSIDE), torch.tensor([0.25, 0.0]))
    most = torch.ones(2, 16)
    most[0, [5, 6, 1]] = most[1, [0, 9]] = 0  # two of three, one of two
    checks.equal(object_recall(seen(Fuse(13 / 16, known(most))), INSIDE)[0], torch.tensor(1.0))


def test_two_reducers_in_a_row_add_up():
    scores = torch.zeros(2, 16)
    scores[:, 4:12] = 1
    model = randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2))
    slim = attach(attach(model, Keep(0.5, known(scores)), [0]), Keep(0.5, known(torch.arange(8.0)[None])), [1])
    maps = slim.observe(normal(2, 3, 32, 32)).maps
    checks.equal(object_recall(provenance(maps, 16, 1, 2), INSIDE), torch.tensor([0.5, 0.0]))


def test_no_object_is_not_a_number_and_another_grid_is_refused():
    assert object_recall(seen(Merge(2)), torch.zeros(2, 16, dtype=torch.bool)).isnan().all()
    with pytest.raises(LabkitError, match="do not fit"):
        object_recall(seen(Merge(2)), torch.zeros(2, 9, dtype=torch.bool))
