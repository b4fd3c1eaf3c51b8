"""Pointing game, mass inside, IoU at matched area, AUC: cases small enough to be counted by hand, and the laws."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.explain.localisation import METRICS, auc, iou, mass, pointing
from labkit.token_labels import coverage


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[[c == "#" for c in row] for row in rows]])


def one(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.float32)


# Of the four cells of 2x2 pixels the first is object, half of the second is, the others are not.
CORNER = mask("###.", "###.", "....", "....")
LEFT = mask("##", "..")  # one pixel a cell
SQUARE = mask("#.", "..")


@pytest.mark.parametrize(
    "values, hit",
    [
        ([[9, 1], [1, 1]], 1),
        ([[1, 9], [1, 1]], 0.5),  # a coin decides which half of the cell the finger touches
        ([[1, 1], [1, 9]], 0),
        ([[-1, -9], [-9, -9]], 1),  # the order counts, not the sign
        ([[9, 1], [9, 1]], 0.5),  # two peaks, one of them right
        ([[9, 9], [9, 1]], 0.5),  # (1 + 1/2 + 0) / 3
    ],
)
def test_the_pointing_game_counts_the_object_under_the_peak(values, hit):
    assert pointing(one(*values), CORNER).item() == pytest.approx(hit)


@pytest.mark.parametrize(
    "values, share",
    [
        ([[3, 1], [0, 0]], 7 / 8),  # (3 + 1/2) / 4
        ([[3, 1], [0, -5]], 7 / 8),  # what speaks against is no mass
        ([[0, 0], [2, 6]], 0),
        ([[0, 0], [0, 0]], 3 / 8),  # nothing said: the area
        ([[-1, -2], [-3, -4]], 3 / 8),
    ],
)
def test_mass_is_the_share_of_what_is_positive(values, share):
    assert mass(one(*values), CORNER).item() == pytest.approx(share)


@pytest.mark.parametrize(
    "values, truth, overlap",
    [
        ([[4, 3], [2, 1]], LEFT, 1),
        ([[4, 1], [3, 2]], LEFT, 1 / 3),  # one of two right: 1 of 3 in the union
        ([[1, 2], [3, 4]], LEFT, 0),
        ([[9, 9], [1, 1]], SQUARE, 1 / 3),  # half of each: 0.5 shared of 1.5
        ([[9, 5], [5, 5]], LEFT, 0.5),  # 1 and a third of the other: 4/3 shared of 8/3
        ([[4, 3], [2, 1]], CORNER, 5 / 7),  # area 1.5: the first cell and half of the second, of which half is right
    ],
)
def test_iou_takes_as_much_area_as_the_object_has(values, truth, overlap):
    assert iou(one(*values), truth).item() == pytest.approx(overlap)


@pytest.mark.parametrize(
    "values, truth, area",
    [
        ([[4, 2], [3, 1]], LEFT, 3 / 4),  # 4>3 4>1 2>1, but 2<3
        ([[4, 3], [3, 1]], LEFT, 7 / 8),  # the tie is half a pair
        ([[1, 2], [3, 4]], LEFT, 0),
        ([[2, 1], [0, 0]], CORNER, 29 / 30),  # 4 and 2 pixels against 2 beside and 8 below: 2 * 2 ties in 60 pairs
    ],
)
def test_auc_counts_pairs_of_pixels(values, truth, area):
    assert auc(one(*values), truth).item() == pytest.approx(area)


def batch(n: int = 24, grid: int = 6, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps with ties and negative values, and rectangles that cut through cells."""
    dice = torch.Generator().manual_seed(0)
    maps = torch.randint(-3, 4, (n, grid, grid), generator=dice).float()
    masks = torch.zeros(n, size, size, dtype=torch.bool)
    for m, (y, x, h, w) in zip(masks, torch.randint(1, size // 2, (n, 4), generator=dice).tolist(), strict=True):
        m[y : y + h, x : x + w] = True
    return maps, masks


def test_auc_is_that_of_scikit_learn_on_the_drawn_map():
    from sklearn.metrics import roc_auc_score

    maps, masks = batch()
    pixels = maps.repeat_interleave(4, 1).repeat_interleave(4, 2)
    oracle = [roc_auc_score(m.flatten(), p.flatten()) for m, p in zip(masks, pixels, strict=True)]
    assert auc(maps, masks).tolist() == pytest.approx(oracle)


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_a_constant_map_scores_chance(value):
    maps, masks = batch()
    share = masks.double().mean((1, 2))
    constant = torch.full_like(maps, value)
    torch.testing.assert_close(pointing(constant, masks), share)
    torch.testing.assert_close(mass(constant, masks), share)
    torch.testing.assert_close(iou(constant, masks), share / (2 - share))
    torch.testing.assert_close(auc(constant, masks), torch.full_like(share, 0.5))


@pytest.mark.parametrize("metric", METRICS.values())
def test_the_mask_itself_is_perfect_on_its_own_grid(metric):
    _, masks = batch()
    assert metric(masks.float(), masks).tolist() == [1.0] * len(masks)
    assert metric(masks.float(), masks.repeat_interleave(3, 1).repeat_interleave(3, 2)).tolist() == [1.0] * len(masks)


@pytest.mark.parametrize("metric", [pointing, iou, auc])
def test_no_map_on_a_coarser_grid_beats_the_mask(metric):
    maps, masks = batch()
    best = metric(coverage(masks, (6, 6)).unflatten(1, (6, 6)), masks)
    others = [metric(maps.flatten(1)[:, torch.randperm(36)].view_as(maps), masks) for _ in range(50)]
    assert (best >= torch.stack(others) - 1e-9).all() and (best > torch.stack(others).mean(0)).all()


@pytest.mark.parametrize("metric", [pointing, iou, auc])
def test_only_the_order_counts(metric):
    maps, masks = batch()
    for bent in (maps.exp(), 3 * maps - 100, maps**3):
        torch.testing.assert_close(metric(bent, masks), metric(maps, masks), rtol=0, atol=0)
    assert not torch.equal(metric(-maps, masks), metric(maps, masks))


def test_mass_knows_no_scale_but_minds_an_offset():
    maps, masks = batch()
    torch.testing.assert_close(mass(maps * 1e-6, masks), mass(maps, masks))
    assert not torch.allclose(mass(maps + 5, masks), mass(maps, masks))


@pytest.mark.parametrize("metric", METRICS.values())
def test_each_map_is_judged_alone_and_resolution_does_not_matter(metric):
    maps, masks = batch()
    alone = torch.cat([metric(maps[i : i + 1], masks[i : i + 1]) for i in range(len(maps))])
    torch.testing.assert_close(alone, metric(maps, masks))
    shares = coverage(masks, (6, 6)).unflatten(1, (6, 6))
    torch.testing.assert_close(metric(maps, shares), alone, rtol=0, atol=1e-6)


def test_where_cells_do_not_divide_the_image_a_cell_is_what_it_touches():
    """Five columns, two cells: the cells are columns 0 to 2 and 2 to 4."""
    truth = mask("....#", "....#", "....#", "....#", "....#")
    assert pointing(one([0, 9], [0, 0]), truth).item() == pytest.approx(1 / 3)
    assert pointing(one([9, 0], [0, 0]), truth).item() == 0


@pytest.mark.parametrize("metric", METRICS.values())
@pytest.mark.parametrize(
    "maps, masks, sentence",
    [
        (torch.ones(2, 2, 2), torch.stack([LEFT[0], LEFT[0] & False]), "1 of 2 masks are empty .* number 1"),
        (torch.ones(1, 2, 2), LEFT | True, "1 of 1 masks are empty or cover the whole image"),
        (one([1, float("nan")], [0, 0]), LEFT, "1 of 1 maps hold NaN"),
        (torch.ones(2, 2, 2), LEFT, r"shape \(2, 2, 2\); expected \(1, rows, columns\)"),
        (torch.ones(1, 4), LEFT, r"expected \(1, rows, columns\)"),
        (torch.ones(1, 2, 2), LEFT[0], r"masks have shape \(2, 2\)"),
    ],
)
def test_what_cannot_be_judged_is_a_sentence(metric, maps, masks, sentence):
    with pytest.raises(LabkitError, match=sentence):
        metric(maps, masks)
