"""The compact transformer: its tokenizer ends at PatchEmbed, its pooling lies between the mean and one token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.errors import LabkitError
from labkit.patching.compact import ConvTokenizer, SeqPool, cct
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

DIM = 16


@pytest.mark.paper("S250")
def test_zero_scores_are_the_mean_and_a_loud_one_is_its_token():
    pool, x = randomized(SeqPool(DIM)), normal(3, 9, DIM)
    with torch.no_grad():
        pool.score.weight.zero_()
        checks.exact_limit(pool, lambda x: x.mean(dim=1), x, tol=1e-12)
        pool.score.weight[0, 4] = 1e4
    loudest = x[..., 4].argmax(dim=1)
    assert loudest.unique().numel() > 1
    checks.equal(pool(x), x[torch.arange(3), loudest], 1e-12, "the pooled tokens and the loudest ones")


@pytest.mark.paper("S250")
def test_the_pooled_token_lies_among_the_tokens_in_any_order():
    pool, x = randomized(SeqPool(DIM)), normal(3, 9, DIM)
    checks.permutation_invariant(pool, x, tol=1e-12)
    checks.rows_sum_to_one(pool.weights(x))
    assert (x.min(dim=1).values <= pool(x)).all() and (pool(x) <= x.max(dim=1).values).all()
    assert not torch.allclose(pool(x), x.mean(dim=1))
    checks.cost_law(lambda b, n, d: 2 * b * n * d, pool, x)


@pytest.mark.paper("S250")
@pytest.mark.parametrize("patch", [4, 6])
def test_with_the_kernel_of_a_patch_and_nothing_else_the_tokenizer_is_the_patch_embedding(patch):
    options = {"kernel": patch, "stride": patch, "padding": 0, "act": nn.Identity, "pool": False}
    tokenizer, plain = randomized(ConvTokenizer(DIM, 1, **options)), PatchEmbed(patch, 3, DIM, bias=False).double()
    plain.proj.weight = tokenizer.layers[0].weight
    images = normal(2, 3, 2 * patch, 3 * patch)
    checks.exact_limit(lambda x: tokenizer(x)[0], lambda x: plain(x)[0], images, tol=1e-12)
    assert tokenizer(images)[1] == plain(images)[1] == (2, 3)


@pytest.mark.parametrize(("layers", "grid"), [(1, (8, 12)), (2, (4, 6)), (3, (2, 3))])
def test_each_layer_is_convolution_bend_and_pooling(layers, grid):
    tokenizer, images = randomized(ConvTokenizer(DIM, layers, hidden=5)), normal(2, 3, 16, 24)
    maps = images
    for conv in [layer for layer in tokenizer.layers if isinstance(layer, nn.Conv2d)]:
        maps = F.max_pool2d(F.conv2d(maps, conv.weight, padding=1).relu(), 3, 2, 1)
    x, found = tokenizer(images)
    assert found == grid == tuple(maps.shape[-2:])
    checks.equal(x, maps.flatten(2).mT, 1e-12, "the tokens and the maps")


@pytest.mark.paper("S250")
def test_the_smallest_model_has_280_thousand_parameters():
    vit = cct(depth=2, heads=2, dim=128, layers=2)  # CCT-2/3x2 for images of 32x32
    parameters = sum(p.numel() for p in vit.parameters())
    assert round(parameters / 1e6, 2) == 0.28 and vit.grid == (8, 8) and vit.prefix == 0


@pytest.mark.paper("S250")
def test_a_training_step_lowers_the_loss():
    torch.manual_seed(0)
    vit, images, labels = cct(dim=32), normal(8, 3, 32, 32).float(), torch.arange(8)
    optimizer, losses = torch.optim.SGD(vit.parameters(), lr=0.05), []
    for _ in range(3):
        losses.append(F.cross_entropy(vit(images), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    checks.gradients_flow(vit, images)


def test_its_parts_fit_any_vit():
    vit = ViT(32, 8, 5, DIM, 2, 2, patching=ConvTokenizer(DIM, 3), pool=SeqPool(DIM))
    assert vit.grid == (4, 4) and vit(torch.zeros(2, 3, 32, 48)).shape == (2, 5)
    checks.follows_dtype_and_device(vit, normal(2, 3, 32, 32).float())
    checks.batch_independent(vit, normal(2, 3, 32, 32).float())
    with pytest.raises(LabkitError, match=r"expected \(batch, 3, height, width\)"):
        vit(torch.zeros(1, 1, 32, 32))
