"""Cascading randomization: what must stay stays, what must go goes, and the given model is not touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import labkit
from labkit.errors import LabkitError
from labkit.explain.controls import edge_map
from labkit.explain.sanity import randomization, rank_correlation, stages


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return labkit.ViT(image_size=32, patch_size=8, classes=10, dim=16, depth=2, heads=2).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def gradient(model, images, target):
    x = images.clone().requires_grad_()
    model(x).gather(1, target[:, None]).sum().backward()
    return x.grad.sum(1)


def edges(model, images, target):
    return edge_map(images, (4, 4))


class TwoLayers(nn.Module):
    """Its "maps" are its own weights, so each depth has a known answer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(900, 30), nn.Linear(30, 30), nn.Linear(30, 10)

    def forward(self, images):
        return self.head(self.second(self.first(images.flatten(1))))


def weights_of(name):
    return lambda model, images, target: getattr(model, name).weight[:30, :30].expand(len(images), -1, -1)


def test_a_method_that_ignores_the_model_fails_at_every_depth(vit, images):
    found = randomization(vit, images, edges)
    assert found.correlation.shape == (len(found.stages), 3)
    torch.testing.assert_close(found.correlation, torch.ones_like(found.correlation))


def test_the_gradient_of_a_linear_model_is_forgotten(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    found = randomization(model, images, gradient)
    assert found.correlation.shape == (1, 3) and found.correlation.abs().max() < 0.12  # 4 / √1024


@pytest.mark.parametrize("name, left", [("second", [1, 0, 0]), ("first", [1, 1, 0])])
def test_the_cascade_runs_from_the_head_down(name, left):
    found = randomization(TwoLayers(), torch.rand(2, 3, 30, 10), weights_of(name))
    assert found.stages == ("head", "second", "first")
    assert found.correlation.mean(1).tolist() == pytest.approx(left, abs=0.14)  # 4 / √900


def test_stages_of_a_vit_are_its_head_its_blocks_and_its_embedding(vit):
    parts = stages(vit)
    assert list(parts) == ["head", "norm", "blocks.1", "blocks.0", "patch_embed", "pos_embed", "cls_token"]
    assert sum(len(part) for part in parts.values()) == len(list(vit.parameters()))


def test_the_given_model_and_the_global_dice_stay_as_they_were(vit, images):
    before, logits, dice = copy.deepcopy(vit.state_dict()), vit(images), torch.get_rng_state()
    randomization(vit, images, gradient)
    assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())
    assert torch.equal(vit(images), logits) and torch.equal(torch.get_rng_state(), dice)


def test_everything_is_ruined_at_the_last_depth_and_keeps_its_scale(vit, images):
    models = []

    def spy(model, images, target):
        models.append(model)
        return edges(model, images, target)

    randomization(vit, images, spy)
    ruin = dict(models[-1].named_parameters())
    for name, old in vit.named_parameters():
        new = ruin[name]
        if old.std() > 0 and old.numel() > 100:
            assert torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1].abs() < 0.4, name
            assert new.std().item() == pytest.approx(old.std().item(), rel=0.3), name


def test_the_explained_class_is_that_of_the_intact_model(vit, images):
    seen = []

    def spy(model, images, target):
        seen.append(target.tolist())
        return edges(model, images, target)

    randomization(vit, images, spy, depths=2)
    assert seen == [vit(images).argmax(1).tolist()] * 3
    randomization(vit, images, spy, target=7, depths=1)
    assert seen[3:] == [[7, 7, 7]] * 2


def test_depths_are_chosen_from_the_whole_cascade_and_repeat_with_the_seed(vit, images):
    whole, some, last = (randomization(vit, images, gradient, depths=d) for d in (None, 3, 1))
    assert some.stages == tuple(whole.stages[i] for i in (1, 4, 6)) and last.stages == ("cls_token",)
    assert torch.equal(last.correlation[0], whole.correlation[-1])
    assert torch.equal(some.correlation, whole.correlation[[1, 4, 6]])
    assert not torch.equal(randomization(vit, images, gradient, depths=1, seed=1).correlation, last.correlation)
    with pytest.raises(LabkitError, match="depths=0"):
        randomization(vit, images, gradient, depths=0)


def test_a_model_without_weights_is_a_sentence(images):
    with pytest.raises(LabkitError, match="no weights"):
        randomization(nn.Flatten(), images, edges)


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    dice = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 6, (2, 20, 5, 5), generator=dice).float()
    oracle = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
    assert rank_correlation(a, b).tolist() == pytest.approx(oracle)


def test_rank_correlation_of_small_cases():
    a = torch.tensor([[[1.0, 2], [3, 4]]])
    assert rank_correlation(a, a.exp()).item() == pytest.approx(1)
    assert rank_correlation(a, -a).item() == pytest.approx(-1)
    swapped = torch.tensor([[[1.0, 3], [2, 4]]])
    assert rank_correlation(a, swapped).item() == pytest.approx(1 - 6 * 2 / (4 * 15))
    flat = torch.ones(1, 2, 2)
    assert rank_correlation(a, flat).item() == 0 and rank_correlation(flat, 2 * flat).item() == 1
    with pytest.raises(LabkitError, match="cell by cell"):
        rank_correlation(a, torch.ones(1, 3, 3))
    with pytest.raises(LabkitError, match="NaN"):
        rank_correlation(a, a / 0 * 0)
