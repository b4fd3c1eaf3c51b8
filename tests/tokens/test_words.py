"""Visual words: the identity at threshold 0, groups that are what they say, nothing lost, and the ranking of torch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from labkit.cost import block_macs, count
from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.operations import operations
from labkit.patching.patches import cut
from labkit.tokens import Keep, attach, packed
from labkit.tokens.words import VisualWords, cosine, learn_words, pixel_variance, pixels, rms, same_word
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 4, 4).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3) + 0.5 * normal(3, 3, 32, 32)
WORDS = cut(IMAGES, 8)[:, :6].flatten(0, 1)  # twelve patches of each image are no word
FAR = 3.0  # every patch is nearer than that to some word


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs), std=0.1)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def doubled(images: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """The images with one patch copied onto another, for each pair (from, to) of the 4x4 grid."""
    images = images.clone()
    for source, target in pairs:
        (a, b), (c, d) = divmod(source, 4), divmod(target, 4)
        images[:, :, 8 * c : 8 * c + 8, 8 * d : 8 * d + 8] = images[:, :, 8 * a : 8 * a + 8, 8 * b : 8 * b + 8]
    return images


def seen(images: torch.Tensor, n: int, prefix: int = 0) -> Evidence:
    x = normal(len(images), 1, prefix + n, 8)
    return Evidence(x[:, :, :0], x, v=x, images=images)


@pytest.mark.paper("S188")
@pytest.mark.parametrize("distance", [cosine, rms])
@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg"}, {"layer_scale": 0.5}], ids=str)
def test_threshold_zero_leaves_the_tokens_as_they_are(kwargs, distance):
    """Also where patches are words, and twins: the paper's code merges what is not farther than the threshold."""
    plain, images = model(**kwargs), doubled(IMAGES, [(0, 5), (1, 9)])
    slim = attach(plain, VisualWords(cut(images, 8).flatten(0, 1), 0.0, distance), "entry")
    checks.equal(slim(images), plain(images), 0.0)
    first = slim.enter(images)[0]
    checks.equal(first.x, plain.embed(images)[0])
    checks.equal(first.map, torch.eye(16 + plain.prefix).expand(3, -1, -1))
    assert first.sizes is None
    single = images.float()
    assert slim.float()(single).equal(plain.float()(single))


@pytest.mark.paper("S188")
@pytest.mark.parametrize("distance", [cosine, rms])
def test_twins_collapse_to_one_token_where_a_word_is_near(distance):
    """The check says that duplicates collapse; they do if a word is nearer than the threshold, and else stay two.

    That is the method: the vocabulary joins them, they are not compared with each other.
    """
    images = doubled(IMAGES[:1], [(2, 7), (2, 11), (13, 4)])
    patches = cut(images, 8)
    home = same_word(patches, patches[0], 1e-3, distance)[0]
    assert home[2] == home[7] == home[11] and home[13] == home[4]
    assert len(home.unique()) == 16 - 3 and home.max() == 16 - 4
    assert len(same_word(patches, patches[0, :4], 1e-3, distance).unique()) == 16 - 2  # the word of 13 is missing
    assert len(same_word(patches, WORDS[6:], 1e-3, distance).unique()) == 16  # words of other images


@pytest.mark.paper("S188")
def test_the_groups_are_those_of_the_definition_in_the_order_in_which_they_begin():
    for threshold in (0.2, 0.3, 0.4, FAR):
        for patches, home in zip(cut(IMAGES, 8), same_word(cut(IMAGES, 8), WORDS, threshold), strict=True):
            groups: dict[object, int] = {}
            for i, patch in enumerate(patches):
                away = [1 - (patch @ word / patch.norm() / word.norm()).item() for word in WORDS]
                nearest = min(range(len(WORDS)), key=away.__getitem__)
                number = groups.setdefault(("word", nearest) if away[nearest] < threshold else i, len(groups))
                assert home[i] == number
    checks.equal(rms(cut(IMAGES, 8), WORDS)[1, 2, 3], (cut(IMAGES, 8)[1, 2] - WORDS[3]).square().mean().sqrt(), 1e-12)


@pytest.mark.paper("S188")
@pytest.mark.parametrize("prefix", [{}, {"registers": 2}, {"pool": "avg"}], ids=str)
def test_tokens_become_the_mean_of_their_group_and_their_sum_by_size_is_kept(prefix):
    plain = model(**prefix)
    slim = attach(plain, VisualWords(WORDS, 0.4), "entry")
    first, x, p = slim.enter(IMAGES)[0], plain.embed(IMAGES)[0], plain.prefix
    assert first.x.shape[1] < 16 + p and first.sizes.max() >= 2
    checks.equal((first.x * first.sizes[..., None]).sum(dim=1), x.sum(dim=1), 1e-12)
    checks.equal(first.sizes.sum(dim=1), torch.full((3,), 16.0 + p), 1e-12)
    checks.equal(first.x[:, :p], x[:, :p])
    home = same_word(cut(IMAGES, 8), WORDS, 0.4)
    for image in range(3):
        for group in range(int(home[image].max()) + 1):
            members = (home[image] == group).nonzero()[:, 0] + p
            checks.equal(first.x[image, p + group], x[image, members].mean(dim=0), 1e-12)
            assert first.sizes[image, p + group] == len(members)


@pytest.mark.paper("S188")
@pytest.mark.parametrize("distance", [cosine, rms])
def test_the_number_of_tokens_falls_as_the_threshold_rises(distance):
    """A patch that meets its word leaves a token of its own and may open that of the word: never one more."""
    thresholds = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, FAR]
    counts = torch.stack([same_word(cut(IMAGES, 8), WORDS, t, distance).amax(dim=1) + 1 for t in thresholds])
    assert (counts.diff(dim=0) <= 0).all()
    assert counts[0].tolist() == 3 * [16] and len(counts[:, 0].unique()) >= 4
    nearest = distance(cut(IMAGES, 8), WORDS).argmin(dim=2)
    assert counts[-1].tolist() == [len(words.unique()) for words in nearest]


@pytest.mark.paper("S188")
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.8])
def test_what_is_dropped_within_an_image_are_the_patches_of_least_torch_var(keep):
    plain = model(registers=1)
    slim = attach(plain, Keep(keep, pixel_variance), "entry")
    first, _ = slim.enter(IMAGES)
    squares = IMAGES.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(3, 16, -1)
    variance = torch.var(squares, dim=-1)
    best = variance.topk(round(16 * keep), dim=1).indices.sort(dim=1).values
    checks.equal(pixel_variance(seen(IMAGES, 16, prefix=2), 2), variance, 1e-12)
    checks.equal(first.x[:, 2:], plain.embed(IMAGES)[0][:, 2:].take_along_dim(best[..., None], dim=1))
    assert first.sizes is None and first.x.shape[1] == 2 + round(16 * keep)
    checks.equal(attach(plain, Keep(1.0, pixel_variance), "entry")(IMAGES), plain(IMAGES), 1e-12)


def test_of_equally_flat_patches_the_earlier_stay():
    flat = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    first = attach(model(), Keep(0.5, pixel_variance), "entry").enter(flat)[0]
    assert first.map.argmax(dim=-1)[0].tolist() == list(range(1 + 8))


@pytest.mark.paper("S188")
def test_grouping_happens_once_and_the_blocks_know_nothing_of_it():
    """No block reduces, no module has a hook, and as many tokens leave the last block as entered the first."""
    for reducer in (VisualWords(WORDS, 0.4), Keep(0.5, pixel_variance)):
        slim = attach(model(), reducer, "entry")
        result = slim.observe(IMAGES)
        assert all(block.reducer is None for block in slim.blocks)
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in slim.modules())
        entered = slim.enter(IMAGES)[0].x.shape[1]
        assert {step.x.shape[1] for step in result.steps} == {entered} and entered < 17
        assert all(step.how is None for step in result.steps) and result.entry is not None


def test_merging_twins_is_free_without_positions_and_blurs_their_place_with_them():
    """A token that counts twice is two equal ones; with positions it lies at the mean of two places."""
    images = doubled(IMAGES, [(2, 7), (2, 11), (13, 4)])
    reducer = VisualWords(cut(images, 8).flatten(0, 1), 1e-6)
    placeless = model(positions=False)
    slim = attach(placeless, reducer, "entry")
    assert slim.enter(images)[0].x.shape[1] == 1 + 13
    checks.equal(slim(images), placeless(images), 1e-10)
    plain = model()
    slim = attach(plain, reducer, "entry")
    assert (slim(images) - plain(images)).abs().max() > 1e-4
    shown = plain.patch_embed(images)[0][:, 2]
    where = plain.pos_embed[0, [1 + 2, 1 + 7, 1 + 11]].mean(dim=0)
    checks.equal(slim.enter(images)[0].x[:, 1 + 2], shown + where, 1e-12)


@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg"}], ids=str)
def test_each_image_goes_on_with_its_own_number(kwargs):
    """Empty places weigh nothing: alone, together, the other way round and packed, an image gives the same."""
    slim = attach(model(**kwargs), VisualWords(WORDS, 0.4), "entry")
    first, prefix = slim.enter(IMAGES)[0], slim.prefix
    lengths = (first.sizes > 0).sum(dim=1)
    assert len(lengths.unique()) > 1 and lengths.max() == first.x.shape[1]
    assert lengths.tolist() == (same_word(cut(IMAGES, 8), WORDS, 0.4).amax(dim=1) + 1 + prefix).tolist()
    assert first.how.there.equal((first.sizes > 0).double()) and not first.x[first.sizes == 0].any()
    assert slim.enter(IMAGES[:1])[0].how.there is None
    checks.batch_independent(slim, IMAGES, 1e-10)
    checks.equal(slim(IMAGES.flip(0)), slim(IMAGES).flip(0), 1e-10)
    checks.equal(packed(slim, IMAGES, waste=0.0), slim(IMAGES), 1e-10)
    row = first.map.sum(dim=-1)
    checks.equal(row, (first.sizes > 0).double(), 1e-6)


@pytest.mark.paper("S188")
def test_the_cost_is_that_of_the_tokens_there_are_and_of_looking_up_the_words():
    """`count` would count a black image, whose patches are all alike; so the operations of a real one are counted."""
    plain = model(pool="avg")
    slim = attach(plain, VisualWords(WORDS, 0.4), "entry")
    n = slim.enter(IMAGES[:1])[0].x.shape[1]
    embed, head = 16 * 192 * 32, 32 * 5
    blocks = 3 * sum(block_macs(n, 32).values())
    assert sum(op.macs for op in operations(slim, IMAGES[:1])) == embed + 16 * 192 * len(WORDS) + blocks + head
    assert n < 16
    flat = attach(plain, Keep(0.5, pixel_variance), "entry")
    assert count(flat).macs == embed + 3 * sum(block_macs(8, 32).values()) + head
    black = attach(plain, VisualWords(torch.zeros(1, 192), 0.1, rms), "entry")
    assert count(black).macs == embed + 16 * 192 + 3 * sum(block_macs(1, 32).values()) + head


@pytest.mark.paper("S188")
def test_words_are_the_k_means_of_the_patches():
    """Three heaps far apart are found from any start; the error falls with every step, and is zero with a word each."""
    heaps = torch.tensor([-3.0, 0.0, 4.0]).double().repeat(16)[:, None] + 0.1 * normal(48, 192)
    images = heaps.reshape(3, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(3, 3, 32, 32)
    for seed in range(5):
        words = learn_words(images, 8, 3, draw(seed))
        order = words.mean(dim=1).argsort()
        checks.equal(words[order], torch.stack([heaps[i::3].mean(dim=0) for i in range(3)]), 1e-12)
    patches = cut(IMAGES, 8).flatten(0, 1)
    errors = [rms(patches, learn_words(IMAGES, 8, 7, draw(), steps)).amin(1).square().mean() for steps in range(6)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
    each = learn_words(IMAGES, 8, 48, draw())
    assert sorted(rms(each, patches).argmin(dim=1).tolist()) == list(range(48))
    checks.equal(rms(patches, each).amin(dim=1), torch.zeros(48), 1e-7)
    checks.deterministic(lambda: learn_words(IMAGES, 8, 7, draw(3)))


def test_a_word_that_nobody_is_near_stays_where_it_was():
    """Of two words with the same patches the earlier gets all; a mean over nobody would be no number."""
    images = torch.stack([torch.ones(1, 8, 8), torch.ones(1, 8, 8) + torch.finfo().eps])
    assert learn_words(images, 8, 2, draw()).min() >= 1


def test_the_cosine_sees_the_pattern_and_not_the_contrast():
    """A dim patch is its word, zeros are nobody's, a grey is every other grey of its sign; by rms none of it holds."""
    word = torch.linspace(0.1, 1, 12).double()
    patches = torch.stack([word, word / 9, 0 * word, 1 - word])
    near = cosine(patches, word[None])[:, 0]
    checks.equal(near[:3], torch.tensor([0.0, 0, 1]), 1e-12)
    assert (near >= 0).all() and near[3] > 0.3
    apart = rms(patches, word[None])[:, 0]
    assert apart[0] < 1e-7 and (apart[1:] > 0.4).all()
    checks.equal(cosine(torch.full((1, 12), 0.9), torch.full((1, 12), 0.2)), torch.zeros(1, 1), 1e-6)


def test_pixels_follow_the_grid_also_of_an_oblong_image():
    images = normal(2, 3, 16, 40)
    assert pixels(seen(images, 10, prefix=1), 1).equal(cut(images, 8))
    assert pixels(seen(images, 40), 0).equal(cut(images, 4))
    slim = attach(model(), VisualWords(WORDS, 0.4), "entry")
    assert slim(images).shape == (2, 5)


def test_gradients_and_precisions():
    slim = attach(model(), VisualWords(WORDS, 0.4), "entry")
    checks.gradients_flow(slim, IMAGES)
    checks.follows_dtype_and_device(slim, IMAGES)
    checks.follows_dtype_and_device(attach(model(), Keep(0.5, pixel_variance), "entry"), IMAGES)


def test_what_does_not_fit_is_refused_with_a_sentence():
    with pytest.raises(LabkitError, match='pixels only in front of the first block; attach this reducer with layers="'):
        attach(model(), VisualWords(WORDS, 0.1), [0])(IMAGES)
    for n in (15, 3, 1000, 4096, 0):
        with pytest.raises(LabkitError, match=f"{n} patch tokens are no grid of squares of a 32x32 image"):
            pixel_variance(seen(IMAGES, n), 0)
    with pytest.raises(LabkitError, match=r"The words have shape \(18, 48\), but the patches here are 192 numbers"):
        attach(model(), VisualWords(WORDS[:, :48], 0.1), "entry")(IMAGES)
    for threshold in (-0.1, float("nan")):
        with pytest.raises(LabkitError, match=f"threshold={threshold} is no distance"):
            attach(model(), VisualWords(WORDS, threshold), "entry")(IMAGES)
    with pytest.raises(LabkitError, match=r"\(3, 3, 32, 32\) do not divide into patches of 7x7"):
        learn_words(IMAGES, 7, 2, draw())
    for few in (0, 49):
        with pytest.raises(LabkitError, match=f"count={few} words cannot be learnt from 48 patches"):
            learn_words(IMAGES, 8, few, draw())
    with pytest.raises(LabkitError, match="count=2 words cannot be learnt from 16 patches"):
        learn_words(torch.zeros(1, 3, 32, 32), 8, 2, draw())
