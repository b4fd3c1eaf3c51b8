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
# # 01 Attention
#
# **By the end you will have gone from a weighted average to multi-head attention in thirty lines, equal to torch's, and
# computed it exactly without ever writing its matrix down.**
#
# *Needs:* [00 Start here](00_start_here.ipynb); matrix products, a little PyTorch. · *Time:* 50 minutes; the cells take
# less than one. · *Device:* any computer; no GPU and no network.

# %% tags=["parameters"]
seed = 0  # every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # the trained model whose softmax is warmed and cooled
fast = False  # True: fewer test images and fewer repetitions

# %%
import copy
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.figure import Figure
from torch import nn

import labkit
from labkit import clock, data, memory
from labkit.attention import dense, flash
from labkit.intervals import wilson
from labkit.patching import reconstruct
from labkit.verify import hits
from labkit.viz import figures

place = labkit.setup(seed, device)
dice = torch.Generator().manual_seed(seed)
net = labkit.load(model).to(place)
test = data.shapes("test", 60 if fast else 120, seed=seed).to(place)


def normal(*shape):
    """Standard normal numbers, the same on every device."""
    return torch.randn(*shape, generator=dice).to(place)


def largest(a, b):
    """The largest absolute difference between two tensors."""
    return (a - b).abs().max().item()


def share(right):
    """A share of right answers and its 95 % interval, in words."""
    low, high = wilson(int(right.sum()), len(right))
    return f"{right.double().mean():.0%} [{low:.0%}, {high:.0%}]"


# %% [markdown]
# ## 1. A weighted average
#
# Forget transformers for a moment. Here is a noisy picture, and you know nothing but the picture. How do you remove the
# noise? Average. But average *what*? Neighbours blur the edges. Better: cut the picture into small pieces, and give each
# the average of all pieces *that look like it*, wherever they are. The more alike, the larger the weight.
#
# That is attention. A piece asks (its *query*), every piece says what it is (its *key*) and what it gives (its *value*); here
# all three are the pixels themselves. Alike means: a large product of query and key. Weights means: positive, and one in sum.
#
# > **Predict.** How sharp must the weights be? If only the best match counts, what is a piece replaced by? If all count
# > alike, by what? Which blunt competitor would you put beside it?

# %%
sharpness = ["cold, the best match alone", "in between", "hot, all count alike"]
labkit.predict("01 sharpest weights", "Which weights remove most noise?", options=sharpness)

# %%
scene = data.shapes("test", 2, size=48, seed=seed, difficulty=0.0).images.to(place)
noisy = scene + 0.15 * normal(*scene.shape)
pieces = F.unfold(F.pad(noisy, (2, 2, 2, 2), mode="reflect"), 5).transpose(1, 2)  # 5 x 5 around each pixel
alike = -torch.cdist(pieces, pieces).square() / pieces.shape[-1]  # a product of q and k, less their lengths


def averaged(temperature):
    """Each pixel as the mean of all pixels, weighed by how alike their surroundings are."""
    weights = (alike / temperature).softmax(dim=-1)
    return (weights @ noisy.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(noisy.shape)


def quality(picture):
    return reconstruct.psnr(scene, picture).mean().item()


blurred = F.avg_pool2d(F.pad(noisy, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
warm = [0.001, 0.004, 0.008, 0.016, 0.03, 0.1, 1.0]
denoised = {temperature: averaged(temperature) for temperature in warm}
scores = {temperature: quality(picture) for temperature, picture in denoised.items()}
best = max(scores, key=scores.get)
shown = [scene[0], noisy[0], blurred[0], denoised[warm[0]][0], denoised[best][0], denoised[1.0][0]]
names = ["clean", "noisy", "blurred", f"T = {warm[0]:g}", f"T = {best:g}", "T = 1"]
labkit.figure(
    figures.image_strip([picture.clamp(0, 1) for picture in shown], names),
    alt=f"One scene: clean, noisy ({quality(noisy):.1f} dB), blurred by 3 x 3 ({quality(blurred):.1f} dB), and averaged with "
    f"weights of three temperatures: cold ({scores[warm[0]]:.1f} dB), the best ({scores[best]:.1f} dB), hot "
    f"({scores[1.0]:.1f} dB).",
)

# %%
fig = Figure(figsize=(6.4, 2.6), layout="constrained")
ax = fig.subplots()
ax.plot(warm, list(scores.values()), marker="o", label="weighted by likeness")
ax.axhline(quality(noisy), color="black", linestyle=":", label="noisy, untouched")
ax.axhline(quality(blurred), color="0.5", linestyle="--", label="3 x 3 blur")
ax.set(xscale="log", xlabel="temperature of the softmax", ylabel="PSNR (dB)")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
labkit.figure(
    fig, alt=f"PSNR over the temperature: it rises from the noisy image's to a peak at {best:g} and falls below it."
)
assert scores[best] > quality(blurred) + 1 > scores[1.0] + 1 and scores[warm[0]] < quality(noisy) + 1

# %%
labkit.reveal("01 sharpest weights", sharpness[(best != warm[0]) + (best == warm[-1])])

# %% [markdown]
# Nothing was learned, and it beats the blur. Cold: every piece finds only itself, and the noise stays. Hot: every pixel
# becomes the mean of the picture. In between it pays to look far away. ("A non-local algorithm for image denoising", 2005,
# did this before attention had its name; "Attention Is All You Need", 2017, learns what *alike* means.)
#
# Learned attention differs in one point: queries, keys and values are three *linear maps* of the token, so that what is asked
# for, what is found and what is given may be different things.
#
# ## 2. Why divide by √d?
#
# A score is a product of two vectors of d numbers: Σ qᵢ kᵢ. The formula divides it by √d, and that looks like a detail.
#
# > **Predict.** q and k hold standard normal numbers, and d grows from 4 to 1024. What happens to the largest of 64
# > weights? And to the gradient that comes back through the softmax?

# %%
labkit.predict(
    "01 growing scores",
    "From d = 4 to d = 1024 there are 256 times as many products in the sum: how many times as large is a score?",
    number=256,
    unit="times",
)

# %%
widths = [4, 16, 64, 256, 1024]
found = {True: [], False: []}
for d in widths:
    for divide in found:
        q, k = normal(400, 1, d), normal(400, 64, d)
        raw = (q @ k.transpose(1, 2))[:, 0] * (d**-0.5 if divide else 1.0)
        raw.requires_grad_()
        attn = raw.softmax(dim=-1)
        entropy = torch.special.entr(attn).sum(dim=-1).mean()
        (attn * normal(400, 64)).sum().backward()
        gradient = raw.grad.norm(dim=-1).median()  # of the query in the middle: a few borderline ones get a lot
        found[divide].append([t.item() for t in (raw.std(), entropy, attn.amax(dim=-1).mean(), gradient)])
labkit.table(
    [[d, *(figure for divide in (False, True) for figure in found[divide][i][::2])] for i, d in enumerate(widths)],
    headers=["d", "score, std", "largest of 64 weights", "divided: std", "largest of 64 weights"],
    digits=2,
)

# %%
labkit.reveal("01 growing scores", round(found[False][-1][0] / found[False][0][0]), within=1)

# %%
fig = Figure(figsize=(8.4, 2.7), layout="constrained")
left, right = fig.subplots(1, 2)
for divide, mark in ((True, "o"), (False, "s")):
    name = "divided by √d" if divide else "not divided"
    left.plot(widths, [row[1] for row in found[divide]], marker=mark, label=name)
    right.plot(widths, [row[3] for row in found[divide]], marker=mark, label=name)
left.axhline(math.log(64), color="black", linestyle=":", linewidth=1)
left.set(xscale="log", xlabel="d", ylabel="entropy of the weights", ylim=(0, 4.5), title="dotted: all 64 alike")
right.set(
    xscale="log", xlabel="d", ylabel="gradient at the scores", ylim=(0, None), title="what the median query learns from"
)
right.legend(frameon=False, loc="lower left")
divided, not_divided = found[True], found[False]
labkit.figure(
    fig,
    alt=f"Entropy of the weights, and the median query's gradient, over d. Divided by the root of d both stay where they are; not "
    f"divided, the entropy falls from {not_divided[0][1]:.1f} to {not_divided[-1][1]:.1f}, and the gradient vanishes.",
)
assert all(abs(row[0] - 1) < 0.05 for row in divided)
assert all(abs(row[0] / d**0.5 - 1) < 0.05 for d, row in zip(widths, not_divided, strict=True))
assert not_divided[-1][2] > 0.9 and not_divided[-1][3] < 0.1 * divided[-1][3]
print("Not divided, scores grow as the root of d, one weight takes all, and for most queries the gradient dries up.")

# %% [markdown]
# The variance of a sum of d independent products is d; dividing by √d makes it one, whatever d is. It is the *starting point*
# that is set this way: training may still choose sharp weights by growing q and k.
#
# ### Is the temperature that training found the best one?
#
# A trained model has a temperature built in. Multiply all scores of shapes-vit by a number, and see.
#
# > **Predict.** With all scores times 0, every token attends to all alike. Is the model back to guessing (10%)?

# %%
harm = ["both about the same", "times 2, colder", "times ½, warmer"]
labkit.predict("01 colder or warmer", "Which costs the model more right answers?", options=harm)


# %%
def sharpened(factor):
    """The model with all its scores multiplied: the queries are."""
    view = copy.deepcopy(net)
    for block in view.blocks:
        width = block.attn.qkv.in_features
        block.attn.qkv.weight.data[:width] *= factor
        block.attn.qkv.bias.data[:width] *= factor
    return view


answers = {}
with torch.inference_mode():
    for factor in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0):
        answers[factor] = hits(sharpened(factor), test, batch=50)
right_at = {factor: right.double().mean().item() for factor, right in answers.items()}
labkit.figure(
    figures.bars(
        [f"scores x {factor:g}" for factor in answers],
        list(right_at.values()),
        [wilson(int(right.sum()), len(right)) for right in answers.values()],
        label=f"right answers of {len(test)} images, with 95 % intervals",
    ),
    alt="Right answers of the trained model when all scores are multiplied: "
    + ", ".join(f"times {factor:g} {share(right)}" for factor, right in answers.items())
    + ".",
)
assert right_at[1.0] >= max(right_at.values()) - 0.03 and right_at[2.0] > right_at[0.5] > right_at[0.0] + 0.2
assert right_at[0.0] < 0.25

# %%
colder, warmer = (right_at[1.0] - right_at[factor] for factor in (2.0, 0.5))
labkit.reveal("01 colder or warmer", harm[0 if abs(colder - warmer) < 0.05 else 1 if colder > warmer else 2])

# %% [markdown]
# The learned temperature is as good as any. Colder is borne better than warmer; and at 0, where attention is a plain average in
# every block, the model guesses: what it knows is in *which* tokens it looks at.
#
# ## 3. Thirty lines
#
# The whole of it:

# %%
labkit.show(dense.scaled_dot_product)


# %%
class ThirtyLines(nn.Module):
    """Multi-head attention: several small attentions side by side, each in its own slice of the channels."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (q, k, v))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        attn = scores.softmax(dim=-1)
        return self.to_out(rearrange(attn @ v, "b h n d -> b n (h d)"))


ours = ThirtyLines(64, 4).to(place)
theirs = nn.MultiheadAttention(64, 4, batch_first=True).to(place)
with torch.no_grad():
    theirs.in_proj_weight.copy_(torch.cat([ours.to_q.weight, ours.to_k.weight, ours.to_v.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.to_q.bias, ours.to_k.bias, ours.to_v.bias]))
    theirs.out_proj.load_state_dict(ours.to_out.state_dict())
    x = normal(2, 50, 64)
    assert largest(ours(x), theirs(x, x, x, need_weights=False)[0]) < 1e-5
    q, k, v = (rearrange(normal(2, 50, 64), "b n (h d) -> b h n d", h=4) for _ in range(3))
    assert largest(dense.scaled_dot_product(q, k, v), F.scaled_dot_product_attention(q, k, v)) < 1e-5
print("Ours, torch's module and torch's fused kernel agree to 1e-05.")

# %% [markdown]
# ### Masks
#
# A mask says who may see whom. It goes *before* the softmax, as minus infinity, so that the remaining weights still sum to
# one. Two that you will meet: *causal* (no token sees the future) and *groups* (several images in one row, none sees another).
#
# > **Predict.** Tokens 0 to 29 and 30 to 49 are two images in one row, masked. Is the result for the first exactly what it
# > would be alone? And if the mask were applied *after* the softmax, as zeros?

# %%
groups = (torch.arange(50, device=place) >= 30).long()
mask = dense.among(groups)
with torch.inference_mode():
    together, alone = ours(x, mask), ours(x[:, :30])
    assert largest(together[:, :30], alone) < 1e-5
    future = ours(x, dense.causal(50, place))
    changed = x.clone()
    changed[:, 40:] = normal(2, 10, 64)
    assert largest(ours(changed, dense.causal(50, place))[:, :40], future[:, :40]) == 0
    attn = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
    too_late = (attn * mask).sum(dim=-1).mean().item()
print("Masked before the softmax, each image gets exactly what it gets alone, and the future leaves no trace.")
print(f"Masked after it, the weights of a row sum to {too_late:.2f} on average, not to 1.")

# %% [markdown]
# ### A look at real heads
#
# The heads of a trained model, all at once. The arrow keys move the query.

# %%
explorer = labkit.Explorer(net, test[:6], view="grid", image=0, layer=2, query=(3, 3))
explorer

# %%
for query in ((0, 0), "class" if net.prefix else (7, 7)):
    explorer.query = query
    print(explorer.describe())

# %% [markdown]
# ## 4. A set, not a sequence
#
# Nothing in the formula knows where a token is. Reorder the tokens, and the same outputs come out, reordered.
#
# > **Predict.** Does this still hold with the causal mask? With the mask of groups, if the groups are reordered along?

# %%
order = torch.randperm(50, generator=dice).to(place)
with torch.inference_mode():
    free = largest(ours(x[:, order]), ours(x)[:, order])
    in_groups = largest(ours(x[:, order], dense.among(groups[order])), ours(x, mask)[:, order])
    in_time = largest(ours(x[:, order], dense.causal(50, place)), ours(x, dense.causal(50, place))[:, order])
assert max(free, in_groups) < 1e-5 < 1e-2 < in_time
print("Reorder in, reordered out: without a mask yes, with groups yes, causal no.")

# %% [markdown]
# For images this is a gift and a problem: any shape of image will do, and the model cannot tell left from right. Lesson
# [03 Where am I?](03_where_am_i.ipynb) repairs it.
#
# ## 5. The law of its cost
#
# n tokens of width d. Four linear maps cost 4 n d² multiply-accumulates; the scores and the average cost n² d each:
#
# $$4 n d^2 + 2 n^2 d$$
#
# The number of heads is not in it: h heads of width d/h make h · n² · d/h.
#
# > **Predict.** Is an image of 64 × 64 in patches of 4 beyond the point where pairs cost more than linear maps?

# %%
labkit.predict(
    "01 half of the cost",
    "With tokens of width 64, from how many tokens on do the pairs cost as much as the linear maps?",
    number=64,
    unit="tokens",
)

# %%
rows = []
for n in (16, 64, 128, 256, 1024):
    counted = sum(step.macs for step in labkit.operations.operations(ours, torch.zeros(1, n, 64, device=place)))
    law = 4 * n * 64**2 + 2 * n**2 * 64
    assert counted == law
    rows.append([n, law / 1e6, 2 * n / (2 * n + 4 * 64), 4 * n**2 * 4 / 1e6])
labkit.table(
    [[n, f"{macs:.2f}", f"{pairs:.0%}", f"{maps:.3f}"] for n, macs, pairs, maps in rows],
    headers=["tokens", "million MACs (counted = law)", "of them pairs", "MB of the maps of 4 heads"],
)

# %%
print(f"The pairs are half of the cost at n = 2d = {2 * 64}; an image of 64 x 64 in patches of 4 has 256 tokens.")
assert rows[2][2] == 0.5
labkit.reveal("01 half of the cost", next(n for n, _, pairs, _ in rows if pairs >= 0.5))

# %% [markdown]
# And on the clock? The plain code against the fused kernel, in turns. Both do the same multiply-accumulates; the plain one
# also writes n² numbers to memory and reads them again, several times.

# %% tags=["nbval-ignore-output"]
lines = []
for n in (64, 256, 1024):
    q, k, v = (normal(1, 4, n, 16) for _ in range(3))
    both = {
        "plain": lambda q=q, k=k, v=v: dense.scaled_dot_product(q, k, v),
        "fused": lambda q=q, k=k, v=v: dense.fused(q, k, v),
    }
    timing = clock.compare(both, rounds=5 if fast else 15, seconds=2.0)
    ratio, low, high = timing.ratio("plain", to="fused")
    lines.append([n, f"{1e3 * timing.median('fused'):.2f}", f"{ratio:.1f} [{low:.1f}, {high:.1f}]"])
labkit.table(lines, headers=["tokens", "fused, ms", "plain takes, times as long"])

# %% [markdown]
# ## 6. The result: attention without its matrix
#
# The fused kernel never writes the n × n map down. How can it? A softmax needs the sum over *all* keys before it can give out
# the first weight.
#
# It does not. Walk over the keys in blocks and keep three running numbers for each query: the largest score so far (m), the
# sum of exponentials against it (l), and the values weighed by them. When a larger score turns up, everything so far was
# measured against the wrong maximum: *mend* it, by multiplying with e^(old m − new m), and go on. ("Online normalizer
# calculation for softmax", 2018; "FlashAttention", 2022.)

# %%
labkit.show(flash.online_softmax)

# %% [markdown]
# > **Predict.** After half of the keys, what is `acc / l`: garbage, or something with a meaning? How much of the final answer
# > is it? Without mending, is the result a little off or far off?

# %%
q, k, v = (2 * normal(1, 1, 64, 16) for _ in range(3))
whole = dense.scaled_dot_product(q, k, v)
walk = list(flash.steps(q, k, v, block=8))
table = []
for i, state in enumerate(walk, start=1):
    seen = dense.scaled_dot_product(q, k[:, :, : 8 * i], v[:, :, : 8 * i])
    assert largest(state.out, seen) < 1e-4
    table.append([8 * i, state.m[0, 0, 0, 0].item(), state.l[0, 0, 0, 0].item(), largest(state.out, whole)])
labkit.table(table, headers=["keys seen", "m of query 0", "l of query 0", "largest error of acc / l"], digits=2)

# %%
assert table[-1][-1] < 1e-4 < 1e-2 < table[-2][-1]
print("After every block the state is the exact attention to the keys seen so far; after the last it is the whole.")

# %% [markdown]
# Now the result with its baseline and its control, for five draws of q, k and v: how much memory it takes (every tensor is
# counted when it is made and when it dies), and how far the output is from the plain one. The control walks over the same blocks without mending.


# %%
def without_mending(q, k, v, block):
    """Each block has its own softmax, and the results are averaged: what a first attempt may look like."""
    parts = [dense.scaled_dot_product(q, *pair) for pair in zip(k.split(block, -2), v.split(block, -2), strict=True)]
    return torch.stack(parts).mean(dim=0)


n, block = 512, 32
errors = {"online": [], "no mending": []}
for _ in range(2 if fast else 5):
    q, k, v = (normal(1, 4, n, 16) for _ in range(3))
    oracle = dense.scaled_dot_product(q, k, v)
    errors["online"].append(largest(flash.flash_attention(q, k, v, block), oracle))
    errors["no mending"].append(largest(without_mending(q, k, v, block), oracle))
ways = {
    "plain": dense.scaled_dot_product,
    "online": lambda q, k, v: flash.flash_attention(q, k, v, block),
    "no mending": lambda q, k, v: without_mending(q, k, v, block),
}
held = {name: memory.measure(way, q, k, v) for name, way in ways.items()}
errors["plain"] = [0.0]
labkit.table(
    [
        [
            name,
            f"{held[name].largest / 1e6:.2f}",
            f"{held[name].peak / 1e6:.2f}",
            "below 1e-5" if max(errors[name]) < 1e-5 else f"{min(errors[name]):.1f} to {max(errors[name]):.1f}",
        ]
        for name in ways
    ],
    headers=[
        f"{n} tokens, blocks of {block} keys",
        "largest tensor, MB",
        "most at a time, MB",
        "error, over the draws",
    ],
)

# %%
assert max(errors["online"]) < 1e-5 and min(errors["no mending"]) > 0.1 and held["online"].peak * 4 < held["plain"].peak
weights = [t.clone().requires_grad_() for t in (q, k, v)]
again = [t.clone().requires_grad_() for t in (q, k, v)]
pull = normal(1, 4, n, 16)
(dense.scaled_dot_product(*weights) * pull).sum().backward()
(flash.flash_attention(*again, block) * pull).sum().backward()
assert max(largest(a.grad, b.grad) for a, b in zip(weights, again, strict=True)) < 1e-4
print("The gradients agree, too: the backward pass makes each block of the map again instead of keeping it.")

# %% [markdown]
# Same multiply-accumulates, same numbers, and the memory of a block: the map was never needed. What it does *not* change is the n² of
# the arithmetic. To spend less there, something must be given up: that is lesson
# [06 Cheaper attention](06_cheaper_attention.ipynb).
#
# ## Limits
#
# - **The tiling is written to be read.** In plain torch it saves memory and not time; the fused kernels keep the blocks in
#   fast memory.
# - **√d assumes independent numbers of variance one**, which holds at the start of a training, not behind it.
# - **The temperature was changed for the whole model at once**, and only one model was asked.
# - **The denoiser is a teaching piece**: denoisers of today are trained.

# %% [markdown]
# ## Exercises
#
# The cell below each stub hands your function to `labkit.check`, which names the mistake that it makes;
# `labkit.check.softmax.hint(1)` prints the first hint. The stubs run as they are.
#
# ### Exercise 1: a softmax that does not overflow
#
# *Easy, 5 minutes.* Write `softmax(scores)` over the last axis, from `exp` and `sum`. It must survive scores of 1000.
#
# <details><summary>Hint 1</summary>A softmax does not change when the same number is taken from all scores.</details>
# <details><summary>Hint 2</summary>Take the largest of each row: <code>amax(dim=-1, keepdim=True)</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def softmax(scores):
#     weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
#     return weights / weights.sum(dim=-1, keepdim=True)
# ```
#
# </details>


# %% tags=["exercise"]
def softmax(scores):
    return torch.zeros_like(scores)  # your code here


# %%
labkit.check.softmax(softmax)

# %% [markdown]
# ### Exercise 2: attention in three lines
#
# *Easy, 10 minutes.* Write `attention(q, k, v)` for (batch, n, d). Keys and values may be more or fewer than queries.
#
# <details><summary>Hint 1</summary><code>k.transpose(-2, -1)</code> makes the keys the columns.</details>
# <details><summary>Hint 2</summary>The sum to one runs over the keys: the last axis of the scores.</details>
# <details><summary>Solution</summary>
#
# ```python
# def attention(q, k, v):
#     scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
#     return scores.softmax(dim=-1) @ v
# ```
#
# </details>


# %% tags=["exercise"]
def attention(q, k, v):
    return torch.zeros(*q.shape[:-1], v.shape[-1])  # your code here


# %%
labkit.check.attention(attention)

# %% [markdown]
# ### Exercise 3: who may see whom
#
# *Medium, 10 minutes.* Write `masked_attention(q, k, v, seen)`: attention in which a query counts only the keys that
# it may see. `seen` (batch, queries, keys) is True where it may. A query that may see no key at all gets zeros.
#
# <details><summary>Hint 1</summary><code>scores.masked_fill(~seen, -torch.inf)</code>: minus infinity is the score
# whose weight is zero.</details>
# <details><summary>Hint 2</summary>A row of nothing but minus infinity becomes NaN. Set the weights of hidden keys to
# zero once more, behind the softmax: <code>masked_fill(~seen, 0)</code> replaces NaN as well.</details>
# <details><summary>Solution</summary>
#
# ```python
# def masked_attention(q, k, v, seen):
#     scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
#     attn = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
#     return attn.masked_fill(~seen, 0) @ v
# ```
#
# </details>


# %% tags=["exercise"]
def masked_attention(q, k, v, seen):
    return torch.zeros(*q.shape[:-1], v.shape[-1])  # your code here


# %%
labkit.check.masked_attention(masked_attention)

# %% [markdown]
# ### Exercise 4: fewer heads of keys than of queries
#
# *Medium, 10 minutes.* Grouped-query attention shares each head of keys and values among neighbouring query heads.
# Write `grouped_attention(q, k, v)`: q is (b, heads, n, d), k and v have fewer heads. With 8 and 2, query heads 0 to
# 3 use head 0 of k and v, and 4 to 7 use head 1.
#
# <details><summary>Hint 1</summary>Repeat each head of k and v, next to itself, until there are as many as query
# heads.</details>
# <details><summary>Hint 2</summary><code>repeat_interleave(4, dim=1)</code> gives 0 0 0 0 1 1 1 1;
# <code>repeat</code> gives 0 1 0 1 0 1 0 1.</details>
# <details><summary>Solution</summary>
#
# ```python
# def grouped_attention(q, k, v):
#     k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
#     return F.scaled_dot_product_attention(q, k, v)
# ```
#
# </details>


# %% tags=["exercise"]
def grouped_attention(q, k, v):
    return torch.zeros_like(q)  # your code here


# %%
labkit.check.grouped_attention(grouped_attention)

# %% [markdown]
# ### Exercise 5: join two halves
#
# *Hard, 20 minutes.* Two machines have each seen a part of the keys. Each sends its m, l and acc. Write
# `join_states(first, second)`: two states `(m, l, acc)` → the output over all keys.
#
# <details><summary>Hint 1</summary>Bring both to the larger of the two maxima, then add.</details>
# <details><summary>Hint 2</summary>A state against the maximum m becomes one against M when l and acc are multiplied
# by e^(m - M).</details>
# <details><summary>Solution</summary>
#
# ```python
# def join_states(first, second):
#     top = torch.maximum(first[0], second[0])
#     a, b = ((m - top).exp() for m in (first[0], second[0]))
#     return (a * first[2] + b * second[2]) / (a * first[1] + b * second[1])
# ```
#
# That is how long sequences are shared between GPUs.
#
# </details>


# %% tags=["exercise"]
def join_states(first, second):
    return torch.zeros_like(first[2])  # your code here


# %%
labkit.check.join_states(join_states)

# %% [markdown]
# ## Papers

# %%
for paper in ("S207",):
    print(labkit.papers.cite(paper))
for title in (
    '"Attention Is All You Need", 2017',
    '"Online normalizer calculation for softmax", 2018',
    '"FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022',
    '"A non-local algorithm for image denoising", 2005',
):
    print(title)

# %% [markdown]
# ## Next
#
# You have tokens that talk. Where do tokens come from? [02 Images to tokens](02_images_to_tokens.ipynb)
