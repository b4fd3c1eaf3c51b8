"""What is audited: models and images of every kind, and a sentence for whatever cannot be audited."""

from __future__ import annotations

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from torch import nn

from labkit import convert, data, paths
from labkit.audit.index import Index
from labkit.audit.labels import class_numbers
from labkit.audit.network import Network, damaged
from labkit.audit.subject import pictures, subject
from labkit.errors import LabkitError

TINY = {"vit_tiny_patch16_224": {}, "convnext_atto": {}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights, by name of the model."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name in TINY:
        save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def photos(tmp_path):
    """A function that fills a folder with small images: classes by name, or None for a flat one."""

    def fill(classes: dict[str, int] | None = None, count: int = 20):
        folder = tmp_path / "photos"
        for name, many in (classes or {"": count}).items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(many):
                colour = (40 * i % 256, 90, 160)
                Image.new("RGB", (48, 40), colour).save(folder / name / f"{i:02d}.png")
        return str(folder)

    return fill


def test_nothing_named_is_the_shipped_model_with_labels():
    found = subject(limit=12)
    assert (found.name, found.labelled, found.word, found.plain) == ("shapes-vit", True, "accuracy", "")
    assert len(found.inputs) == len(found.truth) == 12 and found.right().float().mean() > 0.8
    assert not any(image.equal(other) for image in found.calibration for other in found.inputs)


def test_the_model_of_digits_reads_digits_that_it_was_not_trained_on():
    found = subject("digits-vit", limit=40)
    assert found.word == "accuracy" and found.right().float().mean() > 0.9
    trained_on = {image.numpy().tobytes() for image in data.digits("train").images}
    assert not any(image.numpy().tobytes() in trained_on for image in found.images.images)
    assert not found.inputs.equal(subject("digits-vit", limit=40, seed=1).inputs)


def test_a_plain_model_of_timm_is_rebuilt_and_gives_its_answers(weights, photos):
    name = "vit_tiny_patch16_224"
    found = subject(name, str(weights / f"{name}.safetensors"), photos(count=20), limit=8)
    assert found.plain == "" and len(found.inputs) == 8 and len(found.calibration) == 4
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    with torch.no_grad():
        assert (theirs(found.inputs) - found.vit(found.inputs)).abs().max() < 1e-4
    assert found.word == "agreement" and found.right().all()
    assert found.inputs.mean() != found.images.images.mean()  # normalised


def test_another_model_is_audited_as_it_is_and_says_why_it_is_not_plain(weights):
    found = subject("convnext_atto", str(weights / "convnext_atto.safetensors"))
    assert "not a plain ViT" in found.plain and len(found.inputs) == 10
    with pytest.raises(LabkitError, match="not a plain ViT"):
        _ = found.vit
    assert any("ten pictures that ship" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "classes", "numbers"),
    [
        (["3", "1"], 10, [3, 1]),
        (["n01440764", "n01443537"], 1000, [0, 1]),
        (["cat", "dog"], 2, [0, 1]),
        (["cat", "dog"], 10, None),
        (["12"], 10, None),
        (["n01440764", "cat"], 1000, None),
    ],
)
def test_folder_names_are_classes_where_that_is_sure(names, classes, numbers):
    assert class_numbers(names, classes) == numbers


def test_class_folders_give_accuracy_or_say_why_not(photos):
    found = subject(images=photos({"3": 9, "1": 9}), limit=10)
    assert found.word == "accuracy" and set(found.truth.tolist()) == {1, 3}
    found = subject(images=photos({"cats": 9, "dogs": 9}), limit=10)
    assert found.word == "agreement"
    assert any("not the 10 classes of the model" in note for note in found.notes)


def test_labels_from_a_table(photos, tmp_path):
    images, table = photos(count=18), tmp_path / "labels.csv"
    table.write_text("file,class\n" + "".join(f"{i:02d}.png,{i % 10}\n" for i in range(18)))
    found = subject(images=images, labels=str(table), limit=10)
    assert found.word == "accuracy"
    assert found.truth.tolist() == [int(name[:2]) % 10 for name in found.images.names]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "file,class\n00.png,ten\n",
            r"Line 2 of labels.csv is '00.png,ten'; expected a file name and a class from 0 to 9",
        ),
        ("00.png,99\n01.png,99\n", "Line 2 of labels.csv"),
        ("other.png,1\n", r'no label for \d+ of the images, the first is "'),
        ("", "no label for"),
        ("00.png,1,2\n00.png,1,2\n", "Line 2"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_is_a_sentence(photos, tmp_path, text, sentence):
    table = tmp_path / "labels.csv"
    table.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LabkitError, match=sentence):
        subject(images=photos(), labels=str(table), limit=4)


def test_a_table_and_class_folders_are_one_too_many(photos, tmp_path):
    (tmp_path / "labels.csv").write_text("00.png,1\n")
    with pytest.raises(LabkitError, match="give either class folders or a CSV"):
        subject(images=photos({"1": 9, "2": 9}), labels=str(tmp_path / "labels.csv"), limit=4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": "shapes-vti"}, 'The model "shapes-vti" is unknown.*Did you mean "shapes-vit"'),
        ({"model": "../../etc/passwd"}, "is unknown"),
        ({"model": ""}, "is unknown"),
        ({"weights": "x.safetensors"}, "brings its own weights"),
        ({"model": "vit_tiny_patch16_224", "weights": "x.pth"}, "not a .safetensors file"),
        ({"model": "vit_tiny_patch16_224", "weights": "nowhere.safetensors"}, "no weights file"),
        ({"images": "nowhere"}, 'There is no folder "nowhere"'),
        ({"labels": "nowhere.csv"}, "cannot be read"),
        ({"limit": -1}, "limit=-1"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_what_cannot_be_audited_is_a_sentence(arguments, sentence):
    with pytest.raises(LabkitError, match=sentence):
        subject(**arguments)


def broken(weights, change) -> dict:
    torch.manual_seed(0)
    state = dict(timm.create_model("vit_tiny_patch16_224").state_dict())
    change(state)
    save_file(state, weights / "broken.safetensors")
    return {"model": "vit_tiny_patch16_224", "weights": str(weights / "broken.safetensors")}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s["blocks.3.attn.qkv.weight"].fill_(float("nan")), r"1 tensors .* NaN or infinite numbers"),
        (lambda s: s["norm.bias"].fill_(float("inf")), "NaN or infinite"),
        (lambda s: s.pop("blocks.3.attn.qkv.weight"), "timm cannot build|Missing"),
        (lambda s: s.update({"norm.bias": torch.zeros(3)}), "timm cannot build|size mismatch"),
    ],
)
def test_damaged_weights_are_a_sentence(weights, change, sentence):
    with pytest.raises(LabkitError, match=sentence):
        subject(**broken(weights, change))


def test_a_pickle_under_a_new_name_is_never_opened(tmp_path):
    path = tmp_path / "mine.safetensors"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(LabkitError, match="not a readable safetensors file"):
        subject("vit_tiny_patch16_224", str(path))
    with pytest.raises(LabkitError, match="is a pickle"):
        subject(str(path))


def test_images_are_cut_as_the_weights_were_tested():
    net = Network(nn.Identity(), "", torch.zeros(3), torch.ones(3), size=96, crop=0.875)
    transform = create_transform((3, 96, 96), mean=(0, 0, 0), std=(1, 1, 1), crop_pct=0.875, interpolation="bicubic")
    ours, _, _ = pictures("", str(paths.DATA / "images"), net, limit=10, seed=0)
    assert ours.images.shape == (10, 3, 96, 96)
    for name, image in zip(ours.names, ours.images, strict=True):
        assert torch.equal(image, transform(Image.open(paths.DATA / "images" / name).convert("RGB")))


def test_a_file_with_two_answers_is_refused_and_said_twice_is_not(photos, tmp_path):
    table, lines = tmp_path / "labels.csv", [f"{i:02d}.png,1" for i in range(20)]
    table.write_text("\n".join([*lines, lines[3]]))
    assert subject(images=photos(), labels=str(table), limit=4).labelled
    table.write_text("\n".join([*lines, "03.png,2"]))
    with pytest.raises(LabkitError, match=r"labels.csv says both 1 and 2 of '03.png'"):
        subject(images=photos(), labels=str(table), limit=4)


@pytest.fixture
def headless(monkeypatch):
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=0)
    monkeypatch.setattr(convert, "create", lambda *how: net)


def test_a_model_without_a_head_answers_with_the_nearest_other_image(headless):
    found = subject("test_vit", "mine.safetensors")
    assert found.notes[0].startswith("This model has no head") and found.word == "agreement"
    features = found.model(found.inputs)
    alike = torch.cosine_similarity(features[:, None], features[None], dim=2)
    alike.fill_diagonal_(-1)
    assert found.truth.equal(alike.argmax(dim=1)) and found.right().all()
    assert found.right(lambda x: found.model(x).roll(1, dims=0)).double().mean() < 0.5  # everybody another's features
    assert found.right(lambda x: 3 * found.model(x)).all()  # directions count, lengths do not


def test_with_labels_a_model_without_a_head_answers_with_a_class(headless, photos, tmp_path):
    in_folders = subject("test_vit", "mine.safetensors", photos({"cats": 10, "dogs": 10}), limit=8)
    assert in_folders.labelled and set(in_folders.truth.tolist()) == {0, 1}
    (tmp_path / "flat").mkdir()
    for path in (tmp_path / "photos" / "cats").iterdir():
        path.rename(tmp_path / "flat" / path.name)
    table = tmp_path / "labels.csv"
    table.write_text("".join(f"{i:02d}.png,{7_000_000 * (i % 2)}\n" for i in range(10)))
    by_file = subject("test_vit", "mine.safetensors", str(tmp_path / "flat"), str(table), limit=8)
    assert by_file.labelled and set(by_file.truth.tolist()) == {0, 1}


def test_one_label_for_all_says_nothing_of_a_model_without_a_head(headless, photos):
    found = subject("test_vit", "mine.safetensors", photos({"all": 20}), limit=8)
    assert found.word == "agreement" and any("the same label" in note for note in found.notes)
    assert len(found.truth.unique()) > 1


def test_the_score_of_an_answer_is_that_of_its_nearest_image():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])
    index = Index.of(features, torch.tensor([0, 1, 1, 0]))
    root = 0.5**0.5
    expected = torch.tensor([[-1.0, root], [0.0, root], [root, root], [-1.0, 0.0]])
    assert torch.allclose(index.scores(features) * 0.07, expected, atol=1e-6)
    assert index.scores(features[:2]).equal(index.scores(features)[:2])
    with pytest.raises(LabkitError, match="two images or more"):
        Index.of(features[:1], None)


def test_what_a_model_means_to_be_infinite_is_no_damage():
    """A buffer may hold the minus infinity of a mask; damaged weights show in parameters or in the answers."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert not damaged(net)
    net[0].weight.data[0] = torch.nan
    assert damaged(net) == ["0.weight"]


def test_images_that_are_not_square_are_refused(monkeypatch):
    tall = timm.create_model("test_vit")
    tall.pretrained_cfg = tall.pretrained_cfg | {"input_size": (3, 256, 192)}
    monkeypatch.setattr(convert, "create", lambda *how: tall)
    with pytest.raises(LabkitError, match="test_vit reads 3×256×192 pixels; an audit shows square images in colour"):
        subject("test_vit", "mine.safetensors")
