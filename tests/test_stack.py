"""All dials on one model: no choice changes nothing, each is its package's, and a file is a stack or a sentence."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch

import labkit
from labkit import choices, cost, quant, tokens
from labkit.errors import LabkitError
from labkit.patching.flexi import flexible
from labkit.stack import FLOAT, Stack, Swapped, counts, patched, swap_mixers
from labkit.stack.reduce import ASKS, ATTENTION, Reduction
from labkit.tokens import score
from labkit.vit import ViT
from tests.weights import normal, randomized

IMAGES = normal(6, 3, 32, 32).float() / 4
WAYS = [way for way in get_args(Reduction) if way != "none"]
FULL = {
    "patch": 4,
    "mixer": "window",
    "mixed": "0, 1",
    "reducer": "merge",
    "keep": 0.5,
    "where": "1, 2",
    "weights": 8,
    "activations": 8,
    "backend": "int8",
}


@pytest.fixture(scope="module")
def model() -> ViT:
    return randomized(ViT(32, 4, 10, dim=32, depth=4, heads=4)).float().eval()


def out(model, images=IMAGES):
    with torch.inference_mode():
        return model(images)


# --- the exact limits -------------------------------------------------------------------------------------------
def test_without_a_choice_it_is_the_model(model):
    built = Stack().build(model)
    assert torch.equal(out(built), out(model))
    assert {id(p) for p in built.parameters()} == {id(p) for p in model.parameters()}
    assert Stack().describe() == "the plain model"


@pytest.mark.parametrize(
    "choice",
    [
        {"patch": 4},
        *({"reducer": way, "where": "1, 2"} for way in WAYS),
        *({"reducer": way, "where": "entry, 1"} for way in WAYS if way not in ATTENTION),
        {"calibrate": "whole", "clip": "mse", "seed": 5},
    ],
)
def test_at_full_budget_nothing_changes(model, choice):
    assert (out(Stack(**choice).build(model)) - out(model)).abs().max() < 1e-5


def test_the_model_that_was_given_stays_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = out(model)
    Stack(**FULL).build(model, IMAGES)
    Stack(**FULL | {"patch": 8}).build(model, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(out(model), logits) and model.grid == (8, 8)


# --- each dial is the dial that it stands for -------------------------------------------------------------------
def test_a_patch_size_is_flexible_with_a_grid_of_its_own(model):
    built = Stack(patch=8).build(model)
    assert torch.allclose(out(built), out(flexible(model, 8)), atol=1e-6)
    assert built.grid == (4, 4) and built.pos_embed.shape[1] == 17
    assert cost.count(built).macs == cost.count(flexible(model, 8), 32).macs < cost.count(model).macs / 2
    with pytest.raises(LabkitError, match="patch=5 does not divide images of 32x32 pixels"):
        patched(model, 5)


def test_bits_and_tokens_are_those_of_their_packages(model):
    stack = Stack(reducer="keep", keep=0.5, where="1", weights=4, activations=8, per="tensor", clip="percentile")
    slim = tokens.attach(model, tokens.Keep(0.5), [1])
    recipe = quant.Recipe(4, 8, per="tensor", clip="percentile")
    assert stack.recipe() == recipe
    assert torch.equal(out(stack.build(model, IMAGES)), out(quant.quantize(slim, recipe, IMAGES)))
    whole = tokens.attach(quant.quantize(model, recipe, IMAGES), tokens.Keep(0.5), [1])
    assert torch.equal(out(replace(stack, calibrate="whole").build(model, IMAGES)), out(whole))
    assert not torch.equal(out(whole), out(stack.build(model, IMAGES)))


@pytest.mark.parametrize("reducer", WAYS)
@pytest.mark.parametrize(
    ("keep", "where", "left"),
    [(0.5, "1", [64, 32]), (0.3, "0, 2", [64, 35, 19]), (0.4, "0, 1, 2", [64, 47, 35, 26])],
)
def test_every_reducer_leaves_as_many_tokens(model, reducer, keep, where, left):
    stack = Stack(reducer=reducer, keep=keep, where=where)
    assert counts(stack, model) == left
    built = stack.build(model)
    steps = built.observe(IMAGES).steps
    assert [steps[block].x.shape[1] - 1 for block in stack.reducers] == left[1:]
    assert out(built).isfinite().all() and not torch.equal(out(built), out(model))


@pytest.mark.parametrize(
    ("name", "reducer"),
    [
        ("keep", tokens.Keep(0.5)),
        ("keep-value", tokens.Keep(0.5, score.class_value)),
        ("keep-norm", tokens.Keep(0.5, score.key_norm)),
        ("keep-apart", tokens.Keep(0.5, score.reverse(score.energy()))),
        ("keep-rank", tokens.Keep(0.5, score.page_rank())),
        ("fuse", tokens.Fuse(31 / 64)),
        ("merge", tokens.MergeByCriteria(32, (1.0, 0.0, 0.0))),
        ("merge-criteria", tokens.MergeByCriteria(32)),
        ("merge-energy", tokens.MergeByEnergy(32)),
        ("cluster", tokens.Cluster(32)),
    ],
)
def test_a_name_is_the_reducer_that_it_stands_for(model, name, reducer):
    built = Stack(reducer=name, keep=0.5, where="1").build(model)
    assert torch.equal(out(built), out(tokens.attach(model, reducer, [1])))


def test_who_asks_the_class_token_is_refused_where_there_is_none():
    gap = randomized(ViT(32, 4, 10, dim=32, depth=3, heads=4, pool="avg", class_token=False)).float().eval()
    for way in WAYS:
        stack = Stack(reducer=way, keep=0.5, where="1")
        if way in ASKS:
            with pytest.raises(LabkitError, match=f'"{way}" asks the class token, and this model has none'):
                stack.build(gap)
        else:
            assert out(stack.build(gap)).isfinite().all()


def test_many_blocks_in_a_row_are_told_by_their_ends():
    assert Stack(reducer="merge", where="0, 1, 2, 3").describe() == "merge to 100% in blocks 0 to 3"
    assert (
        Stack(reducer="merge", where="entry, 1, 3, 4").describe() == "merge to 100% at the entry and in blocks 1, 3, 4"
    )


def test_the_entry_is_in_front_of_the_first_block(model):
    seen = Stack(reducer="merge", keep=0.4, where="entry, 1").build(model).observe(IMAGES)
    assert seen.steps[0].evidence.k.shape[2] == 1 + 40 and seen.steps[1].x.shape[1] == 1 + 26


def test_dice_are_thrown_by_the_seed(model):
    stack = Stack(reducer="random", keep=0.3, where="1")
    assert torch.equal(out(stack.build(model)), out(stack.build(model)))
    assert not torch.equal(out(stack.build(model)), out(replace(stack, seed=1).build(model)))


def test_all_dials_together_and_integers_compute_what_they_simulate(model):
    stack = Stack(**FULL)
    fast, slow = stack.build(model, IMAGES), replace(stack, backend="simulate").build(model, IMAGES)
    assert (out(fast) - out(slow)).abs().max() < 0.02 * out(slow).abs().max()
    assert [type(block.attn) is Swapped for block in fast.blocks] == [True, True, False, False]
    assert not quant.untouched(fast), "another mixing must not keep its layers in float"
    assert cost.count(fast).macs < cost.count(model).macs
    assert stack.cost(model, IMAGES).total("weight_bytes") < 0.4 * cost.count(model).total("weight_bytes")
    assert stack.describe() == (
        "4-pixel patches; window mixing in blocks 0, 1; merge to 50% in blocks 1, 2; W8/A8 · int8"
    )


# --- another mixing on the same weights -------------------------------------------------------------------------
@pytest.mark.parametrize("impl", ["plain", "fast"])
@pytest.mark.parametrize("mixing", ["window", "dilated", "pooled"])
def test_the_evidence_is_what_was_computed(model, mixing, impl):
    swapped = swap_mixers(model, mixing, [1]).set_impl(impl)
    block, (x, grid) = swapped.blocks[1], model.embed(IMAGES)
    with torch.inference_mode():
        found, seen = block.attn.attend(x, grid=grid, prefix=1)
        by_hand = (seen.attention() @ seen.v).transpose(1, 2).flatten(2)
        row, _ = block.attn.attend(x, rows=1, grid=grid, prefix=1)
        assert torch.allclose(found, block.attn.proj(by_hand), atol=1e-5)
    assert torch.allclose(row, found[:, :1], atol=1e-5)
    model.set_impl("fast")


@pytest.mark.parametrize(("mixing", "near"), [("window", 1), ("dilated", 2)])
def test_patches_meet_in_their_group_and_the_class_token_meets_all(model, mixing, near):
    swapped = swap_mixers(model, mixing, [0])
    seen = swapped.observe(IMAGES).steps[0].evidence.attention()[0, 0]
    met = (seen > 0)[1:, 1:].unflatten(1, (8, 8))[0]
    assert (seen[0] > 0).all() and (seen[:, 0] > 0).all() and int(met.sum()) == 16
    assert met[near, near] and not met[4 if mixing == "window" else 1, 0]


def test_pooled_keys_are_means_that_count_four_times(model):
    attn = swap_mixers(model, "pooled", [0]).blocks[0].attn
    t = normal(1, 4, 65, 8).float()
    few, many = attn.means(t, (8, 8), 1)
    assert few.shape[2] == 17 and torch.equal(few[:, :, 0], t[:, :, 0])
    assert torch.allclose(few[:, :, 1], t[:, :, [1, 2, 9, 10]].mean(dim=2), atol=1e-6)
    assert torch.equal(many[:, :, 10], few[:, :, 1]) and torch.equal(many[:, :, 3], few[:, :, 2])


def test_dense_swaps_nothing_and_what_cannot_be_swapped_is_named(model):
    assert torch.equal(out(swap_mixers(model, "dense", [0, 1])), out(model))
    with pytest.raises(LabkitError, match="Block 0 mixes with Swapped; only a plain Attention is swapped"):
        swap_mixers(swap_mixers(model, "window", [0]), "pooled", [0])
    odd = randomized(ViT(12, 4, 10, dim=32, depth=2, heads=4)).float().eval()
    with pytest.raises(LabkitError, match='"dilated" mixing halves the grid, and 3x3 has an odd side'):
        out(swap_mixers(odd, "dilated", [0]), IMAGES[..., :12, :12])
    late = tokens.attach(swap_mixers(model, "window", [2]), tokens.Keep(0.5), [1])
    with pytest.raises(LabkitError, match="tokens were reduced before it"):
        out(late)


# --- wrong choices ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"mixer": "windows"}, "mixer='windows' is unknown; choose one of dense, window, .*Did you mean \"window\""),
        ({"patch": 8.0}, "patch=8.0 is of the wrong kind; expected a whole number, as 0"),
        ({"patch": True}, "patch=True is of the wrong kind"),
        ({"keep": "half"}, "keep='half' is of the wrong kind; expected a number"),
        ({"patch": -8}, "patch=-8, seed=0; expected 0 or more"),
        ({"keep": 0.0}, "keep=0.0 is not a share"),
        ({"keep": 0.5}, "keep=0.5 needs a reducer; choose one of keep, fuse, merge, random"),
        ({"reducer": "keep"}, 'reducer="keep" and where=""; give a dial and its blocks together'),
        ({"mixed": "0"}, 'mixer="dense" and mixed="0"'),
        ({"reducer": "keep", "where": "1, 0"}, 'where="1, 0" names no blocks; expected numbers from 0 on, rising'),
        ({"reducer": "keep", "where": "1,, 2"}, 'where="1,, 2" names no blocks'),
        ({"reducer": "keep", "where": "-1"}, 'where="-1" names no blocks'),
        ({"reducer": "fuse", "where": "entry"}, 'nobody attends yet; "fuse" works from 0 on'),
        ({"mixer": "window", "mixed": "0, 2", "reducer": "keep", "where": "1"}, "mixing of block 2 needs all patches"),
        ({"mixer": "window", "mixed": "0", "attention": 8}, "other mixings multiply in float"),
        ({"weights": 1}, "weights=1 are no bits"),
        ({"softmax": "log2"}, "softmax='log2' needs attention=bits"),
    ],
)
def test_a_wrong_choice_is_a_sentence(wrong, sentence):
    with pytest.raises(LabkitError, match=sentence):
        Stack(**wrong)


def test_what_does_not_fit_the_model_is_a_sentence(model):
    with pytest.raises(LabkitError, match='mixed="4", and the blocks of the model are 0 to 3'):
        Stack(mixer="window", mixed="4").build(model)
    with pytest.raises(LabkitError, match='where="3"; nobody reads patches behind the last block: choose from 0 to 2'):
        Stack(reducer="keep", keep=0.5, where="3").build(model)
    with pytest.raises(
        LabkitError, match='13 of 64 patches would be left in one block, and "merge" leaves at least half'
    ):
        Stack(reducer="merge", keep=0.2, where="1").build(model)
    with pytest.raises(LabkitError, match='"fuse" keeps one patch at least, and one token for the rest'):
        Stack(reducer="fuse", keep=0.01, where="1").build(model)
    with pytest.raises(LabkitError, match="read from images, and there are none"):
        Stack(weights=8, activations=8).build(model)
    with pytest.raises(LabkitError, match="quantized already"):
        Stack(patch=8).build(quant.quantize(model, quant.Recipe(), IMAGES))


# --- the file ---------------------------------------------------------------------------------------------------
def test_a_file_gives_the_stack_back_and_leaves_nothing_beside_it(tmp_path, model):
    stack = Stack(**FULL)
    stack.to_json(tmp_path / "mine.json")
    assert Stack.from_json(tmp_path / "mine.json") == stack
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]
    told = json.loads((tmp_path / "mine.json").read_text())
    assert told == {"schema": 1, **stack.choices()} and set(told) == {"schema", *(f.name for f in fields(Stack))}


def test_what_a_file_does_not_say_is_the_default(tmp_path):
    (tmp_path / "short.json").write_text('{"schema": 1, "patch": 16, "keep": 1}')
    assert Stack.from_json(tmp_path / "short.json") == Stack(patch=16)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is no JSON .line 1: "),
        ("[1]", 'holds a list; expected an object of names and values, as {"keep": 0.5}'),
        ('{"patch": 8}', 'says no "schema"; this labkit reads 1'),
        ('{"schema": 2}', 'has the 2 "schema"'),
        ('{"schema": 1, "patches": 8}', 'nothing is called "patches". Did you mean "patch"'),
        ('{"schema": 1, "keep": "0.5"}', "short.json: keep='0.5' is of the wrong kind; expected a number"),
        ('{"schema": 1, "keep": 2}', "keep=2 is not a share"),
    ],
)
def test_a_wrong_file_is_a_sentence(tmp_path, text, sentence):
    (tmp_path / "short.json").write_text(text)
    with pytest.raises(LabkitError, match=sentence):
        Stack.from_json(tmp_path / "short.json")


def test_a_file_that_cannot_be_read_or_written_is_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(LabkitError, match="There is no file"):
        Stack.from_json(tmp_path / "none.json")
    with pytest.raises(LabkitError, match="cannot be read"):
        Stack.from_json(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabkitError, match="is no text"):
        Stack.from_json(tmp_path / "bytes.json")
    with pytest.raises(LabkitError, match="cannot be written"):
        Stack().to_json(tmp_path / "none" / "mine.json")

    def full(*_):
        raise OSError(28, "No space left on device")

    Stack(patch=8).to_json(tmp_path / "mine.json")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(LabkitError, match="No space left"):
        Stack(patch=16).to_json(tmp_path / "mine.json")
    assert Stack.from_json(tmp_path / "mine.json") == Stack(patch=8)
    assert not list(tmp_path.glob(".*"))


def test_lesson_11_takes_every_choice_as_a_parameter():
    from labkit import report

    source = report.find("11_one_budget")
    told = {"schema": choices.SCHEMA, **Stack(**FULL).choices()}
    assert report.parameters(source, {}, told) == told


def test_the_shipped_model_keeps_its_answers_through_careful_dials():
    net, test = labkit.load("shapes-vit-flexi"), labkit.data.shapes("test", 150, seed=0)
    calibration = labkit.data.shapes("train", 16, seed=0).images

    def right(**choice):
        built = Stack(**choice).build(net, calibration)
        return (out(built, test.images).argmax(dim=1) == test.labels).float().mean().item()

    bits = {"weights": 4, "activations": 4, "backend": "int8"}
    careful = right(reducer="merge", keep=0.5, where="1", clip="percentile", fold="channels", **bits)
    naive = right(mixer="window", mixed="0, 1", reducer="keep", keep=0.5, where="1", per="tensor", **bits)
    assert careful > 0.88 and careful > naive + 0.15
    assert right(patch=16) > 0.75
    assert FLOAT == 32
