"""Turned queries and keys: scores see only displacements, norms stay, timm's numbers, the class token stays put."""

from __future__ import annotations

import pytest
import torch
from timm.layers import RotaryEmbeddingCat, apply_rot_embed_cat
from timm.layers.pos_embed_sincos import RotaryEmbeddingMixed

from labkit.errors import LabkitError
from labkit.positions.rope import RoPE, RoPEAxial, RoPEMixed, rotate
from tests import checks
from tests.positions.schemes import depends_on_displacement
from tests.weights import normal

GRID, D, HEADS = (3, 5), 8, 2
N = GRID[0] * GRID[1]
KINDS = {"one axis": lambda: RoPE(D), "axial": lambda: RoPEAxial(D), "mixed": lambda: RoPEMixed(D, HEADS)}


def turned(rope, q, k, prefix=0):
    return rope(q, k, None, GRID, prefix)[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_depend_only_on_the_displacement(kind):
    q, k = (token.expand(1, HEADS, N, D) for token in normal(2, 1, HEADS, 1, D))
    q, k = turned(KINDS[kind](), q, k)
    scores = q @ k.transpose(-2, -1)
    assert depends_on_displacement(scores, GRID, 1e-12)
    assert scores.std() > 0.1 and not torch.allclose(scores, scores.transpose(-2, -1))
    to_the_right, to_the_next_row = scores[0, 0, 1, 0], scores[0, 0, 5, 4]
    confused = bool((to_the_right - to_the_next_row).abs() < 1e-12)
    assert confused == (kind == "one axis"), "one axis takes the start of the next row for the next patch"


@pytest.mark.parametrize("kind", KINDS)
def test_turning_keeps_norms_and_a_zero_displacement_keeps_the_score(kind):
    q, k = normal(2, 2, HEADS, N, D)
    turned_q, turned_k = turned(KINDS[kind](), q, k)
    checks.equal(turned_q.norm(dim=-1), q.norm(dim=-1), 1e-12, "the norms")
    checks.equal((turned_q * turned_k).sum(dim=-1), (q * k).sum(dim=-1), 1e-12, "the scores of a patch with itself")
    assert not torch.allclose(turned_q, q)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_before_the_patches_are_not_turned(kind):
    rope, (q, k) = KINDS[kind](), normal(2, 2, HEADS, 2 + N, D)
    with_prefix, without = turned(rope, q, k, prefix=2), turned(rope, q[:, :, 2:], k[:, :, 2:])
    for before, after, patches in zip((q, k), with_prefix, without, strict=True):
        checks.equal(after[:, :, :2], before[:, :, :2])
        checks.equal(after[:, :, 2:], patches)


def test_axial_is_timms():
    theirs = RotaryEmbeddingCat(D, in_pixels=False, temperature=100.0, feat_shape=list(GRID))
    q, k = normal(2, 2, HEADS, N, D).float()
    for ours, x in zip(turned(RoPEAxial(D, base=100.0), q, k), (q, k), strict=True):
        checks.equal(ours, apply_rot_embed_cat(x, theirs.get_embed()), 1e-5, "our turn and timm's")


def test_mixed_is_timms_with_shared_frequencies():
    ours = RoPEMixed(D, HEADS, base=10.0)
    theirs = RotaryEmbeddingMixed(HEADS * D, 1, HEADS, feat_shape=list(GRID), grid_indexing="ij")
    checks.equal(ours.freqs.norm(dim=0).sort()[0], theirs.freqs[:, 0].norm(dim=0).sort()[0], 1e-6, "the frequencies")
    theirs.freqs.data[:, 0] = ours.freqs.data
    q = normal(2, HEADS, N, D).float()
    checks.equal(turned(ours, q, q)[0], apply_rot_embed_cat(q, theirs.get_embed()[0]), 1e-5, "our turn and timm's")


def test_mixed_holds_axial_and_one_pair_is_a_known_turn():
    mixed, axial = RoPEMixed(D, 1), RoPEAxial(D, base=10.0)
    speeds = axial.angles((2, 1), torch.zeros(1))[1, : D // 4]
    zero = torch.zeros_like(speeds)
    mixed.freqs.data = torch.stack([torch.cat([speeds, zero]), torch.cat([zero, speeds])])[:, None]
    q = normal(1, 1, N, D)
    checks.equal(turned(mixed, q, q)[0], turned(axial, q, q)[0], 1e-6, "mixed with axial frequencies and axial")
    quarter = rotate(torch.tensor([1.0, 2.0]), torch.tensor([torch.pi / 2]))
    checks.equal(quarter, torch.tensor([-2.0, 1.0]), 1e-6, "a quarter turn")


def test_where_one_axis_and_fresh_mixed_frequencies_start():
    angles = RoPE(4, base=100.0).angles((2, 3), torch.zeros(1))
    checks.equal(angles[4], torch.tensor([4.0, 0.4]), 1e-6, "row 1, column 1 of three is place 4")
    along_rows, along_columns = RoPEMixed(D, HEADS).freqs.unflatten(2, (2, D // 4))
    products = (along_rows.prod(dim=1) + along_columns.prod(dim=1)).abs()
    assert (products < 1e-6).all(), "each speed comes in two directions, at a right angle"


def test_half_precision_keeps_the_angles_of_far_patches():
    q = torch.ones(1, 1, 4096, D)
    fine = RoPE(D)(q, q, None, (1, 4096), 0)[0]
    coarse = RoPE(D)(q.bfloat16(), q.bfloat16(), None, (1, 4096), 0)[0]
    checks.equal(coarse, fine, 0.01, "turned in half and in single precision")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RoPEAxial(6), "A head of 6 channels cannot be turned; choose a multiple of 4"),
        (lambda: RoPE(3), "choose a multiple of 2"),
        (lambda: turned(RoPEAxial(4), *normal(2, 1, 2, N, D)), "make the position with d_head=8"),
        (lambda: turned(RoPEMixed(D, 3), *normal(2, 1, 2, N, D)), "made for 3 heads and the attention has 2"),
        (lambda: turned(RoPEAxial(D), *normal(2, 1, 2, N - 1, D)), "14 tokens are not the 0 before the patches and"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
