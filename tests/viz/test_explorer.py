"""The explorer without a browser: its bytes against the trace, its words and pictures, its page as text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from labkit import ViT, load, tokens, trace
from labkit.data import ImageSet, shapes
from labkit.errors import LabkitError
from labkit.explain.attention import rollout_matrix
from labkit.tokens.score import key_norm
from labkit.tracing.capture import silenced
from labkit.tracing.keeping import Kept
from labkit.tracing.layouts import Layer
from labkit.tracing.trace import Trace
from labkit.viz import still
from labkit.viz.colour import colours, table
from labkit.viz.explorer import Explorer
from labkit.viz.explorer_data import ImageMaps, cell
from labkit.viz.explorer_film import GONE, film, relabel
from labkit.viz.explorer_maps import rollouts
from labkit.viz.explorer_pack import answer, pack
from labkit.viz.explorer_words import percent
from labkit.viz.sheet import border

NASTY = "</script><script>alert(\"x\")</script><b title='y'>&amp;"


@pytest.fixture(scope="module")
def model():
    return load("shapes-vit")


@pytest.fixture(scope="module")
def data():
    return shapes("test", 3, seed=0)


@pytest.fixture(scope="module")
def seen(model, data):
    return trace(model, data.images)


@pytest.fixture(scope="module")
def merged(model, data):
    return trace(tokens.attach(model, tokens.Merge(10), range(6)), data.images)


@pytest.fixture(scope="module")
def windowed():
    torch.manual_seed(0)
    swin = SwinTransformer(
        img_size=(56, 112), patch_size=4, window_size=7, embed_dim=8, depths=(2, 2), num_heads=(1, 2), num_classes=5
    )
    with torch.no_grad():
        for name, parameter in swin.named_parameters():
            if "qkv.weight" in name:
                parameter.mul_(20)  # random weights look everywhere alike
    return trace(swin, torch.rand(1, 3, 56, 112))


def hand_made(attn: torch.Tensor, grid: tuple[int, int], prefix: int = 0) -> Trace:
    """A trace of layers (layers, heads, n, n) whose attention is given."""
    names = ("class",)[:prefix]
    layers = [Layer(f"{i}", "self", attn.shape[1], grid, grid, prefix, prefix, names) for i in range(len(attn))]
    kept = [Kept("float32", [layer[None]]) for layer in attn]
    return Trace("hand made", torch.rand(1, 3, 8 * grid[0], 8 * grid[1]), torch.zeros(1, 2), layers, kept, grid)


def unpacked(data: bytes) -> tuple[dict, dict]:
    """What the browser reads: the header and the arrays."""
    size = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + size])
    arrays = {
        name: np.frombuffer(data, kind, math.prod(shape), 4 + size + offset).reshape(shape)
        for name, (kind, offset, shape) in header["arrays"].items()
    }
    return header, arrays


def maps_of(seen: Trace, image: int = 0, **options) -> ImageMaps:
    return ImageMaps(seen, image, np.zeros((8, 8, 3), np.uint8), **options)


# the bytes


def test_the_bytes_are_the_trace_to_a_two_hundredth_of_each_rows_largest_share(seen):
    _, arrays = unpacked(pack(maps_of(seen, 1)))
    for layer, info in enumerate(seen.layers):
        rows = seen.rows(layer, 1).numpy()
        shares, scales = arrays[f"shares{layer}"], arrays[f"scales{layer}"]
        decoded = (shares * scales[..., None].astype(float) / 255)[: info.heads]
        assert (np.abs(decoded - rows[..., 1:]) <= rows[..., 1:].max(axis=-1, keepdims=True) / 509).all()
        np.testing.assert_array_equal(arrays[f"prefix{layer}"][: info.heads], rows[..., :1])
        assert (shares.max(axis=-1) == 255).all()


def test_arrays_begin_where_typed_arrays_may(seen):
    header, _ = unpacked(pack(maps_of(seen)))
    assert (4 + int.from_bytes(pack(maps_of(seen))[:4], "little")) % 8 == 0
    assert all(offset % 8 == 0 for _, offset, _ in header["arrays"].values())


def test_a_column_holds_what_every_row_gives(seen):
    maps = maps_of(seen)
    column = maps.heads(2, (3, 5), "looked at by")
    for row, c in ((0, 0), (4, 4), (7, 7)):
        assert np.array_equal(column.cells[:, 8 * row + c], maps.heads(2, (row, c), "looks at").cells[:, 8 * 3 + 5])
    assert np.array_equal(column.extra[:, 0], maps.heads(2, "class", "looks at").cells[:, 8 * 3 + 5])
    by_class = maps.heads(2, "class", "looked at by")
    assert np.array_equal(by_class.cells[:, 9], maps.heads(2, (1, 1), "looks at").extra[:, 0])


def test_windows_travel_alone_and_are_put_in_place(windowed):
    maps = maps_of(windowed)
    _, arrays = unpacked(pack(maps))
    for layer, info in enumerate(windowed.layers):
        assert arrays[f"shares{layer}"].shape == (info.heads, math.prod(info.grid), 49)
        rows = windowed.rows(layer, 0).numpy()
        for place in ((0, 0), (5, 20), (13, 27)):
            number = maps.number(layer, place, of_keys=False)
            tolerance = 1 / 255
            np.testing.assert_allclose(maps.heads(layer, place, "looks at").cells, rows[:, number], atol=tolerance)
            np.testing.assert_allclose(
                maps.heads(layer, place, "looked at by").cells, rows[:, :, number], atol=tolerance
            )


def test_a_query_keeps_its_place_when_the_grid_changes(windowed):
    maps = maps_of(windowed)
    assert [layer.grid for layer in windowed.layers] == [(14, 28)] * 2 + [(7, 14)] * 2
    assert maps.number(0, (13, 27), False) == 14 * 28 - 1
    assert maps.number(2, (13, 27), False) == 7 * 14 - 1
    assert maps.number(2, (3, 10), False) == 1 * 14 + 5
    for coarse, fine in ((7, 56), (3, 14), (5, 16)):  # there and back again is the same cell
        assert [cell(cell(i, coarse, fine), fine, coarse) for i in range(coarse)] == list(range(coarse))


def test_an_image_that_is_wider_than_high_is_not_turned():
    n = 2 * 4
    attn = torch.zeros(1, 1, n, n)
    attn[0, 0, :, 3] = 1  # everyone looks at the right end of the first row
    look = maps_of(hand_made(attn, (2, 4))).look(0, 0, (1, 0), "looks at")
    assert look.cells.reshape(look.grid).tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]


def test_large_layers_are_served_row_by_row(seen):
    whole, served = maps_of(seen), maps_of(seen, limit=50_000)
    assert all(served.served) and len(pack(served)) < len(pack(whole)) / 3
    for query in ((4, 4), "class"):
        for direction in ("looks at", "looked at by"):
            header, arrays = unpacked(answer(served, query, direction))
            assert header["back"] == (direction == "looked at by")
            for layer in range(6):
                expected = whole.heads(layer, query, direction)
                sent = arrays[f"shares{layer}"] * arrays[f"scales{layer}"][..., None].astype(float) / 255
                atol = expected.cells.max() / 500
                np.testing.assert_allclose(sent[:, 0], expected.cells, atol=atol)
                np.testing.assert_allclose(arrays[f"prefix{layer}"][:, 0], expected.extra, rtol=1e-6)
                assert np.array_equal(served.heads(layer, query, direction).cells, sent[:, 0])


def test_twelve_layers_of_twelve_heads_and_197_tokens_fit_in_16_megabytes():
    torch.manual_seed(0)
    seen = trace(ViT(224, 16, 10, 24, 12, 12), torch.rand(1, 3, 224, 224))
    explorer = Explorer(seen)
    assert not any(explorer.maps[0].served) and len(explorer.data) < 16 * 2**20


# rollout and film


def test_rollout_is_the_product_of_all_layers_so_far(seen):
    rolled = rollouts(seen, 2)
    for layer in (0, 3, 5):
        expected = rollout_matrix([seen.attention[i][2:3] for i in range(layer + 1)])[0]
        np.testing.assert_allclose(rolled[layer], expected, atol=1e-6)


def test_rollout_of_uniform_attention_is_uniform_beside_the_token_itself():
    rolled = rollouts(hand_made(torch.full((3, 2, 9, 9), 1 / 9), (3, 3)), 0)[-1]
    itself = np.diag(rolled).copy()
    assert np.allclose(itself, itself[0]) and np.allclose(rolled.sum(axis=1), 1)
    assert np.allclose(rolled[~np.eye(9, dtype=bool)], (1 - itself[0]) / 8)


def test_rollout_through_merged_tokens_still_adds_up(merged):
    for rolled in rollouts(merged, 0):
        np.testing.assert_allclose(rolled.sum(axis=1), 1, atol=1e-5)


def test_a_dropped_patch_looks_nowhere(model, data):
    slim = tokens.attach(model, tokens.Keep(0.4), [1])
    explorer = Explorer(trace(slim, data.images), layer=4)
    gone = np.flatnonzero(explorer.maps[0].film[4] == GONE)
    explorer.query = divmod(int(gone[0]), 8)
    assert explorer.describe().endswith("looks at no patch: its token was dropped before this layer.")
    explorer.head = "rollout"
    assert explorer.describe().endswith("was dropped before this layer.")
    explorer.view, explorer.step = "film", 4
    assert explorer.describe().startswith("Before layer 4: 26 tokens hold 26 of 64 patches.")
    assert explorer.describe().endswith("was dropped.")


def test_the_film_counts_as_the_trace_does(merged):
    labels = film(merged, 1)
    assert (labels >= 0).all() and len(labels) == 7
    for step, sizes in enumerate(merged.sizes, start=1):
        counted = np.unique(labels[step], return_counts=True)[1]
        assert sorted(counted) == sorted(sizes[1][1:].int().tolist())


def test_a_token_keeps_its_label_while_it_grows():
    inside = np.array([[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])
    first = relabel(inside, np.arange(5))
    assert first.tolist() == [0, 0, 2, 3, GONE]
    grown = relabel(np.array([[0, 0, 0, 1, 0], [1 / 3, 1 / 3, 1 / 3, 0, 0]]), first)
    assert grown.tolist() == [0, 0, 0, 3, GONE]


def test_a_model_that_reduces_at_the_entry_has_a_film_and_a_rollout(model, data):
    slim = tokens.attach(model, tokens.Keep(0.25, key_norm), "entry")
    explorer = Explorer(slim, data.images[:2], view="film", step=0)
    labels = film(trace(slim, data.images[:2]), 0)
    assert (labels[0] != -1).sum() == round(0.25 * labels.shape[1]) and (labels == labels[0]).all()
    assert explorer.describe()
    (first, *_) = rollouts(trace(slim, data.images[:2]), 0)
    gone = np.flatnonzero(labels[0] == -1) + model.prefix
    assert first.shape[1] == model.prefix + labels.shape[1] and not first[:, gone].any()


def test_without_a_reducer_there_is_no_film(seen):
    assert film(seen, 0) is None
    assert Explorer(seen, view="film").describe().startswith("No token is dropped or merged")


# words


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0.0 %"), (0.0625, "6.3 %"), (0.00049, "0.0 %"), (0.0005, "0.1 %"), (1, "100.0 %")]
)
def test_halves_are_rounded_up_as_in_the_browser(share, words):
    assert percent(share) == words


def test_known_attention_is_told_in_words():
    n = 1 + 4
    attn = torch.zeros(2, 1, n, n)
    attn[:, :, :, 0], attn[:, :, :, 4] = 0.25, 0.75  # a quarter to the class token, the rest to the last patch
    explorer = Explorer(hand_made(attn, (2, 2), prefix=1), layer=0, head=0, query=(0, 1))
    assert explorer.describe() == (
        "Layer 0, head 0: the patch in row 0, column 1 looks most at row 1, column 1 (75.0 %); "
        "25.0 % of its attention goes to the class token."
    )
    explorer.direction, explorer.query = "looked at by", (1, 1)
    assert explorer.describe() == (
        "Layer 0, head 0: the patch in row 1, column 1 is looked at most by row 0, column 0, which gives it 75.0 % of "
        "its attention; the class token gives it 75.0 %."
    )
    explorer.direction, explorer.query, explorer.view = "looks at", "class", "grid"
    assert explorer.describe() == (
        "Where the class token looks, in all 2 layers: the strongest share is 75.0 %, in layer 0, head 0 at row 1, "
        "column 1."
    )


def test_a_model_is_no_different_from_itself(seen):
    explorer = Explorer(seen, other=seen, titles=("one", "two"), view="compare")
    assert explorer.describe().endswith("; no share differs by more than 0.0 %.")


def test_a_model_without_maps_says_why():
    flat = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.LazyLinear(3))
    explorer = Explorer(flat, torch.rand(1, 3, 16, 16))
    assert explorer.describe() == explorer.traces[0].why != ""
    for view in ("overlay", "grid"):
        explorer.view = view
        assert Image.open(io.BytesIO(explorer._png())).width > 100


def test_attention_between_channels_is_not_drawn(seen):
    layers = [Layer("mix", "channel", 4), *seen.layers[1:]]
    odd = Trace("odd", seen.images, seen.logits, layers, seen.kept, seen.patches)
    explorer = Explorer(odd, layer=0)
    assert "attention between channels; it lies nowhere on the image" in explorer.describe()
    explorer.layer, explorer.head = 1, "rollout"
    assert "do not all mix the same tokens" in explorer.describe()
    header, arrays = unpacked(explorer.data)
    assert not header["layers"][0]["drawn"] and "shares0" not in arrays


# traits


def test_the_state_shows_the_same_thing_again(seen, data):
    explorer = Explorer(seen, data, view="grid", layer=5, head=2, query=(1, 6), image=2, sort="distance")
    explorer.direction, explorer.opacity = "looked at by", 0.3
    again = Explorer(seen, data, **json.loads(json.dumps(explorer.state())) | {"query": tuple(explorer.query)})
    assert again.state() == explorer.state() and again.describe() == explorer.describe()
    assert again.data == explorer.data


@pytest.mark.parametrize(
    ("trait", "value", "words"),
    [
        ("view", "grids", "view.*unknown; choose one of overlay, grid"),
        ("layer", 6, "There is no layer 6; there are 6, counted from 0"),
        ("image", -1, "There is no image -1"),
        ("head", 4, "There is no head 4; choose 0 to 3"),
        ("head", "median", "There is no head 'median'"),
        ("query", (8, 0), r"There is no patch \(8, 0\).*8 x 8"),
        ("query", "register 1", "There is no patch 'register 1'.*\"class\""),
        ("silenced", [(0, 9)], "There is no head 9 in layer 0"),
        ("view", "compare", "Comparing needs a second trace"),
        ("view", "ablate", "Silencing heads needs the model"),
    ],
)
def test_a_wrong_value_is_a_sentence_and_changes_nothing(seen, data, trait, value, words):
    explorer = Explorer(seen, data)
    before = explorer.state()
    with pytest.raises(LabkitError, match=words):
        setattr(explorer, trait, value)
    assert explorer.state() == before


def test_wrong_arguments_are_sentences(model, seen, data):
    with pytest.raises(LabkitError, match=r'has no layers; it has view.*Did you mean "layer"\?'):
        Explorer(seen, data, layers=2)
    with pytest.raises(LabkitError, match="needs images"):
        Explorer(model)
    with pytest.raises(LabkitError, match="2 images for a trace of 3; show the traced images"):
        Explorer(seen, data[:2])
    with pytest.raises(LabkitError, match="3 images for a trace of 1; show the traced"):
        Explorer(seen, other=trace(model, data.images[:1]))


def test_another_image_brings_other_bytes(seen, data):
    explorer = Explorer(seen, data)
    first = explorer.data
    explorer.image = 1
    assert explorer.data != first and unpacked(explorer.data)[0]["image"] == 1
    assert explorer.maps[0].caption.startswith(f"Image 1: {data.names[int(data.labels[1])]}")


def test_the_browser_may_ask_for_rows(seen, monkeypatch):
    explorer, said = Explorer(seen, limit=50_000), []
    monkeypatch.setattr(explorer, "send", lambda *message: said.append(message))
    explorer._answer(None, {"ask": "rows", "query": [2, 3], "direction": "looks at", "image": 1}, [])
    assert not said  # another image is shown by now
    explorer._answer(None, {"ask": "rows", "query": [2, 3], "direction": "looks at", "image": 0}, [])
    ((message, buffers),) = said
    assert message == {"rows": "answer"} and unpacked(buffers[0])[0]["query"] == [2, 3]


# silencing


def test_silent_heads_move_the_bars_by_what_the_model_computes(model, data):
    explorer = Explorer(model, data, image=1, view="ablate")
    assert all(one["before"] == one["after"] for one in explorer.outcome["classes"])
    assert explorer.describe().startswith("No head is silenced: the model says ")
    heads = [(4, head) for head in range(4)] + [(5, 0)]
    explorer.silenced = heads
    with torch.inference_mode():
        logits = silenced(model, heads)(data.images[1:2])[0]
    for one in explorer.outcome["classes"]:
        assert one["logit"] == round(10 * logits[data.names.index(one["name"])].item())
    assert explorer.describe().startswith("5 of 24 heads silenced: ")
    explorer.silenced = []
    assert explorer.outcome["silenced"] == 0


# pictures


@pytest.mark.parametrize("name", ["cividis", "PuOr"])
def test_the_colours_are_the_published_ones(name):
    assert np.array_equal(table(name), matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3])


def test_a_share_has_its_place_on_the_colour_scale():
    values = np.array([-1.0, 0.0, 0.5, 1.0, 9.0])
    assert np.array_equal(colours(values, 0, 1), table("cividis")[[0, 0, 128, 255, 255]])
    assert np.array_equal(colours(values, 0, 0), table("cividis")[[0] * 5])


def test_the_border_goes_around_the_object():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    sides = {tuple(line) for line in border(mask).tolist()}
    expected = {(2, 1, 3, 1), (3, 1, 4, 1), (2, 3, 3, 3), (3, 3, 4, 3)}
    assert sides == expected | {(2, 1, 2, 2), (2, 2, 2, 3), (4, 1, 4, 2), (4, 2, 4, 3)}


def test_the_still_picture_has_the_colours_of_the_map(seen, data):
    explorer = Explorer(seen, ImageSet(data.images), opacity=1.0, query="class", head=1, layer=4)
    look = explorer.maps[0].look(4, 1, "class", "looks at")
    picture = np.asarray(still.overlay(explorer.maps[0], explorer.state()).image)
    w, _ = still.panel(explorer.maps[0], 2)
    expected = colours(look.cells, 0, look.cells.max()).reshape(8, 8, 3)
    for row, column in np.ndindex(8, 8):
        x, y = still.GAP + w + (column + 0.5) * w / 8, still.TOP + (row + 0.5) * w / 8
        assert np.array_equal(picture[int(y), int(x)], expected[row, column])


@pytest.mark.parametrize("view", ["overlay", "grid", "film", "compare", "ablate"])
def test_every_view_is_a_picture_with_words(model, data, merged, view, tmp_path):
    explorer = Explorer(model, data, other=merged, titles=("full", "merged"), view=view, sort="entropy")
    shown = Image.open(explorer.to_png(tmp_path / "a.png"))
    assert shown.width > 800 and len(shown.getcolors(10**6)) > 5
    live, about = explorer._repr_mimebundle_()
    assert live["text/plain"] == explorer.describe() == about["image/png"]["alt"]
    assert base64.b64decode(live["image/png"]) == (tmp_path / "a.png").read_bytes()
    assert "application/vnd.jupyter.widget-view+json" in live


def test_grid_and_sorting_differ_in_the_picture(seen, data):
    explorer = Explorer(seen, data, view="grid")
    by_number = explorer._png()
    explorer.sort = "entropy"
    assert explorer._png() != by_number
    _, arrays = unpacked(explorer.data)
    for layer in range(6):
        nats = arrays[f"habits{layer}"][0]
        assert (np.diff(nats[arrays[f"entropy{layer}"]]) >= 0).all()


# the page


def test_the_script_is_small_and_asks_for_nothing():
    assert len(Explorer._esm.encode()) <= 40_000
    for source in (Explorer._esm, Explorer._css):
        assert not re.search(r"https?:|//cdn|@import|\bimport\b|fetch\(|XMLHttp|eval\(|innerHTML", source)
    assert "</" not in Explorer._esm


def test_a_page_lets_run_only_what_is_hashed(seen, data, tmp_path):
    text = Explorer(seen, data).to_html(tmp_path / "a.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for kind, tag in (("script", '<script type="module">'), ("style", "<style>")):
        held = text.split(tag)[1].split(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?:", text.replace("application/", ""))


def test_names_cannot_break_out_of_a_page(seen, data, tmp_path):
    names = tuple(f"{NASTY}{i}" for i in range(10))
    explorer = Explorer(seen, ImageSet(data.images, data.labels, data.masks, names), titles=(NASTY,))
    text = explorer.to_html(tmp_path / "a.html", title=NASTY).read_text()
    plain = Explorer(seen, data).to_html(tmp_path / "b.html").read_text()
    assert "alert(" in text  # the names are there, as text
    for tag in ("<script", "</script", "<b "):
        assert text.count(tag) == plain.count(tag)


def test_a_page_holds_the_images_it_is_asked_for(seen, data, tmp_path):
    explorer = Explorer(seen, data, image=1)
    every = explorer.to_html(tmp_path / "a.html").stat().st_size
    one = explorer.to_html(tmp_path / "b.html", images=[1])
    assert one.stat().st_size < every / 2
    assert json.loads(re.search(r'id="state">(.*?)</script>', one.read_text())[1])["numbers"] == [1]


def test_a_page_that_would_be_too_large_is_refused(seen, data, tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.viz.page.MOST", 100_000)
    with pytest.raises(LabkitError, match=r"would hold 0 MB .* export fewer images"):
        Explorer(seen, data).to_html(tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()
