# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 Bits: from one rounding to an integer ViT
#
# **By the end you will have shown what one bit is worth and where a range should end, moved an outlier out of the way without
# changing the model, rounded weights better than to the nearest, and run all six blocks of a vision transformer without a
# single floating-point number.**
#
# *Needs:* [04 Build a ViT](04_build_a_vit.ipynb): LayerNorm, softmax, GELU, the linear layers. · *Time:* 60 minutes; the
# cells take about one. · *Device:* any computer; no GPU and no network.

# %% tags=["parameters"]
seed = 0  # which images are drawn, and every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # the trained model whose numbers are rounded
layer = 1  # the block whose tensors most experiments look at, counted from 0
bits = 4  # of an activation, in most experiments
fast = False  # True: fewer images and fewer draws of them

# %%
import copy
import io
from dataclasses import dataclass

import ipywidgets
import torch
import torch.nn.functional as F
import traitlets
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import labkit
from labkit import data
from labkit.quant import binary, calibrate, dither, integer, log_grids, warped_grids, weights
from labkit.quant.blocks import gelu_table
from labkit.quant.dual_clip import fit_clip
from labkit.quant.float_walk import FloatWalk
from labkit.quant.fold import channel_grid, fold, smooth, to_layer_wise
from labkit.quant.grids import Uniform
from labkit.quant.int8_attention import int8_attention
from labkit.quant.reconstruct import adaptive_rounding
from labkit.quant.rotation import rotate, rotate_inputs
from labkit.quant.sensitivity import error_table, greedy_bits
from labkit.verify import hits
from labkit.viz import charts, figures
from labkit.viz.paint import LINES
from labkit.viz.slider import Dial

place = labkit.setup(seed, device)
torch.set_grad_enabled(False)  # nothing is trained; what learns its rounding asks for gradients itself
dice = torch.Generator().manual_seed(seed)
net = labkit.load(model).to(place)
calib = data.shapes("val", 24, seed=seed).to(place)  # the images that ranges are read from
test = data.shapes("test", 40 if fast else 64, seed=seed).to(place)  # the images that errors are measured on
block = net.blocks[layer]


def entering(names, images, of=net):
    """What enters these layers of the model when it sees the images."""
    caught = {}
    hooks = [
        of.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: caught.update({name: x[0]}))
        for name in names
    ]
    steps = of.observe(images).steps
    for hook in hooks:
        hook.remove()
    return caught, [step.evidence for step in steps]


def error(found, wanted):
    """How far it is off, relative to the size of what it should be."""
    return ((found - wanted).norm() / wanted.norm()).item()


def some(x, count=10_000):
    """Its smallest and largest number and many more, drawn by dice, where all would take long."""
    x = x.flatten()
    drawn = torch.randperm(len(x), generator=dice)[:count].to(x.device)
    return torch.cat([torch.stack(x.aminmax()), x[drawn]])


def small(fig):
    """The figure in few colours, so that the saved lesson stays light."""
    return Image.open(io.BytesIO(figures.png(fig))).quantize(128, dither=0)


here = {part: f"blocks.{layer}.{part}" for part in ("norm1", "attn.qkv", "mlp.fc2")}
caught, known = entering(here.values(), calib.images)
stream, normed, hidden = (caught[name] for name in here.values())
plain = hits(net, test).float().mean().item()
count = sum(p.numel() for p in net.parameters())
print(f"{count / 1e6:.1f} million weights of 32 bits; {plain:.0%} of {len(test)} images right.")
print(f"What enters qkv in block {layer}: {' x '.join(map(str, normed.shape))} numbers (images, tokens, channels).")

# %% [markdown]
# ## 1. One number line
#
# A number of a model has 32 bits. With 8 it needs a quarter of the memory, and processors multiply whole numbers of 8 bits several times
# as fast. So we lay a **grid** over the line: 2ᵇ evenly spaced levels, and of every number only the *code* of its level is kept.
#
# $$\text{code} = \text{round}(x / \text{scale}) + \text{zero} \qquad \hat x = \text{scale} \cdot (\text{code} - \text{zero})$$
#
# The **scale** is the step between two levels. The **zero** is the code that stands for 0; it is a whole number, so that 0
# stays 0 exactly: a token that was masked out must not come back as noise. What lies beyond the ends is **clipped**.

# %%
labkit.show(Uniform.of)

# %%
labkit.show(Uniform.encode)

# %% [markdown]
# > **Predict.** One bit more halves the step. 20 dB is an error ten times smaller; so what is one bit worth? Commit before you run
# > on. Is it the same for weights, for the outputs of a LayerNorm and for those of GELU?

# %%
labkit.predict("09 one bit", "By how many decibels does the noise fall with one bit more?", number=3, unit="dB")

# %%
fill = torch.rand(20_000, generator=dice).to(place)  # the control: numbers that fill their range evenly
tensors = {
    "weights of qkv": block.attn.qkv.weight,
    "LayerNorm outputs": normed,
    "GELU outputs": hidden,
    "evenly spread (control)": 2 * fill - 1,
}
depths = range(2, 11)
noise = {}
for name, x in tensors.items():
    noise[name] = []
    for each in depths:
        grid = Uniform.of(x.min(), x.max(), each)
        off = grid.round(x) - x
        assert off.abs().max() <= grid.scale * 0.5001  # within the range nobody is off by more than half a step
        noise[name].append((10 * (x.square().mean() / off.square().mean()).log10()).item())
fig = Figure(figsize=(7.2, 3.0), layout="constrained")
ax = fig.subplots()
for (name, line), mark, color in zip(noise.items(), "osDx", LINES, strict=False):
    ax.plot(list(depths), line, marker=mark, color=color, linestyle=":" if "control" in name else "-", label=name)
ax.set(xlabel="bits", ylabel="signal above noise (dB)")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
labkit.figure(
    small(fig),
    alt="Signal above noise over 2 to 10 bits; at 4 and 8 bits: "
    + ", ".join(f"{name} {line[2]:.0f} and {line[6]:.0f} dB" for name, line in noise.items())
    + ".",
)

# %%
fall = {name: (line[-1] - line[4]) / (len(line) - 5) for name, line in noise.items()}  # from 6 bits to 10
for name, slope in fall.items():
    print(f"{name}: {slope:.1f} dB for each bit.")
    assert abs(slope - 6.02) < (0.6 if name.startswith("GELU") else 0.25)
grid = Uniform.of(normed.min(), normed.max(), 6)
law = (grid.scale**2 / 12).item()
assert abs((grid.round(normed) - normed).square().mean().item() / law - 1) < 0.05
print("The mean squared error of the LayerNorm outputs at 6 bits is step²/12, within 5%.")

# %%
labkit.reveal("09 one bit", round(fall["LayerNorm outputs"], 1), within=0.5)

# %% [markdown]
# Six decibels a bit, whatever the tensor is: if errors are spread evenly over a step, their mean square is step²/12, and half the
# step is a quarter of it. What differs is the *height* of the line: how much of the range the numbers use. The outputs of GELU lie
# lowest. Nearly all are near zero, and a few reach far out; those few make the step long for all. (Their line is also crooked: with
# few bits most numbers sit on the level 0, or just beside it, and are not spread over a step.)
#
# At 8 bits the noise is about 1% of the signal. That is why 8 bits are rarely a problem for a ViT, and why it gets hard at 4, where it is
# 16 times as much.
#
# ### Where should the range end?
#
# The largest number need not have a level. If we cut it off, it is wrong by a lot, and all others gain a finer step. Turn both
# sliders.
#
# > **Predict.** With the whole range (100 %) nothing is clipped. Where should it end with 3 bits? And with 8?

# %%
labkit.predict(
    "09 end of the range",
    "GELU outputs, 3 bits: at which share of the largest value should the range end?",
    number=100,
    unit="%",
)

# %%
tail = some(hidden)
power = tail.square().mean().item()


@dataclass(frozen=True)
class Cut:
    """What is lost when the range ends at a share of the largest number: beyond the end, and to the step."""

    depth: int
    percent: int
    clipped: float
    rounded: float

    def sentence(self):
        return (
            f"{self.depth} bits, range cut at {self.percent}% of the largest: the error is {self.total:.2%} of the signal's "
            f"power, {self.clipped:.2%} by clipping and {self.rounded:.2%} by rounding."
        )

    @property
    def total(self):
        return self.clipped + self.rounded


def cut(stop):
    depth, percent = stop
    end = tail.max() * percent / 100
    square = (Uniform.of(tail.min(), end, depth).round(tail) - tail).square() / power
    return Cut(depth, percent, (square * (tail > end)).mean().item(), (square * (tail <= end)).mean().item())


def drawn(looks):
    now = looks[-1]
    ends = range(5, 101, 5)
    curve = [cut((now.depth, end)) for end in ends]
    fig = Figure(figsize=(9.0, 3.0), layout="constrained")
    left, right = fig.subplots(1, 2)
    left.hist(tail.cpu().numpy(), 60, log=True, color="#BBBBBB")
    levels = Uniform.of(tail.min(), tail.max() * now.percent / 100, now.depth).levels().cpu()
    for level in levels if len(levels) <= 64 else levels[[0, -1]]:
        left.axvline(level, color=LINES[0], linewidth=0.8)
    left.set(xlabel="GELU output", ylabel="how many")
    left.set_title(f"{2**now.depth} levels" + (" (only the ends are drawn)" if len(levels) > 64 else ""))
    for name, style, color in (("clipped", "--", LINES[4]), ("rounded", ":", LINES[2]), ("total", "-", "#222222")):
        right.plot(ends, [100 * getattr(each, name) for each in curve], style, color=color, label=name)
    right.plot(now.percent, 100 * now.total, "o", color="#222222")
    right.set(xlabel="end of the range (% of the largest)", ylabel="error (% of the power)", yscale="log")
    right.set_ylim(1e-3, 100)
    right.legend(frameon=False)
    return fig


class Pair(ipywidgets.HBox):
    """Two sliders that are one: its value is a pair."""

    value = traitlets.Tuple()

    def __init__(self, *sliders):
        super().__init__(sliders)
        for slider in sliders:
            slider.observe(lambda _: self.follow(), "value")
        self.follow()

    def follow(self):
        self.value = tuple(slider.value for slider in self.children)


depth = ipywidgets.IntSlider(3, 2, 8, 1, description="bits", continuous_update=False)
end = ipywidgets.IntSlider(100, 5, 100, 5, description="end (%)", continuous_update=False)
dial = Dial(Pair(depth, end), cut, drawn)
dial

# %%
best = {}
for depth.value in (3, 4, 8):
    stops = {percent: cut((depth.value, percent)).total for percent in range(5, 101, 5)}
    best[depth.value] = min(stops, key=stops.get)
    end.value = best[depth.value]
    print("Best:", dial.state())
assert best[8] >= max(best[3], best[4]) and best[3] < 90
whole = cut((3, 100))
assert cut((3, best[3])).total < 0.95 * whole.total
print(f"Uncut, at 3 bits: {whole.total:.1%}.")

# %%
labkit.reveal("09 end of the range", best[3])

# %% [markdown]
# With few bits the range should end early; with 8 there is next to nothing to win by it. Nobody turns sliders for each tensor of a model: there are *rules* that
# read the range from a few calibration images. Here are four, by what they lose:

# %%
rules = {"min_max": calibrate.min_max, "percentile": calibrate.percentile, "mse": calibrate.mse, "kl": calibrate.kl}
probabilities = some(known[-2].attention())
lost = {}
for kind, x in (("GELU outputs", tail), ("softmax maps", probabilities)):
    for name, rule in rules.items():
        for each in (4, 8):
            ends = rule(x, each)
            lost[kind, name, each] = error(Uniform.of(*ends, each).round(x), x)
labkit.table(
    [
        [name, *(f"{lost[kind, name, each]:.3f}" for kind in ("GELU outputs", "softmax maps") for each in (4, 8))]
        for name in rules
    ],
    headers=["relative error by rule", "GELU, 4 bits", "GELU, 8 bits", "softmax, 4 bits", "softmax, 8 bits"],
)

# %%
for kind in ("GELU outputs", "softmax maps"):
    for each in (4, 8):
        assert lost[kind, "mse", each] <= 1.1 * min(lost[kind, name, each] for name in ("min_max", "percentile"))
assert lost["softmax maps", "kl", 8] > 5 * lost["softmax maps", "min_max", 8]
print(
    f"The rule kl on softmax maps: {lost['softmax maps', 'kl', 8]:.2f} off at 8 bits; the plain extremes {lost['softmax maps', 'min_max', 8]:.3f}."
)

# %% [markdown]
# The last rule compares histograms, and counts each number once. In a softmax map nearly all numbers are tiny; it keeps those
# apart and cuts off the few large ones, which are what the ViT looks at. A rule must know what the tensor is *for*.

# %% [markdown]
# ## 2. One scale for many channels
#
# A LayerNorm puts out 128 channels, and each has a gain of its own. What do their ranges look like beside the levels of one
# grid for all?

# %%
low, high = normed.flatten(0, -2).aminmax(dim=0)
reach = high - low
levels = Uniform.of(low.min(), high.max(), bits).levels()[:, None]
between = ((levels >= low) & (levels <= high)).sum(dim=0)
order = reach.argsort().cpu()
fig = Figure(figsize=(7.6, 2.9), layout="constrained")
ax = fig.subplots()
for level in levels.flatten().cpu():
    ax.axhline(level, color="#BBBBBB", linewidth=0.7)
ax.vlines(range(len(order)), low.cpu()[order], high.cpu()[order], color=LINES[0], linewidth=2.2)
ax.set(xlabel="channels, by the width of their range", ylabel="value", xlim=(-2, len(order) + 1))
labkit.figure(
    small(fig),
    alt=f"The ranges of {len(order)} LayerNorm channels over the {2**bits} levels of one grid. The widest channel has "
    f"{int(between.max())} levels within its range, the narrowest {int(between.min())}.",
)
assert between.min() <= 0.6 * between.max()

# %% [markdown]
# A scale *per channel* would give each channel all its levels. But the layer behind has to add the channels up, and codes of
# different scales cannot be added: in
#
# $$\sum_c s_c\, q_c\, w_c$$
#
# the scale sits inside the sum. The scale of a whole token, or of a row of weights, can wait until the sum is done; that of an
# input channel cannot. The way out: divide each channel by its scale *before* it is rounded, in the gain and the bias of the
# LayerNorm, and multiply the column of the weight behind it. In floating point nothing has changed:

# %%
labkit.show(fold)

# %%
labkit.show(to_layer_wise)

# %% [markdown]
# > **Predict.** Is the folded pair equal to the old one? When both are rounded, how many of the *codes* differ? And if the common
# > zero point were not rounded to a whole number?

# %%
norm, qkv = block.norm1, block.attn.qkv
channels = channel_grid(low, high, bits)
folded, reader, common = to_layer_wise(norm, qkv, channels)
same = error(reader(folded(stream)), qkv(norm(stream)))
codes = channels.encode(norm(stream))
differ = (common.encode(folded(stream)) != codes).float().mean().item()
loose = channels.zero.double().mean().item()  # the common zero point as the mean happens to be
unlucky, _ = fold(norm, qkv, channels.scale / common.scale, channels.scale * (loose - channels.zero))
apart = (((unlucky(stream) / common.scale).round() + round(loose)).clamp(*common.ends) != codes).float().mean().item()
assert same <= 1e-6 and differ < 1e-4
assert abs(apart - abs(loose - round(loose))) < 0.05
print("Folded, not rounded: the same to a millionth.")
print(f"Folded and rounded: {differ:.2%} of the codes differ.")
print(f"With the common zero point {loose:.2f} in place of {int(common.zero)}: {apart:.0%} of them.")

# %% [markdown]
# So folding only changes *names*, as long as zero points are whole: each channel keeps its own levels, and the matrix product sees one
# integer grid ("RepQ-ViT", 2022). The LayerNorm had a gain and a bias anyway. The price is paid by the weight: its
# columns now differ more, and *it* is harder to round.
#
# What is it worth? We round what enters qkv, and look at what comes out, on other images than those from which the ranges were
# read.


# %%
def one_grid(norm, linear, x):
    y = norm(x)
    return norm, linear, Uniform.of(y.min(), y.max(), bits)


class PerToken:
    """A grid that every token makes for itself, when it comes."""

    def round(self, y):
        return Uniform.of(*y.aminmax(dim=-1, keepdim=True), bits).round(y)


def per_token(norm, linear, x):
    return norm, linear, PerToken()


def per_channel(norm, linear, x):
    return norm, linear, channel_grid(*norm(x).flatten(0, -2).aminmax(dim=0), bits)


def in_one(norm, linear, x):
    return to_layer_wise(norm, linear, per_channel(norm, linear, x)[2])


def shuffled(norm, linear, x):
    """The control: the same scales and shifts, folded into the wrong channels."""
    grid = per_channel(norm, linear, x)[2]
    ratio, shift = grid.scale / grid.scale.mean(), grid.scale * (grid.zero.double().mean().round() - grid.zero)
    mixed = torch.randperm(len(ratio), generator=dice).to(place)
    return one_grid(*fold(norm, linear, ratio[mixed], shift[mixed]), x)


def after(method, x, norm=norm, linear=qkv, seen=stream):
    """What the layer puts out for x, when its input is rounded by a method that has `seen` the calibration images."""
    own_norm, own_linear, grid = method(norm, linear, seen)
    return own_linear(grid.round(own_norm(x)))


held, known_there = entering(here.values(), test.images)
fresh = held[here["norm1"]]
wanted = qkv(norm(fresh))
methods = {
    "one grid": one_grid,
    "one for each token": per_token,
    "one for each channel": per_channel,
    "folded": in_one,
    "folded, shuffled (control)": shuffled,
}
off = {name: error(after(method, fresh), wanted) for name, method in methods.items()}
labkit.table(
    [[name, f"{value:.3f}"] for name, value in off.items()],
    headers=[f"input of qkv in {bits} bits", "output is off by"],
)

# %%
first, token, channel, together, control = off.values()
assert abs(together - channel) < 0.002
assert max(token, together) < 0.8 * first and control > 1.05 * first
print(f"One grid {first:.2f}; folded {together:.2f}, the same as a scale for each channel; shuffled {control:.2f}.")

# %% [markdown]
# Folding takes away nearly half of the error, and costs nothing when the ViT runs. Any scales would not do: in the wrong channels they
# are worse than none. A scale for each *token* does as well here, but has to be found anew for every token of every image.
#
# ### And the weights?
#
# Weights are known beforehand, so they may have many scales: one for the tensor, for each output channel, or for each *group* of
# inputs. But a scale has to be stored as well, in 16 bits: groups of 16 cost one bit more for each weight.
#
# > **Predict.** You have 4 bits for each weight, all in all. How do you spend them?

# %%
offers = {"3 bits, and a scale for each 16": (3, 16), "4 bits, and a scale for each output": (4, "channel")}
labkit.predict("09 four bits", "Which output is nearer to the true one?", options=list(offers))

# %%
weight = qkv.weight
groups = {"tensor": weight.numel(), "channel": weight.shape[1], 64: 64, 32: 32, 16: 16, 8: 8}
bought = {}
for each in (3, 4, 5):
    rounded = {per: weights.round_to_nearest(weight, each, per) for per in groups}
    bought[each] = {per: error(normed[:8] @ rounded[per].mT, normed[:8] @ weight.mT) for per in groups}
charts.chart(
    charts.curves(
        {
            f"{each} bits": charts.Line([each + 16 / size for size in groups.values()], list(line.values()))
            for each, line in bought.items()
        },
        x="bits for each weight, scales included",
        y="error of the output",
    ),
    alt="Error of qkv over the bits stored for each weight. From left to right one scale for the tensor, for each channel, "
    "for 64, 32, 16, 8 inputs: "
    + "; ".join(f"{each} bits " + ", ".join(f"{value:.2f}" for value in line.values()) for each, line in bought.items())
    + ".",
)

# %%
for line in bought.values():
    assert line["channel"] < 0.75 * line["tensor"] and line[8] < line[16] < line[32] < line["channel"]
assert bought[4]["channel"] < 0.9 * bought[3][16]
print(f"4 bits each, all in all: 3 and groups of 16 is off by {bought[3][16]:.2f},", end=" ")
print(f"4 and a scale for each channel by {bought[4]['channel']:.2f}.")

# %%
labkit.reveal("09 four bits", min(offers, key=lambda offer: bought[offers[offer][0]][offers[offer][1]]))

# %% [markdown]
# Every split helps, and the first, by output channel, is nearly free. After that one more *bit* is the better buy here; groups
# are for weights with outliers, and for hardware that does not offer the next bit.
#
# ## 3. Attention is not a bell
#
# A row of softmax sums to 1 over 65 tokens. Most of them get next to nothing, and a few get much. Where should the levels lie?
# A **logarithmic** grid has them a constant *factor* apart: 1, ½, ¼, …, and decodes with a shift of bits. "AdaLog" (2024) looks
# for the factor that suits the map, 2^(q/37), and needs a small table for what a shift cannot do:

# %%
labkit.show(log_grids.AdaLog.encode)

# %%
labkit.show(log_grids.AdaLog.decode)

# %% [markdown]
# Other answers: the factor √2 (RepQ-ViT); *twins*, two even halves with steps of different size (PTQ4ViT, 2021); a *tangent*, whose
# levels crowd at the top (DopQ-ViT, 2024); a shift of the numbers before the logarithm (I&S-ViT, 2023). All are fitted to the same
# calibration map.

# %%
known_map, seen_map = some(known[layer].attention()), known_there[layer].attention()[:40]
value = known_there[layer].v[:40]


def nearest(candidates, x):
    """Of several grids the one that rounds x with the least error."""
    return min(candidates, key=lambda grid: (grid.round(x) - x).square().mean().item())


def fitted(x, each):
    """A grid of every kind with that many bits, made for the probabilities x."""
    top = x.max()
    shifts, warps = (0.001, 0.003, 0.01, 0.03), (0.0, 0.4, 0.8, 1.2)
    return {
        "uniform": Uniform.of(0.0, top, each),
        "uniform, clipped by mse": Uniform.of(*calibrate.mse(x, each), each),
        "log2": log_grids.log2_grid(each, torch.ones_like(top)),
        "log √2": log_grids.log_sqrt2_grid(each, torch.ones_like(top)),
        "shifted log": nearest([log_grids.ShiftedLog.of(0.0, top, each, eta) for eta in shifts], x),
        "AdaLog": log_grids.fit_ada_log(x, each, [19, 37], [top.item()]),
        "twin": warped_grids.fit_twin(x, each),
        "tangent": nearest([warped_grids.Tangent(each, a, top) for a in warps], x),
    }


grids = {each: fitted(known_map, each) for each in (3, 4, 8)}
fig = Figure(figsize=(8.2, 4.2), layout="constrained")
above, below = fig.subplots(2, 1, sharex=True, height_ratios=[1, 1.5])
above.hist(seen_map.clamp(min=2.0**-16).log2().flatten().cpu().numpy(), 64, color="#BBBBBB")
above.set(ylabel="how many", yticks=[])
for row, grid in enumerate(grids[4].values()):
    positive = grid.levels().flatten()
    positive = positive[positive > 0].log2().cpu()
    color = LINES[4] if row < 2 else LINES[0]
    below.plot(positive, [row] * len(positive), "|", markersize=12, markeredgewidth=1.6, color=color)
below.set_yticks(range(len(grids[4])), grids[4])
below.invert_yaxis()
below.set(xlabel="probability", xlim=(-16.3, 0.4))
below.set_xticks(range(-16, 1, 4), ["1/65536", "1/4096", "1/256", "1/16", "1"])
usual = ((seen_map > 2**-10) & (seen_map < 2**-4)).float().mean().item()
labkit.figure(
    small(fig),
    alt=f"Attention probabilities of block {layer} on a logarithmic axis, and below them the levels above 0 of eight 4-bit grids. "
    f"{usual:.0%} of the probabilities lie between 1/1024 and 1/16, where the uniform grid has next to no level.",
)

# %% [markdown]
# > **Predict.** At 4 bits log2 has levels where the probabilities are, and the uniform grid has not. Is that so at 8 bits as well? And
# > on a *flat* map, in which every token gets about the same?

# %%
labkit.predict("09 eight bits", "Whose attention is nearer to the true one at 8 bits?", options=["log2", "uniform"])

# %%
flat = torch.rand(seen_map.shape, generator=dice).to(place)
flat = flat / flat.sum(dim=-1, keepdim=True)
output, rows, square = {}, {}, {}
for each in (3, 4, 8):
    for name, grid in grids[each].items():
        back = grid.round(seen_map)
        output[each, name] = error(back @ value, seen_map @ value)
        rows[each, name] = back.sum(dim=-1).mean().item()
        square[each, name] = 1e4 * (back - seen_map).square().mean().item()
for name, grid in fitted(some(flat), 4).items():
    output["flat", name] = error(grid.round(flat) @ value, flat @ value)
labkit.table(
    [
        [
            name,
            *(f"{square[each, name]:.2f}" for each in (3, 4)),
            f"{rows[4, name]:.2f}",
            *(f"{output[each, name]:.3f}" for each in (3, 4, 8, "flat")),
        ]
        for name in grids[4]
    ],
    headers=[
        "grid",
        "square × 10⁴, 3 bits",
        "square × 10⁴, 4 bits",
        "a row sums to, 4 bits",
        "output off by, 3 bits",
        "output off by, 4 bits",
        "output off by, 8 bits",
        "output, flat map (control), 4 bits",
    ],
)

# %%
for each in (3, 4):
    assert output[each, "AdaLog"] <= 1.1 * min(output[each, name] for name in ("uniform", "log2", "log √2", "twin"))
assert output[4, "uniform"] > 4 * output[4, "log2"] and output[8, "uniform"] < 0.6 * output[8, "log2"]
assert abs(output[4, "log2"] - output[8, "log2"]) < 0.02 and output[8, "twin"] < 0.6 * output[8, "uniform"]
assert output["flat", "uniform"] < 0.5 * output["flat", "log2"]
assert rows[4, "uniform"] < 0.6 and abs(rows[4, "AdaLog"] - 1) < 0.05
print(f"4 bits: uniform {output[4, 'uniform']:.2f}, log2 {output[4, 'log2']:.2f}, AdaLog {output[4, 'AdaLog']:.2f}.")
print(f"8 bits: uniform {output[8, 'uniform']:.2f}, log2 {output[8, 'log2']:.2f}, twin {output[8, 'twin']:.3f}.")

# %%
labkit.reveal("09 eight bits", min("log2", "uniform", key=lambda name: output[8, name]))

# %% [markdown]
# - With 4 bits the uniform grid rounds most of the map to 0. Look at the sum of a row: most of the attention is simply gone, and the
#   values that it should have brought are gone with it.
# - log2 is as good with 4 bits as with 8. Its error is the *factor* between two levels; more codes only reach further down, where
#   nothing is left to win. With 8 bits the plain grid is better.
# - Searching pays: AdaLog is best with few bits, twins with many.
# - On the logarithmic axis above the map *is* a bell, and levels belong where the numbers are. On a flat map the plain grid beats log2. There is no best grid, only one that fits the tensor. (The tangent, made for maps with many numbers
#   near 1, mostly falls back to the even grid here: this map has few.)
#
# And this is what is left of the class token's attention in one head:

# %%
spread = seen_map[:, :, 0, net.prefix :].std(dim=-1).flatten()
picked = int(spread.argsort()[len(spread) // 2])  # neither the sharpest nor the flattest
image, head = divmod(picked, seen_map.shape[1])
kinds = ("uniform", "log2", "AdaLog")
asked = seen_map[image, head, 0, net.prefix :]
panels = [asked, *(grids[3][name].round(asked) for name in kinds)]
labkit.figure(
    small(
        figures.heat_on_image(
            test.images[image],
            torch.stack(panels).unflatten(1, net.grid),
            ["32 bits", *(f"{name}, 3 bits" for name in kinds)],
            label="attention",
        )
    ),
    alt="An image, where the class token looks in one head, and what three grids of 3 bits leave of it: "
    + ", ".join(f"{name} {panel.sum() / asked.sum():.0%}" for name, panel in zip(kinds, panels[1:], strict=True))
    + " of the attention.",
)

# %% [markdown]
# ## 4. To the nearest is not the best
#
# Weights are rounded once, so we may take our time. Rounding each of them to the nearest level gives the smallest error *of the
# weights*. But nobody reads the weights. What counts is the output, and the inputs are correlated: what one rounding spoils,
# another can make up for.
#
# **GPTQ** (2022) rounds column by column, and after each column moves those that are still to come. **AdaRound** (2020) learns for
# each weight whether it goes up or down. Both know the inputs only through their products, H = Σ x xᵀ. This is the heart of GPTQ:

# %%
labkit.show(weights.gptq)

# %% [markdown]
# > **Predict.** GPTQ's output should be nearer to the true one; that is what it is for. And its *weights*? What will it do if we tell it
# > that the inputs are uncorrelated?

# %%
where = ["nearer to the true ones", "as far off", "further away"]
labkit.predict("09 weights of GPTQ", "Beside weights rounded to nearest, those of GPTQ are …", options=where)

# %% tags=["nbval-ignore-output"]
entered = normed.flatten(0, -2)  # from the calibration images
met = norm(fresh[:24]).flatten(0, -2)  # from the test images
hessian = weights.layer_hessian(entered)
exact = met @ weight.mT
roundings, learned_bits = {}, (3,) if fast else (2, 3, 4)
for each in (2, 3, 4):
    grid = weights.weight_grid(weight, each)
    coin = torch.rand(weight.shape, generator=dice).to(place)
    ways = {"to nearest": grid.round(weight), "GPTQ": weights.gptq(weight, hessian, grid)[0]}
    if each in learned_bits:
        ways["AdaRound"] = adaptive_rounding(weight, hessian, grid, steps=100)
    ways["by chance (control)"] = grid.decode(((weight / grid.scale + coin).floor() + grid.zero).clamp(*grid.ends))
    assert weights.gptq(weight, hessian.diagonal().diag(), grid)[0].equal(ways["to nearest"])
    for name, rounded in ways.items():
        roundings[each, name] = rounded, error(rounded, weight), error(met @ rounded.mT, exact)
labkit.table(
    [
        [
            name,
            *(
                f"{roundings[each, name][i]:.3f}" if (each, name) in roundings else "-"
                for i in (1, 2)
                for each in (2, 3, 4)
            ),
        ]
        for name in ("to nearest", "GPTQ", "AdaRound", "by chance (control)")
    ],
    headers=[
        "weights of qkv",
        "weights off by, 2 bits",
        "weights off by, 3 bits",
        "weights off by, 4 bits",
        "output off by, 2 bits",
        "output off by, 3 bits",
        "output off by, 4 bits",
    ],
)

# %% tags=["nbval-ignore-output"]
for each in (2, 3, 4):
    near, gptq, chance = (roundings[each, name] for name in ("to nearest", "GPTQ", "by chance (control)"))
    assert gptq[1] > 1.2 * near[1] and gptq[2] < 0.6 * near[2] and chance[2] > 1.1 * near[2]
    if each in learned_bits:
        assert roundings[each, "AdaRound"][2] < 0.75 * near[2]
assert roundings[3, "GPTQ"][2] < 1.1 * roundings[4, "to nearest"][2]
print("With a diagonal Hessian GPTQ is rounding to nearest, weight by weight.")
print(f"3 bits: nearest is off by {roundings[3, 'to nearest'][2]:.2f}, GPTQ by {roundings[3, 'GPTQ'][2]:.2f}.")

# %%
apart = roundings[3, "GPTQ"][1] / roundings[3, "to nearest"][1]
labkit.reveal("09 weights of GPTQ", where[0 if apart < 0.95 else 2 if apart > 1.05 else 1])

# %% [markdown]
# The weights are *further* away and the output is *nearer*: 3 bits by GPTQ are as good as 4 by rounding to nearest. (AdaRound learns for 100
# steps here, a third of its default.) Being different is not enough: the control moves as many weights by dice, and loses. It is the correlation that is used, and without one, nearest is all there is. The
# output was measured on images that GPTQ has not seen.
#
# What the errors look like, in the columns that are rounded last; and, to the right, what they do to the output:

# %% tags=["nbval-ignore-output"]
rows_shown, columns_shown, tokens_shown = 48, 48, 48
pictures = {}
for name in ("to nearest", "GPTQ"):
    rounded = roundings[3, name][0]
    pictures[f"weights, {name}"] = (rounded - weight)[:rows_shown, -columns_shown:]
    pictures[f"output, {name}"] = ((met @ rounded.mT) - exact)[:tokens_shown, :rows_shown]
fig = Figure(figsize=(10.2, 3.0), layout="constrained")
axes = fig.subplots(1, 4)
for kind, pair in (("weights", axes[:2]), ("output", axes[2:])):
    panels = {name: panel.abs().cpu() for name, panel in pictures.items() if name.startswith(kind)}
    top = max(float(panel.quantile(0.99)) for panel in panels.values())
    for ax, (name, panel) in zip(pair, panels.items(), strict=True):
        shown = ax.imshow(panel, vmin=0, vmax=top)
        ax.set_title(f"{name}: {panel.square().mean().sqrt():.3f}", fontsize=10)
        ax.set(xticks=[], yticks=[])
    fig.colorbar(shown, ax=pair, aspect=25, pad=0.02, extend="max", label="size of the error")
labkit.figure(
    small(fig),
    alt="Error maps at 3 bits, root mean square: "
    + ", ".join(f"{name} {panel.square().mean().sqrt():.3f}" for name, panel in pictures.items())
    + ". GPTQ's weights are brighter, its output is darker.",
)

# %% [markdown]
# ## 5. Only whole numbers
#
# So far codes were turned back into floating point before anything was computed. On a chip without floating point, or a fast one,
# nothing is turned back. A product of codes is a whole number; its scale is the product of the two scales. To go on, it
# must become an 8-bit code of the *next* tensor, so it is multiplied by a ratio of scales. That ratio is a constant, and
# becomes a whole number and a shift:
#
# $$q \cdot \text{ratio} \;\approx\; (q \cdot m) \gg s$$

# %%
labkit.show(integer.dyadic_requant)


# %% tags=["nbval-ignore-output"]
def step(x, depth=8):
    """The scale of signed codes that reach the largest number."""
    return x.abs().max().item() / (2 ** (depth - 1) - 1)


def to_codes(x, scale):
    return (x / scale).round().int()


cpu = copy.deepcopy(net).cpu()  # torch multiplies matrices of integers on the CPU
x, layer_in = normed[:4].cpu(), cpu.blocks[layer].attn.qkv
w_grid = weights.weight_grid(layer_in.weight, 8, symmetric=True)
out = layer_in(x)
s_x, s_w, s_out = step(x), w_grid.scale[:, 0].double(), step(out)
by = integer.Dyadic.of(s_x * s_w / s_out)
q_x, q_w = to_codes(x, s_x), w_grid.encode(layer_in.weight)
q_bias = (layer_in.bias / (s_x * s_w)).round().int()
sums = q_x @ q_w.mT + q_bias
q_out = integer.dyadic_requant(sums, by)
labkit.table(
    [
        [name, f"{int(q.min())} to {int(q.max())}", meaning]
        for name, q, meaning in (
            ("input", q_x, "8-bit codes"),
            ("weights", q_w, "8-bit codes, a scale for each row"),
            ("sums of 128 products, and the bias", sums, "too large for 16 bits: 32 are used"),
            ("output", q_out, "8-bit codes again: (sum · m) >> s"),
        )
    ],
    headers=["one product", "codes", ""],
)

# %%
assert q_out.equal(integer.integer_linear(q_x, q_w, q_bias, by))
print(
    f"The first row: times {s_x * s_w[0] / s_out:.6f} is times m = {int(by.multiplier[0]) / 1e9:.3f} billion, shifted by {int(by.shift[0])}."
)
print(f"Against floating point the layer is off by {error(q_out * s_out, out):.3f}.")
assert error(q_out * s_out, out) < 0.03

# %% [markdown]
# Three parts of a block are no products: softmax, GELU and LayerNorm. "I-ViT" (2022) makes them of shifts: eˣ is a power of two,
# 2^(x log₂ e), and log₂ e ≈ 1 + ½ − 1/16; a root is found by Newton's steps.

# %%
labkit.show(integer.shift_exp)

# %% [markdown]
# > **Predict.** This exponential is up to 6% too large. How far off is the *softmax* made of it, beside an exact one of the same 8-bit
# > scores?

# %%
parts, evidence = entering([f"blocks.{layer}.{part}" for part in ("norm1", "mlp.act")], calib.images[:4].cpu(), cpu)
before_norm, before_gelu = parts.values()
scores = (evidence[layer].q @ evidence[layer].k.mT) * evidence[layer].q.shape[-1] ** -0.5
s_scores, s_gelu, s_norm = step(scores), step(before_gelu), step(before_norm, 16)
zeroed = copy.deepcopy(cpu.blocks[layer].norm1)
zeroed.weight[3] = 0.0  # a channel whose gain is zero; code that divides by the gain stops here
after_norm = zeroed(before_norm)
s_after = step(after_norm)
whole_norm = integer.IntegerLayerNorm.of(zeroed, s_norm, s_after, bits=16)
q_softmax, s_softmax = integer.shiftmax(to_codes(scores, s_scores), s_scores)
q_gelu, s_by = integer.shift_gelu(to_codes(before_gelu, s_gelu), s_gelu)
in_grid = Uniform.of(before_gelu.min(), before_gelu.max(), 8)
out_grid = Uniform.of(F.gelu(before_gelu).min(), F.gelu(before_gelu).max(), 8)
q_norm = whole_norm(to_codes(before_norm, s_norm))
q_in = to_codes(before_gelu, s_gelu)
by_table = out_grid.decode(gelu_table(in_grid, out_grid)(in_grid.encode(before_gelu)))
exact_scores = (to_codes(scores, s_scores) * s_scores).softmax(dim=-1)
exact_norm = zeroed(to_codes(before_norm, s_norm) * s_norm)
functions = {  # what the integers give, what the exact function gives for the same codes, and the truth
    "softmax, by shifts": (q_softmax * s_softmax, (255 * exact_scores).round() / 255, scores.softmax(dim=-1)),
    "GELU, by shifts": (q_gelu * s_by, F.gelu(q_in * s_gelu), F.gelu(before_gelu)),
    "GELU, a table of 256": (by_table, out_grid.round(F.gelu(in_grid.round(before_gelu))), F.gelu(before_gelu)),
    "LayerNorm, one gain 0": (q_norm * s_after, (exact_norm / s_after).round() * s_after, after_norm),
}
losses = {name: (error(got, truth), error(best, truth)) for name, (got, best, truth) in functions.items()}
labkit.table(
    [[name, f"{ours:.4f}", f"{least:.4f}"] for name, (ours, least) in losses.items()],
    headers=["in whole numbers", "off by", "the exact function of the same codes"],
)

# %%
assert all(least <= ours < 0.08 or ours < 1.02 * least for ours, least in losses.values())
assert functions["GELU, a table of 256"][0].equal(functions["GELU, a table of 256"][1])
assert losses["LayerNorm, one gain 0"][0] < 1.02 * losses["LayerNorm, one gain 0"][1]
assert (q_norm[..., 3] * s_after - zeroed.bias[3]).abs().max() <= s_after
print("Softmax by shifts is off by {:.3f}, an exact one by {:.3f}.".format(*losses["softmax, by shifts"]))
print("The channel whose gain is zero puts out its bias.")

# %% [markdown]
# In a softmax the errors partly cancel: all exponentials are too large, and they are divided by their sum. A table needs no arithmetic at all:
# 8 bits have 256 values, and the exact answer to each is written down ("Blockwise Compression", 2023). With this, a whole block fits on
# a page. Constants are worked out beforehand, in floating point; `__call__` gets codes and returns codes.


# %%
class IntegerBlock:
    """A block in whole numbers: 16-bit codes of the tokens in and out, 8-bit codes between the layers."""

    def __init__(self, block, seen, evidence, stream):
        normed1, mixed, normed2, bent, hidden = (step(x) for x in seen)
        q, k, v = (step(x) for x in (evidence.q, evidence.k, evidence.v))
        d = evidence.q.shape[-1]
        self.heads, self.gelu, self.scores = block.attn.heads, bent, q * k * d**-0.5
        self.norm1 = integer.IntegerLayerNorm.of(block.norm1, stream, normed1, bits=16)
        self.norm2 = integer.IntegerLayerNorm.of(block.norm2, stream, normed2, bits=16)
        each = torch.tensor([q, k, v]).double().repeat_interleave(d * self.heads)
        self.qkv, self.proj = linear(block.attn.qkv, normed1, each), linear(block.attn.proj, mixed, stream)
        self.fc1, self.fc2 = linear(block.mlp.fc1, normed2, bent), linear(block.mlp.fc2, hidden, stream)
        self.mix, self.bend = integer.Dyadic.of(v / 255 / mixed), integer.Dyadic.of(bent / 255 / hidden)

    def __call__(self, x):
        b, n, _ = x.shape
        qkv = integer.integer_linear(self.norm1(x), *self.qkv)
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attn, _ = integer.shiftmax(q @ k.mT, self.scores)
        mixed = integer.dyadic_requant(attn @ v, self.mix).transpose(1, 2).reshape(b, n, -1)
        x = x + integer.integer_linear(mixed, *self.proj, bits=16)
        bent, _ = integer.shift_gelu(integer.integer_linear(self.norm2(x), *self.fc1), self.gelu)
        return x + integer.integer_linear(integer.dyadic_requant(bent, self.bend), *self.fc2, bits=16)


def linear(layer, scale_in, scale_out):
    """Codes of the weights, the bias in the scale of the sums, and the ratio that leads to the next scale."""
    grid = weights.weight_grid(layer.weight, 8, symmetric=True)
    scale = scale_in * grid.scale[:, 0].double()
    return grid.encode(layer.weight), (layer.bias / scale).round().int(), integer.Dyadic.of(scale / scale_out)


# %% [markdown]
# Is there really no floating-point number on the way? A walk over every operation that torch executes looks for one:

# %%
labkit.show(FloatWalk)

# %% [markdown]
# > **Predict.** All six blocks in whole numbers, from the first LayerNorm to the last sum; only cutting the image into tokens and reading the class
# > token stay in floating point. How many floating-point operations will the walk count? How far are the logits off? How many answers
# > change?

# %%
names = ("norm1", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.act", "mlp.fc2")
deep = len(cpu.blocks)
all_seen, all_known = entering(
    [f"blocks.{i}.{part}" for i in range(deep) for part in names], calib.images.cpu()[:12], cpu
)
stream_scale = 1.5 * max(step(all_seen[f"blocks.{i}.norm1"], 16) for i in range(deep))  # room above what was seen
whole_blocks = [
    IntegerBlock(b, [all_seen[f"blocks.{i}.{part}"] for part in names[1:]], all_known[i], stream_scale)
    for i, b in enumerate(cpu.blocks)
]
few = test[:20].to(torch.device("cpu"))
codes = to_codes(cpu.embed(few.images)[0], stream_scale)
with FloatWalk() as walk:
    for whole in whole_blocks:
        codes = whole(codes)
answers, truth = cpu.read(codes * stream_scale), cpu(few.images)

# %%
agree = (answers.argmax(dim=1) == truth.argmax(dim=1)).float().mean().item()
assert walk.floating.total() == 0 and codes.abs().max() < 2**15
assert error(answers, truth) < 0.1 and agree >= 0.9
common_names = ", ".join(f"{name} {count}" for name, count in walk.all.most_common(4))
print(f"{walk.all.total()} operations ({common_names}, ...), {walk.floating.total()} with a floating-point number.")
print(
    f"The logits are off by {error(answers, truth):.2f}; {agree:.0%} of {len(few)} answers are those of the float model."
)

# %% [markdown]
# That is an integer ViT: 8-bit weights, 8-bit activations, and not one floating-point number in its blocks. It says nothing about
# speed: torch's integer products are slow. What real 8-bit kernels save is the subject of the next lesson.
#
# When only the scores are to be integers, keys may share a large offset that softmax cannot see; taking it off first makes the step
# finer ("SageAttention", 2024). In this model the offset is small. And at the far end there is one bit: weights become signs with one scale for each row,
# and 64 products are one `xor` and a count ("BiViT", 2022).

# %%
q, k, v = (x[:24] for x in (known_there[layer].q, known_there[layer].k, known_there[layer].v))
float_out = F.scaled_dot_product_attention(q, k, v)
scored = {smoothed: error(int8_attention(q, k, v, smooth=smoothed), float_out) for smoothed in (True, False)}
one_bit, row_scale = binary.binarize_weight(weight)
tokens = binary.sign(met[:40])
packed = binary.xnor_popcount_dot(binary.pack(tokens), binary.pack(one_bit), weight.shape[1])
assert packed.equal((tokens @ one_bit.mT).to(packed.dtype))
binary_off = error(met @ (row_scale * one_bit).mT, exact)
assert max(scored.values()) < 0.01
assert roundings[2, "GPTQ"][2] < binary_off < 1
print(
    f"Scores from 8-bit integers: attention is off by {scored[True]:.2%}, with the offset left in the keys {scored[False]:.2%}."
)
print(
    f"One bit: counting bits gives all {packed.numel()} products exactly; but the layer's output is off by {binary_off:.2f}."
)

# %% [markdown]
# One bit for each weight is exact arithmetic on the wrong numbers: without training the output is off by more than half.
#
# ## 6. The result: one tensor, nine ways
#
# Everything that was said about the input of qkv, side by side. Beside the ways of round 2:
#
# - **clipped by mse**: one grid, whose ends are chosen by the least error;
# - **learned ends** ("RepQuant", 2024): both ends of every channel learned by gradient descent, then folded;
# - **smoothed** ("MPTQ-ViT", 2024): channels centred, and their reach shared between activations and weights;
# - **rotated** ("Training Transformers with 4-bit Integers", 2023): an orthogonal matrix spreads each channel over all;
# - **noise** ("NoisyQuant", 2022): fixed noise is added before rounding, and the bias takes it off.
#
# Ranges are read from 16 images, three times, each time others. Left: how far this one layer's output is off. Right: the same is done in
# *all* blocks, and we ask how far the logits are off.
#
# > **Predict.** Which way is best on the left? Is it also the best on the right?


# %%
def clipped(norm, linear, x):
    return norm, linear, Uniform.of(*calibrate.mse(some(norm(x)), bits), bits)


def learned_ends(norm, linear, x):
    return to_layer_wise(norm, linear, channel_grid(*fit_clip(norm(x), bits, steps=40), bits))


def smoothed(norm, linear, x):
    return one_grid(*smooth(norm, linear, *norm(x).flatten(0, -2).aminmax(dim=0), centre=True), x)


def rotated(norm, linear, x):
    return one_grid(lambda y: rotate(norm(y)), rotate_inputs(linear), x)


def noisy(norm, linear, x):
    grid = one_grid(norm, linear, x)[2]
    noise = dither.draw_noise(linear.in_features, grid.scale.item(), dice).to(place)
    return (lambda y: norm(y) + noise), dither.absorb(linear, noise), grid


class Rounded(nn.Module):
    """A norm whose outputs are rounded."""

    def __init__(self, norm, grid):
        super().__init__()
        self.inner, self.grid = norm, grid

    def forward(self, x):
        return self.grid.round(self.inner(x))


def everywhere(method, of, streams):
    """A copy that rounds what enters qkv in every block."""
    slim = copy.deepcopy(of)
    for b, x in zip(slim.blocks, streams, strict=True):
        norm, b.attn.qkv, grid = method(b.norm1, b.attn.qkv, x)
        b.norm1 = Rounded(norm, grid)
    return slim


def streams_of(images):
    return list(entering([f"blocks.{i}.norm1" for i in range(deep)], images)[0].values())


ways = {
    "one grid": one_grid,
    "clipped by mse": clipped,
    "one for each token": per_token,
    "folded": in_one,
    "folded, learned ends": learned_ends,
    "smoothed": smoothed,
    "rotated": rotated,
    "noise": noisy,
    "folded, shuffled (control)": shuffled,
}
probe = test[:32]
logits = net(probe.images)
layers, finals, rights = ({name: [] for name in ways} for _ in range(3))
for number in range(2 if fast else 3):
    streams = streams_of(data.shapes("val", 16, seed=1000 * seed + number).images.to(place))
    for name, way in ways.items():
        slim = everywhere(way, net, streams)
        own = slim.blocks[layer]
        layers[name].append(error(own.attn.qkv(own.norm1(fresh[:32])), wanted[:32]))
        found = slim(probe.images)
        finals[name].append(error(found, logits))
        rights[name].append((found.argmax(dim=1) == probe.labels).float().mean().item())

# %% tags=["nbval-ignore-output"]
fig = Figure(figsize=(9.0, 3.4), layout="constrained")
axes = fig.subplots(1, 2, sharey=True)
for ax, measured, label in (
    (axes[0], layers, f"output of qkv in block {layer}, off by"),
    (axes[1], finals, "logits, all blocks rounded, off by"),
):
    for row, (name, values) in enumerate(measured.items()):
        color = LINES[4] if "control" in name or name == "one grid" else LINES[0]
        ax.barh(row, sum(values) / len(values), height=0.65, color=color, alpha=0.55)
        ax.plot(values, [row] * len(values), "|", color="black", markersize=9)
    ax.set(xlabel=label)
axes[0].set_yticks(range(len(ways)), ways)
axes[0].invert_yaxis()
means = [{name: sum(values) / len(values) for name, values in measured.items()} for measured in (layers, finals)]
labkit.figure(
    small(fig),
    alt=f"Inputs of qkv in {bits} bits, nine ways; bars are means and ticks the draws of calibration images. Off at the layer and "
    "at the logits: " + ", ".join(f"{name} {means[0][name]:.2f} and {means[1][name]:.2f}" for name in ways) + ".",
)

# %% tags=["nbval-ignore-output"]
at_layer, at_logits = means
assert min(at_layer, key=at_layer.get) == "folded, learned ends"
assert max(layers["folded"]) < 0.7 * min(layers["one grid"])
for worse in ("folded, learned ends", "one grid"):
    assert at_logits["folded"] < 0.85 * at_logits[worse]
assert abs(at_layer["noise"] / at_layer["one grid"] - 1) < 0.05
assert at_layer["folded, shuffled (control)"] > at_layer["one grid"]
slopes = {}
for name in ("folded", "folded, learned ends"):
    found = after(ways[name], fresh)
    slopes[name] = ((found * wanted).sum() / wanted.square().sum()).item()
assert abs(slopes["folded"] - 1) < 0.004 and slopes["folded, learned ends"] < 0.995
print(f"At the layer: folded {at_layer['folded']:.3f}, with learned ends {at_layer['folded, learned ends']:.3f}.")
print(f"At the logits: folded {at_logits['folded']:.3f}, with learned ends {at_logits['folded, learned ends']:.3f}.")
print(
    f"The outputs are {slopes['folded']:.3f} and {slopes['folded, learned ends']:.3f} times as large as they should be."
)
lowest, highest = min(map(min, rights.values())), max(map(max, rights.values()))
full = (logits.argmax(dim=1) == probe.labels).float().mean().item()
assert lowest > full - 0.1
print(f"Right answers, all ways and draws: {lowest:.0%} to {highest:.0%}; in full precision {full:.0%}.")

# %% [markdown]
# The winner of the left side loses on the right. Learned ends make the layer's error smallest, and the logits are further off
# than with the plain extremes. A likely reason is in the third line. Rounding goes up as often as down, and a sum over many tokens
# and channels averages it out. Clipping always goes *inwards*: all outputs shrink a little, queries and keys alike, in every block, and
# nothing averages that out. A layer's error is a proxy. What a method costs the ViT has to be measured at its end, and lesson 10 does so.
#
# Two ways do little here: noise changes nothing, and rotation helps only somewhat. And the answers hold, in all ways. Is this tensor too easy?
#
# ### Plant an outlier
#
# In large language models some channels are about a hundred times as large as the others ("SmoothQuant", 2022). Ours has none, but we can
# plant some without changing the function: fold, the other way round. Two channels of each LayerNorm become 30 times as large, and the weights behind them 30 times as
# small.
#
# > **Predict.** The model is the same. Who will notice the outliers, and who will not?

# %%
healers = {"a grid for each token": "one for each token", "rotation": "rotated", "noise": "noise", "folding": "folded"}
labkit.predict("09 outliers", "Whose logits stay nearest to those of the float model?", options=list(healers))

# %% tags=["nbval-ignore-output"]
planted = copy.deepcopy(net)
for b in planted.blocks:
    scale = torch.ones(b.norm1.weight.numel())
    scale[torch.randperm(len(scale), generator=dice)[:2]] = 1 / 30
    b.norm1, b.attn.qkv = fold(b.norm1, b.attn.qkv, scale.to(place))
assert error(planted(probe.images), logits) < 1e-4
suffered = {}
for name, way in ways.items():
    found = everywhere(way, planted, streams)(probe.images)
    suffered[name] = (found.argmax(dim=1) == probe.labels).float().mean().item(), error(found, logits)
labkit.table(
    [
        [name, f"{rights[name][-1]:.0%}", f"{right:.0%}", f"{finals[name][-1]:.2f}", f"{off:.2f}"]
        for name, (right, off) in suffered.items()
    ],
    headers=[
        f"inputs of qkv in {bits} bits",
        "right, as trained",
        "right, with outliers",
        "logits off, as trained",
        "logits off, with outliers",
    ],
)

# %% tags=["nbval-ignore-output"]
assert max(suffered[name][0] for name in ("one grid", "clipped by mse", "noise")) < 0.4
assert min(suffered[name][0] for name in ("folded", "folded, learned ends", "smoothed")) > 0.85
assert suffered["one for each token"][0] < 0.8 and suffered["rotated"][0] > suffered["one for each token"][0]
assert abs(suffered["folded"][1] - finals["folded"][-1]) < 0.02
print(
    f"The same function: one grid names {suffered['one grid'][0]:.0%} of the images, folding {suffered['folded'][0]:.0%}."
)

# %%
labkit.reveal("09 outliers", min(healers, key=lambda name: suffered[healers[name]][1]))

# %% [markdown]
# The two channels take all the levels, and the other 126 are rounded to almost nothing. A grid for each token does not help: the outlier is in
# every token. Rotation spreads it over all channels, which is good as long as there are bits to spare. Folding does not even
# notice: it divides by whatever is there. So there is no table of methods without a table of *tensors*: look at yours before you choose.
#
# ## Limits
#
# - **One tensor at a time.** Rounded here was now this and now that. Errors of all tensors of a model add up, or do not: lesson 10.
# - **One small model** with mild channels; the outliers were planted, and planted outliers are regular.
# - **No training.** With training through the rounding, much fewer bits are possible, down to one.
# - **Nothing was timed.** Codes were simulated, or multiplied by slow integer products of torch.
# - **The draws show the spread of the calibration images,** not that of training the model again.

# %% [markdown]
# ## Exercises
#
# The cell below each stub hands your function to `labkit.check`, which names the mistake that it makes and shows the smallest
# case; `labkit.check.round_to_levels.hint(1)` prints the first hint. The stubs run as they are.
#
# ### Exercise 1: round it
#
# *Easy, 10 minutes.* Write `round_to_levels(x, low, high, bits)`: each number of x as the nearest of 2ᵇ evenly spaced
# levels, where the step is (high − low) / (2ᵇ − 1), 0 is a level, and codes go from 0 to 2ᵇ − 1. `low` ≤ 0 ≤ `high`
# are numbers.
#
# <details><summary>Hint 1</summary>zero = round(−low / step) is the code of 0.</details>
# <details><summary>Hint 2</summary>Clip the codes with <code>clamp(0, 2**bits - 1)</code> before you turn them back.</details>
# <details><summary>Solution</summary>
#
# ```python
# def round_to_levels(x, low, high, bits):
#     step = (high - low) / (2**bits - 1)
#     zero = round(-low / step)
#     codes = ((x / step).round() + zero).clamp(0, 2**bits - 1)
#     return (codes - zero) * step
# ```
#
# </details>


# %% tags=["exercise"]
def round_to_levels(x, low, high, bits):
    return torch.zeros_like(x)  # your code here


# %%
labkit.check.round_to_levels(round_to_levels)

# %% [markdown]
# ### Exercise 2: undo it behind
#
# *Easy, 10 minutes.* In front of a layer, x became (x − shift) / scale, with one scale and one shift for each input
# channel. Write `fold_into_linear(weight, bias, scale, shift)`: the weight (out, in) and the bias (out,) with which
# the layer puts out what it did.
#
# <details><summary>Hint 1</summary>x = scale · x' + shift. Put that into W x + b.</details>
# <details><summary>Hint 2</summary>A column of W belongs to an input channel: <code>weight * scale</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def fold_into_linear(weight, bias, scale, shift):
#     return weight * scale, bias + weight @ shift
# ```
#
# </details>


# %% tags=["exercise"]
def fold_into_linear(weight, bias, scale, shift):
    return torch.zeros_like(weight), torch.zeros_like(bias)  # your code here


# %%
labkit.check.fold_into_linear(fold_into_linear)

# %% [markdown]
# ### Exercise 3: two halves of a byte
#
# *Medium, 15 minutes.* A chip multiplies 4-bit codes, −8 to 7, and you have 8-bit ones. Write `split_byte(codes)`:
# whole numbers high and low, both from −8 to 7, with 16 · high + low = codes. The codes go from −128 to 119.
#
# <details><summary>Hint 1</summary>high is codes / 16, rounded to the nearest, halves upwards.</details>
# <details><summary>Hint 2</summary><code>(codes + 8) // 16</code>; low is what is left.</details>
# <details><summary>Solution</summary>
#
# ```python
# def split_byte(codes):
#     high = (codes + 8) // 16
#     return high, codes - 16 * high
# ```
#
# </details>


# %% tags=["exercise"]
def split_byte(codes):
    return torch.zeros_like(codes), torch.zeros_like(codes)  # your code here


# %%
labkit.check.split_byte(split_byte)

# %% [markdown]
# ### Exercise 4: a product without multiplying
#
# *Medium, 15 minutes.* Two rows of signs, as booleans: True is +1, False is −1. Write `sign_product(a, b)`: their dot
# product, a whole number for each pair of rows of a (n, d) and b (m, d), without multiplying anything: only `^`
# (which is true where two booleans differ), sums and differences; a factor of 2 is a shift, and allowed.
#
# <details><summary>Hint 1</summary>Each place that agrees adds 1, each that differs takes 1 off.</details>
# <details><summary>Hint 2</summary><code>a[:, None] ^ b[None]</code> is (n, m, d); count it over d.</details>
# <details><summary>Solution</summary>
#
# ```python
# def sign_product(a, b):
#     differ = (a[:, None] ^ b[None]).sum(dim=-1)
#     return a.shape[1] - 2 * differ
# ```
#
# </details>


# %% tags=["exercise"]
def sign_product(a, b):
    return torch.zeros(len(a), len(b), dtype=torch.long)  # your code here


# %%
labkit.check.sign_product(sign_product)

# %% [markdown]
# ### Exercise 5: spend the bits
#
# *Hard, 20 minutes.* Some layers deserve more bits than others. `errors[i][b]` is the error of layer i with b bits,
# for b from 2 to 6. Write `spend_bits(errors, total)`: a number of bits for each layer. All begin with 2; as long as
# the sum is below `total`, one bit goes to the layer whose error falls most by it. (All layers are equally large.)
#
# <details><summary>Hint 1</summary>The gain of a layer at b bits is <code>errors[i][b] - errors[i][b + 1]</code>; at 6 bits it has none.</details>
# <details><summary>Hint 2</summary><code>max(range(len(errors)), key=...)</code> finds the layer; repeat it <code>total - 2 * len(errors)</code> times.</details>
# <details><summary>Solution</summary>
#
# ```python
# def spend_bits(errors, total):
#     bits = [2] * len(errors)
#     while sum(bits) < total:
#         gains = [line[b] - line[b + 1] if b < 6 else -1 for line, b in zip(errors, bits)]
#         bits[gains.index(max(gains))] += 1
#     return bits
# ```
#
# </details>


# %% tags=["exercise"]
def spend_bits(errors, total):
    return [2 for _ in errors]  # your code here


# %%
labkit.check.spend_bits(spend_bits)

# %% [markdown]
# What your function does for the six `proj` layers of this model, with half a bit less than 4 for each:

# %%
offered = (2, 3, 4, 5, 6)
projections = [b.attn.proj for b in net.blocks]
inputs = list(entering([f"blocks.{i}.attn.proj" for i in range(len(net.blocks))], calib.images[:6])[0].values())


def lost_by(i, depth):
    """The mean squared error of a projection's output, when its weights are rounded to that many bits."""
    gone = weights.round_to_nearest(projections[i].weight, depth) - projections[i].weight
    return (inputs[i] @ gone.mT).square().mean().item()


measured = error_table(lost_by, len(projections), offered)
per_layer = [dict(zip(offered, line, strict=True)) for line in measured.tolist()]
total = 4 * len(projections) - 3
size = projections[0].weight.numel()
plans = {
    "yours": spend_bits(per_layer, total),
    "greedy_bits": greedy_bits(measured, offered, [size] * len(projections), total * size),
    "3 bits for all": [3] * len(projections),
}
sums = {name: sum(line[b] for line, b in zip(per_layer, plan, strict=True)) for name, plan in plans.items()}
labkit.table(
    [
        [name, " ".join(map(str, plan)), str(sum(plan)), f"{sums[name] / sums['greedy_bits']:.1f}"]
        for name, plan in plans.items()
    ],
    headers=[f"{total} bits for six layers", "bits", "spent", "error, times that of greedy_bits"],
)

# %% [markdown]
# ## Papers

# %%
for paper in (
    *("S320", "S289", "S028", "S041", "S292", "S070", "S084", "S282"),
    *("S254", "S015", "S171", "S243", "S389"),
):
    print(labkit.papers.cite(paper))
for paper in (
    '"Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", 2020 (ranges)',
    '"Up or Down? Adaptive Rounding for Post-Training Quantization", 2020 (AdaRound)',
    '"PTQ4ViT: Post-Training Quantization for Vision Transformers with Twin Uniform Quantization", 2021 (twins)',
    '"SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022 (smoothing)',
):
    print(paper)

# %% [markdown]
# ## Next
#
# You have seen every tensor of a block rounded, one at a time. In [10 Quantizing a ViT](10_quantizing_a_vit.ipynb) all of them are
# rounded at once: what the whole model loses, and the milliseconds that real 8-bit kernels give back.
