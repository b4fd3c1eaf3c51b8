"""What ships can be trusted: hashes, cards and accuracy agree; what is not a clean file is refused in a sentence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch

from labkit import data, paths, zoo, zoo_make
from labkit.checkpoint import save, sha256
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError
from labkit.patching.flexi import FlexiEmbed, flexible
from labkit.verify import hits
from labkit.vit import PatchEmbed, ViT

SMALL = {"image_size": 16, "patch_size": 8, "classes": 3, "dim": 8, "depth": 1, "heads": 2}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A checkpoint folder of our own with a copy of shapes-vit."""
    for suffix in ("safetensors", "json"):
        shutil.copy(paths.CHECKPOINTS / f"shapes-vit.{suffix}", tmp_path)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def drawn_once():
    """`data.shapes`, for models that were judged on the same 4,000 images."""
    return cache(data.shapes)


@pytest.mark.parametrize("name", zoo.SPECS)
def test_a_shipped_model_is_what_its_card_says(name, drawn_once, monkeypatch):
    monkeypatch.setattr(data, "shapes", drawn_once)
    card, file = zoo.card(name), paths.CHECKPOINTS / f"{name}.safetensors"
    assert card["sha256"] == sha256(file) and card["bytes"] == file.stat().st_size <= 8e6
    spec = zoo.SPECS[name]
    assert card["architecture"] == spec.architecture
    assert card["recipe"]["steps"] == spec.recipe.steps and card["recipe"]["batch"] == spec.batch
    held_out = spec.held_out()
    assert card["held_out"]["hash"] == zoo_make.data_hash(held_out) and card["held_out"]["images"] == len(held_out)
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
    before = model((x - zoo_make.MEAN) / zoo_make.STD)
    zoo_make.fold_normalisation(model)
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
        zoo_make.make("digit-vit", paths.CACHE)


def test_the_command_line_says_what_it_takes():
    with pytest.raises(LabkitError, match="usage"):
        zoo.main(["tarin"])


def test_making_a_model_writes_a_card_that_loads(tmp_path, monkeypatch):
    spec = zoo.SPECS["digits-vit"]
    quick = replace(spec, recipe=replace(spec.recipe, steps=3), architecture=spec.architecture | {"depth": 1})
    monkeypatch.setitem(zoo.SPECS, "digits-vit", quick)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "shelf")
    zoo_make.make("digits-vit", tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "log.json").read_text())[-1]["step"] == 3
    zoo.load("digits-vit")


# --- a model for several sizes of patches -----------------------------------------------------------------------
def test_the_flexible_model_reads_both_of_its_sizes_as_its_card_says():
    card, model = zoo.card("shapes-vit-flexi"), zoo.load("shapes-vit-flexi")
    assert list(card["patches"]) == ["8", "16"] and card["patches"]["8"]["accuracy"] == card["held_out"]["accuracy"]
    assert type(model.patch_embed) is PatchEmbed
    some = data.shapes("test", 300)
    told = card["patches"]["16"]["accuracy"]
    right = hits(flexible(model, 16), some).float().mean().item()
    assert abs(right - told) < 4 * (told * (1 - told) / len(some)) ** 0.5
    assert right > hits(flexible(zoo.load("shapes-vit"), 16), some).float().mean().item() + 0.3


def test_every_batch_is_read_with_every_size_and_all_of_them_move_the_one_kernel():
    model = ViT(**SMALL, patching=FlexiEmbed(8, 3, 8))
    batch, sizes = ImageSet(torch.rand(2, 3, 16, 16), torch.tensor([0, 2]), names=["a", "b", "c"]), []

    def loss(module, batch):
        sizes.append(module.patch_embed.patch)
        logits = module(batch.images)
        return logits.square().mean() * len(sizes), logits

    value, logits = zoo_make.every_patch((8, 4), loss)(model, batch)
    assert sizes == [8, 4] and model.patch_embed.patch == 8
    assert torch.equal(logits, model(batch.images))
    each = [loss(model, batch)[0]]
    model.patch_embed.patch = 4
    each.append(loss(model, batch)[0])
    assert value.item() == pytest.approx((each[0].item() / 3 + 2 * each[1].item() / 4) / 2)
    value.backward()
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_model_that_starts_from_another_ends_plain_and_reads_pixels_as_they_are(tmp_path, monkeypatch):
    spec = zoo.SPECS["shapes-vit-flexi"]
    seen = []

    def images(step, done):
        seen.append(data.shapes("train", 2, start=step))
        return seen[-1]

    monkeypatch.setattr(zoo_make, "data_hash", lambda held_out: "none")
    quick = replace(
        spec,
        recipe=replace(spec.recipe, steps=1, lr=0.0),
        batches=lambda batch: images,
        held_out=lambda: data.shapes("test", 20),
    )
    monkeypatch.setitem(zoo.SPECS, "shapes-vit-flexi", quick)
    first = zoo.load("shapes-vit")
    shutil.copy(paths.CHECKPOINTS / "shapes-vit.safetensors", tmp_path)
    shutil.copy(paths.CHECKPOINTS / "shapes-vit.json", tmp_path)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    card = zoo_make.make("shapes-vit-flexi", tmp_path / "run", progress=False)
    again = zoo.load("shapes-vit-flexi")
    assert (again(seen[0].images) - first(seen[0].images)).abs().max() < 1e-4, "nothing was learned, nothing is folded"
    assert card["start"] == "shapes-vit" and set(card["patches"]) == {"8", "16"}
    assert not hasattr(zoo_make.begin(zoo.SPECS["digits-vit"]).patch_embed, "patch")
