"""Any torch model: the fused function, torch's own multi-head attention, what is no attention, and silent heads."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from labkit.errors import LabkitError
from labkit.tracing.capture import Call, Watch, silenced
from labkit.tracing.record import trace
from labkit.tracing.softmax import probabilities
from tests.checks import equal, rows_sum_to_one

SIZE = (16, 24)  # 4 x 6 patches of 4 pixels


def pictures(count: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Patches, whatever mixes them, and a head on their mean."""

    def __init__(self, *mixers: nn.Module, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, 4)
        self.mixers = nn.ModuleList(mixers)
        self.head = nn.Linear(dim, 5)
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.25)
        self.eval()

    def forward(self, images: Tensor) -> Any:
        x = self.embed(images).flatten(2).transpose(1, 2)
        for mixer in self.mixers:
            x = mixer(x)
        return self.head(x.mean(dim=1))


class MultiHead(nn.Module):
    """torch's own attention, asked for its weights or not."""

    def __init__(self, need_weights: bool = False) -> None:
        super().__init__()
        self.attn, self.need_weights = nn.MultiheadAttention(16, 2, batch_first=True), need_weights

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x, x, x, need_weights=self.need_weights)[0]


class WrittenOut(nn.Module):
    """The same with a softmax that can be seen; `change` happens to the probabilities afterwards, in place."""

    def __init__(self, change: str = "") -> None:
        super().__init__()
        self.attn, self.change = nn.MultiheadAttention(16, 2, batch_first=True), change

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias), "b n (t h d) -> t b h n d", t=3, h=2
        )
        attn = F.softmax(input=q @ k.transpose(-2, -1) / math.sqrt(8), dim=3)
        if self.change:
            getattr(attn, self.change)(2)
        return x + self.attn.out_proj(rearrange(attn @ v, "b h n d -> b n (h d)"))


class Fused(nn.Module):
    """The fused function, called by name, with whatever options it takes."""

    def __init__(self, kv_heads: int = 2, **options: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8 * kv_heads), nn.Linear(16, 8 * kv_heads)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(layer(x), "b n (h d) -> b h n d", d=8) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(query=q, key=k, value=v, **self.options)
        return x + rearrange(out, "b h n d -> b n (h d)")


LOWER = torch.ones(24, 24, dtype=torch.bool).tril(3)
NOWHERE = LOWER.clone().index_fill_(0, torch.tensor([5]), False)
CASES = {
    "plain": {},
    "scale": {"scale": 0.1},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": LOWER},
    "bool mask, a row that may look nowhere": {"attn_mask": NOWHERE},
    "float mask": {"attn_mask": torch.linspace(-3, 3, 24 * 24).view(24, 24)},
    "grouped queries": {"kv_heads": 1, "enable_gqa": True},
}


@pytest.mark.parametrize("case", CASES)
def test_fused_probabilities_are_those_that_move_a_unit_matrix(case):
    """softmax(...) @ I is the softmax: the fused function itself, with I for values, is the oracle."""
    options = dict(CASES[case])
    heads = options.pop("kv_heads", 2)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, n, 24, 8, generator=generator) for n in (2, heads))
    attn = probabilities(q, k, **options)
    equal(attn, F.scaled_dot_product_attention(q, k, torch.eye(24).expand(2, heads, 24, 24), **options), 1e-6)
    alive = attn.sum(dim=-1) > 0
    assert alive.all(dim=(0, 1)).tolist() == [not (case.endswith("nowhere") and row == 5) for row in range(24)]
    rows_sum_to_one(attn[alive])


@pytest.mark.parametrize("case", CASES)
def test_a_fused_layer_is_recorded_and_left_alone(case):
    model = Net(Fused(**CASES[case]), Fused(**CASES[case]))
    seen, graph = trace(model, pictures()), trace(model, pictures(), grads=True)
    assert torch.equal(seen.logits, model(pictures()))
    equal(graph.logits, seen.logits, 1e-5)
    assert [(layer.kind, layer.grid, layer.heads) for layer in seen.layers] == [("self", (4, 6), 2)] * 2
    for one, other, gradient in zip(seen.attention, graph.attention, graph.gradients(0), strict=True):
        equal(one, other, 1e-5)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_multi_head_attention_is_what_it_is_written_out(need_weights, frozen):
    ours, plain = Net(MultiHead(need_weights), MultiHead(need_weights)), Net(WrittenOut(), WrittenOut())
    plain.load_state_dict(ours.state_dict())
    seen = trace(ours.requires_grad_(not frozen), pictures(), grads=True)
    oracle = trace(plain, pictures(), grads=True)
    equal(seen.logits, ours(pictures()), 1e-5)
    for number in range(2):
        assert seen.layers[number].kind == "self" and seen.layers[number].heads == 2
        equal(seen.attention[number], oracle.attention[number], 1e-5)
        equal(trace(ours, pictures()).attention[number], oracle.attention[number], 1e-5)
        equal(seen.gradients(1)[number], oracle.gradients(1)[number], 1e-5)
        assert seen.gradients(1)[number].abs().sum() > 0
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_a_transformer_encoder_of_torch_shows_its_attention_on_its_fast_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    model = Net(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    with torch.no_grad():
        plain = model(pictures())  # without gradients and in evaluation mode: the fast path
        x = model.mixers[0].layers[0].norm1(model.embed(pictures()).flatten(2).transpose(1, 2))
        attn = model.mixers[0].layers[0].self_attn(x, x, x, average_attn_weights=False)[1]
    seen = trace(model, pictures())
    equal(seen.logits, plain, 1e-5)
    equal(seen.attention[0], attn, 1e-5)
    assert [layer.name for layer in seen.layers] == [f"mixers.0.layers.{i}.self_attn" for i in range(2)]


def test_torchvisions_vit():
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5).eval()
    images = pictures(size=(32, 32))
    seen = trace(model, images)
    equal(seen.logits, model(images), 1e-5)
    assert [(layer.kind, layer.grid, layer.prefix_names) for layer in seen.layers] == [("self", (4, 4), ("class",))] * 2


def test_what_the_model_does_to_its_probabilities_afterwards_is_not_recorded():
    seen = trace(Net(WrittenOut("mul_")), pictures())
    rows_sum_to_one(seen.attention[0])


class Gates(nn.Module):
    """Softmaxes that are no attention: of classes, of channels, of experts, of branches."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.experts = nn.Linear(16, experts)

    def forward(self, x: Tensor) -> Tensor:
        x = x * x.softmax(dim=1)  # over tokens, which are not the last axis
        x = x * x.mean(dim=1).softmax(dim=-1)[:, None]  # one number for each channel
        return x + self.experts(x).softmax(dim=-1).amax(dim=-1, keepdim=True)


class Channels(nn.Module):
    """Attention between 24 channels, by a class that is not known, on a map of 24 cells."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (2, 8)).permute(0, 2, 3, 1)
        return x + ((heads @ heads.transpose(-2, -1)).softmax(dim=-1) @ heads).flatten(1, 2).transpose(1, 2)


class Fewer(nn.Module):
    """Keys mixed by a learned matrix, as in Linformer, or tokens dropped: neither lies on a grid that was seen."""

    def __init__(self, keys: int, drop: int = 0) -> None:
        super().__init__()
        self.mix, self.drop = nn.Parameter(torch.randn(keys, 24 - drop)), drop

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, self.drop :, None].transpose(1, 2)
        return x.mean(dim=1) + F.scaled_dot_product_attention(x, self.mix @ x, self.mix @ x)[:, 0]


class Merged(nn.Module):
    """Heads that stand in the batch; they might as well be windows."""

    def forward(self, x: Tensor) -> Tensor:
        q = rearrange(x, "b n (h d) -> (b h) n d", h=4)
        return x + rearrange(F.scaled_dot_product_attention(q, q, q), "(b h) n d -> b n (h d)", h=4)


class Experts(nn.Module):
    """A gate of six experts, after a map of six cells was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.halve, self.gate = nn.Conv2d(16, 16, 2, 2), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        halved = self.halve(x.transpose(1, 2).unflatten(2, (4, 6)))
        return x + self.gate(x).softmax(dim=-1).amax(dim=-1, keepdim=True) * halved.mean(dim=(2, 3))[:, None]


class Prompted(nn.Module):
    """Three more tokens behind the others; their names do not tell what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(1, 3, 16))

    def forward(self, x: Tensor) -> Tensor:
        q = torch.cat([x, self.prompts.expand(len(x), -1, -1)], dim=1)[:, None]
        return x + F.scaled_dot_product_attention(q, q, q)[:, 0, :24]


class Turned(nn.Module):
    """All tokens attend to all, on a map that is rolled."""

    def forward(self, x: Tensor) -> Tensor:
        q = torch.roll(x.unflatten(1, (4, 6)), (1, 1), (1, 2)).flatten(1, 2)[:, None]
        return F.scaled_dot_product_attention(q, q, q)[:, 0]


class Column(nn.Module):
    """A 1x1 convolution over tokens in a single column, which is no map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)


def test_a_column_of_tokens_is_no_grid():
    layer = trace(Net(Column(), Fused()), pictures()).layers[0]
    assert (layer.kind, layer.grid) == ("self", (4, 6))


@pytest.mark.parametrize(
    "mixer", [Channels(), Fewer(6), Fewer(8, drop=16), Fewer(18, drop=6), Merged(), Experts(), Prompted(), Turned()]
)
def test_where_tokens_lie_is_not_guessed(mixer):
    seen = trace(Net(mixer), pictures())
    assert [layer.kind for layer in seen.layers] == ["unknown"]
    with pytest.raises(LabkitError, match="not known"):
        seen.rows(0, 0)
    with pytest.raises(LabkitError, match="not known"):
        seen.provenance[0]


def test_gates_are_no_maps():
    seen = trace(Net(Gates(), Fused()), pictures())
    assert [layer.kind for layer in seen.layers] == ["unknown", "self"]  # the experts' gate cannot be told apart
    assert trace(nn.Sequential(Net(Fused()), nn.Softmax(dim=-1)), pictures()).layers[-1].name == "0.mixers.0"


def test_a_module_that_attends_twice_is_numbered():
    fused = Fused()
    seen = trace(Net(fused, fused), pictures())
    assert [layer.name for layer in seen.layers] == ["mixers.0", "mixers.0[1]"]


class Returns(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = Net(Fused()), wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.net(images))


def test_outputs_of_other_shapes():
    expected = Net(Fused())(pictures())
    for wrap in (lambda y: (y, None), lambda y: [y], lambda y: SimpleNamespace(logits=y)):
        equal(trace(Returns(wrap), pictures()).logits, expected)
    with pytest.raises(LabkitError, match="returned a dict"):
        trace(Returns(lambda y: {"scores": y}), pictures())


def test_training_mode_is_put_aside_and_back():
    model = Net(nn.BatchNorm1d(24), nn.Dropout(0.5), Fused())
    plain = model(pictures())
    model.train()
    model.mixers[1].eval()
    statistics = model.mixers[0].running_mean.clone()
    equal(trace(model, pictures()).logits, plain, 1e-6)
    assert [model.training, model.mixers[0].training, model.mixers[1].training] == [True, True, False]
    equal(model.mixers[0].running_mean, statistics)


def test_a_model_that_fails_leaves_nothing_behind():
    model = Net(Fused()).train()
    with pytest.raises(RuntimeError):
        trace(model, torch.rand(2, 4, *SIZE))
    assert torch._C._len_torch_function_stack() == 0
    assert model.training and torch.is_grad_enabled()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_wrong_inputs_are_named():
    model = Net(Fused())
    with pytest.raises(LabkitError, match=r"needs images .* \(3, 16, 24\)"):
        trace(model, pictures()[0])
    with pytest.raises(LabkitError, match=r"needs images"):
        trace(model, pictures()[:0])
    with pytest.raises(LabkitError, match="on cpu and meta; expected one device that holds numbers"):
        trace(Net(Fused()).to("meta"), pictures())
    with pytest.raises(LabkitError, match="on meta; expected"):
        trace(Net(Fused()).to("meta"), pictures().to("meta"))
    with pytest.raises(LabkitError, match="TorchScript hides"):
        trace(torch.jit.script(nn.Sequential(nn.Conv2d(3, 5, 4))), pictures())


COMPILED = """
import torch
from torch import nn
from labkit.tracing.record import trace
from tests.test_tracing_capture import Fused, Net, pictures
plain = trace(Net(Fused(), Fused()), pictures())
whole = torch.compile(Net(Fused(), Fused()), backend="eager")
part = Net(Fused(), Fused())
part.mixers[1] = torch.compile(part.mixers[1], backend="eager")
in_place = Net(Fused(), Fused())
in_place.mixers[0].compile(backend="eager")
for model in (whole, part, in_place):
    seen = trace(model, pictures())
    assert [layer.kind for layer in seen.layers] == ["self", "self"], seen
    assert all(torch.equal(a, b) for a, b in zip(seen.attention, plain.attention))
    assert torch.equal(seen.logits, plain.logits)
"""


def test_compiled_models_are_looked_into():
    """In a process of its own: the compiler takes seconds to import and stays."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], check=True, timeout=120)


def test_silent_heads_of_torchs_attention_have_zero_weights():
    for kind in (MultiHead, WrittenOut):
        model, oracle = Net(kind(), kind()), Net(kind(), kind())
        with torch.no_grad():
            oracle.mixers[1].attn.out_proj.weight[:, :8] = 0
        run = silenced(model, [(1, 0)])
        equal(run(pictures()), oracle(pictures()), 1e-5)
        equal(run(pictures()), run(pictures()))
        equal(silenced(model, [])(pictures()), model(pictures()), 1e-6)
        assert (model(pictures()) - oracle(pictures())).abs().max() > 1e-3


class Windows(nn.Module):
    """Windows before heads, (b, windows, heads, queries, keys), as Twins has them."""

    ws = 2

    def __init__(self, silent: int | None = None) -> None:
        super().__init__()
        self.silent = silent

    def forward(self, x: Tensor) -> Tensor:
        q = rearrange(x, "b (i a j c) (h d) -> b (i j) h (a c) d", i=2, j=3, a=2, c=2, h=4)
        out = F.scaled_dot_product_attention(q, q, q)
        if self.silent is not None:
            out[:, :, self.silent] = 0
        return x + rearrange(out, "b (i j) h (a c) d -> b (i a j c) (h d)", i=2, j=3, a=2, c=2)


def test_a_head_is_no_window():
    model = Net(Windows())
    equal(silenced(model, [(0, 3)])(pictures()), Net(Windows(silent=3))(pictures()), 1e-6)
    with pytest.raises(LabkitError, match="no head 4; it has 4"):
        silenced(model, [(0, 4)])(pictures())
    layer = trace(model, pictures()).layers[0]
    assert (layer.kind, layer.heads, layer.grid, layer.windows.shape) == ("windowed", 4, (4, 6), (6, 4))


class Rolled(nn.Module):
    """Shifted windows; the map is padded before it is rolled, or rolled before it is padded."""

    window_size = (4, 4)

    def __init__(self, pad_first: bool) -> None:
        super().__init__()
        self.pad_first = pad_first

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (4, 6))
        steps = [lambda t: F.pad(t, (0, 0, 0, 2)), lambda t: torch.roll(t, (-1, -2), (1, 2))]
        for step in steps if self.pad_first else reversed(steps):
            x = step(x)
        q = rearrange(x, "b (i a) (j c) d -> (b i j) 1 (a c) d", a=4, c=4)
        x = rearrange(F.scaled_dot_product_attention(q, q, q), "(b i j) 1 (a c) d -> b (i a) (j c) d", i=1, j=2, a=4)
        return x.flatten(1, 2)


@pytest.mark.parametrize("pad_first", [False, True])
def test_windows_follow_what_was_rolled_and_padded(pad_first):
    """The same steps on the numbers of the cells."""
    layer = trace(Net(Rolled(pad_first)), pictures()).layers[0]
    cells = torch.arange(24).view(4, 6)
    if pad_first:
        cells = torch.cat([cells, torch.full((4, 2), -1)], dim=1).roll((-1, -2), (0, 1))
    else:
        cells = torch.cat([cells.roll((-1, -2), (0, 1)), torch.full((4, 2), -1)], dim=1)
    assert torch.equal(layer.windows, torch.stack([cells[:, :4].flatten(), cells[:, 4:].flatten()]))


def test_a_watch_tells_of_each_attention_once():
    calls: list[Call] = []
    model = Net(Fused(), WrittenOut(), MultiHead())
    with torch.no_grad(), Watch(model, calls.append):
        model(pictures())
    assert [call.name for call in calls] == ["mixers.0", "mixers.1", "mixers.2.attn"]
    assert {call.shape for call in calls} == {(2, 2, 24, 24)}
    for call in calls:
        rows_sum_to_one(call.attn())
