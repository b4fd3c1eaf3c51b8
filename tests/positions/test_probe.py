"""Who notices shuffled patches, and what one query sees: known answers."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.positions.alibi import ALiBi
from labkit.positions.conditional import PEG
from labkit.positions.learned import LearnedTable
from labkit.positions.lookhere import LookHere
from labkit.positions.probe import bias_map, permutation_gap, position_map, shuffle_patches
from labkit.positions.relative import RelativeBias
from labkit.positions.rope import RoPEAxial
from labkit.positions.sinusoidal import Sinusoidal
from tests import checks
from tests.positions.schemes import vit
from tests.weights import normal, randomized


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_shuffling_moves_whole_patches():
    images = torch.arange(2 * 6 * 8).reshape(1, 2, 6, 8)
    shuffled = shuffle_patches(images, (3, 2), draw())

    def patches(x):
        return {tuple(x[0, :, i : i + 2, j : j + 4].flatten().tolist()) for i in (0, 2, 4) for j in (0, 4)}

    assert patches(shuffled) == patches(images) and not torch.equal(shuffled, images)


@pytest.mark.parametrize("options", [{"pool": "avg"}, {}], ids=["avg", "class"])
def test_only_a_model_with_positions_notices(options):
    images = normal(3, 3, 32, 32)
    without, with_table = randomized(vit(**options)), randomized(vit(LearnedTable((4, 4), 16), **options))
    assert permutation_gap(without, images, draw()) < 1e-12
    gap = permutation_gap(with_table, images, draw())
    assert gap > 1e-3
    with_table.head.bias.data += 3.0
    assert permutation_gap(with_table, images, draw()) == pytest.approx(gap), "a constant on all logits is not seen"


def test_the_gap_is_a_share_of_the_logits():
    images = normal(3, 3, 32, 32)
    model = randomized(vit(LearnedTable((4, 4), 16)))
    model.head.bias.data.zero_()
    gap = permutation_gap(model, images, draw())
    model.head.weight.data *= 10
    assert permutation_gap(model, images, draw()) == pytest.approx(gap)


def test_what_a_bias_adds_for_one_query():
    assert bias_map(ALiBi(8), (3, 5), (1, 1), head=0)[1].tolist() == [-0.5, 0.0, -0.5, -1.0, -1.5]
    up = bias_map(LookHere(4), (3, 3), (2, 1), head=1)
    assert up.isfinite().tolist() == [[True, True, True], [True, True, True], [False, True, False]]
    table = randomized(RelativeBias((3, 5), 2))
    checks.equal(bias_map(table, (3, 5), (2, 3), head=1).flatten(), table.bias((3, 5))[1, 13])


def test_what_turning_adds_for_one_query():
    picture = bias_map(RoPEAxial(8), (5, 5), (2, 2))
    assert picture.argmax() == 12 and picture[2, 2].abs() < 1e-6
    checks.equal(picture, picture.flip(0), 1e-5, "up and down")
    angles = torch.tensor([1.0, 0.1])
    expected = 2 * (angles.cos().sum() + 2 - 4) / 8**0.5  # one column away: two pairs turn by 1 and by 0.1
    assert picture[2, 3].item() == pytest.approx(expected.item(), abs=1e-5)


def test_how_alike_two_places_are():
    picture = position_map(Sinusoidal(32), (7, 7), (3, 2), dim=32)
    assert picture.argmax() == 3 * 7 + 2 and picture[3, 2].item() == pytest.approx(1)
    assert picture[3, 3] > picture[3, 4] > picture[3, 5]


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(LabkitError, match="has no patch at row 3, column 0"):
        bias_map(ALiBi(4), (3, 3), (3, 0))
    with pytest.raises(LabkitError, match="PEG is no position at the scores"):
        bias_map(PEG(8), (3, 3), (0, 0))
    with pytest.raises(LabkitError, match="Images of 30x32 pixels do not divide into 4x4 patches"):
        shuffle_patches(torch.zeros(1, 3, 30, 32), (4, 4), draw())
