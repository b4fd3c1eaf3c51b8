"""What ships can be trusted: hashes, cards and accuracy agree; what is not a clean file is refused in a sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from labkit import data, paths, zoo
from labkit.checkpoint import save, sha256
from labkit.errors import LabkitError
from labkit.verify import hits
from labkit.vit import ViT

SMALL = {"image_size": 16, "patch_size": 8, "classes": 3, "dim": 8, "depth": 1, "heads": 2}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A checkpoint folder of our own with a copy of shapes-vit."""
    for suffix in ("safetensors", "json"):
        shutil.copy(paths.CHECKPOINTS / f"shapes-vit.{suffix}", tmp_path)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", zoo.SPECS)
def test_a_shipped_model_is_what_its_card_says(name):
    card, file = zoo.card(name), paths.CHECKPOINTS / f"{name}.safetensors"
    assert card["sha256"] == sha256(file) and card["bytes"] == file.stat().st_size <= 8e6
    spec = zoo.SPECS[name]
    assert card["architecture"] == spec.architecture
    assert card["recipe"]["steps"] == spec.recipe.steps and card["recipe"]["batch"] == spec.batch
    held_out = spec.held_out()
    assert card["held_out"]["hash"] == zoo.data_hash(held_out) and card["held_out"]["images"] == len(held_out)
    some = held_out[:400]
    right = hits(zoo.load(name), some).float().mean().item()
    assert abs(right - card["held_out"]["accuracy"]) < 4 * (0.1 * 0.9 / len(some)) ** 0.5


@pytest.mark.parametrize("name", ["shapes-vit", "shapes-vit-gap"])
def test_the_shapes_models_are_good_but_not_perfect(name):
    held_out = zoo.card(name)["held_out"]
    assert held_out["images"] >= 4000 and held_out["low"] >= 0.90 and held_out["high"] <= 0.99


def test_a_loaded_model_is_ready_to_use():
    model = zoo.load("shapes-vit")
    assert not model.training and model.impl == "fast"
    assert model(data.shapes("val", 2).images).shape == (2, 10)


def test_save_and_load_round_trip(tmp_path):
    model = ViT(**SMALL).eval()
    save(model, tmp_path / "new" / "mine.safetensors", SMALL)
    again = zoo.load(str(tmp_path / "new" / "mine.safetensors"))
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), again(x))


def test_folding_the_normalisation_changes_nothing():
    torch.manual_seed(0)
    model = ViT(**SMALL).eval()
    x = torch.rand(2, 3, 16, 16)
    before = model((x - zoo.MEAN) / zoo.STD)
    zoo.fold_normalisation(model)
    assert (model(x) - before).abs().max() < 1e-6


def test_a_changed_file_is_noticed(shelf):
    file = shelf / "shapes-vit.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(LabkitError, match="not the file that was published"):
        zoo.load("shapes-vit")


def test_a_cut_file_is_noticed(shelf):
    file = shelf / "shapes-vit.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(LabkitError, match=r"sha256|not a readable safetensors"):
        zoo.load("shapes-vit")


def test_missing_files_are_named(shelf):
    (shelf / "shapes-vit.json").unlink()
    with pytest.raises(LabkitError, match="model card"):
        zoo.load("shapes-vit")
    (shelf / "shapes-vit.safetensors").unlink()
    with pytest.raises(LabkitError, match="There is no checkpoint"):
        zoo.load("shapes-vit")


def test_pickles_are_refused_whatever_their_name(tmp_path):
    for name in ("model.pth", "model.safetensors"):
        torch.save({"a": torch.zeros(1)}, tmp_path / name)
        with pytest.raises(LabkitError, match="pickle"):
            zoo.load(str(tmp_path / name))


def test_garbage_and_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "noise.safetensors").write_bytes(b"not at all a checkpoint")
    with pytest.raises(LabkitError, match="not a readable safetensors"):
        zoo.load(str(tmp_path / "noise.safetensors"))
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(LabkitError, match="does not say which architecture"):
        zoo.load(str(tmp_path / "foreign.safetensors"))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(LabkitError, match='Did you mean "shapes-vit"'):
        zoo.load("shape-vit")
    with pytest.raises(LabkitError, match='Did you mean "digits-vit"'):
        zoo.make("digit-vit", paths.CACHE)


def test_the_command_line_says_what_it_takes():
    with pytest.raises(LabkitError, match="usage"):
        zoo.main(["tarin"])


def test_making_a_model_writes_a_card_that_loads(tmp_path, monkeypatch):
    from dataclasses import replace

    spec = zoo.SPECS["digits-vit"]
    quick = replace(spec, recipe=replace(spec.recipe, steps=3), architecture=spec.architecture | {"depth": 1})
    monkeypatch.setitem(zoo.SPECS, "digits-vit", quick)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "shelf")
    zoo.make("digits-vit", tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "log.json").read_text())[-1]["step"] == 3
    zoo.load("digits-vit")
