"""Two small attentions, of places and of channels, are one large one that is never written down."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.attention import kronecker as mine
from labkit.attention.matrix import effective_matrix
from labkit.attention.mixer import Mixer
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

GRID, N = (8, 16), 128
DIM, HEADS = 32, 4
PLACES, CHANNELS, FEATURES = 12, 5, 3  # a grid of 3 x 4


def questions():
    """q_s, k_s, q_c, k_c and v of two images."""
    q_s, k_s = normal(2, 2, PLACES, 6)
    q_c, k_c = normal(2, 2, CHANNELS, 7)
    return q_s, k_s, q_c, k_c, normal(2, PLACES, CHANNELS, FEATURES)


def logits(q, k):
    return q @ k.mT / math.sqrt(q.shape[-1])


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S325")
@pytest.mark.parametrize("radius", [1.5, math.inf])
def test_it_is_the_kronecker_product_of_both_on_all_pairs(radius):
    q_s, k_s, q_c, k_c, v = questions()
    mask = mine.perception_mask(3, 4, radius)
    ours = mine.kronecker_attention(q_s, k_s, q_c, k_c, v, mask)
    a_s = logits(q_s, k_s).masked_fill(~mask, -torch.inf).softmax(dim=-1)
    a_c = logits(q_c, k_c).softmax(dim=-1)
    checks.equal(ours, torch.einsum("bnm,bmcd,bec->bned", a_s, v, a_c), 1e-12, "kronecker attention and A_s V A_cᵀ")
    for i in range(2):
        product = torch.kron(a_s[i], a_c[i]) @ v[i].flatten(0, 1)
        checks.equal(ours[i].flatten(0, 1), product, 1e-12, "kronecker attention and (A_s ⊗ A_c) vec(V)")


@pytest.mark.paper("S325")
def test_it_is_one_softmax_of_the_sum_of_the_scores():
    """So rows of the large matrix are probabilities, and the method is attention among all pairs."""
    q_s, k_s, q_c, k_c, v = questions()
    outer = logits(q_s, k_s)[:, :, None, :, None] + logits(q_c, k_c)[:, None, :, None, :]
    attn = outer.flatten(3).softmax(dim=-1).flatten(1, 2)  # (b, places * channels, places * channels)
    checks.rows_sum_to_one(attn, 1e-12)
    ours = mine.kronecker_attention(q_s, k_s, q_c, k_c, v)
    checks.equal(ours.flatten(1, 2), attn @ v.flatten(1, 2), 1e-12, "kronecker attention and one softmax")


@pytest.mark.paper("S325")
def test_channels_that_ask_only_themselves_leave_spatial_attention():
    q_s, k_s, *_, v = questions()
    alone = 1e3 * torch.eye(CHANNELS, dtype=torch.float64).expand(2, -1, -1)
    spatial = torch.einsum("bnm,bmcd->bncd", logits(q_s, k_s).softmax(dim=-1), v)
    checks.exact_limit(lambda v: mine.kronecker_attention(q_s, k_s, alone, alone, v), lambda v: spatial, v, tol=1e-12)


@pytest.mark.paper("S325")
def test_one_group_of_channels_is_dense_attention():
    ours, dense = randomized(mine.KroneckerAttention(DIM, HEADS, channels=1)), randomized(Mixer(DIM, HEADS))
    checks.exact_limit(lambda x: ours(x, GRID), lambda x: dense(x, GRID), normal(2, N, DIM), tol=1e-12)


@pytest.mark.paper("S325")
def test_the_mask_is_a_disc_and_without_a_radius_none():
    mask = mine.perception_mask(3, 4, math.sqrt(2))
    seen = [[(i - r) ** 2 + (j - c) ** 2 <= 2 for i in range(3) for j in range(4)] for r in range(3) for c in range(4)]
    checks.equal(mask, torch.tensor(seen), what="the mask and the disc")
    assert mine.perception_mask(3, 4, math.inf).all()
    checks.equal(mine.perception_mask(3, 4, 0.0), torch.eye(12) > 0, what="a radius of zero and the identity")
    masked, free = (randomized(mine.KroneckerAttention(DIM, HEADS, 4, radius)) for radius in (100.0, math.inf))
    checks.exact_limit(lambda x: masked(x, GRID), lambda x: free(x, GRID), normal(2, N, DIM), tol=1e-14)


@pytest.mark.paper("S325")
def test_places_beyond_the_radius_are_not_heard():
    near = randomized(mine.KroneckerAttention(DIM, HEADS, radius=2.0))
    matrix = effective_matrix(near, normal(2, N, DIM), GRID)
    checks.equal(matrix != 0, mine.perception_mask(*GRID, 2.0).expand_as(matrix), what="the support, and the discs")


def test_the_mixer_asks_with_groups_averaged_over_the_places():
    mixer, (q, k, v) = randomized(mine.KroneckerAttention(DIM, HEADS, channels=2)), normal(3, 2, HEADS, N, 8)
    a_s = logits(q, k).softmax(dim=-1)
    a_c = logits(q.mean(dim=2).unflatten(2, (2, 4)), k.mean(dim=2).unflatten(2, (2, 4))).softmax(dim=-1)
    halves = v[..., :4], v[..., 4:]
    mixed = [a_s @ sum(a_c[:, :, i, j, None, None] * halves[j] for j in range(2)) for i in range(2)]
    checks.equal(mixer.mix(q, k, v, GRID), torch.cat(mixed, dim=-1), 1e-12, "the mix, and a sum over the groups")


@pytest.mark.paper("S325")
@pytest.mark.parametrize(("n", "c", "d"), [(64, 4, 8), (128, 4, 8), (64, 8, 8)])
def test_its_cost_is_that_of_both_axes_one_after_the_other(n, c, d):
    """The values cost n²cd + nc²d; full attention among all pairs would cost (nc)²d."""
    q_s, k_s, q_c, k_c, v = (torch.zeros(1, n, d),) * 2 + (torch.zeros(1, c, d),) * 2 + (torch.zeros(1, n, c, d),)
    values = n * n * c * d + n * c * c * d
    scores = n * n * d + c * c * d
    checks.cost_law(values + scores, lambda v: mine.kronecker_attention(q_s, k_s, q_c, k_c, v), v)
    assert values < (n * c) ** 2 * d / 3


def test_gradients_reach_both_axes():
    inputs = [t.requires_grad_() for t in questions()]
    loss = mine.kronecker_attention(*inputs).square().sum()
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, inputs))


def test_it_compiles():
    mixer, x = randomized(mine.KroneckerAttention(DIM, HEADS, radius=3.0)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


def test_what_cannot_work_is_refused():
    with pytest.raises(LabkitError, match="A head of 8 features has no 3 equal groups; choose a divisor of it"):
        mine.KroneckerAttention(DIM, HEADS, channels=3)
