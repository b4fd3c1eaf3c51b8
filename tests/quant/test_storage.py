"""Files of quantized models: the same model to the bit, no bit to spare, and a sentence for what does not fit."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import labkit
from labkit import checkpoint, tokens
from labkit.errors import LabkitError
from labkit.layers import Block
from labkit.quant import Recipe, layers, points, quantize
from labkit.quant.grids import Float8, Uniform
from labkit.quant.layers import RoundedAttention
from labkit.quant.log_grids import ShiftedLog
from labkit.quant.storage import pack, read, save, unpack
from labkit.vit import ViT
from tests import checks

SMALL = {"image_size": 24, "patch_size": 8, "classes": 5, "dim": 32, "depth": 2, "heads": 2}
RECIPES = {
    "plain": Recipe(),
    "3 bits, affine": Recipe(3, 5, symmetric=False),
    "2 bits, one grid": Recipe(2, 4, per="tensor", symmetric=False, ends="same"),
    "16 bits": Recipe(16, 16, attention=16, ends="same"),
    "groups": Recipe(4, None, per=8),
    "affine groups": Recipe(3, 8, per=16, symmetric=False),
    "weights alone": Recipe(5, None, ends=None),
    "inputs alone": Recipe(None, 6),
    "floats of 8 bits": Recipe("e4m3", "e5m2"),
    "mixed": Recipe(4, 4, attention=4, layers={"blocks.0.attn.qkv": (8, "e4m3"), "blocks.1.mlp.fc2": (None, None)}),
    "tokens": Recipe(8, 8, per_token=True),
    "channels": Recipe(4, 4, attention=4, fold="channels", softmax="adalog", gelu="twin", centred=True),
    "smooth": Recipe(4, 4, fold="smooth", correct_bias=True, clip="percentile"),
    "rotated": Recipe(4, 4, attention=4, fold="rotate", softmax="log_sqrt2"),
    "tangent": Recipe(8, 8, attention=4, softmax="tangent"),
    "twin": Recipe(8, 8, attention=4, softmax="twin", rounding="gptq"),
}


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def bare(**changes) -> ViT:
    """Weights that no later layer hides."""
    torch.manual_seed(0)
    model = ViT(**SMALL | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def model() -> ViT:
    return bare()


@pytest.fixture
def small(model) -> ViT:
    return quantize(model, Recipe(4, 8, attention=8, softmax="adalog"), images())


def edited(path, change):
    """The file again, after `change(meta, tensors)`."""
    with safe_open(path, "pt") as file:
        meta, held = file.metadata(), {k: file.get_tensor(k).clone() for k in file.keys()}  # noqa: SIM118
    change(meta, held)
    save_file(held, path, meta)
    return path


def same_grid(a, b) -> None:
    assert type(a) is type(b)
    for name, value in vars(a).items() if a is not None else ():
        other = getattr(b, name)
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype and value.shape == other.shape and torch.equal(value, other), name
        elif isinstance(value, Uniform):
            same_grid(value, other)
        else:
            assert value == other and type(value) is type(other), name


@pytest.mark.parametrize("bits", range(2, 17))
def test_codes_come_back_from_their_bits(bits):
    first = -(2 ** (bits - 1)) + 1
    codes = torch.randint(first, -first + 1, (7, 13), generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    codes[0, :2] = torch.tensor([first, -first])
    packed = pack(codes, first, bits)
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(91 * bits / 8)
    checks.equal(unpack(packed, first, bits, 91).reshape(7, 13), codes)
    all_codes = torch.arange(2**bits, dtype=torch.int32)
    checks.equal(unpack(pack(all_codes, 0, bits), 0, bits, 2**bits), all_codes)
    with pytest.raises(LabkitError, match=f"91 codes of {bits} bits are"):
        unpack(packed[:-1], first, bits, 91)
    assert pack(codes[:0], first, bits).numel() == 0 == unpack(packed[:0], first, bits, 0).numel()


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_read_is_what_was_saved(name, model, tmp_path):
    before = quantize(model, RECIPES[name], images())
    size = labkit.save(before, tmp_path / "new" / "small.safetensors", SMALL)
    assert size == (tmp_path / "new" / "small.safetensors").stat().st_size
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["small.safetensors"]
    again = labkit.load(str(tmp_path / "new" / "small.safetensors"))
    assert again.recipe == RECIPES[name] and not again.training
    assert torch.equal(before(images(3)), again(images(3)))
    ours, theirs = before.state_dict(), again.state_dict()
    assert {k: (t.dtype, t.shape) for k, t in ours.items()} == {k: (t.dtype, t.shape) for k, t in theirs.items()}
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    for parts in (layers, points):
        for key, part in parts(before).items():
            same_grid(part.grid, parts(again)[key].grid)
            assert getattr(part, "token_bits", 0) == getattr(parts(again)[key], "token_bits", 0)
    save(again, tmp_path / "twice.safetensors", SMALL)
    first, second = (
        path.read_bytes() for path in (tmp_path / "new" / "small.safetensors", tmp_path / "twice.safetensors")
    )
    assert first == second


def test_a_grid_within_a_grid_and_finer_scales_are_kept(model, tmp_path):
    before = quantize(model, Recipe(8, 8, attention=8), images())
    for module in before.modules():
        if isinstance(module, RoundedAttention):
            module.softmax.grid = ShiftedLog.of(0.0, 1.0, 4, eta=2.0**-6)
            module.v.grid = Float8("e4m3", torch.tensor(0.37, dtype=torch.float64))
    save(before, tmp_path / "a.safetensors", SMALL)
    again = read(tmp_path / "a.safetensors")
    for name, point in points(before).items():
        same_grid(point.grid, points(again)[name].grid)
    assert torch.equal(before(images(2)), again(images(2)))


@pytest.mark.parametrize("change", [{"pool": "avg"}, {"registers": 2, "layer_scale": 0.3}, {"classes": 0}])
def test_other_architectures(change, tmp_path):
    before = quantize(bare(**change), Recipe(4, 4), images())
    save(before, tmp_path / "a.safetensors", SMALL | change)
    assert torch.equal(read(tmp_path / "a.safetensors")(images(2)), before(images(2)))


def test_norms_and_layers_that_got_a_bias_keep_it(tmp_path):
    """The architecture has none."""
    kind = {"timm": "vit_tiny_patch16_224", "img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}
    kind |= {"num_classes": 3, "qkv_bias": False}
    float_model = ViT.from_timm(kind["timm"], **{k: v for k, v in kind.items() if k != "timm"}).eval()
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for recipe in (Recipe(4, 4, fold="channels"), Recipe(4, 4, correct_bias=True)):
        before = quantize(float_model, recipe, x)
        assert before.blocks[0].attn.qkv.bias is not None
        save(before, tmp_path / "a.safetensors", kind)
        again = read(tmp_path / "a.safetensors")
        assert torch.equal(again(x), before(x))


@pytest.mark.parametrize("precision", [torch.float64, torch.float16])
def test_every_precision_is_kept(precision, model, tmp_path):
    before = quantize(model, Recipe(4, 8), images()).to(precision)
    save(before, tmp_path / "a.safetensors", SMALL)
    again = read(tmp_path / "a.safetensors")
    assert again.norm.weight.dtype == precision
    assert torch.equal(before(images(2).to(precision)), again(images(2).to(precision)))


def test_a_file_remembers_its_backend(model, tmp_path):
    before = quantize(model, Recipe(), images(), backend="int8")
    save(before, tmp_path / "fast.safetensors", SMALL)
    again = read(tmp_path / "fast.safetensors")
    assert all(layer.kernel is not None for layer in layers(again).values())
    assert torch.equal(before(images(2)), again(images(2)))
    plain = read(tmp_path / "fast.safetensors", backend="simulate")
    assert all(layer.kernel is None for layer in layers(plain).values())
    assert torch.equal(plain(images(2)), quantize(model, Recipe(), images())(images(2)))
    save(plain, tmp_path / "plain.safetensors", SMALL)
    assert torch.equal(read(tmp_path / "plain.safetensors", backend="int8")(images(2)), before(images(2)))


def test_a_model_of_timm_is_told_by_its_name(tmp_path):
    float_model = ViT.from_timm("vit_tiny_patch16_224", num_classes=7).eval()
    float_size = labkit.save(float_model, tmp_path / "float.safetensors", "timm:vit_tiny_patch16_224")
    before = quantize(float_model, Recipe(4, None))
    size = labkit.save(before, tmp_path / "a.safetensors", "timm:vit_tiny_patch16_224")
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(labkit.load(str(tmp_path / "a.safetensors"))(x), before(x))
    assert 6.5 < float_size / size < 8


def test_a_file_is_as_small_as_its_bits_say(tmp_path):
    wide = SMALL | {"dim": 128, "image_size": 32}
    float_model = bare(**wide)
    parts = layers(quantize(float_model, Recipe(2, None))).values()
    weights, rows = sum(part.weight.numel() for part in parts), sum(part.out_features for part in parts)

    def size(bits: int, **options) -> int:
        return save(quantize(float_model, Recipe(bits, None, ends="same", **options)), tmp_path / "a.safetensors", wide)

    sizes = {bits: size(bits) for bits in (2, 3, 4, 8)}
    for few, many in ((2, 3), (3, 4), (4, 8)):
        assert sizes[many] - sizes[few] == pytest.approx(weights * (many - few) / 8, abs=300)  # a header's digits
    assert size(4, per=32) - sizes[4] == pytest.approx(4 * (weights / 32 - rows), abs=600)
    assert size(4, symmetric=False) - sizes[4] < rows + 3000  # a byte for each zero point, and its line in the header


# --- what is refused ----------------------------------------------------------------------------------------
def test_only_codes_are_saved_here(model, small, tmp_path):
    with pytest.raises(LabkitError, match=r"no codes to save.*quantize it first"):
        save(model, tmp_path / "a.safetensors", SMALL)
    labkit.save(model, tmp_path / "float.safetensors", SMALL)
    with pytest.raises(LabkitError, match=r"float model; labkit\.load reads it"):
        read(tmp_path / "float.safetensors")
    labkit.save(small, tmp_path / "small.safetensors", SMALL)
    with pytest.raises(LabkitError, match=r"quantized model; labkit\.load reads it"):
        checkpoint.read(tmp_path / "small.safetensors")


@pytest.mark.parametrize("quantized", [False, True])
def test_reducers_are_no_part_of_a_file(quantized, model, small, tmp_path):
    base = small if quantized else model
    for where in ([1], "entry"):
        slim = tokens.attach(base, tokens.Keep(0.5), where)
        with pytest.raises(LabkitError, match=r"token reducer.*attach it again after loading"):
            labkit.save(slim, tmp_path / "a.safetensors", SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"heads": 4}, r"blocks\.0\.attn\.heads is 4 there and 2 here"),
        ({"dim": 16}, "of shape|do not fit its shape"),
        ({"depth": 3}, r"blocks\.2"),
        ({"pool": "avg"}, "pos_embed"),
        ({"size": 3}, "no ViT has the architecture"),
        ({"pool": torch.nn.Identity()}, "cannot be written down"),
        ("deit_tiny", 'expected the arguments of ViT as a dict, or "timm:NAME"'),
        ("timm:deit_tinny_patch16_224", r'timm knows no model.*Did you mean "deit_tiny'),
        ("timm:deit_tiny_patch16_224", "written with this architecture.*shape"),
    ],
)
def test_an_architecture_that_is_not_the_models_is_refused(quantized, change, sentence, model, small, tmp_path):
    architecture = change if isinstance(change, str) else SMALL | change
    with pytest.raises(LabkitError, match=sentence):
        labkit.save(small if quantized else model, tmp_path / "a.safetensors", architecture)
    assert not list(tmp_path.iterdir())


def test_norms_with_another_epsilon_are_noticed(model, tmp_path):
    other = bare()
    other.blocks[0].norm1.eps = 1e-6
    with pytest.raises(LabkitError, match=r"blocks\.0\.norm1\.eps is 1e-05 there and 1e-06 here"):
        labkit.save(other, tmp_path / "a.safetensors", SMALL)


def test_a_refusal_leaves_the_file_that_was_there(model, small, tmp_path):
    labkit.save(small, tmp_path / "a.safetensors", SMALL)
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(LabkitError):
        labkit.save(small, tmp_path / "a.safetensors", SMALL | {"heads": 4})
    assert (tmp_path / "a.safetensors").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_file_that_was_cut_is_refused(share, small, tmp_path):
    path = tmp_path / "a.safetensors"
    labkit.save(small, path, SMALL)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(LabkitError, match="not a readable safetensors file"):
        labkit.load(str(path))


@pytest.mark.parametrize(
    "name",
    [
        *("cls_token", "pos_embed", "norm.weight", "blocks.1.attn.qkv.bias", "blocks.0.attn.qkv.codes"),
        *("blocks.0.mlp.fc1.grid.scale", "blocks.1.mlp.fc2.input.grid.zero", "blocks.1.attn.softmax.grid.scale"),
    ],
)
def test_every_tensor_is_missed(name, small, tmp_path):
    save(small, tmp_path / "a.safetensors", SMALL)
    edited(tmp_path / "a.safetensors", lambda meta, held: held.pop(name))
    with pytest.raises(LabkitError, match=name.replace(".", r"\.")):
        labkit.load(str(tmp_path / "a.safetensors"))


def metadata(change):
    def edit(meta, held):
        told = json.loads(meta["quantized"])
        change(told)
        meta["quantized"] = json.dumps(told)

    return edit


@pytest.mark.parametrize(
    "edit, sentence",
    [
        (lambda meta, held: held.update(extra=torch.ones(1)), "extra"),
        (lambda meta, held: held.update({"blocks.0.attn.qkv.float_weight": torch.ones(96, 32)}), "float_weight"),
        (
            lambda meta, held: held.update({"blocks.0.attn.qkv.codes": torch.ones(9, dtype=torch.uint8)}),
            r"blocks\.0\.attn\.qkv do not fit.*3072 codes",
        ),
        (lambda meta, held: held.update({"norm.weight": torch.ones(31)}), r"norm\.weight of shape \(32,\).*\(31,\)"),
        (lambda meta, held: held.update({"blocks.0.norm1.more": torch.ones(1)}), "more"),
        (lambda meta, held: meta.pop("quantized"), "does not say which architecture"),
        (lambda meta, held: meta.update(quantized="{"), "not as labkit"),
        (lambda meta, held: meta.update(quantized="[]"), "no ViT has|float model|not as labkit"),
        (metadata(lambda told: told["recipe"].update(smile=1)), r'recipe says "smile".*newer'),
        (metadata(lambda told: told["recipe"].update(clip="lasso")), "lasso"),
        (metadata(lambda told: told["recipe"].update(layers=3)), "not as labkit writes it"),
        (metadata(lambda told: told["rows"]["head"]["grid"].update({"class": "Cubic"})), r"head\.grid.*newer"),
        (metadata(lambda told: told["rows"]["head"]["grid"].update(turn=2)), r"head\.grid.*newer"),
        (metadata(lambda told: told["rows"]["head"]["grid"].update(bits="many")), "not as labkit writes it"),
        (metadata(lambda told: told["rows"].update(tail=told["rows"]["head"])), "not as labkit writes it.*tail"),
        (metadata(lambda told: told.pop("rows")), "not as labkit writes it"),
        (metadata(lambda told: told["rows"].pop("blocks.0.mlp.fc1")), r"blocks\.0\.mlp\.fc1"),
        (metadata(lambda told: told.update(backend="int3")), "int3"),
    ],
)
def test_a_file_that_was_edited_is_refused(edit, sentence, small, tmp_path):
    save(small, tmp_path / "a.safetensors", SMALL)
    with pytest.raises(LabkitError, match=sentence):
        labkit.load(str(edited(tmp_path / "a.safetensors", edit)))


def test_pickles_and_absent_files_are_refused(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(LabkitError, match="pickle"):
        read(tmp_path / "a.safetensors")
    with pytest.raises(LabkitError, match="There is no checkpoint"):
        read(tmp_path / "b.safetensors")


def test_a_positions_module_is_not_forgotten_in_silence(tmp_path):
    """What has no weights leaves no tensor, and would be missed by nobody."""
    model = bare()
    block = model.blocks[1]
    assert isinstance(block, Block)
    block.after = torch.nn.Identity()
    with pytest.raises(LabkitError, match=r"blocks\.1\.after"):
        labkit.save(model, tmp_path / "a.safetensors", SMALL)
