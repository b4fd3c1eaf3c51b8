"""Keep and merge: the exact limit, honest maps, protected prefix, counts that are what they say."""

from __future__ import annotations

import pytest
import torch

from labkit import tokens
from labkit.errors import LabkitError
from labkit.tokens.merge import bipartite_map
from labkit.vit import ViT


def model(**kwargs):
    torch.manual_seed(0)
    return ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg", "class_token": True}], ids=str)
@pytest.mark.parametrize("reducer", [tokens.Keep(1.0), tokens.Merge(0)], ids=["keep=1", "r=0"])
def test_at_full_budget_nothing_changes(kwargs, reducer, images):
    plain = model(**kwargs)
    slim = tokens.attach(plain, reducer, range(3))
    assert (slim(images) - plain(images)).abs().max() <= 2e-6


@pytest.mark.parametrize("reducer", [tokens.Keep(0.5), tokens.Merge(5)], ids=["keep", "merge"])
def test_maps_are_row_stochastic_and_mass_is_conserved(reducer, images):
    slim = tokens.attach(model(registers=1), reducer, [0, 1])
    seen = slim.observe(images)
    for step, before in zip(seen.steps[:2], (seen.embedded, seen.steps[0].x), strict=True):
        assert step.map.shape == (3, step.x.shape[1], before.shape[1])
        assert torch.allclose(step.map.sum(-1), torch.ones(step.map.shape[:2]))
        assert torch.equal(step.map[:, :2, :2], torch.eye(2).expand(3, 2, 2))  # the prefix is nobody else
    if isinstance(reducer, tokens.Merge):
        assert torch.allclose(seen.steps[1].sizes.sum(1), torch.full((3,), 18.0))


def test_counts_are_what_they_say(images):
    kept = tokens.attach(model(), tokens.Keep(0.25), [0]).observe(images).steps
    assert [s.x.shape[1] for s in kept] == [5, 5, 5]
    merged = tokens.attach(model(), tokens.Merge(3), [0, 1]).observe(images).steps
    assert [s.x.shape[1] for s in merged] == [14, 11, 11]
    most = tokens.attach(model(), tokens.Merge(100), [0]).observe(images).steps
    assert most[0].x.shape[1] == 9  # every even patch token is merged, no more


def test_keep_takes_the_highest_scores_in_order(images):
    scores = torch.arange(16.0).roll(3).expand(3, -1)
    slim = tokens.attach(model(), tokens.Keep(0.25, lambda *_: scores), [0])
    step = slim.observe(images).steps[0]
    assert step.map[0].argmax(-1).tolist() == [0, 1 + 0, 1 + 1, 1 + 2, 1 + 15]


def test_the_default_score_is_the_class_tokens_attention(images):
    plain = model().set_impl("plain")
    step = plain.observe(images).steps[0]
    expected = step.evidence.attention().mean(1)[:, 0, 1:].topk(4).indices.sort().values + 1
    slim = tokens.attach(plain, tokens.Keep(0.25), [0])
    assert torch.equal(slim.observe(images).steps[0].map.argmax(-1)[:, 1:], expected)


def test_attach_shares_weights_and_leaves_the_model_alone(images):
    plain = model()
    before = plain(images)
    slim = tokens.attach(plain, tokens.Keep(0.3), [0])
    assert all(a is b for a, b in zip(plain.parameters(), slim.parameters(), strict=True))
    assert not torch.allclose(slim(images), before) and torch.equal(plain(images), before)


def test_duplicates_are_merged_first():
    similarity = torch.zeros(1, 7, 7)
    similarity[0, 3, 4] = 0.9  # prefix 1: even tokens 1, 3, 5 propose to odd tokens 2, 4, 6
    similarity[0, 5, 2] = 0.5
    sizes = torch.tensor([[1.0, 1, 1, 3, 1, 1, 1]])
    one = bipartite_map(similarity, sizes, 1, prefix=1)[0]
    assert one.shape == (6, 7) and one[3].tolist() == [0, 0, 0, 0.75, 0.25, 0, 0]
    two = bipartite_map(similarity, sizes, 2, prefix=1)[0]
    assert two.shape == (5, 7) and two[2].tolist() == [0, 0, 0.5, 0, 0, 0.5, 0]


def test_merging_exact_duplicates_is_free(images):
    """Every patch twice: merging the twins, weighted by size in the attention, changes nothing."""
    plain = model(positions=False)
    half = images.clone()
    half[..., 8:16], half[..., 24:32] = half[..., 0:8], half[..., 16:24]
    slim = tokens.attach(plain, tokens.Merge(8), [0])
    assert (slim(half) - plain(half)).abs().max() < 1e-5
    assert (slim(images) - plain(images)).abs().max() > 1e-4


def test_a_share_outside_its_range_is_refused(images):
    with pytest.raises(LabkitError, match="keep=0 is not a share"):
        tokens.attach(model(), tokens.Keep(0), [0])(images)
