"""Relevance, Grad-CAM and the table of methods: known answers, slow oracles, and a model that is left as it was."""

from __future__ import annotations

import pytest
import timm
import torch

from labkit import tokens
from labkit.errors import LabkitError
from labkit.explain.attention import class_row, gradient_rollout, reader_of, rollout
from labkit.explain.gradcam import grad_cam, token_cam
from labkit.explain.methods import METHODS
from labkit.explain.relevance import relevance, relevance_matrix
from labkit.tracing.record import trace
from labkit.vit import ViT
from tests.checks import equal
from tests.oblong import POOLS, images, model

TRACED = [name for name in METHODS if "attention" in name or "rollout" in name or "relevance" in name]


def plain_attention_and_gradients(vit, target):
    """Attention and its gradient by autograd alone, without a trace."""
    vit.set_impl("plain")
    seen = vit.observe(images())
    attns = [step.evidence.attn for step in seen.steps]
    score = seen.logits[[0, 1, 2], target].sum()
    return [a.detach() for a in attns], torch.autograd.grad(score, attns, materialize_grads=True)


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_relevance_and_gradient_rollout_equal_loops_over_tokens(options):
    vit, target = model(**options), torch.tensor([1, 4, 0])
    seen = trace(vit, images(), grads=True)
    attns, gradients = plain_attention_and_gradients(vit, target)
    n, prefix = attns[0].shape[-1], vit.prefix
    for i in range(3):
        r, roll = torch.eye(n), torch.eye(n)
        for attn, gradient in zip(attns, gradients, strict=True):
            passed = (attn[i] * gradient[i]).relu().mean(dim=0)
            r = r + passed @ r
            rows = [row / row.sum() if row.sum() > 0 else torch.eye(n)[j] for j, row in enumerate(passed)]
            roll = (torch.stack(rows) + torch.eye(n)) / 2 @ roll
        for ask, matrix in ((relevance, r), (gradient_rollout, roll)):
            row = matrix[0] if vit.pool == "class" else matrix[prefix:].mean(dim=0)
            equal(ask(seen, target, reader=reader_of(vit))[i], row[prefix:].view(4, 6), 1e-5)


def test_relevance_by_hand():
    """R = I, then I + A, then (I + B)(I + A): the class token gets token 2 directly, and token 1 through it."""
    a, b = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    a[..., 2, 1], b[..., 0, 2] = 0.5, 0.25
    ones = torch.ones(1, 1, 3, 3)
    expected = torch.tensor([[1, 0.125, 0.25], [0, 1, 0], [0, 0.5, 1]])
    equal(relevance_matrix([a, b], [ones, ones])[0], expected)
    equal(relevance_matrix([a, b], [-ones, ones])[0], torch.tensor([[1, 0, 0.25], [0, 1, 0], [0, 0, 1]]))


@pytest.mark.parametrize("name", ["relevance (Chefer)", "gradient rollout", "Grad-CAM", "integrated gradients"])
def test_another_class_gets_another_map(name):
    one, other = (METHODS[name](model(), images(), target) for target in (0, 1))
    assert not torch.allclose(one / one.norm(), other / other.norm(), atol=1e-3)


def test_token_cam_by_hand():
    x = torch.tensor([[[1.0, 0], [0, 1], [2, 1]]])
    gradient = torch.tensor([[[3.0, -6], [0, 0], [0, 0]]])
    equal(token_cam(x, gradient), torch.tensor([[1.0, 0, 0]]))


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_grad_cam_equals_autograd_on_the_tokens_that_enter_the_block(options):
    vit = model(**options)
    block = vit.blocks[1]
    x, grid = vit.embed(images())
    entering = vit.blocks[0](x, grid).x.detach()
    normed = block.norm1(entering).detach().requires_grad_()
    after = entering + block.attn(normed)
    after = after + block.mlp(block.norm2(after))
    score = vit.read(vit.blocks[2](after, grid).x)[:, 3].sum()
    (gradient,) = torch.autograd.grad(score, normed)
    prefix = vit.prefix
    expected = (normed[:, prefix:] * gradient[:, prefix:].mean(dim=1, keepdim=True)).sum(dim=2).relu()
    equal(grad_cam(vit, images(), 3, block=1), expected.view(3, 4, 6), 1e-5)


def test_patch_tokens_that_leave_the_last_block_do_not_matter_to_a_class_token():
    """Why Grad-CAM looks at the tokens that enter it."""
    for options, alive in (({}, False), ({"pool": "avg"}, True)):
        vit = model(**options)
        seen = vit.observe(images())
        (gradient,) = torch.autograd.grad(seen.logits[:, 0].sum(), seen.steps[-1].x)
        assert bool(gradient[:, vit.prefix :].any()) == alive
        assert grad_cam(vit, images(), 0).flatten(1).any(dim=1).all()


def test_grad_cam_shows_nothing_on_dropped_patches_and_the_same_on_merged_ones():
    slim = tokens.attach(model(), tokens.Keep(0.5), [0, 1])
    inside = trace(slim, images()).provenance[2][:, 1:]
    assert not grad_cam(slim, images())[(inside.sum(dim=1) == 0).unflatten(1, (4, 6))].any()
    slim = tokens.attach(model(), tokens.Merge(8), [0, 1])
    inside = trace(slim, images()).provenance[2][:, 1:]
    cam = grad_cam(slim, images()).flatten(1)
    image, token = [int(i) for i in (inside > 0).sum(dim=2).eq(2).nonzero()[0]]
    first, second = cam[image, inside[image, token] > 0]
    assert first == second


def test_grad_cam_refuses_what_it_cannot_read():
    with pytest.raises(LabkitError, match=r"not of a Linear; convert it"):
        grad_cam(torch.nn.Linear(2, 2), images())
    with pytest.raises(LabkitError, match="There is no block 3; this model has 3"):
        grad_cam(model(), images(), block=3)


@pytest.mark.parametrize("options", [{"registers": 1}, {"pool": "avg"}], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_map_for_each_image_and_leaves_the_model_alone(name, options):
    vit = model(**options).train()
    vit.blocks[1].eval()
    before = [module.training for module in vit.modules()]
    target = torch.tensor([1, 4, 0])
    maps = METHODS[name](vit, images(), target)
    assert maps.shape == (3, 4, 6) and maps.isfinite().all() and not maps.requires_grad
    assert maps.std() > 0
    assert [module.training for module in vit.modules()] == before
    assert all(p.grad is None and p.requires_grad for p in vit.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in vit.modules())
    scale = maps.abs().max()
    equal(METHODS[name](vit, images()[1:2], 4) / scale, maps[1:2] / scale, 1e-4, "alone and in company")
    with torch.no_grad():
        predicted = vit.eval()(images()).argmax(dim=1)
        equal(METHODS[name](vit, images(), None), METHODS[name](vit, images(), predicted))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_frozen_model_with_fewer_tokens(name):
    slim = tokens.attach(model(), tokens.Keep(0.5), [1]).requires_grad_(False)
    assert METHODS[name](slim, images(), 2).shape == (3, 4, 6)


@pytest.mark.parametrize("name", TRACED)
def test_a_timm_model_gets_the_map_of_its_twin(name):
    torch.manual_seed(0)
    options = {"num_classes": 5, "embed_dim": 32, "depth": 2, "num_heads": 2, "reg_tokens": 2}
    watched = timm.models.VisionTransformer((32, 48), 8, **options)
    own = METHODS[name](ViT.from_timm(watched), images(), 1)
    equal(METHODS[name](watched.eval(), images(), 1) / own.max(), own / own.max(), 1e-3)


def test_methods_ask_the_tokens_that_the_head_reads():
    """Here there is a class token, and nobody reads it."""
    vit = model(pool="avg", class_token=True)
    seen, asked = trace(vit, images(), grads=True), "patches"
    layers = [class_row(seen, layer, reader=asked) for layer in range(3)]
    expected = {
        "class attention, last block": layers[-1],
        "class attention, mean of blocks": sum(layers) / 3,
        "rollout": rollout(seen, reader=asked),
        "gradient rollout": gradient_rollout(seen, 1, reader=asked),
        "relevance (Chefer)": relevance(seen, 1, reader=asked),
    }
    assert list(expected) == TRACED
    for name, maps in expected.items():
        equal(METHODS[name](vit, images(), 1), maps, 1e-6, name)


def test_many_images_go_in_parts():
    vit, many = model(), images().repeat(12, 1, 1, 1)
    target = torch.arange(36) % 5
    maps = METHODS["relevance (Chefer)"](vit, many, target)
    equal(maps[30:], METHODS["relevance (Chefer)"](vit, many[30:], target[30:]), 1e-6)


def test_a_target_of_the_wrong_length_is_a_sentence():
    for name in ("Grad-CAM", "integrated gradients"):
        with pytest.raises(LabkitError, match=r"The target has shape \(2,\); expected one class, or one for each of 3"):
            METHODS[name](model(), images(), torch.tensor([0, 1]))
