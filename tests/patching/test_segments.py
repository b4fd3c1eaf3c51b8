"""Segments as tokens: nothing is lost in the sums, the grid is their limit, and superpixels follow edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.patching.segments import SegmentEmbed, segment_tokens, slic_labels, unpool
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal

SIZE, DIM = (8, 12), 16


def random_labels(n: int, b: int = 2) -> Tensor:
    """Every number occurs in every image."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, n, (b, SIZE[0] * SIZE[1]), generator=draw)
    labels[:, :n] = torch.arange(n)
    return labels[:, torch.randperm(SIZE[0] * SIZE[1], generator=draw)].view(b, *SIZE)


def grid_labels(cell: int) -> Tensor:
    rows, columns = SIZE[0] // cell, SIZE[1] // cell
    numbers = torch.arange(rows * columns).view(rows, columns)
    return numbers.repeat_interleave(cell, 0).repeat_interleave(cell, 1).expand(2, -1, -1)


@pytest.mark.paper("S259")
def test_square_segments_are_averaged_patches():
    features, embed = normal(2, DIM, *SIZE), PatchEmbed(4, DIM, DIM, bias=False).double()
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(DIM)[:, :, None, None].expand(-1, -1, 4, 4) / 16)
    checks.equal(segment_tokens(features, grid_labels(4)).x, embed(features)[0], 1e-12)


@pytest.mark.paper("S259")
def test_sums_are_kept_and_every_pixel_is_in_one_token():
    features, labels = normal(2, DIM, *SIZE), random_labels(7)
    found = segment_tokens(features, labels)
    checks.equal((found.sizes[..., None] * found.x).sum(dim=1), features.sum(dim=(2, 3)), 1e-12)
    assert torch.equal(found.sizes, torch.stack([image.flatten().bincount() for image in labels]))
    assert (found.sizes.sum(dim=1) == SIZE[0] * SIZE[1]).all()


@pytest.mark.paper("S259")
def test_new_numbers_only_permute_the_tokens():
    features, labels, order = normal(2, DIM, *SIZE), random_labels(7), torch.tensor([3, 0, 6, 5, 1, 4, 2])
    plain, renamed = segment_tokens(features, labels), segment_tokens(features, order[labels])
    for before, after in zip(plain, renamed, strict=True):
        checks.equal(after[:, order], before)


@pytest.mark.paper("S259")
def test_it_is_an_explicit_loop():
    features, labels = normal(2, DIM, *SIZE), random_labels(7)
    found = segment_tokens(features, labels, n=8)
    for i in range(2):
        for segment in range(7):
            inside = labels[i] == segment
            checks.equal(found.x[i, segment], features[i, :, inside].mean(dim=1), 1e-12)
            checks.equal(found.centroids[i, segment], inside.nonzero().double().mean(dim=0), 1e-12)
    assert all((part[:, 7] == 0).all() for part in found)  # nobody's segment


@pytest.mark.paper("S259")
def test_an_image_of_flat_segments_comes_back_exactly():
    labels = random_labels(7)
    colours = (normal(2, 7, DIM) * 16).round() / 16  # so that a mean of equals is exact
    assert torch.equal(unpool(segment_tokens(unpool(colours, labels), labels).x, labels), unpool(colours, labels))


def test_unpooling_is_the_nearest_image_that_the_tokens_allow():
    """A projection: what it removes is orthogonal to every image of flat segments."""
    features, labels = normal(2, 3, *SIZE), random_labels(7)
    rest = features - unpool(segment_tokens(features, labels).x, labels)
    flat = unpool(normal(2, 7, 3), labels)
    assert (rest * flat).sum().abs() < 1e-10 < rest.square().sum()


@pytest.mark.parametrize("cells", [(2, 3), (4, 2), (1, 1), (8, 12)])
def test_superpixels_that_mind_only_the_place_are_the_grid(cells):
    labels = slic_labels(normal(2, 3, *SIZE), cells, compactness=1e6)
    rows, columns = SIZE[0] // cells[0], SIZE[1] // cells[1]
    numbers = torch.arange(cells[0] * cells[1]).view(cells)
    checks.equal(labels, numbers.repeat_interleave(rows, 0).repeat_interleave(columns, 1).expand(2, -1, -1))


def test_superpixels_follow_an_edge_that_the_grid_cuts():
    images = torch.zeros(1, 3, 16, 16)
    images[..., 6:] = 1.0  # cells of four pixels: the edge is inside the second column of cells
    labels = slic_labels(images, (4, 4), compactness=0.2)
    tokens = segment_tokens(images, labels, 16)
    assert torch.equal(unpool(tokens.x, labels), images)
    square = slic_labels(images, (4, 4), compactness=1e6)
    assert not torch.equal(unpool(segment_tokens(images, square).x, square), images)
    assert labels.unique().numel() > 8 and not torch.equal(labels, square)


def test_a_flat_image_has_no_edges_to_follow():
    labels = slic_labels(torch.ones(1, 3, *SIZE), (2, 3))
    assert torch.equal(labels, slic_labels(torch.ones(1, 3, *SIZE), (2, 3), compactness=1e6))


def test_superpixels_beat_the_grid_at_the_same_number_of_tokens():
    yy, xx = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    discs = [((yy - y) ** 2 + (xx - x) ** 2 < 70).float() for y, x in ((10, 12), (20, 18))]
    images = torch.stack([d.expand(3, -1, -1) for d in discs]) + 0.05 * normal(2, 3, 32, 32).float()
    errors = [
        (unpool(segment_tokens(images, labels).x, labels) - images).square().mean()
        for labels in (slic_labels(images, (4, 4)), slic_labels(images, (4, 4), compactness=1e6))
    ]
    assert errors[0] < 0.5 * errors[1]


def test_images_choose_their_superpixels_alone():
    images = normal(3, 3, *SIZE)
    checks.batch_independent(lambda x: slic_labels(x, (2, 3)), images)
    checks.deterministic(lambda x: slic_labels(x, (2, 3)), images)


@pytest.mark.parametrize("compactness", [0.5, 1e6])
def test_a_vit_takes_it_in_place_of_its_patch_embedding(compactness):
    patching = SegmentEmbed(nn.Conv2d(3, DIM, 3, padding=1), DIM, (2, 3), compactness)
    vit = ViT(SIZE, classes=5, dim=DIM, depth=1, heads=2, patching=patching)
    images = normal(2, 3, *SIZE).float()
    assert vit.grid == (2, 3) and vit(images).shape == (2, 5)
    checks.gradients_flow(vit, images)
    checks.follows_dtype_and_device(patching, images)


def test_at_the_limit_the_tokens_are_patches_of_pixel_features_with_equal_shares():
    features = nn.Conv2d(3, DIM, 3, padding=1)
    patching = SegmentEmbed(features, DIM, (2, 3), 1e6)
    images = normal(2, 3, *SIZE).float()
    x, _ = patching(images)
    pooled = nn.functional.avg_pool2d(features(images), 4).flatten(2).transpose(1, 2)
    places = torch.tensor([[(4 * r + 1.5) / 8, (4 * c + 1.5) / 12, 1.0] for r in range(2) for c in range(3)])
    checks.equal(x, pooled + patching.place(places), 1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: slic_labels(torch.zeros(1, 3, 4, 4), (5, 1)), "5x1 cells do not fit into 4x4 pixels"),
        (lambda: segment_tokens(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5)), "do not fit features"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
