"""A jump with a gradient: forward a decision is 0 or 1, backward it has the slope of the sigmoid that was cut."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from labkit.check.exercise import Exercise, normal
from labkit.tokens.learned import LearnedDrop


def decide(logits):
    """The decision of `LearnedDrop` without its dice: a draw of one half adds nothing to a logit."""
    return LearnedDrop.draw(SimpleNamespace(draws=lambda shape: torch.full(shape, 0.5)), logits, None, 0)


def value_and_gradient(fn, logits):
    """Each decision is asked for another number of times, so that its own gradient is seen."""
    leaf = logits.clone().requires_grad_()
    value = fn(leaf)
    if not isinstance(value, torch.Tensor):
        return value
    gradient = None
    if value.requires_grad:
        asked = torch.arange(1.0, value.numel() + 1).view_as(value)
        (gradient,) = torch.autograd.grad((value * asked).sum(), leaf, allow_unused=True)
    return value.detach(), torch.zeros_like(logits) if gradient is None else gradient


task = Exercise(
    lesson="07_token_pruning",
    reference=decide,
    parts=("value", "gradient"),
    hints=(
        "`hard + something`, whose value is 0 but whose gradient is that of the sigmoid.",
        "`soft - soft.detach()` is 0, and only one of the two has a gradient.",
    ),
    praise="Now a network can learn what to drop, with the decisions that it will really take.",
    source="labkit.tokens.learned.LearnedDrop.draw",
    observe=value_and_gradient,
)


@task.stub
def straight_through(logits):
    """Write `straight_through(logits)`: forward exactly 1 where a logit is above 0 and exactly 0 elsewhere;
    backward the gradient of the sigmoid.
    """
    return logits * 0


@task.cases
def cases(dice):
    yield (torch.tensor([[1.0, -2.0, 0.0]]),)
    yield (torch.tensor([[3.0, -0.1, 0.2, -4.0], [0.3, 1.5, -1.5, 0.1]]),)
    yield (torch.cat([normal(dice, 3, 8), torch.ones(3, 1)], dim=1),)


@task.mistake(
    "Forward it is right, but no gradient reaches the logits: a comparison has none, and what is added and taken "
    "away in full cancels its own. Nothing would be learned."
)
def comparison(logits):
    return (logits > 0).float()


@task.mistake(
    "That is the sigmoid itself: the gradient is right, but a token would be half there in training and never in "
    "use. Cut it forward."
)
def soft(logits):
    return logits.sigmoid()


@task.mistake(
    "You add the sigmoid and do not take it away again: the gradient is right, but forward it is neither 0 nor 1. "
    "Subtract the same number without a gradient."
)
def not_taken_away(logits):
    return (logits > 0).float() + logits.sigmoid()


@task.mistake(
    "The gradient has the wrong sign: you detached the sigmoid that is added, not the one that is taken away. The "
    "model would learn the opposite."
)
def wrong_one_detached(logits):
    s = logits.sigmoid()
    return (logits > 0).float() + (s.detach() - s)


@task.mistake(
    "Your gradient is 1 everywhere, that of the identity. That of the sigmoid is s (1 - s): a logit far from 0 is "
    "hardly moved any more."
)
def identity(logits):
    return (logits > 0).float() + (logits - logits.detach())


@task.mistake(
    "You multiply the decision by the sigmoid: who is kept counts less than 1, and who is dropped gets no gradient "
    "and can never come back."
)
def gated(logits):
    return (logits > 0).float() * logits.sigmoid()
