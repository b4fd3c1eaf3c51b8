"""Deletion, insertion and ROAD on models that read known pixels by construction; imputation on solved cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.explain.removal import deletion_insertion, impute, road


class Reads(nn.Module):
    """The class is "bright" with the odds 9 to the power of the mean of the pixels that it reads, and of no others."""

    def __init__(self, where: torch.Tensor) -> None:
        super().__init__()
        self.where = where.float() / where.sum()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = math.log(9) * (images.mean(1) * self.where).sum((1, 2))
        return torch.stack([bright, torch.zeros_like(bright)], dim=1)


def cell(y: int, x: int, side: int = 4, size: int = 8) -> torch.Tensor:
    where = torch.zeros(size, size)
    where[y * side : (y + 1) * side, x * side : (x + 1) * side] = 1
    return where


MODEL = Reads(cell(0, 1))
WHITE = torch.ones(1, 3, 8, 8)  # seen whole the odds are 9 : 1, with the cell black 1 : 1
RIGHT = torch.tensor([[[2.0, 9], [1, 0]]])  # the read cell first


def curves(maps, **options):
    return deletion_insertion(MODEL, WHITE, maps, **({"steps": 4, "fill": 0.0} | options))


def close(tensor, expected):
    assert tensor.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_the_true_map_deletes_at_once_and_inserts_at_once():
    found = curves(RIGHT)
    close(found.shares, [0, 0.25, 0.5, 0.75, 1])
    close(found.most_first, [0.9, 0.5, 0.5, 0.5, 0.5])
    close(found.least_first, [0.9, 0.9, 0.9, 0.9, 0.5])
    close(found.deletion, [(0.7 + 3 * 0.5) / 4])
    close(found.insertion, [(3 * 0.9 + 0.7) / 4])
    close(found.difference, [0.3])


def test_the_inverted_map_does_the_opposite_and_another_lies_between():
    wrong = curves(-RIGHT)
    close(wrong.deletion, [0.85])
    close(wrong.insertion, [0.55])
    second = curves(torch.tensor([[[9.0, 2], [1, 0]]]))
    close(second.most_first, [0.9, 0.9, 0.5, 0.5, 0.5])
    close(second.deletion, [0.65])
    close(second.insertion, [0.75])


def test_two_cells_fall_one_after_the_other():
    """Half of what is read gone: the odds are 9 to the power of 1/2, that is 3 : 1."""
    both = Reads(cell(0, 1) + cell(1, 1))
    found = deletion_insertion(both, WHITE, torch.tensor([[[1.0, 9], [0, 8]]]), steps=4, fill=0.0)
    close(found.most_first, [0.9, 0.75, 0.5, 0.5, 0.5])
    close(found.least_first, [0.9, 0.9, 0.9, 0.75, 0.5])


def test_steps_may_be_fewer_than_cells_and_maps_as_fine_as_the_image():
    close(curves(RIGHT, steps=2).most_first, [0.9, 0.5, 0.5])
    close(curves(RIGHT, steps=100).most_first, [0.9, 0.5, 0.5, 0.5, 0.5])
    found = curves(cell(0, 1)[None], steps=8)
    close(found.most_first, [0.9, 0.75, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_the_target_is_the_predicted_class_or_the_one_that_is_asked_for():
    dark = curves(RIGHT, target=1)
    close(dark.most_first, [0.1, 0.5, 0.5, 0.5, 0.5])
    close(curves(RIGHT, target=torch.tensor([1])).most_first, dark.most_first.tolist()[0])
    close(curves(RIGHT, target=0).most_first, curves(RIGHT).most_first.tolist()[0])


def test_images_are_judged_alone_in_any_batch():
    dice = torch.Generator().manual_seed(0)
    images, maps = torch.rand(7, 3, 8, 8, generator=dice), torch.rand(7, 2, 2, generator=dice)
    whole, parts = (deletion_insertion(MODEL, images, maps, batch=n) for n in (7, 3))
    torch.testing.assert_close(whole.most_first, parts.most_first)
    torch.testing.assert_close(whole.least_first, parts.least_first)
    torch.testing.assert_close(whole.least_first[:, 0], MODEL(images).softmax(1).amax(1))


def test_ties_do_not_fall_in_reading_order():
    """A constant map over a picture of which the model reads the upper half: neither half goes first."""
    model = Reads(torch.cat([torch.ones(4, 8), torch.zeros(4, 8)]))
    found = deletion_insertion(model, WHITE, torch.ones(1, 8, 8), steps=8, fill=0.0)
    half = 9**0.5 / (1 + 9**0.5)
    assert abs(found.most_first[0, 4] - half) < 0.07 and abs(found.least_first[0, 4] - half) < 0.07


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_filling_a_plain_picture_changes_nothing(fill):
    close(curves(RIGHT, fill=fill).most_first, [0.9] * 5)


def test_a_fill_looks_like_its_name():
    """Half black, half white, all removed: the mean is grey everywhere, the blur keeps the sides apart."""
    picture = WHITE * (torch.arange(8) >= 4)
    grey = deletion_insertion(MODEL, picture, RIGHT, 0, steps=4, fill="mean")
    close(grey.most_first, [0.9, 0.75, 0.75, 0.75, 0.75])
    blurred = deletion_insertion(MODEL, picture, RIGHT, 0, steps=4, fill="blur").most_first[0, 1]
    assert 0.77 < blurred < 0.89
    with pytest.raises(LabkitError, match="fill='red' is unknown"):
        curves(RIGHT, fill="red")


@pytest.mark.parametrize("maps", [torch.ones(2, 2, 2), torch.tensor([[[1, float("nan")]]])])
def test_maps_that_fit_no_image_are_refused(maps):
    with pytest.raises(LabkitError):
        curves(maps)


def test_a_curve_of_one_point_is_refused():
    with pytest.raises(LabkitError, match="two points"):
        road(MODEL, WHITE, RIGHT, shares=(0.5,))


def test_road_tells_the_true_map_from_the_inverted_one():
    """One white cell amid black: filled from its neighbours it is black, so the odds are 1 : 1 when it is gone."""
    centre = cell(1, 1, size=12)
    model, picture = Reads(centre), centre.expand(1, 3, 12, 12)
    maps = torch.arange(9.0).view(1, 3, 3)
    maps[0, 1, 1] = 99
    found = road(model, picture, maps, target=0, shares=(1 / 9, 4 / 9, 7 / 9))
    assert found.most_first[0].tolist() == pytest.approx([0.5] * 3, abs=0.01)  # up to the noise
    assert found.least_first[0].tolist() == pytest.approx([0.9] * 3, abs=0.01)
    assert found.difference.item() == pytest.approx(0.4, abs=0.01)
    assert road(model, picture, -maps, target=0).difference.item() == pytest.approx(-0.4, abs=0.03)


def test_what_was_smooth_is_filled_back():
    """The point of imputation: on a ramp grey squares hurt, filled holes do not."""
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32).contiguous()
    gone = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    gone[..., 5:20, 7:29] = gone[..., 22:30, 3:9] = True
    assert not torch.allclose(ramp.masked_fill(gone, 0.5), ramp, atol=0.1)
    torch.testing.assert_close(impute(ramp, gone, noise=0), ramp, rtol=0, atol=2e-3)
    tilted = 0.3 * ramp + 0.5 * ramp.mT - 0.1
    torch.testing.assert_close(impute(tilted.double(), gone, noise=0), tilted.double(), rtol=0, atol=2e-3)


def test_one_missing_pixel_is_the_weighted_mean_of_its_neighbours():
    picture = torch.tensor([[4.0, 1, 4], [1, 0, 1], [4, 1, 4]])[None, None]
    gone = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    gone[..., 1, 1] = True
    close(impute(picture, gone, noise=0)[..., 1, 1], [4 * 1 / 6 + 4 * 4 / 12])
    at_the_corner = torch.zeros_like(gone)
    at_the_corner[..., 0, 0] = True
    close(impute(picture, at_the_corner, noise=0)[..., 0, 0], [(2 * 1 + 2 * 1 + 0) / 5])


def test_imputation_solves_the_system_that_is_written_down():
    """Scattered holes, and one that leaves only the rim, whose middle is far from all that is known."""
    dice = torch.Generator().manual_seed(0)
    h, w = 23, 20
    pictures, gone = torch.rand(2, 2, h, w, generator=dice), torch.rand(2, 1, h, w, generator=dice) < 0.9
    gone[1], gone[1, :, 1:-1, 1:-1] = False, True
    filled = impute(pictures, gone, noise=0)
    for picture, hole, result in zip(pictures.numpy(), gone[:, 0].numpy(), filled.numpy(), strict=True):
        matrix, known = np.eye(h * w), np.where(hole, 0, picture).reshape(2, h * w)
        for y, x in np.argwhere(hole):
            around = {
                (y + i) * w + x + j: 1 if i and j else 2
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                if (i or j) and 0 <= y + i < h and 0 <= x + j < w
            }
            for place, weight in around.items():
                matrix[y * w + x, place] -= weight / sum(around.values())
        np.testing.assert_allclose(result.reshape(2, h * w), np.linalg.solve(matrix, known.T).T, atol=2e-3)


def test_noise_falls_on_the_hole_only_and_repeats():
    picture, gone = torch.full((1, 3, 32, 32), 0.5), torch.rand(1, 1, 32, 32) < 0.5
    once, again = impute(picture, gone), impute(picture, gone)
    assert torch.equal(once, again) and not torch.equal(once, impute(picture, gone, seed=1))
    changed = (once - picture)[gone.expand_as(picture)]
    assert changed.std().item() == pytest.approx(0.01, rel=0.15)
    assert torch.equal(torch.where(gone, picture, once), picture)
    assert torch.equal(impute(picture.repeat(2, 1, 1, 1), gone.repeat(2, 1, 1, 1))[1:], once)


def test_nothing_left_is_a_sentence():
    with pytest.raises(LabkitError, match="nothing is left"):
        impute(WHITE, torch.ones(1, 1, 8, 8, dtype=torch.bool))
