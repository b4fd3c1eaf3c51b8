"""Distillation through a token: the model is timm's, the loss is the paper's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.distill import DistilledViT, deit_loss
from labkit.errors import LabkitError
from tests import checks

DRAW = torch.Generator().manual_seed(0)
CLS, DIST, TEACHER = (3 * torch.randn(6, 5, generator=DRAW) for _ in range(3))
Y = torch.tensor([0, 3, 1, 4, 2, 2])


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pair() -> tuple[nn.Module, DistilledViT]:
    """timm's model and ours, built on their own; the weights go over by name."""
    from timm.models.deit import VisionTransformerDistilled

    theirs = VisionTransformerDistilled((16, 24), 8, embed_dim=24, depth=3, num_heads=3, num_classes=5)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=DRAW) * 0.4)
    ours = DistilledViT((16, 24), 8, 5, 24, 3, 3, norm=lambda dim: nn.LayerNorm(dim, eps=1e-6))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs.eval(), ours.eval()


@pytest.mark.paper("S203")
def test_the_same_weights_give_the_same_logits(pair):
    theirs, ours = pair
    assert ours.prefix == 2
    for impl in ("plain", "fast"):
        checks.equal(ours.set_impl(impl)(images()), theirs(images()), 1e-5)
    theirs.set_distilled_training(True)
    checks.equal(ours.train().heads(images()), theirs.train()(images()), 1e-5)
    checks.equal(ours.eval().heads(images()), theirs.train()(images()), 1e-5)


@pytest.mark.paper("S203")
def test_in_use_the_heads_are_averaged(pair):
    ours = pair[1]
    cls_logits, dist_logits = ours.heads(images())
    checks.equal(ours(images()), (cls_logits + dist_logits) / 2, 1e-6)
    checks.equal(ours.observe(images()).logits, ours(images()), 2e-6)
    assert (cls_logits - dist_logits).abs().max() > 0.1


def test_no_classes_and_no_positions_of_the_tokens_before_the_patches():
    model = DistilledViT(16, 8, 0, 24, 2, 3, prefix_positions=False, registers=1)
    assert model.pos_embed.shape == (1, 4, 24) and model.prefix == 3
    assert model.prefix_tokens()[1] is model.dist_token
    assert model(images()).shape == (2, 24)


@pytest.mark.paper("S203")
def test_hard_distillation_is_two_cross_entropies():
    expected = 0.5 * F.cross_entropy(CLS, Y) + 0.5 * F.cross_entropy(DIST, TEACHER.argmax(-1))
    checks.equal(deit_loss(CLS, DIST, Y, TEACHER), expected, 1e-6)
    agreeing = 9.0 * F.one_hot(Y, 5)
    expected = (F.cross_entropy(CLS, Y) + F.cross_entropy(DIST, Y)) / 2
    checks.equal(deit_loss(CLS, DIST, Y, agreeing), expected, 1e-6)
    expected = 0.7 * F.cross_entropy(CLS, Y) + 0.3 * F.cross_entropy(DIST, TEACHER.argmax(-1))
    checks.equal(deit_loss(CLS, DIST, Y, TEACHER, alpha=0.3), expected, 1e-6)


@pytest.mark.paper("S203")
def test_soft_distillation_is_a_divergence_times_tau_squared():
    p, q = (TEACHER / 2).softmax(-1), (DIST / 2).softmax(-1)
    divergence = (p * (p.log() - q.log())).sum(-1).mean()
    expected = 0.6 * F.cross_entropy(CLS, Y) + 0.4 * 4 * divergence
    checks.equal(deit_loss(CLS, DIST, Y, TEACHER, "soft", alpha=0.4, tau=2.0), expected, 1e-5)
    zero = deit_loss(CLS, TEACHER, Y, TEACHER, "soft", alpha=1.0)
    checks.equal(zero, torch.zeros(()), 1e-6)  # the student that says what the teacher says


@pytest.mark.paper("S203")
def test_tau_squared_keeps_the_scale_of_the_gradient():
    """For large τ the gradient is τ² · (student - teacher) / (τ² · classes): it settles instead of vanishing."""

    def gradient(tau: float) -> torch.Tensor:
        dist = DIST.clone().requires_grad_(True)
        deit_loss(CLS, dist, Y, TEACHER, "soft", alpha=1.0, tau=tau).backward()
        return dist.grad

    centred = [logits - logits.mean(-1, keepdim=True) for logits in (DIST, TEACHER)]
    limit = (centred[0] - centred[1]) / (5 * len(Y))
    checks.equal(gradient(1000.0), limit, 2e-3)
    sizes = [gradient(tau).norm() for tau in (3.0, 10.0, 30.0, 100.0)]
    assert max(sizes) / min(sizes) < 2  # without τ² the last would be about 1000 times the first


@pytest.mark.paper("S203")
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_who_learns_from_whom(pair, mode):
    ours, teacher = pair[1], TEACHER[:2].clone().requires_grad_(True)

    def gradients(alpha: float) -> dict[str, torch.Tensor]:
        ours.zero_grad()
        deit_loss(*ours.heads(images()), Y[:2], teacher, mode, alpha=alpha).backward()
        return {name: p.grad for name, p in ours.named_parameters()}

    labels_only = gradients(0.0)
    assert not labels_only["head_dist.weight"].any() and labels_only["head.weight"].any()
    teacher_only = gradients(1.0)
    assert teacher_only["head_dist.weight"].any() and not teacher_only["head.weight"].any()
    assert all(grad.any() for grad in gradients(0.5).values())
    assert teacher.grad is None


def test_labels_may_be_mixed():
    mixed = 0.3 * F.one_hot(Y, 5) + 0.7 * F.one_hot(Y.flip(0), 5)
    expected = 0.3 * F.cross_entropy(CLS, Y) + 0.7 * F.cross_entropy(CLS, Y.flip(0))
    checks.equal(deit_loss(CLS, DIST, mixed, TEACHER, alpha=0.0), expected, 1e-6)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"mode": "medium"}, 'mode=\'medium\' is unknown; choose "hard" or "soft"'),
        ({"alpha": 1.5}, "alpha=1.5 .* choose 0 <= alpha <= 1"),
        ({"tau": 0.0}, "tau=0.0 do not fit; .* tau > 0"),
        ({"teacher_logits": TEACHER[:, :4]}, r"shape \(6, 4\), the student's \(6, 5\)"),
    ],
)
def test_bad_input(options, sentence):
    with pytest.raises(LabkitError, match=sentence):
        deit_loss(**{"cls_logits": CLS, "dist_logits": DIST, "y": Y, "teacher_logits": TEACHER, **options})
