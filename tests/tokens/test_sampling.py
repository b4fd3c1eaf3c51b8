"""Adaptive sampling: who is met, how many at most, and nothing lost where everybody is."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.tokens import attach
from labkit.tokens.sampling import Sample, sampled
from labkit.tokens.score import attention_received, class_value, known
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
SHARES = normal(4, 40).mul(1.5).softmax(dim=1)  # the smallest below 1 %, the largest above 10 %


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs), std=0.1)


@pytest.mark.paper("S011")
def test_scores_are_shares_and_their_sum_rises():
    q, k, v = normal(3, 2, 2, 9, 4)
    shares = class_value(Evidence(q, k, v=v), 1)
    checks.equal(shares.sum(dim=1), torch.ones(2), 1e-12)
    assert (shares.cumsum(dim=1).diff(dim=1) > 0).all()


@pytest.mark.paper("S011")
@pytest.mark.parametrize("n", [1, 7, 196])
def test_where_all_are_alike_as_many_samples_meet_each_once(n):
    single, double, half = (torch.full((2, n), 0.3, dtype=d) for d in (torch.float32, torch.float64, torch.bfloat16))
    for scores in (single, double, half, torch.zeros(2, n)):
        assert sampled(scores, n).all()
        assert sampled(scores, max(1, n // 2)).sum(dim=1).tolist() == 2 * [max(1, n // 2)]


@pytest.mark.paper("S011")
def test_all_mass_on_one_token_meets_only_it():
    assert sampled(torch.eye(5), 100).equal(torch.eye(5, dtype=torch.bool))


@pytest.mark.paper("S011")
@pytest.mark.parametrize("samples", [1, 2, 5, 13, 40, 200])
def test_no_more_are_met_than_asked_and_nobody_with_a_whole_share_is_missed(samples):
    met = sampled(SHARES, samples)
    assert (met.sum(dim=1) <= samples).all() and met.any(dim=1).all()
    assert met[1 / samples <= SHARES].all()
    assert (sampled(SHARES, 3 * samples) | ~met).all()  # a grid three times as fine asks there too


def test_it_is_the_inverse_of_the_cumulated_shares():
    """Against the definition, one question at a time; and the scale of the scores is not asked for."""
    for shares, met in zip(SHARES, sampled(7 * SHARES, 11), strict=True):
        found = set()
        for i in range(11):
            total = 0.0
            for patch in sorted(range(40), key=lambda j: shares[j].item()):
                total += shares[patch].item()
                if total >= (2 * i + 1) / 22:
                    found.add(patch)
                    break
        assert met.nonzero()[:, 0].tolist() == sorted(found)
    assert 5 < len(found) < 11


def test_where_a_patch_lies_does_not_matter():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert sampled(SHARES[:, order], 12).equal(sampled(SHARES, 12)[:, order])


@pytest.mark.paper("S011")
@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg"}, {"layer_scale": 0.5}], ids=str)
def test_full_selection_is_the_plain_model(kwargs):
    plain = model(**kwargs)
    score = class_value if plain.prefix else attention_received
    slim = attach(plain, Sample(2000, score), range(3))
    checks.equal(slim(IMAGES), plain(IMAGES), 1e-12)
    few = attach(plain, Sample(4, score), range(3)).observe(IMAGES)
    assert few.steps[0].x.shape[1] == plain.prefix + 4 and few.logits.isfinite().all()


@pytest.mark.paper("S011")
def test_the_selected_leave_the_block_as_they_would_have_and_keep_their_order():
    plain = model(registers=1)
    step = attach(plain, Sample(9), [0]).observe(IMAGES).steps[0]
    kept = step.map.argmax(dim=-1)
    whole = plain.observe(IMAGES).steps[0].x
    checks.equal(step.x, whole.take_along_dim(kept[..., None], dim=1), 1e-12)
    assert (kept.diff(dim=1) > 0).all() and kept[:, :2].tolist() == 3 * [[0, 1]]
    checks.rows_sum_to_one(step.map)
    assert step.sizes is None


def test_those_who_are_met_are_kept_though_they_are_not_the_highest():
    shares, seen = SHARES[:1], Evidence(*normal(2, 1, 1, 41, 4))
    met = sampled(shares, 12)[0].nonzero()[:, 0]
    assert set(met.tolist()) != set(shares[0].topk(len(met)).indices.tolist())
    x = normal(1, 41, 4)
    out, groups = Sample(12, known(shares)).reduce(x, seen, None, 1)
    checks.equal(out[:, 1:], x[:, met + 1])
    checks.equal(groups.mean(x), out)


@pytest.mark.paper("S011")
def test_each_image_keeps_its_own_number_also_in_a_batch():
    """One patch has everything, four share, all share: 1, 4 and 8 of 8. Together the shorter ones have empty places."""
    scores = torch.zeros(3, 16)
    scores[0, 5], scores[1, 3:7], scores[2] = 1.0, torch.tensor([0.2, 0.3, 0.3, 0.2]), 1 / 16
    plain = model()
    alone = [
        attach(plain, Sample(8, known(scores[i : i + 1])), [0]).observe(IMAGES[i : i + 1]).steps[0] for i in range(3)
    ]
    assert [step.x.shape[1] for step in alone] == [1 + 1, 1 + 4, 1 + 8]
    pair = attach(plain, Sample(8, known(scores[:2])), [0]).observe(IMAGES[:2]).steps[0]
    assert pair.x.shape[1] == 1 + 4
    checks.equal(pair.x[1:], alone[1].x, 1e-12)
    assert pair.map[0].argmax(dim=-1)[:2].tolist() == [0, 6] and not pair.map[0, 2:].any()
    assert pair.sizes.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    swapped = attach(plain, Sample(8, known(scores[:2].flip(0))), [0]).observe(IMAGES[:2].flip(0)).steps[0]
    checks.equal(swapped.x.flip(0), pair.x, 1e-12)


def test_gradients_and_precisions():
    slim = attach(model(), Sample(8), [0, 1])
    checks.gradients_flow(slim, IMAGES)
    checks.follows_dtype_and_device(slim, IMAGES)


def test_no_samples_are_refused():
    with pytest.raises(LabkitError, match="samples=0 keeps nothing"):
        attach(model(), Sample(0), [0])(IMAGES)
