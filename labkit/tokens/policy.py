"""Learn which patches may go by trial and reward: keep or drop is drawn, and what went well is made more likely.

"IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers", 2021 (S007). No gradient passes through
a decision; its probability is raised by as much as the reward, right answers with few patches, exceeds a baseline. In
use a patch stays whose probability is at least one half, so that every image keeps its own number.

    slim = attach(attach(model, PolicyDrop(192, 3), [3]), PolicyDrop(192, 3), [6])
    train(slim, batches, recipe, loss=policy_loss())
    where = keep_map(slim, images)                            # (b, patches): how long each patch was kept

The expected reward J = Σ p(mask) R(mask) has the gradient Σ p(mask) (R(mask) - any constant) ∇ log p(mask).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Groups, Observation, matrix_of
from labkit.operations import inference
from labkit.tokens.adaptive import keep_where
from labkit.tokens.learned import Draws, at_least_one, check_width
from labkit.vit import ViT

if TYPE_CHECKING:
    from labkit.data.batch import ImageSet
    from labkit.train import Loss


@dataclass(kw_only=True)
class Decided(Groups):
    """What a policy did, and how likely that was."""

    probability: Tensor  # (b, n) of keeping each token that arrived; 1 for the prefix
    log_probability: Tensor | None = None  # (b,) of all that was drawn; None in use, where nothing is


def log_probability(probability: Tensor, drawn: Tensor) -> Tensor:
    """(b, n) logarithms of how likely each decision was: `drawn` (b, n) is true with `probability` (b, n)."""
    smallest = torch.finfo(probability.dtype).eps
    return torch.where(drawn, probability, 1 - probability).clamp_min(smallest).log()


class PolicyDrop(nn.Module):
    """A reducer that learns: keeps the patches that its heads find worth it on average, and every prefix token.

    In training what is kept is drawn. A query that asks every image alike times a linear key is one linear function of
    the token: that is a head, and its vote a sigmoid. The votes read the tokens without a gradient, so that tokens are
    made for the task alone. One patch at least is kept, the most probable. Every block needs a policy of its own.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1:
            raise LabkitError(f"heads={heads} cannot vote; expected a whole number of at least 1.")
        self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.vote = nn.Linear(dim, heads)
        self.draws = Draws()

    def probability(self, x: Tensor) -> Tensor:
        """(b, n, d) → (b, n): with which probability each token is kept."""
        votes = self.vote(self.norm(x.detach()))
        return votes.to(torch.promote_types(votes.dtype, torch.float32)).sigmoid().mean(dim=-1)

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        check_width(x, self.dim, "PolicyDrop")
        probability = self.probability(x[:, prefix:])
        before = torch.ones_like(probability, dtype=torch.bool) if sizes is None else sizes[:, prefix:] > 0
        drawn = self.draws(probability.shape).to(probability) < probability if self.training else probability >= 0.5
        kept = at_least_one(drawn & before, probability.masked_fill(~before, -1))
        ones = probability.new_ones(len(x), prefix)
        every = torch.cat([ones, probability], dim=1)
        if not self.training:
            x, groups = keep_where(kept, x, prefix)
            return x, Decided(groups.home, groups.count, joins=groups.joins, there=groups.there, probability=every)
        masked = Groups.masked(torch.cat([ones, kept], dim=1).to(x))
        chance = log_probability(probability, drawn).masked_fill(~before, 0).sum(dim=1)
        return x, Decided(masked.home, masked.count, there=masked.there, probability=every, log_probability=chance)


def decisions(seen: Observation) -> list[Decided]:
    """What each policy of a model did, in order."""
    stages = [how for how in (seen.entry, *(step.how for step in seen.steps)) if isinstance(how, Decided)]
    if not stages:
        raise LabkitError("This model has no PolicyDrop; attach one: attach(model, PolicyDrop(…), …).")
    return stages


def kept_share(seen: Observation, prefix: int) -> Tensor:
    """(b,): the share of the patches that are still there behind a policy, the mean over all policies."""
    patches = seen.grid[0] * seen.grid[1]
    left = [
        seen.logits.new_full((len(seen.logits),), how.count) if how.there is None else how.there.count_nonzero(dim=1)
        for how in decisions(seen)
    ]
    return torch.stack([(tokens - prefix) / patches for tokens in left]).mean(dim=0)


def reward(logits: Tensor, labels: Tensor, share: Tensor, penalty: float) -> Tensor:
    """(b,): 1 - share² for a right answer from this share of the patches, -penalty for a wrong one."""
    return torch.where(logits.argmax(dim=-1) == labels, 1 - share.square(), -penalty)


def reinforce_loss(logp: Tensor, reward: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """Its gradient is that of minus the expected reward, on average over what was drawn with log-probability `logp`.

    A baseline that does not depend on the draw leaves that average as it is and makes it less noisy.
    """
    return -((reward - baseline).detach() * logp).mean()


def policy_loss(penalty: float = 0.5, baseline: Literal["greedy"] | float = "greedy") -> Loss:
    """For `labkit.train`: cross-entropy, which teaches the model, plus REINFORCE, which teaches the policies.

    The one has no gradient for what the other teaches, so there is no weight between them. The "greedy" baseline is
    the reward, for the same image, of what would be kept in use: a policy has to beat itself.
    """
    if isinstance(baseline, str) and baseline != "greedy":
        raise LabkitError(f'baseline={baseline!r} is unknown; choose "greedy" or a number.')

    def rewarded(model: ViT, seen: Observation, labels: Tensor) -> Tensor:
        return reward(seen.logits, labels, kept_share(seen, model.prefix), penalty)

    from labkit.train import labels_of  # a dial needs the loop only when it is trained

    def loss(model: nn.Module, batch: ImageSet) -> tuple[Tensor, Tensor]:
        assert isinstance(model, ViT)
        labels, seen = labels_of(batch), model.observe(batch.images)
        chances = [how.log_probability for how in decisions(seen)]
        drawn = [chance for chance in chances if chance is not None]
        if len(drawn) < len(chances):
            raise LabkitError("A policy learns from what it draws and in use it draws nothing; call model.train().")
        usual: Tensor | float = baseline if not isinstance(baseline, str) else 0.0
        if baseline == "greedy":
            with inference(model):
                usual = rewarded(model, model.observe(batch.images), labels)
        logits = seen.logits.float()
        learned = reinforce_loss(torch.stack(drawn).sum(dim=0), rewarded(model, seen, labels), usual)
        return F.cross_entropy(logits, labels) + learned, logits

    return loss


def keep_map(model: ViT, images: Tensor) -> Tensor:
    """(b, patches) from 0 to 1: how long each patch was kept, an explanation of what the answer was read from.

    The policies that kept it, and the probability with which the one that dropped it would have, out of all policies.
    """
    with inference(model):
        seen = model.observe(images)
    decisions(seen)
    b, n = len(images), model.prefix + seen.grid[0] * seen.grid[1]
    inside = torch.eye(n, device=images.device).expand(b, n, n)[..., model.prefix :]  # which patches are in a token
    stages = []
    for how in (seen.entry, *(step.how for step in seen.steps)):
        matrix = matrix_of(how, inside)
        if matrix is None:
            continue
        before, inside = inside, (matrix @ inside > 0).to(inside)
        if isinstance(how, Decided):
            likely = (how.probability.to(before)[:, None] @ before)[:, 0]
            stages.append(torch.where(inside.any(dim=1), 1.0, likely))
    return torch.stack(stages).mean(dim=0)
