"""What a trace costs: as much as was said, never more than the limit, and no more error than was said."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.tokens import Keep, attach
from labkit.tracing import keeping
from labkit.tracing.keeping import Kept, encode
from labkit.tracing.record import plan, trace
from labkit.vit import ViT
from tests.checks import equal

STEP = 1 / 255  # of the largest number of its row


def small(depth: int = 3, wrapped: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = ViT(image_size=64, patch_size=8, classes=5, dim=16, depth=depth, heads=2).eval()
    for block in model.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.5)
    model.last = "full"
    return nn.Sequential(model) if wrapped else model


def pictures(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def rows(kind: str) -> Tensor:
    """Rows of probabilities that a byte can hardly hold, among them one outlier over many small shares."""
    generator = torch.Generator().manual_seed(0)
    if kind == "flat":
        return torch.full((4, 3000), 1 / 3000)
    if kind == "outlier":
        attn = torch.full((4, 1370), 0.5 / 1369)
        attn[:, 17] = 0.5
        return attn
    if kind == "zeros":
        return torch.eye(50)[:4]
    return (torch.randn(4, 197, generator=generator) * float(kind)).softmax(dim=-1)


@pytest.mark.parametrize("kind", ["flat", "outlier", "zeros", "0.1", "1", "3", "8"])
def test_a_byte_is_less_than_two_steps_off_and_rows_keep_their_sum(kind):
    """The bound: two steps, where a step is 1/255 of the largest number of the row."""
    attn = rows(kind)
    codes, scale = encode(attn)
    decoded = codes * scale
    assert codes.dtype == torch.uint8
    assert ((decoded - attn).abs() < 2 * STEP * attn.amax(dim=-1, keepdim=True)).all()
    equal(decoded.sum(dim=-1), attn.sum(dim=-1), 1e-6)
    assert (decoded[attn == 0] == 0).all()


def test_small_shares_are_not_lost_together():
    """Rounded one by one, 1369 shares of a fifth of a step would all be zero and the outlier would get their half."""
    decoded = torch.mul(*encode(rows("outlier")))
    assert (decoded[:, 17] - 0.5).abs().max() < 0.5 * STEP
    assert (decoded[:, 100:200].sum(dim=-1) - 100 * 0.5 / 1369).abs().max() < 2 * 0.5 * STEP


def test_a_row_of_zeros_stays_zero():
    equal(torch.mul(*encode(torch.zeros(2, 3, 5))), torch.zeros(2, 3, 5))


@pytest.mark.parametrize(("keep", "error"), [("float16", 1e-3), ("uint8", 2 * STEP)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_maps_that_take_less_room_are_close(keep, error, wrapped):
    model = small(wrapped=wrapped)
    full, less = trace(model, pictures()), trace(model, pictures(), keep=keep)
    for one, other in zip(full.attention, less.attention, strict=True):
        assert other.dtype == torch.float32
        assert ((one - other).abs() <= error * one.amax(dim=-1, keepdim=True)).all()
        equal(other.sum(dim=-1), torch.ones(other.shape[:-1]), 1e-3 if keep == "float16" else 1e-5)
    equal(less.rows(1, 2, [5]), less.attention[1][2][:, [5]], 1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("layers", [None, [0, 2]])
def test_the_size_is_known_before_it_is_spent(wrapped, layers):
    model, images = small(wrapped=wrapped), pictures(40)
    said = dict(re.findall(r"([\d.]+) MB as (\w+)", plan(model, images, layers)))
    said = {keep: float(size) for size, keep in said.items()}
    assert list(said) == ["float32", "float16", "uint8"]
    for keep, megabytes in said.items():
        spent = trace(model, images, keep=keep, layers=layers).nbytes / 1e6
        assert abs(spent - megabytes) <= 0.05 * spent
    maps = 2 * 65 * 65 * 4 * (len(layers or range(3)))
    tokens = 0 if wrapped else 65 * 16 * 4 * 4  # before the first block and after each
    assert trace(model, images, layers=layers).nbytes == 40 * (maps + tokens)


def test_tokens_and_the_maps_of_reducers_count_too():
    model = attach(small(), Keep(0.5), [0, 1])
    seen = trace(model, pictures(40), keep="uint8")
    beside = [
        *seen.tokens,
        *(step for step in seen.step_maps if step is not None),
        *(s for s in seen.sizes if s is not None),
    ]
    assert seen.nbytes == sum(kept.nbytes for kept in seen.kept) + sum(tensor.nbytes for tensor in beside)
    said = re.search(r"([\d.]+) MB as uint8", plan(model, pictures(40)))
    assert said is not None and abs(float(said[1]) - seen.nbytes / 1e6) <= 0.05


def advised(error: LabkitError) -> dict:
    """The options that a refusal names."""
    text, options = str(error), {}
    if found := re.search(r'keep="(\w+)"', text):
        options["keep"] = found[1]
    if found := re.search(r"layers=\[(\d+)\]", text):
        options["layers"] = [int(found[1])]
    if found := re.search(r"(\d+) images? at a time", text):
        options["count"] = int(found[1])
    return options


@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("limit", [600_000, 250_000, 120_000, 60_000, 45_000])
def test_a_refusal_names_an_option_that_fits(limit, wrapped, grads):
    """And one image more would not."""
    model, images = small(wrapped=wrapped), pictures(12)
    with pytest.raises(LabkitError, match=r"the limit is .* raises the limit") as refusal:
        trace(model, images, limit=limit, grads=grads)
    options = advised(refusal.value)
    if not options:
        assert "not even one layer of one image fits" in str(refusal.value)
        with pytest.raises(LabkitError):
            trace(model, images[:1], limit=limit, grads=grads, layers=[0], keep="float32" if grads else "uint8")
        return
    count = options.pop("count", 12)
    assert trace(model, images[:count], limit=limit, grads=grads, **options).nbytes <= limit
    if count < 12:
        with pytest.raises(LabkitError):
            trace(model, images[: count + 1], limit=limit, grads=grads, **options)


def test_a_layer_that_was_chosen_keeps_its_number_in_a_refusal():
    model, images = attach(small(), Keep(0.3), [0]), pictures(12)
    with pytest.raises(LabkitError, match=r"layers=\[1\]"):
        trace(model, images, layers=[0, 1], limit=22_000)


def test_nothing_beyond_the_limit_is_kept_even_for_a_moment(monkeypatch):
    kept = []
    add = Kept.add
    monkeypatch.setattr(Kept, "add", lambda self, attn: (add(self, attn), kept.append(self.nbytes))[0])
    with pytest.raises(LabkitError, match="the limit is"):
        trace(small(wrapped=True), pictures(8), limit=8 * 40_000, batch=8)
    assert sum(kept) <= 8 * 40_000


@pytest.mark.parametrize("wrapped", [False, True])
def test_batches_give_the_maps_of_one_batch(wrapped):
    model = small(wrapped=wrapped)
    one, two = trace(model, pictures(), batch=5), trace(model, pictures(), batch=2)
    for a, b in zip(
        [*one.attention, *one.provenance, one.logits], [*two.attention, *two.provenance, two.logits], strict=True
    ):
        equal(a, b, 1e-5)
    equal(one.rows(2, 4), two.rows(2, 4), 1e-5)


def test_batches_keep_the_peak_low():
    """The probabilities that are computed at a time are those of one batch, whatever the number of images."""
    largest = []
    compute = keeping.encode

    def measured(attn: Tensor) -> tuple[Tensor, Tensor]:
        largest.append(attn.nbytes)
        return compute(attn)

    for batch in (1, 8):
        largest.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keeping, "encode", measured)
            trace(small(wrapped=True), pictures(8), keep="uint8", batch=batch)
        assert max(largest) == batch * 2 * 65 * 65 * 4


@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_are_chosen_by_number(wrapped):
    model = small(wrapped=wrapped)
    every = trace(model, pictures())
    for chosen, numbers in (([1], [1]), ([2, 0], [0, 2]), ([-1], [2]), ([-3, 1], [0, 1])):
        some = trace(model, pictures(), layers=chosen, grads=True)
        assert [layer.name for layer in some.layers] == [every.layers[number].name for number in numbers]
        for place, number in enumerate(numbers):
            equal(some.attention[place], every.attention[number], 1e-5)
            equal(some.provenance[place], every.provenance[number])
            equal(some.rows(place, 0), every.rows(number, 0), 1e-5)
        whole = trace(model, pictures(), grads=True).gradients(0)
        for ours, number in zip(some.gradients(0), numbers, strict=True):
            equal(ours, whole[number], 1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_wrong_choices_are_named(wrapped):
    model, images = small(wrapped=wrapped), pictures(1)
    for number in (3, -4):
        with pytest.raises(LabkitError, match=f"no layer {number}; 3 attended"):
            trace(model, images, layers=[number])
    with pytest.raises(LabkitError, match="chooses no layer"):
        trace(model, images, layers=[])
    with pytest.raises(LabkitError, match="'uint4' is unknown"):
        trace(model, images, keep="uint4")
    with pytest.raises(LabkitError, match='Gradients need keep="float32"'):
        trace(model, images, grads=True, keep="uint8")
