"""Distance costs: known slopes and distances, the same everywhere, and no more on a larger grid."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.positions.alibi import ALiBi
from labkit.vit import Attention
from tests import checks
from tests.positions.schemes import crop, depends_on_displacement
from tests.weights import normal, randomized


def test_slopes_halve_over_eight_heads_and_distance_is_euclidean():
    assert ALiBi(8).slopes == tuple(2.0**-i for i in range(1, 9))
    bias = ALiBi(8).bias((4, 5))
    assert bias[0, 0, 3 * 5 + 4] == -5 / 2, "3 rows down and 4 columns right is 5 away"
    checks.symmetric(bias)
    assert bias.diagonal(dim1=1, dim2=2).eq(0).all()


def test_the_bias_depends_on_the_displacement_and_a_small_grid_is_a_crop():
    small, large = ALiBi(4).bias((3, 4)), ALiBi(4).bias((7, 6))
    assert depends_on_displacement(large, (7, 6))
    for corner in ((0, 0), (4, 2)):
        checks.equal(crop(large, (7, 6), (3, 4), corner), small, what="a crop of the large bias and the small one")


def test_without_slopes_it_is_plain_attention_and_with_them_far_keys_lose():
    plain, x = randomized(Attention(16, 4)), normal(2, 12, 16)
    ours = randomized(Attention(16, 4))
    ours.position = ALiBi(4, slopes=(0, 0, 0, 0))
    checks.exact_limit(lambda x: ours(x, (3, 4)), plain, x, tol=1e-12)
    ours.position = ALiBi(4, slopes=(50, 50, 50, 50))
    own = ours.attend(x, grid=(3, 4))[1].attention()
    checks.equal(own, torch.eye(12).expand(2, 4, -1, -1), 1e-9, "attention under a steep penalty and the identity")


@pytest.mark.parametrize("n", [11, 13])
def test_tokens_that_are_not_the_patches_of_the_grid_are_refused(n):
    with pytest.raises(LabkitError, match=f"{n} tokens are not the 0 before the patches and the 3x4 patches"):
        ALiBi(2)(*normal(2, 1, 2, n, 4), None, (3, 4), 0)


def test_another_number_of_heads_is_refused():
    with pytest.raises(LabkitError, match="made for 4 heads and the attention has 2; use 2"):
        ALiBi(4)(*normal(2, 1, 2, 12, 4), None, (3, 4), 0)
    with pytest.raises(LabkitError, match="made for 3 heads"):
        ALiBi(2, slopes=(1, 2, 3))
