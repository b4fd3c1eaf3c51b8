"""As many tokens as an image needs: empty places change nothing, and packing computes few of them."""

from __future__ import annotations

import pytest
import torch

import labkit
from labkit.errors import LabkitError
from labkit.evidence import Groups
from labkit.operations import operations
from labkit.pooling import AttentionPool
from labkit.tokens import Fuse, Keep, KeepShare, Merge, Sample, attach, packed
from labkit.tokens.adaptive import _parts, fewest, keep_where
from labkit.tokens.score import attention_received, key_norm
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

MODELS = [{}, {"registers": 2}, {"pool": "avg"}, {"layer_scale": 0.5}, {"pool": AttentionPool(32, 2)}]


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=4, heads=2, **kwargs), std=0.2)


def images(b: int = 6) -> torch.Tensor:
    return normal(b, 3, 32, 32) * torch.linspace(0.1, 2, b, dtype=torch.float64)[:, None, None, None]


def slim_of(plain: ViT) -> ViT:
    return attach(attach(plain, KeepShare(0.8, attention_received), [0]), Sample(9, attention_received), [1, 2])


def test_the_fewest_that_have_the_share():
    scores = torch.tensor([[4.0, 1, 3, 2], [1, 1, 1, 1], [0, 0, 5, 0], [0, 0, 0, 0]])
    assert fewest(scores, 0.7).tolist() == [
        [True, False, True, False],
        [True, True, True, False],  # of equals the earlier
        [False, False, True, False],
        [True, False, False, False],  # nobody has anything, and one stays
    ]
    assert fewest(scores, 1.0)[:2].all()
    several = normal(50, 30).softmax(dim=1)
    kept = fewest(several, 0.6)
    had = (several * kept).sum(dim=1)
    assert (had >= 0.6).all() and (had - several.masked_fill(~kept, torch.inf).amin(dim=1) < 0.6).all()


@pytest.mark.parametrize("kwargs", MODELS, ids=lambda kwargs: str(list(kwargs)))
@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_an_image_comes_out_as_it_would_alone(kwargs, impl):
    slim, x = slim_of(model(**kwargs).set_impl(impl)), images()
    alone = [slim.observe(image[None]) for image in x]
    lengths = [seen.steps[2].x.shape[1] for seen in alone]
    assert len(set(lengths)) >= 2, lengths
    together = slim.observe(x)
    assert together.steps[2].x.shape[1] == max(lengths)
    checks.equal(together.logits, torch.cat([seen.logits for seen in alone]), 1e-11)
    checks.equal(slim(x), together.logits, 1e-11)
    assert [(sizes > 0).sum().item() for sizes in together.steps[2].sizes] == lengths


@pytest.mark.parametrize("kwargs", MODELS, ids=lambda kwargs: str(list(kwargs)))
@pytest.mark.parametrize("waste", [0.0, 0.1, 0.5, 1.0])
def test_packing_changes_nothing(kwargs, waste):
    slim, x = slim_of(model(**kwargs)), images(9)
    checks.equal(packed(slim, x, waste), slim(x), 1e-11)
    entry = attach(slim, KeepShare(0.9, key_norm), "entry")
    checks.equal(packed(entry, x, waste), entry(x), 1e-11)


def test_packing_skips_the_empty_places():
    """With no waste allowed only the MLP of a block that reduces is padded; with all allowed, everything is."""
    slim, x = slim_of(model()), images()

    def macs(run, x: torch.Tensor) -> int:
        return sum(operation.macs for operation in operations(run, x))

    alone = sum(macs(slim, image[None]) for image in x)
    least, some, most = (macs(lambda x, waste=waste: packed(slim, x, waste), x) for waste in (0.0, 0.2, 1.0))
    assert alone <= least <= some <= most == macs(slim, x)
    assert least - alone < 0.5 * (most - alone)


def test_a_batch_is_parted_only_when_it_wastes_enough():
    lengths = torch.tensor([5, 10, 9, 10, 4])
    assert [part.tolist() for part in _parts(lengths, 0.1)] == [[1, 3, 2], [0], [4]]
    assert [part.tolist() for part in _parts(lengths, 0.2)] == [[1, 3, 2], [0, 4]]
    assert [part.tolist() for part in _parts(lengths, 0.25)] == [[1, 3, 2, 0, 4]]


def test_empty_places_stay_empty_whatever_comes_next():
    """Kept last, fused with no weight, merged with no size: the mass of the image is never more than it has."""
    x = images()
    for reducer in (Keep(0.9, key_norm), Fuse(0.6, key_norm), Merge(3)):
        slim = attach(attach(model(), KeepShare(0.6), [0]), reducer, [1])
        first, second = slim.observe(x).steps[:2]
        assert (first.sizes == 0).any()
        if not isinstance(reducer, Keep):
            checks.equal(second.sizes.sum(dim=1), first.sizes.sum(dim=1), 1e-12)
        rows = second.map.sum(dim=-1)
        checks.equal(rows[second.sizes > 0], torch.ones_like(rows[second.sizes > 0]), 1e-6)
    kept = attach(attach(model(), KeepShare(0.6), [0]), Keep(0.5, key_norm), [1]).observe(x).steps[1]
    full = first.sizes[:, 1:].sum(dim=1).clamp(max=kept.x.shape[1] - 1)
    checks.equal(kept.sizes[:, 1:].sum(dim=1), full, 0.0, "a patch goes before an empty place")


def test_a_mask_that_hides_is_a_gather_and_has_a_gradient():
    """Training keeps all places and hides some; the gradient of hiding is finite and right, fused or not."""
    there = (torch.arange(17) % 3 != 1).double().expand(2, -1).clone()

    class Hide:
        def __init__(self, there, gather=False):
            self.there, self.gather = there, gather

        def reduce(self, x, evidence, sizes, prefix):
            return keep_where(self.there[:, prefix:] > 0, x, prefix) if self.gather else (x, Groups.masked(self.there))

    for kwargs in MODELS[:1] + MODELS[2:3] + MODELS[4:]:
        for impl in ("plain", "fast"):
            plain, x = (
                model(
                    **kwargs,
                ).set_impl(impl),
                images(2),
            )
            there = there[:, : plain.prefix + 16]
            there[:, : plain.prefix] = 1
            checks.equal(attach(plain, Hide(there), [1])(x), attach(plain, Hide(there, gather=True), [1])(x), 1e-11)
            soft = there.clone().requires_grad_()
            loss = attach(plain, Hide(soft), [1])(x).square().sum()
            (gradient,) = torch.autograd.grad(loss, soft)
            for place in (plain.prefix, plain.prefix + 1, plain.prefix + 2):  # there, hidden or there
                step = torch.zeros_like(there)
                step[0, place] = 1e-6
                values = [attach(plain, Hide(there + t * step), [1])(x).square().sum() for t in (0, 1, 2)]
                slope = (-3 * values[0] + 4 * values[1] - values[2]) / 2e-6
                checks.equal(gradient[0, place], slope.detach(), 1e-4 * float(gradient.abs().max()))


def test_a_trace_of_several_batches_keeps_each_images_own_tokens():
    slim, x = slim_of(model().float()), images().float()
    seen = labkit.trace(slim, x, batch=2)
    assert seen.tokens[3].shape[1] == max(labkit.trace(slim, image[None]).tokens[3].shape[1] for image in x)
    for i, image in enumerate(x):
        own = labkit.trace(slim, image[None])
        n = own.tokens[3].shape[1]
        checks.equal(seen.provenance[3][i, :n], own.provenance[3][0], 1e-6)
        assert not seen.provenance[3][i, n:].any()
        checks.equal(seen.attention[3][i, :, :n, :n], own.attention[3][0], 1e-5)


def test_the_entry_is_in_the_provenance():
    slim = attach(attach(model().float(), Keep(0.5, key_norm), "entry"), Merge(2), [0])
    seen = labkit.trace(slim, images().float())
    assert seen.provenance[0].shape == (6, 9, 16) and seen.provenance[1].shape == (6, 7, 16)
    checks.equal(seen.provenance[1].sum(dim=-1)[:, 1:], torch.ones(6, 6), 1e-6)
    checks.equal(attach(model(), Keep(1.0, key_norm), "entry")(images()), model()(images()), 1e-12)


def test_what_needs_attention_has_none_at_the_entry():
    with pytest.raises(LabkitError, match="no attention in front of the first block"):
        attach(model(), Keep(0.5), "entry")(images())


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(LabkitError, match=r"share=1.2 is not a share"):
        attach(model(), KeepShare(1.2), [0])(images())


def test_an_attached_module_belongs_to_the_copy_alone():
    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

    plain = model()
    for where in ([1], "entry"):
        slim = attach(plain, Learned(), where)
        assert len(list(slim.parameters())) == len(list(plain.parameters())) + 1
        assert not any("reducer" in name or "entry" in name for name, _ in plain.named_parameters())
        slim.pos_embed = None
        assert plain.pos_embed is not None
