"""The price tables of bits: rows mean what they say, a kill loses nothing, differences are those of the same images."""

from __future__ import annotations

import pytest
import torch

from bench import quant_accuracy as bench
from bench import quant_rows, quant_summary
from bench.quant_case import CHOICES, PLANTED, Case, made, only, trained_on
from bench.quant_rows import Row
from labkit import data, paths, results
from labkit.intervals import paired_difference, wilson
from labkit.quant import Recipe, layers, quantize
from tests import checks


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "held_out", lambda model: data.digits("val")[:61])
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case("digits-vit", 1)


def few() -> list[Row]:
    return [
        Row("ladder", "digits-vit", "W3/A3", "per tensor, min-max", made(Recipe(3, 3, 3, per="tensor")), (0, 1)),
        Row("ladder", "digits-vit", "W3/A3", "per channel, min-max", made(Recipe(3, 3, 3)), (0, 1)),
        Row("mixed", "digits-vit", "W3", "the same for all", made(Recipe(3, None)), (0,)),
        Row("mixed", "digits-vit", "W3", "greedy", made(Recipe(4, None, rounding="gptq")), (0, 1)),
    ]


def test_every_row_has_a_name_of_its_own_and_can_be_made():
    rows = quant_rows.table()
    names = [(row.table, row.model, row.bits, row.method) for row in rows]
    assert len(set(names)) == len(names)
    assert {row.table for row in rows} == {"ladder", "one layer", *quant_summary.BASES}
    assert {name for table, *_, name in names if table == "ladder"} == set(quant_summary.LADDER)
    for table, base in quant_summary.BASES.items():
        groups = {name[:3] for name in names if name[0] == table}
        assert groups and all((*group, base) in names for group in groups)


def test_seeds_choose_other_images_and_never_those_that_are_held_out(case):
    assert len(case.calibration) == 32
    seen = [Case(name, seed).calibration for name in ("digits-vit", "shapes-vit") for seed in (0, 1)]
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[2], seen[3])
    held_out = {image.numpy().tobytes() for image in data.digits("val").images}
    assert not held_out & {image.numpy().tobytes() for image in seen[0]}


def test_the_planted_model_says_the_same_and_is_harder():
    hard, plain = Case(PLANTED, 0), Case("shapes-vit", 0)
    some = plain.calibration[:4]
    with torch.no_grad():
        checks.equal(hard.model(some), plain.model(some), 1e-3)
        lost = [
            (quantize(case.model, Recipe(8, 8), some)(some) - plain.model(some)).square().mean()
            for case in (hard, plain)
        ]
    assert lost[0] > 10 * lost[1]


def test_one_layer_alone_has_few_bits(case):
    name = "blocks.1.mlp.fc2"
    found = layers(quantize(case.model, only({name: (3, None)}), case.calibration))
    assert [n for n, layer in found.items() if layer.codes is not None] == [name]
    assert all(layer.input.grid is None for layer in found.values())
    assert found[name].grid.bits == 3


def test_mixed_bits_fill_the_memory_that_equal_bits_take(case, monkeypatch):
    """The control gets as much, with the errors of other layers."""
    sizes = case.sizes
    ranked = torch.arange(len(sizes), 0, -1)[:, None].double() ** 2 / torch.tensor(CHOICES).double()
    monkeypatch.setattr(case, "errors", ranked)
    weights = case.model.state_dict()
    assert all(sizes[name] == weights[f"{name}.weight"].numel() for name in sizes)
    spent, found = {}, {}
    for name, make in list(quant_rows.mixed(4).items())[:3]:
        bits = {layer: part.grid.bits for layer, part in layers(make(case)).items()}
        assert set(bits) == set(sizes)
        spent[name] = sum(bits[layer] * sizes[layer] for layer in sizes)
        if name == "the same for all":
            assert set(bits.values()) == {4}
        else:
            assert min(bits.values()) < 4 < max(bits.values())
            assert 0.97 * 4 * sum(sizes.values()) < spent[name] <= 4 * sum(sizes.values())
            found[name] = bits
    assert found["greedy"] != found["control: errors shuffled"]
    first, last = (found["greedy"][f"blocks.{i}.attn.qkv"] for i in (0, 3))
    assert first > last  # what the errors ask for


def test_training_in_float_is_the_control_of_training_with_bits(monkeypatch):
    monkeypatch.setattr("bench.quant_case.STEPS", 1)
    case = Case("digits-vit", 0)
    images = [case.batches(step, 0.0).images for step in (0, 1)]
    assert not torch.equal(*images) and not torch.equal(images[0], Case("digits-vit", 1).batches(0, 0.0).images)
    model = trained_on(case)
    assert not torch.equal(model.head.weight, case.model.head.weight)


def test_a_row_is_right_and_wrong_on_the_same_images():
    values = bench.measure(few())
    images = bench.held_out("digits-vit")
    row = values["rows"]["ladder"]["digits-vit"]["W3/A3"]["per tensor, min-max"]
    model = few()[0].make(Case("digits-vit", 1))
    with torch.no_grad():
        logits, plain = model(images.images), Case("digits-vit", 0).model(images.images)
    hits = logits.argmax(dim=1) == images.labels
    found = quant_summary.right(row["seeds"]["1"], len(images))
    assert found.tolist() == hits.tolist()
    assert row["seeds"]["1"]["accuracy"] == pytest.approx(hits.float().mean().item())
    assert row["seeds"]["1"]["error"] == pytest.approx(
        ((logits - plain).square().mean() / plain.var()).item(), rel=1e-3
    )
    mean = sum(seed["accuracy"] for seed in row["seeds"].values()) / 2
    assert row["accuracy"] == pytest.approx([mean, *wilson(round(61 * mean), 61)])
    assert row["seeds"]["0"]["right"] != row["seeds"]["1"]["right"]
    assert values["float"]["digits-vit"]["seeds"]["0"]["error"] == 0


def test_a_kill_loses_nothing_and_what_is_kept_is_not_measured_again(monkeypatch):
    rows, asked = few(), []

    def dies(case: Case):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.measure([rows[0], Row("ladder", "digits-vit", "W3/A3", "per channel, min-max", dies)])
    kept = results.load(bench.NAME)["rows"]["ladder"]["digits-vit"]["W3/A3"]
    assert list(kept) == ["per tensor, min-max"] and list(kept["per tensor, min-max"]["seeds"]) == ["0"]

    def counted(row: Row) -> Row:
        return Row(
            row.table,
            row.model,
            row.bits,
            row.method,
            lambda case: asked.append((row.method, case.seed)) or row.make(case),
            row.seeds,
        )

    bench.measure([counted(row) for row in rows[:2]])
    assert asked == [("per channel, min-max", 0), ("per tensor, min-max", 1), ("per channel, min-max", 1)]
    again = bench.measure([counted(row) for row in rows[:2]])
    assert again["rows"] == results.load(bench.NAME)["rows"] and len(asked) == 3
    assert again["rows"]["ladder"]["digits-vit"]["W3/A3"].keys() == {rows[0].method, rows[1].method}
    bench.measure([counted(row) for row in rows[:2]], again="per tensor")
    assert asked[3:] == [("per tensor, min-max", 0), ("per tensor, min-max", 1)]
    monkeypatch.setattr(bench, "held_out", lambda model: data.digits("val")[:40])
    asked.clear()
    assert bench.measure([counted(rows[0])])["images"] == {"digits-vit": 40}
    assert len(asked) == 2  # on other images everything is measured again


def test_the_summary_prints_every_row_and_marks_what_may_be_chance(capsys):
    bench.measure(few())
    assert bench.main(["--summary"]) == 0
    text = capsys.readouterr().out
    for expected in ("W3/A3", "per tensor, min-max", "the same for all", "greedy", "Measured", "digits-vit"):
        assert expected in text
    values = results.load(bench.NAME).values
    row = values["rows"]["mixed"]["digits-vit"]["W3"]
    assert quant_summary.points(quant_summary.difference(row["greedy"], row["the same for all"], 61)) in text


def test_differences_are_of_each_seed_and_the_widest_ends_count():
    def row(*hits: list[int]) -> dict:
        return {"seeds": {str(i): {"right": bench.packed(torch.tensor(h).bool())} for i, h in enumerate(hits)}}

    good, bad, even = [1] * 30, [0] * 30, [1, 0] * 15
    found = quant_summary.difference(row(good, even), row(bad, even), 30)
    first, second = paired_difference(good, bad), paired_difference(even, even)
    assert found == pytest.approx((0.5, second[1], first[2]))
    assert not quant_summary.clear(found) and quant_summary.points(found).endswith("~")
    assert quant_summary.clear(quant_summary.difference(row(good), row(bad), 30))
    alone = quant_summary.difference(row(good, even), row(bad), 30)  # one seed beside each of two
    assert alone[0] == pytest.approx(0.75)
