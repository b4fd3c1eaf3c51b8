"""Entropy, distance, similarity of heads and tokens that stick out: answers that are known by hand or planted."""

from __future__ import annotations

import math

import pytest
import torch

from labkit import tokens
from labkit.errors import LabkitError
from labkit.explain.heads import cka, distances, entropy, head_measures, head_similarity, head_table, mean_distance
from labkit.explain.outliers import outliers, robust_z
from labkit.tracing.record import trace
from tests.checks import equal
from tests.oblong import images, model, two_grids


def test_entropy_of_one_key_of_all_keys_and_of_two():
    n = 6
    one, everything, two = torch.eye(n), torch.full((n, n), 1 / n), torch.zeros(n, n)
    two[:, :2] = 0.5
    attn = torch.stack([one, everything, two])[None]
    equal(entropy(attn), torch.tensor([[0.0, math.log(6), math.log(2)]]), 1e-6)
    equal(entropy(attn, normalised=True), torch.tensor([[0.0, 1, math.log(2) / math.log(6)]]), 1e-6)
    windows = attn.unsqueeze(2).expand(2, 3, 4, n, n)
    equal(entropy(windows), entropy(attn).expand(2, 3), 1e-6)


def test_distances_on_a_grid_that_is_not_square():
    apart = distances((2, 3), (2, 3), (2, 3))
    assert apart[0].tolist() == pytest.approx([0, 1, 2, 1, 2**0.5, 5**0.5])
    pixels = distances((2, 3), (2, 3), (16, 12))  # patches of 8 x 4 pixels
    assert pixels[0].tolist() == pytest.approx([0, 4, 8, 8, 80**0.5, 128**0.5])
    coarse = distances((2, 2), (1, 1), (2, 2))  # from each cell to the one in the middle
    equal(coarse, torch.full((4, 1), 0.5**0.5), 1e-6)


def test_mean_distance_of_identity_of_uniform_and_of_the_neighbour():
    apart = distances((4, 6), (4, 6), (4, 6))
    identity, uniform = torch.eye(24), torch.full((24, 24), 1 / 24)
    mean = sum(math.hypot(a - c, b - d) for a in range(4) for b in range(6) for c in range(4) for d in range(6)) / 576
    beside = torch.zeros(24, 24)
    for i in range(24):
        beside[i, i - 1 if i % 6 else i + 1] = 0.25  # the rest goes to a class token, which is nowhere
    found = mean_distance(torch.stack([identity, uniform, beside]), apart)
    equal(found, torch.tensor([0.0, mean, 1.0]), 1e-5)
    uniform[3:] = 0  # dropped patches
    equal(mean_distance(uniform, apart), apart[:3].mean(), 1e-5)


@pytest.mark.parametrize("options", [{"registers": 2}, {"pool": "avg"}], ids=str)
def test_measures_of_a_model(options):
    vit = model(**options)
    seen, prefix = trace(vit, images()), vit.prefix
    found = head_measures(seen)
    assert all(measure.shape == (3, 2) for measure in found)
    apart = distances((4, 6), (4, 6), (4, 6))
    for layer in range(3):
        attn = vit.observe(images()).steps[layer].evidence.attention().detach()
        nats = -(attn * attn.log()).sum(dim=-1).mean(dim=(0, 2))
        equal(found.entropy[layer], nats, 1e-5)
        equal(found.normalised[layer], nats / math.log(24 + prefix), 1e-5)
        inner = attn[:, :, prefix:, prefix:]
        far = ((inner / inner.sum(dim=-1, keepdim=True)) * apart).sum(dim=-1).mean(dim=(0, 2))
        equal(found.patches[layer], far, 1e-4)
        equal(found.pixels[layer], 8 * far, 1e-3)


def test_the_table_has_a_line_for_each_head():
    table = head_table(trace(model(), images()))
    lines = str(table).splitlines()
    assert len(lines) == 2 + 3 * 2 and lines[-1].split()[:2] == ["2", "1"]
    measured = head_measures(trace(model(), images()))
    assert lines[-1].split()[2] == f"{measured.entropy[2, 1]:.2f}"


def test_cka_sees_through_rotation_and_scale_and_tells_unrelated_features_apart():
    dice = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 400, 6, generator=dice)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=dice)).Q
    alike = cka(torch.stack([x, 3 * x @ rotation + 1, other, x * torch.tensor([1.0, 0, 0, 0, 0, 0])]))
    equal(alike, alike.T, 1e-5)
    equal(alike.diagonal(), torch.ones(4), 1e-5)
    assert alike[0, 1] > 0.999 and alike[0, 2] < 0.05
    k, half = x - x.mean(0), (x - x.mean(0))[:, :1]
    by_definition = (k.T @ half).norm() ** 2 / ((k.T @ k).norm() * (half.T @ half).norm())
    equal(alike[0, 3], by_definition, 1e-5)
    assert cka(torch.stack([x, torch.ones_like(x)]))[0, 1].isnan()


def test_equal_heads_are_found_wherever_they_are():
    """The same queries, keys and input in two heads: similarity 1, off the diagonal."""
    vit = model()
    with torch.no_grad():
        for parameter in vit.blocks[0].attn.qkv.parameters():
            first, second = parameter.unflatten(0, (3, 2, 16)).unbind(dim=1)
            second.copy_(first)
    similarity = head_similarity(trace(vit, images()))
    assert similarity.shape == (6, 6)
    assert similarity[0, 1] > 0.9999
    assert similarity[0, 2:].max() < 0.99
    pruned = head_similarity(trace(tokens.attach(vit, tokens.Merge(4), [0]), images()))
    assert pruned.shape == (6, 6) and pruned.isfinite().all()


def test_heads_on_different_grids_are_not_compared():
    seen = trace(two_grids(), images())
    with pytest.raises(LabkitError, match="the layers of this trace have several or none"):
        head_similarity(seen)
    found = head_measures(seen)
    assert found.patches.isfinite().all()
    equal(found.pixels, 8 * found.patches, 1e-4)


def test_robust_z_by_hand():
    norms = torch.tensor([[1.0, 2, 3, 4, 103]])  # median 3, median deviation 1
    equal(robust_z(norms), (norms - 3) / 1.4826, 1e-5)
    equal(robust_z(torch.tensor([[1.0, 1, 1, 1, 1.4]])), torch.tensor([[0.0, 0, 0, 0, 4.0]]), 1e-5)
    equal(robust_z(torch.tensor([[1.0, 2, torch.nan, 3, 4, 103]]))[0, 5], torch.tensor(100 / 1.4826), 1e-4)


def test_planted_outliers_are_found_and_nothing_else():
    """Two patch tokens of image 0 and one of image 2 are blown up after the second block."""
    vit = model(registers=1)
    planted = torch.zeros(3, 4, 6, dtype=torch.bool)
    planted[0, 0, 5] = planted[0, 3, 1] = planted[2, 2, 2] = True

    def blow_up(block, _, step):
        x = step.x.clone()
        x[:, 2:][planted.flatten(1)] *= 30
        return step._replace(x=x)

    hook = vit.blocks[1].register_forward_hook(blow_up)
    seen = trace(vit, images())
    hook.remove()
    found = outliers(seen)
    assert found.norms.shape == found.flags.shape == (4, 3, 4, 6) and found.prefix.shape == (4, 3, 2)
    assert not found.flags[:2].any()
    assert torch.equal(found.flags[2], planted) and torch.equal(found.flags[3], planted)
    equal(found.shares(), torch.tensor([0, 0, 3 / 72, 3 / 72]), 1e-6)
    equal(found.norms[1].flatten(1), seen.tokens[1][:, 2:].norm(dim=-1), 1e-4)
    equal(found.prefix[2], seen.tokens[2][:, :2].norm(dim=-1), 1e-4)
    assert not outliers(seen, threshold=1e6).flags.any()


def test_dropped_patches_are_no_outliers():
    found = outliers(trace(tokens.attach(model(), tokens.Keep(0.5), [0]), images()))
    assert found.norms[1:].isnan().float().mean() == 0.5
    assert not found.flags[found.norms.isnan()].any()
    assert found.shares().isfinite().all()
