"""Scores: each is what it says on evidence made by hand, and any of them goes into `Keep`."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.tokens import Keep, attach, class_attention, score
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
PLAIN = [class_attention, score.class_value, score.attention_received, score.key_norm]
ALL = {f.__name__: f for f in PLAIN} | {
    "page_rank": score.page_rank(),
    "energy": score.energy(),
    "reverse": score.reverse(score.energy()),
    "known": score.known(normal(3, 16)),
    "random": lambda evidence, prefix: score.random(torch.Generator().manual_seed(0))(evidence, prefix),
}


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=2, heads=2, layer_scale=0.5, **kwargs))


def evidence(b: int = 2, n: int = 9, heads: int = 2, d: int = 4) -> Evidence:
    q, k, v = normal(3, b, heads, n, d)
    return Evidence(q, k, v=v)


def shuffled(seen: Evidence, order: torch.Tensor) -> Evidence:
    q, k, v = (t[:, :, order] for t in (seen.q, seen.k, seen.v))
    return Evidence(q, k, v=v)


@pytest.mark.parametrize("name", ALL)
def test_every_score_goes_into_keep(name):
    """Full budget changes nothing; half of it keeps half, the prefix first, as the score ranks."""
    plain = model(registers=1)
    full = attach(plain, Keep(1.0, ALL[name]), range(2))
    checks.equal(full(IMAGES), plain(IMAGES), 1e-12)
    step = attach(plain, Keep(0.5, ALL[name]), [0]).observe(IMAGES).steps[0]
    values = ALL[name](plain.observe(IMAGES).steps[0].evidence, 2)
    assert values.shape == (3, 16) and values.dtype == torch.float64
    best = values.topk(8).indices.sort().values
    assert step.map.argmax(-1).tolist() == [[0, 1, *row] for row in (best + 2).tolist()]


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("known", "random", "reverse")])
def test_scores_follow_their_patches_and_ignore_the_neighbours_in_the_batch(name):
    seen, order = evidence(), torch.tensor([0, 1, 5, 8, 2, 7, 3, 6, 4])
    values = ALL[name](seen, 2)
    checks.equal(ALL[name](shuffled(seen, order), 2), values[:, order[2:] - 2], 1e-12)
    alone = Evidence(seen.q[1:], seen.k[1:], v=seen.v[1:])
    checks.equal(ALL[name](alone, 2), values[1:], 1e-12)
    assert (values[:, :1] - values).abs().max() > 1e-3  # it tells patches apart


@pytest.mark.parametrize("name", ["attention_received", "page_rank", "energy", "key_norm"])
def test_models_without_a_class_token_have_scores_too(name):
    plain = model(pool="avg")
    steps = attach(plain, Keep(0.25, ALL[name]), [0]).observe(IMAGES).steps
    assert [step.x.shape[1] for step in steps] == [4, 4]
    checks.equal(attach(plain, Keep(1.0, ALL[name]), [0])(IMAGES), plain(IMAGES), 1e-12)


def test_the_highest_come_in_order_and_the_earlier_of_equals():
    scores = torch.tensor([[3.0, 5, 3, 5, 3], [0.0, 1, 2, 3, 4]])
    assert score.highest(scores, 3, prefix=2).tolist() == [[0, 1, 2, 3, 5], [0, 1, 4, 5, 6]]


def test_the_value_decides_as_much_as_the_attention_head_by_head():
    """The class token looks most at the second patch, whose values say next to nothing."""
    attn = torch.tensor([[0.2, 0.5, 0.3], [0.2, 0.1, 0.7]], dtype=torch.float64)[None, :, None]
    v = torch.zeros(1, 2, 3, 2, dtype=torch.float64)
    v[0, 0, 0], v[0, 1, 0] = torch.tensor([9.0, 9.0]), torch.tensor([9.0, 9.0])  # the class token's own: ignored
    v[0, 0, 1], v[0, 0, 2] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])  # norms 5 and 0
    v[0, 1, 1], v[0, 1, 2] = torch.tensor([0.0, 5.0]), torch.tensor([1.0, 0.0])  # norms 5 and 1
    taken = torch.tensor([[0.5 * 5 + 0.1 * 5, 0.7 * 1]], dtype=torch.float64)
    scores = score.class_value(Evidence(v, v, attn=attn, v=v), 1)
    checks.equal(scores, taken / 3.7, 1e-12)
    assert class_attention(Evidence(v, v, attn=attn, v=v), 1).argmax() == 1 and scores.argmax() == 0


@pytest.mark.paper("S011")
def test_the_scores_of_ats_are_shares_of_one():
    scores = score.class_value(evidence(), 1)
    assert scores.min() > 0
    checks.equal(scores.sum(1), torch.ones(2), 1e-12)


def test_attention_received_is_the_mean_of_a_column():
    seen = evidence()
    expected = torch.stack([seen.attention()[:, :, :, j].flatten(1).mean(1) for j in range(1, 9)], dim=1)
    checks.equal(score.attention_received(seen, 1), expected, 1e-12)
    checks.equal(score.attention_received(seen, 0).sum(1), torch.ones(2), 1e-12)


def second_eigenvalue(matrix: torch.Tensor) -> float:
    return torch.linalg.eigvals(matrix).abs().sort().values[-2].item()


@pytest.mark.paper("S066")
@pytest.mark.parametrize("damping", [1.0, 0.85])
def test_the_rank_converges_to_the_left_eigenvector_at_the_rate_of_the_second_eigenvalue(damping):
    attn = normal(12, 12).softmax(-1)
    values, vectors = torch.linalg.eig((damping * attn + (1 - damping) / 12).T)
    limit = vectors[:, values.real.argmax()].real
    limit = limit / limit.sum()
    errors = []
    for iterations in (0, 1, 8, 16, 100):
        rank = score.stationary(attn, iterations, damping)
        checks.rows_sum_to_one(rank[None], 1e-12)
        errors.append((rank - limit).abs().max().item())
    assert errors[-1] < 1e-14 and errors[0] > 1e-2
    rate = (errors[3] / errors[2]) ** (1 / 8)
    assert rate == pytest.approx(damping * second_eigenvalue(attn), rel=0.15)


@pytest.mark.paper("S066")
def test_a_doubly_stochastic_graph_ranks_all_alike_and_no_iterations_too():
    orders = ([1, 2, 3, 4, 5, 0], [3, 1, 0, 2, 5, 4], [0, 5, 4, 1, 3, 2])
    permutations = torch.stack([torch.eye(6, dtype=torch.float64)[order] for order in map(torch.tensor, orders)])
    doubly = (permutations * torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:, None, None]).sum(0)
    checks.equal(score.stationary(doubly, 20), torch.full((6,), 1 / 6), 1e-7)
    seen = evidence()
    checks.equal(score.page_rank(0)(seen, 1), torch.full((2, 8), 1 / 9), 1e-7)
    once = score.page_rank(1)(seen, 1)  # one step of the walk is the mean attention received
    checks.equal(once, score.attention_received(seen, 1), 1e-12)


@pytest.mark.paper("S066")
def test_a_token_that_important_tokens_look_at_outranks_one_that_many_look_at():
    """Tokens 2, 3, 4 look at 1, which looks at 0, which looks at 1 or itself: 0 receives less, and ranks higher."""
    attn = torch.tensor(
        [[0.75, 0.1, 0.05, 0.05, 0.05], [0.9, 0.04, 0.02, 0.02, 0.02]] + 3 * [[0.05, 0.9, 0.02, 0.02, 0.01]]
    )
    seen = Evidence(attn[None, None], attn[None, None], attn=attn[None, None])
    assert score.attention_received(seen, 0).argmax() == 1
    assert score.page_rank()(seen, 0).argmax() == 0


def crowd(cosines: torch.Tensor) -> Evidence:
    """Keys of one head whose cosines are these."""
    gram = cosines.double()
    values, vectors = torch.linalg.eigh(gram)
    keys = (vectors * values.clamp_min(0).sqrt())[None, None]
    checks.equal(keys @ keys.transpose(-2, -1), gram[None, None], 1e-12)
    return Evidence(keys, 3 * keys)


@pytest.mark.paper("S322")
def test_the_isolated_have_less_energy_than_those_in_a_crowd():
    """Two crowds of three, one token alone: every cosine across is 0.1. Dropping by energy spares the one alone."""
    cosines = torch.full((7, 7), 0.1)
    cosines[:3, :3] = cosines[3:6, 3:6] = 0.9
    seen = crowd(cosines.fill_diagonal_(1))
    energy = score.energy(0.5)(seen, 0)
    assert energy.argmin() == 6
    low = torch.tensor(-0.4, dtype=torch.float64).expm1()
    checks.equal(energy[0, 0], (0.5 + 2 * 0.4 + 4 * low) / 7, 1e-7)
    checks.equal(energy[0, 6], (0.5 + 6 * low) / 7, 1e-7)
    assert 6 in score.highest(score.reverse(score.energy())(seen, 0), 1, 0)[0]


@pytest.mark.paper("S322")
def test_only_without_a_tail_is_the_energy_of_the_isolated_always_the_lowest():
    """The check puts isolated tokens last always; with the paper's tail below the margin that is no law.

    Two twins are turned away from five tokens that are nearly, but not quite, each other's neighbours: one friend and
    five opposites make less energy than no friend and no opposites. With alpha=0 what is below the margin counts
    nothing; then isolated means to be near oneself alone, and a friend means more.
    """
    cosines = torch.full((7, 7), -0.3)
    cosines[:2, :2], cosines[2:, 2:] = 0.95, 0.45
    seen = crowd(cosines.fill_diagonal_(1))
    broken, lawful = (score.energy(0.5, alpha)(seen, 0)[0] for alpha in (1.0, 0.0))
    assert broken[:2].max() < broken[2:].min()
    checks.equal(lawful[2:], lawful.new_full((5,), 0.5 / 7), 1e-12)
    assert lawful[:2].min() > 0.5 / 7 + 0.05


def test_known_random_and_reverse():
    seen = evidence()
    mask = torch.arange(8.0)[None] > 5
    assert score.known(mask)(seen, 1).tolist() == 2 * [mask[0].double().tolist()]
    checks.equal(score.reverse(score.key_norm)(seen, 1), -seen.k.transpose(1, 2).flatten(2).norm(dim=-1)[:, 1:], 1e-12)
    draw = torch.Generator().manual_seed(3)
    chance = score.random(draw)
    first, second = chance(seen, 1), chance(seen, 1)
    assert first.shape == (2, 8) and not torch.equal(first, second)
    draw.manual_seed(3)
    assert torch.equal(chance(seen, 1), first)


def test_errors_say_what_to_do():
    seen = evidence()
    with pytest.raises(LabkitError, match=r"shape \(2, 5\), but the block sees 2 images of 8 patches"):
        score.known(torch.ones(2, 5))(seen, 1)
    with pytest.raises(LabkitError, match="there is none; score by attention_received"):
        score.class_value(seen, 0)
    with pytest.raises(LabkitError, match="holds none"):
        score.class_value(Evidence(seen.q, seen.k), 1)
    with pytest.raises(LabkitError, match=r"damping=1\.5"):
        score.page_rank(damping=1.5)


def test_without_a_class_token_its_attention_is_no_score():
    k = torch.zeros(1, 1, 4, 2)
    with pytest.raises(LabkitError, match="reads the class token's row and there is none; use attention_received"):
        class_attention(Evidence(k, k), 0)
