"""Bi-level routing picks the best regions, attends to exactly those, and is dense attention when it picks all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.attention import routed as mine
from labkit.attention.matrix import effective_matrix
from labkit.attention.mixer import Mixer
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID, REGIONS = 12, 3, (4, 9), (2, 3)
N, COUNT = 36, 6
Y, X = torch.arange(N) // GRID[1], torch.arange(N) % GRID[1]
REGION = (Y // 2) * REGIONS[1] + X // 3  # of every token, rows first


def tokens_of(region: int) -> torch.Tensor:
    """The tokens of a region."""
    return REGION.eq(region).nonzero().flatten()


def qkv(b: int = 2) -> list[torch.Tensor]:
    return list(normal(3, b, HEADS, N, DIM // HEADS))


def by_hand(q: torch.Tensor, k: torch.Tensor, topk: int) -> torch.Tensor:
    """(b, R, topk) region by region, with loops and a full sort."""
    tables = []
    for image in range(len(q)):
        means = [[t[image][:, tokens_of(r)].mean(dim=1).flatten() for r in range(COUNT)] for t in (q, k)]
        scores = torch.stack([torch.stack([query @ key for key in means[1]]) for query in means[0]])
        tables.append(scores.argsort(dim=-1, descending=True)[:, :topk])
    return torch.stack(tables)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S125")
def test_with_all_regions_it_is_dense_attention():
    ours, dense = randomized(mine.BiLevelRouting(DIM, HEADS, REGIONS, COUNT)), Mixer(DIM, HEADS).double()
    dense.load_state_dict(ours.state_dict())
    checks.exact_limit(lambda x: ours(x, GRID), lambda x: dense(x, GRID), normal(2, N, DIM), tol=1e-12)


@pytest.mark.paper("S125")
@pytest.mark.parametrize("topk", range(1, COUNT + 1))
def test_it_picks_the_best_regions_and_attends_to_nothing_else(topk):
    q, k, v = qkv()
    out, routed = mine.bilevel_routing_attention(q, k, v, GRID, REGIONS, topk)
    assert torch.equal(routed, by_hand(q, k, topk))
    picked = torch.zeros(2, COUNT, COUNT, dtype=torch.bool).scatter(-1, routed, True)
    mask = picked[:, REGION][:, :, REGION][:, None]  # (b, 1, n, n)
    assert int(mask.sum()) == 2 * N * topk * N // COUNT
    checks.equal(out, F.scaled_dot_product_attention(q, k, v, mask), tol=1e-12, what="routed and masked attention")


@pytest.mark.paper("S125")
def test_the_gradients_are_those_of_the_masked_attention():
    mixer, x = randomized(mine.BiLevelRouting(DIM, HEADS, REGIONS, 2)), normal(2, N, DIM)
    mask = effective_matrix(mixer, x, GRID) != 0

    def masked(x):
        q, k, v = mixer.project(x, GRID)
        return mixer.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    checks.equal_gradients(lambda x: mixer(x, GRID), masked, x, tol=1e-10)


@pytest.mark.paper("S125")
def test_another_picture_takes_another_route():
    q, k, v = qkv(b=8)
    routed = mine.bilevel_routing_attention(q, k, v, GRID, REGIONS, 2)[1].sort(dim=-1).values
    assert len({str(table.tolist()) for table in routed}) > 4
    q[0][:, tokens_of(5)] = k[0][:, tokens_of(1)]  # region 5 asks for what region 1 has
    assert mine.bilevel_routing_attention(q, k, v, GRID, REGIONS, 1)[1][0, 5] == 1


@pytest.mark.paper("S125")
@pytest.mark.parametrize("topk", [1, 4, 8])
def test_the_least_cost_grows_as_the_power_four_thirds_of_the_tokens(topk):
    """R² + 2·topk·n²/R is least where its derivative is 0: at R = (topk·n²)^⅓, with 3·topk^⅔·n^(4/3)."""
    least = []
    for n in (2**9, 2**12, 2**15):
        price = torch.tensor(
            [mine.routing_macs(n, 1, r, topk) for r in range(topk, 4 * int((topk * n * n) ** (1 / 3)))]
        )
        best = topk + int(price.argmin())
        assert abs(best / (topk * n * n) ** (1 / 3) - 1) < 0.1
        least.append(float(price.min()))
        assert abs(least[-1] / (3 * topk ** (2 / 3) * n ** (4 / 3)) - 1) < 0.02
    assert abs(least[2] / least[1] / 8 ** (4 / 3) - 1) < 0.02


@pytest.mark.paper("S125")
@pytest.mark.parametrize(("regions", "topk"), [((2, 3), 1), ((2, 3), 4), ((4, 9), 5), ((1, 1), 1)])
def test_the_law_of_cost_holds_for_every_number_of_regions(regions, topk):
    mixer = mine.BiLevelRouting(DIM, HEADS, regions, topk)
    checks.cost_law(mixer.cost(GRID).macs, lambda x: mixer(x, GRID), torch.zeros(1, N, DIM))


def test_what_cannot_work_is_said():
    x = torch.zeros(1, N, DIM)
    with pytest.raises(LabkitError, match="grid 4x9 does not divide into 4x4 regions; choose divisors of 4 and 9"):
        mine.BiLevelRouting(DIM, HEADS, 4)(x, GRID)
    with pytest.raises(LabkitError, match="topk=7 of 6 regions do not exist; choose 1 to 6"):
        mine.BiLevelRouting(DIM, HEADS, REGIONS, 7)(x, GRID)


def test_it_compiles():
    mixer, x = randomized(mine.BiLevelRouting(DIM, HEADS, REGIONS, 2)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
