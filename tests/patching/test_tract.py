"""TrAct: the gradient of the first layer is the least-squares step towards the step of its activations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.errors import LabkitError
from labkit.patching.tract import TrActConv2d, TrActLinear
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized


def step(layer: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """dW of one step of rate 1 on the mean over rows of half the squared distance to the target."""
    layer.weight.grad = None
    rows = target.numel() // target.shape[1] if target.ndim == 4 else len(target)
    (0.5 * (layer(x) - target).square().sum() / rows).backward()
    return -layer.weight.grad


def linear() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    return randomized(nn.Linear(5, 3)), normal(12, 5), normal(12, 3)


@pytest.mark.paper("S350")
@pytest.mark.parametrize("lam", [0.01, 0.1, 3.0])
@pytest.mark.parametrize("rows", [3, 12])
def test_the_step_minimises_the_distance_to_the_step_of_the_activations(lam, rows):
    layer, x, target = linear()
    x, target = x[:rows], target[:rows]
    found = step(TrActLinear(layer, lam), x, target)
    g = (layer(x) - target).detach()  # what each row receives, without the mean over rows
    closed = -g.T @ x / rows @ torch.linalg.inv(x.T @ x / rows + lam * torch.eye(5).double())
    checks.equal(found, closed, 1e-12, "the step and the closed form")

    found.requires_grad_(True)
    objective = (x @ found.T + g).square().sum() / rows + lam * found.square().sum()
    slope = torch.autograd.grad(objective, found)[0]
    checks.equal(slope, torch.zeros_like(slope), 1e-12, "the gradient of the objective and zero")


@pytest.mark.paper("S350")
def test_a_large_lambda_is_the_plain_gradient_made_small():
    layer, x, target = linear()
    checks.exact_limit(
        lambda x: 1e9 * step(TrActLinear(layer, 1e9), x, target), lambda x: step(layer, x, target), x, tol=1e-8
    )


@pytest.mark.paper("S350")
def test_contrast_does_not_change_how_far_the_activations_move():
    layer, x, _ = linear()
    g = normal(12, 3)

    def moved(module: nn.Module, contrast: float) -> torch.Tensor:
        module.weight.grad = None
        module(contrast * x).backward(g)
        return -contrast * x @ module.weight.grad.T

    checks.equal(moved(TrActLinear(layer, 1e-12), 10.0), moved(TrActLinear(layer, 1e-12), 1.0), 1e-8)
    checks.equal(moved(layer, 10.0), 100 * moved(layer, 1.0), 1e-9, "plain gradients: ten times and a hundred times")


@pytest.mark.paper("S350")
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"stride": (3, 2), "dilation": (1, 2)}])
def test_a_convolution_is_the_linear_layer_on_unfolded_pixels(options):
    conv, images = randomized(nn.Conv2d(2, 4, (3, 2), **options)), normal(3, 2, 8, 9)
    places = F.unfold(images, (3, 2), **options).mT.flatten(0, 1)
    flat = nn.Linear(12, 4).double()
    with torch.no_grad():
        flat.weight.copy_(conv.weight.flatten(1)), flat.bias.copy_(conv.bias)
    target = normal(len(places), 4)
    as_maps = target.view(3, -1, 4).mT.reshape(conv(images).shape)
    found, expected = step(TrActConv2d(conv), images, as_maps), step(TrActLinear(flat), places, target)
    checks.equal(found.flatten(1), expected, 1e-12, "the steps of the convolution and of the linear layer")
    checks.equal(conv.bias.grad, flat.bias.grad, 1e-12, "the gradients of the biases")


@pytest.mark.paper("S350")
@pytest.mark.parametrize("bias", [True, False])
def test_all_but_the_gradient_of_the_weights_is_as_before(bias):
    for plain, images, wrap in (
        (nn.Conv2d(3, 4, 4, 4, bias=bias), normal(2, 3, 8, 12).float(), TrActConv2d),
        (nn.Linear(5, 3, bias=bias), normal(2, 7, 5).float(), TrActLinear),
    ):
        wrapped = wrap(plain)
        checks.equal(wrapped(images), plain(images), 0.0, "the outputs")
        checks.equal_gradients(wrapped, plain, images, tol=0.0)
        assert wrapped.weight is plain.weight and wrapped.bias is plain.bias
        assert list(wrapped.state_dict()) == list(plain.state_dict())


def test_the_authors_printed_example():
    torch.manual_seed(0)
    x, y = torch.randn(30, 8), torch.randn(30, 5)
    layer = TrActLinear(nn.Linear(8, 5), 0.1)
    (y - layer(x)).square().mean().backward()
    printed = torch.tensor([0.0741, 0.0949, -0.0559, -0.0398, -0.1364, 0.0013, 0.1603, -0.0468])
    checks.equal(layer.weight.grad[0], printed, 6e-5, "the gradient and the one that torch_tract prints")


def test_a_vit_trains_with_it():
    vit, images = ViT(32, 8, 5, 16, 1, 2), normal(2, 3, 32, 48).float()
    before, names = vit(images), list(vit.state_dict())
    vit.patch_embed.proj = TrActConv2d(vit.patch_embed.proj)
    checks.equal(vit(images), before, 0.0, "the logits")
    assert list(vit.state_dict()) == names
    checks.gradients_flow(vit, images)
    checks.gradients_flow(vit.bfloat16(), images.bfloat16())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TrActLinear(nn.Linear(4, 2), 0), "lam=0 leaves what no pixel speaks of undecided"),
        (lambda: TrActConv2d(nn.Conv2d(4, 2, 3), -1.0), "choose lam > 0"),
        (lambda: TrActConv2d(nn.Conv2d(4, 4, 3, groups=2)), "one group and zeros for a padding"),
        (lambda: TrActConv2d(nn.Conv2d(4, 4, 3, padding="same")), "one group and zeros for a padding"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
