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
# # 06 Cheaper attention
#
# **By the end you will have seen sixty ways to mix tokens as one kind of picture, know the ways to cut n² and what each
# gives up, and read a tournament without being fooled by it.**
#
# *Needs:* [01 Attention](01_attention.ipynb). · *Time:* 60 minutes; the cells take one. · *Device:* any computer; no GPU and
# no network.

# %% tags=["parameters"]
seed = 0  # which test images are drawn, and every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # the trained model whose attention is approximated
layer = 2  # the block that it is done in
fast = False  # True: fewer images, fewer variants of the gallery, shorter training

# %%
import math

import torch
from matplotlib.figure import Figure
from torch import nn

import labkit
from labkit import data
from labkit.attention import dense, gallery, gated, lowrank, multires, optics, sparsifier, windows
from labkit.attention.linear import linear_attention
from labkit.attention.matrix import effective_matrix, measures, receptive_field
from labkit.attention.relation import RelationAggregator
from labkit.intervals import wilson
from labkit.train import Recipe, epochs, train
from labkit.verify import hits
from labkit.viz import figures
from labkit.viz.mixer_dial import MixerDial, made

place = labkit.setup(seed, device)
dice = torch.Generator().manual_seed(seed)
net = labkit.load(model).to(place)
test = data.shapes("test", 24 if fast else 60, seed=seed).to(place)
attn = net.blocks[layer].attn
with torch.no_grad():
    x, grid = net.embed(test.images)
    for block in net.blocks[:layer]:
        x = block(x, grid, None, net.prefix).x
    x = net.blocks[layer].norm1(x)[:, net.prefix :]  # the patches alone, as every mixer here expects them
n, d, heads = grid[0] * grid[1], x.shape[-1], attn.heads


def largest(a, b):
    """The largest absolute difference between two tensors."""
    return (a - b).abs().max().item()


# %% [markdown]
# ## 1. One picture for all
#
# Attention is a matrix: row i says how much of every token's value reaches token i. Every method of this lesson promises to
# avoid that matrix, and every one that is linear in its values *is* a matrix nevertheless. To see it, push a one
# through, token by token:

# %%
labkit.show(effective_matrix)

# %% [markdown]
# > **Predict.** What will you see for attention inside windows? For attention along rows, then columns? For heads that look at
# > a place instead of a content? And what for *linear attention*, which never computes a score?

# %%
names = ("multi-head", "window", "axial", "multiresolution", "linear, relu", "gated positional")
seen, mixers = {}, {name: made(name, attn, grid) for name in names}
for name, mixer in mixers.items():
    seen[name] = effective_matrix(mixer, x[:1], grid)
    q, k, v = (t.detach() for t in mixer.project(x[:1], grid))
    assert largest(seen[name] @ v, mixer.mix(q, k, v, grid)) < 1e-3
labkit.figure(
    figures.matrices([seen[name][0].mean(dim=0) for name in names], names, "share of the value"),
    alt="The matrices of six mixers on the same trained queries and keys, mean over heads: dense, blocks along the diagonal "
    "for windows, a weave for axial, squares and fine grain for multiresolution, smooth for linear attention, bands beside the diagonal for places.",
)
print("Matrix times values is what the code gives, for all of them: the picture is the mixer.")

# %%
rows = []
for name in names:
    m = measures(seen[name], seen["multi-head"], grid)
    rows.append([name, m.row_sum, f"{m.support:.0%}", m.rank, m.reach, m.error])
labkit.table(rows, headers=["", "rows sum to", "not zero", "directions", "reach, cells", "away from dense"], digits=2)

# %% [markdown]
# *Directions* is the rank, counted softly: how many different things a token can be told. *Reach* is the mean distance of
# the tokens that meet. The trained projections are the same in all rows but where a mixer has none of that shape.
#
# ### The gallery
#
# Choose any of them: its matrix, what moves the token in the middle (the Jacobian, which exists for every mixer), its cost
# over the number of tokens, and, with a running kernel, its papers and its source.

# %%
everything = [variant.name for variant in gallery.VARIANTS]
dial = MixerDial(x[:1], grid, attn, everything, first="window")
dial

# %%
dial.mixer = "channels"
print(dial.state())

# %%
families = {family: [each.name for each in gallery.VARIANTS if each.family == family] for family in gallery.FAMILIES}
labkit.table(
    [[family, what, len(families[family]), families[family][0]] for family, what in gallery.FAMILIES.items()],
    headers=["family", "what it mixes by", "mixers", "for example"],
)

# %% [markdown]
# Look at *channels* (attention between channels, "Restormer", 2021): its matrix is the diagonal, no token's value goes anywhere
# else. But its receptive field is everywhere, because the *weights* are computed from all tokens. A picture
# shows one thing, never all.

# %%
crossed = made("channels", attn, grid)
straight = effective_matrix(crossed, x[:1], grid)[0].mean(dim=0)
field = receptive_field(crossed, x[:1], grid, slice(0, 1))[0]
assert largest(straight, torch.eye(n, device=place)) < 1e-4 and (field > 0).all()
print("Between channels: the matrix is the identity, and yet every token moves every other.")

# %% [markdown]
# ## 2. Four ways to cut n²
#
# **Fewer pairs** (windows, neighbours, routed): most entries are zero. **Fewer keys** (pooled, Linformer, Nyström): the matrix is thin
# in the middle. **A kernel** (linear): the product is written the other way round, (φq φkᵀ) v = φq (φkᵀ v). **Coarse and fine**
# (multiresolution): far blocks as their mean. Each has a dial with an end at which it *is* plain attention.

# %%
labkit.show(linear_attention)

# %% [markdown]
# > **Predict.** Which end of each dial is exact: a window of which size, which share of links, how many landmarks, how many blocks
# > refined? Is there such an end for linear attention?

# %%
q, k, v = (t.detach() for t in attn.project(x))
oracle = dense.scaled_dot_product(q, k, v)
exact = {
    "a window as large as the grid": windows.window_attention(q, k, v, grid, grid),
    "all links kept": sparsifier.sparse_attention(q, k, v, sparsifier.connectivity_predictor(q, k, 1, 1, 1.0)),
    "every token a landmark": lowrank.nystrom_attention(q, k, v, n, iterations=20),
    "every block refined": multires.mra_attention(q, k, v, 4, (n // 4) ** 2),
    "keys summed up one by one": lowrank.linformer_attention(q, k, v, *[torch.eye(n, device=place)] * 2),
}
for name, found in exact.items():
    assert largest(found, oracle) < 2e-2 * oracle.abs().max(), name
    print(f"{name}: plain attention.")

# %% [markdown]
# Linear attention has no such end with a fixed kernel: it is another function. (*Random features* come near the softmax
# with many features: "Rethinking Attention with Performers", 2020, and "On Learning the Transformer Kernel", 2021.)
#
# ### What does each lose on the way?
#
# The queries, keys and values of a trained block, and each dial turned from exact to cheap. The error is that of the output,
# relative to its size. The control keeps random pairs; a method must beat it to have understood anything.
#
# > **Predict.** Four methods and a control, at a quarter of the pairs. Is a window much better than random pairs?

# %%
labkit.predict(
    "06 a quarter",
    "At a quarter of the pairs, which loses least?",
    options=["window", "best links", "coarse and fine", "landmarks", "random pairs (control)"],
)


# %%
def loss(found):
    return ((found - oracle).norm() / oracle.norm()).item()


links = lambda keep: sparsifier.connectivity_predictor(q, k, 1, 1, keep)  # noqa: E731
by_chance = lambda keep: torch.rand(n, n, generator=dice).to(place).argsort(dim=-1) < math.ceil(keep * n)  # noqa: E731
halves, blocks = (1.0, 0.5, 0.25, 0.125, 0.0625), (n // 4) ** 2
curves = {
    "window": [(w * w / n, loss(windows.window_attention(q, k, v, grid, w))) for w in (8, 4, 2)],
    "best links": [(keep, loss(sparsifier.sparse_attention(q, k, v, links(keep)))) for keep in halves],
    "coarse and fine": [
        (keep, loss(multires.mra_attention(q, k, v, 4, int(keep * blocks)))) for keep in (*halves, 0.0)
    ],
    "landmarks": [(m / n, loss(lowrank.nystrom_attention(q, k, v, m))) for m in (64, 32, 16, 8, 4)],
    "random pairs (control)": [(keep, loss(sparsifier.sparse_attention(q, k, v, by_chance(keep)))) for keep in halves],
}
fig = Figure(figsize=(7.4, 3.0), layout="constrained")
ax = fig.subplots()
for (name, points), mark in zip(curves.items(), "osD^x", strict=True):
    ax.plot(*zip(*points, strict=True), marker=mark, label=name, linestyle=":" if "control" in name else "-")
ax.set(xlabel="share of the pairs (landmarks: of the keys)", ylabel="error of the output", ylim=(-0.03, None))
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
at_quarter = {name: dict(points)[0.25] for name, points in curves.items()}
labkit.figure(
    fig,
    alt="Error of the output over the share of pairs; at a quarter: "
    + ", ".join(f"{name} {error:.2f}" for name, error in at_quarter.items())
    + ".",
)

# %%
assert at_quarter["best links"] == min(at_quarter.values())
assert at_quarter["best links"] < 0.5 * at_quarter["random pairs (control)"]
assert at_quarter["window"] > 0.8 * at_quarter["random pairs (control)"]
best = sorted(at_quarter, key=at_quarter.get)
print(f"At a quarter, least loss first: {', '.join(best)}.")

# %%
labkit.reveal("06 a quarter", best[0])

# %% [markdown]
# The best links of each query win, and they are a cheat: to find them, *all* scores were computed. A window loses nearly
# as much as random pairs, since this block looks far (see its *reach* above). The best links are the bound that a cheap
# predictor ("Sparsifiner", 2023), a coarse map or a region's mean tries to reach.
#
# ### The law, and where lines cross
#
# Softmax attention pays 2 n² d for its pairs, linear attention in h heads 2 n d²/h.
#
# > **Predict.** At few tokens softmax attention is cheaper, at many linear attention. And on the clock, against the fused
# > kernel: is it the same number of tokens?

# %%
labkit.predict(
    "06 crossing",
    "d = 64 in 4 heads. From how many tokens on does linear attention have no more multiply-accumulates?",
    number=64,
    unit="tokens",
)

# %%
sides = (4, 8, 16, 32, 64)
chosen = ("multi-head", "window", "axial", "spatial reduction", "linear, relu", "random features", "channels")
fig = Figure(figsize=(7.4, 3.0), layout="constrained")
ax = fig.subplots()
alike = {}  # who costs the same everywhere shares a line
for name in chosen:
    macs = tuple(gallery.variant(name).cost((side, side), 64, 4).macs / 1e6 for side in sides)
    alike.setdefault(macs, []).append(name)
for (macs, who), mark in zip(alike.items(), "osD^vP*", strict=False):
    ax.plot([side * side for side in sides], macs, marker=mark, label="\n".join(who))
ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="million MACs")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
labkit.figure(
    fig,
    alt="Multiply-accumulates over tokens for seven mixers: plain attention bends upwards, the others less. The same at any number of tokens: "
    + ". And: ".join("; ".join(who) for who in alike.values() if len(who) > 1)
    + ".",
)
soft, line = (gallery.variant(name) for name in ("multi-head", "linear, relu"))
crossing = next(m for m in range(1, 400) if line.cost((1, m), 64, 4).macs <= soft.cost((1, m), 64, 4).macs)
assert crossing == 64 // 4
print(f"Linear attention in 4 heads of 16 is no dearer from {crossing} tokens on: the width of a head.")

# %%
labkit.reveal("06 crossing", crossing)

# %% [markdown]
# The lines cross at n = d/h, the width of one head. That was the law. The clock was asked for every mixer of the gallery
# in its fastest form, against torch's fused kernel, in turns. Of each family, the fastest at the most tokens:

# %% tags=["nbval-ignore-output"]
stored = labkit.results.load("bench-attention-time")
tokens = stored["tokens"]
sizes = sorted(tokens, key=int)
last = sizes[-1]
fastest = {
    family: min((name for name in members if name in tokens[last]), key=lambda name: tokens[last][name]["seconds"])
    for family, members in families.items()
}
labkit.table(
    [
        [family, name, *(f"{tokens[m][name]['ratio'][0]:.2f}" for m in sizes), tokens[last][name]["peak"] / 1e6]
        for family, name in sorted(fastest.items(), key=lambda pair: tokens[last][pair[1]]["seconds"])
    ],
    headers=["times the fused kernel", "fastest", *(f"{m} tokens" for m in sizes), f"MB at {last}"],
    digits=0,
)

# %% tags=["nbval-ignore-output"]
print(stored.caption())
kinds = [variant.name for variant in gallery.VARIANTS if variant.family == "linear"]
for m in sizes:
    slower = [name for name in kinds if tokens[m][name]["ratio"][1] > 1]
    print(
        f"{m} tokens: {len(slower)} of {len(kinds)} linear mixers are slower than fused softmax attention, beyond doubt."
    )

# %% [markdown]
# So read a claim of *linear time* with a number of tokens in mind. A ViT at 224 pixels has 197; there, most of what is linear
# on paper is not faster on this machine. (Written in torch, by us: a fused kernel would move the crossing, not the law.)
#
# ## 3. Attention and convolution are each other's limits
#
# A convolution also mixes tokens with weights; its weights know only the *step* between two tokens. Written as a matrix,
# every diagonal holds one number ("UniFormer", 2022). And attention can learn it: give each head one step to look at
# ("ConViT", 2021).
#
# > **Predict.** What do you see when the heads' positions are made sharper and sharper?

# %%
labkit.predict("06 heads", "How many heads does attention need to be a 3 × 3 convolution?", number=4, unit="heads")

# %%
local = RelationAggregator(64, 4, "local", k=3).to(place)
tokens_in = torch.randn(1, n, 64, generator=dice).to(place)
with torch.no_grad():
    band = effective_matrix(local, tokens_in, grid)[0].mean(dim=0)
    inner = [row * grid[1] + column for row in range(1, grid[0] - 1) for column in range(1, grid[1] - 1)]
    assert all(int((band[i].abs() > 1e-9).sum()) == 9 for i in inner)
    strengths, local_maps = (0.1, 0.5, 2.0, 20.0), []
    for strength in strengths:
        taps = gated.GatedPositionalSelfAttention(63, 9, locality_strength=strength).pos_proj.weight.to(place)
        local_maps.append(gated.position_attention(taps, grid))
    middle = (grid[0] // 2) * grid[1] + grid[1] // 2
spread = [gated.non_locality(maps, grid).mean().item() for maps in local_maps]
sharp = local_maps[-1][:, middle]
assert sorted(spread, reverse=True) == spread and (sharp.amax(dim=-1) > 0.99).all()
assert len(set(sharp.argmax(dim=-1).tolist())) == 9
labkit.figure(
    figures.matrices(
        [band / band.abs().max(), *(maps[:, middle].amax(dim=0).reshape(grid) for maps in local_maps)],
        ["a convolution\n(largest is 1)", *(f"9 heads,\nstrength {strength:g}" for strength in strengths)],
        "weight",
    ),
    alt="A 3 x 3 convolution as a banded matrix; and where nine heads look from the middle token, at four strengths of locality: "
    "everywhere, near, and at the end at nine neighbouring cells, one each.",
)
print("At the strongest, each of the nine heads looks at one cell of the 3 x 3: a convolution, with v as its weights.")

# %%
labkit.reveal("06 heads", len(set(sharp.argmax(dim=-1).tolist())))

# %% [markdown]
# Even the linear layers can be convolutions: a token of h·w numbers is a small picture, and a kernel as large as the
# picture reads it in one step. Lenses compute such convolutions with light ("ConvShareViT", 2025).

# %%
labkit.show(optics.linear_as_valid_conv)

# %%
with torch.no_grad():
    layer_q, token = nn.Linear(64, 5), torch.randn(3, 64, generator=dice)
    through_lens = optics.linear_as_valid_conv(layer_q, 8, 8)(token.reshape(3, 1, 8, 8)).flatten(1)
    assert largest(through_lens, layer_q(token)) < 1e-5
print("A linear layer and a convolution whose kernel is the whole picture: the same numbers.")

# %% [markdown]
# Between attention and convolution lies a gate, one per head, and training moves it. "TiC" (2023) goes the other way and computes attention in
# a convolution's window. What is a difference of *kind* in a textbook is a dial here.
#
# ## 4. A short race, live
#
# Same skeleton, the same images; only the mixer differs. Three of them for a few seconds, on silhouettes of 32 × 32 pixels in
# noise, cut into 16 patches.
#
# > **Predict.** After a short training: multi-head, a depthwise convolution, and *no mixing at all*. Who leads, and by how
# > much?

# %% tags=["nbval-ignore-output"]
steps = 30 if fast else 100
scenes = {part: data.shapes(part, size, 32, difficulty=0.0) for part, size in (("train", 64 * steps), ("test", 200))}
for part, scene in scenes.items():
    noise = 0.1 * torch.randn(scene.masks.shape, generator=dice)
    silhouettes = (2.0 * scene.masks - 1 + noise)[:, None].expand(-1, 3, -1, -1)
    scenes[part] = data.ImageSet(silhouettes.contiguous(), scene.labels, scene.masks, scene.names)


def race(name):
    """Train a fresh small ViT with this mixer, on the CPU, so that all see one race; which test images it gets right."""
    torch.manual_seed(seed)
    small = labkit.ViT(32, 8, 10, 64, 2, 4, pool="avg")
    for block in small.blocks:
        block.attn = gallery.variant(name).make(64, 4, (4, 4))
    train(small, epochs(scenes["train"], 64, seed), Recipe(steps, "muon", lr=0.02, weight_decay=0.01, seed=seed))
    return hits(small.eval(), scenes["test"])


live = {name: race(name) for name in ("multi-head", "depthwise", "identity")}
labkit.table(
    [
        [name, f"{right.double().mean():.0%}", "{:.0%} to {:.0%}".format(*wilson(int(right.sum()), len(right)))]
        for name, right in live.items()
    ],
    headers=[f"after {64 * steps:,} images", "right", "95 % interval"],
)

# %% [markdown]
# One seed, a few seconds of training: intervals of this width order nobody. The next round is longer.
#
# ## 5. The result: a tournament, and what it does not show
#
# The same race three times as long, with 64 patches, three seeds and 25 mixers, five of which are controls that are no attention
# at all (no mixing, fixed random mixing, the mean of the neighbours, a depthwise convolution, a Fourier transform). MLPs
# are widened or narrowed until all have the same number of parameters.
#
# > **Predict.** Attention stands at the centre of this course. Does it lead here? Commit before you look.

# %%
labkit.predict(
    "06 controls",
    "How many of the five controls have a worst seed that beats the best seed of multi-head attention?",
    number=0,
    unit="controls",
)

# %% tags=["nbval-ignore-output"]
cup = labkit.results.load("bench-attention")
players, seconds = cup["runs"], stored["players"]


def shares(row):
    return [run["right"]["32"] / cup["setting"]["test_images"] for run in players[row].values()]


ranking = sorted(players, key=lambda row: -sum(shares(row)) / len(shares(row)))
labkit.table(
    [
        [
            row,
            f"{100 * sum(shares(row)) / len(shares(row)):.1f}",
            f"{100 * min(shares(row)):.1f} to {100 * max(shares(row)):.1f}",
            f"{next(iter(players[row].values()))['macs'] / 1e6:.1f}",
            f"{seconds[row]['ratio'][0]:.2f}",
        ]
        for row in ranking
    ],
    headers=["mixer", "right, %", "seeds from, to", "million MACs", "time, multi-head is 1"],
)

# %% tags=["nbval-ignore-output"]
print(cup.caption())

# %%
controls = ("identity", "random matrix", "average pooling", "depthwise", "Fourier")
middle_of = {row: sum(shares(row)) / len(shares(row)) for row in players}
beating = sorted(c for c in controls if min(shares(c)) > max(shares("multi-head")))
assert len(players) >= 16 and all(len(runs) >= 3 for runs in players.values())
assert middle_of["multi-head"] > middle_of["identity"] + 0.1
by_step = ("cross-shaped", "slots", "linear, relu + conv", "gated positional", "depthwise")
assert min(min(shares(row)) for row in by_step) > max(shares("multi-head"))
assert max(shares("windows")) < min(shares("multi-head"))
print(f"Every seed above every seed of multi-head attention: {', '.join(by_step)}.")
print(f"Controls whose worst seed beats the best of multi-head attention: {', '.join(beating) or 'none'}.")

# %%
labkit.reveal("06 controls", len(beating), within=0)

# %% tags=["nbval-ignore-output"]
fig = Figure(figsize=(8.4, 4.2), layout="constrained")
ax = fig.subplots()
named = {"multi-head": (5, 4), "slots": (-26, -12), "linear, relu + conv": (4, -12), "cross-shaped": (5, 2)}
named |= {
    "axial": (5, 2),
    "neighbourhood": (-70, 6),
    "windows": (5, 2),
    "retention": (5, 2),
    "gated positional": (5, 2),
}
named |= {row: (5, 2) for row in controls} | {"average pooling": (-86, 4), "depthwise": (-56, 2)}
for row in players:
    taken, wrong = seconds[row]["ratio"][0], [max(100 * (1 - share), 0.1) for share in shares(row)]
    mid = max(100 * (1 - middle_of[row]), 0.1)
    color = "#D55E00" if row in controls else "#0072B2"
    ax.errorbar(taken, mid, [[mid - min(wrong)], [max(wrong) - mid]], fmt="o", color=color, capsize=2, markersize=5)
    if row in named:
        ax.annotate(row, (taken, mid), xytext=named[row], textcoords="offset points", fontsize=8)
ax.set(xscale="log", yscale="log", xlabel="time of the whole model, multi-head is 1", ylabel="wrong answers (%)")
ax.set_xticks([0.7, 1, 1.5, 2, 3], ["0.7", "1", "1.5", "2", "3"])
ax.set_yticks([0.1, 1, 10], ["0.1 or none", "1", "10"])
ax.minorticks_off()
ax.invert_yaxis()
labkit.figure(
    fig,
    alt="Wrong answers over time for every mixer (up is better), controls in orange; bars span the seeds. Best: "
    + ", ".join(ranking[:3])
    + "; worst: "
    + ", ".join(ranking[-2:])
    + ".",
)

# %% [markdown]
# What it shows: the rows in front have, somewhere in them, learned weights that depend on the *step* between two tokens: a
# convolution beside the attention or on its values, a gate to places, or nothing but a convolution. Only saying who may meet
# whom does not help: windows lie below plain attention. And two of the controls beat it. What it does **not** show:
#
# - **That attention is worse.** The budget is short and the data small and planar: exactly where a bias that is right saves
#   learning. "An image is worth 16 x 16 words" (2020) needed hundreds of millions of images to make the opposite point.
# - **A ranking.** Rows whose seeds overlap are not ordered; with three seeds most neighbours overlap.
# - **Other tasks.** Nothing here asks about two objects far apart. A mixer that sees 3 × 3 cells twice could not answer.
# - **Tuned methods.** All have one learning rate and their default dials.
#
# ## Limits
#
# - **Small.** Two blocks, 64 tokens, width 64; times on a CPU, written in torch.
# - **The gallery shows untrained mixers** with borrowed projections: what they *can* connect, not what they would learn.
# - **The matrix is the mean over heads** (and over channels, where a convolution on the values differs between them).
# - **Approximating a trained block** is harder than training with the approximation; section 2 measures the former.

# %% [markdown]
# ## Exercises
#
# The stubs run as they are. The line behind each stub says whether your function is right; if it is not, `labkit.check`
# names the mistake, or shows the smallest case that fails. `labkit.check.same_window.hint(1)` gives the first hint.
#
# ### Exercise 1: who shares a window?
#
# *Easy, 10 minutes.* Write `same_window(h, w, size)`: an (h w, h w) boolean matrix, True where two tokens lie in the same
# window of size × size. Tokens are counted row by row; where the grid does not divide, the last windows are smaller.
#
# <details><summary>Hint 1</summary>The window of the token in row r and column c is (r // size, c // size).</details>
# <details><summary>Hint 2</summary>Give each window one number, and compare all tokens' numbers with
# <code>numbers[:, None] == numbers[None]</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def same_window(h, w, size):
#     row, column = torch.arange(h * w) // w, torch.arange(h * w) % w
#     number = (row // size) * w + column // size
#     return number[:, None] == number[None]
# ```
#
# </details>


# %% tags=["exercise"]
def same_window(h, w, size):
    # your code here
    return torch.zeros(h * w, h * w, dtype=torch.bool)


# %%
labkit.check.same_window(same_window)

# %% [markdown]
# ### Exercise 2: which one is cheapest?
#
# *Easy, 10 minutes.* Write `cheapest_mixer(h, w, s)`. On an h × w grid of n tokens, plain attention pays 2 n² d for its
# pairs, axial attention (rows, then columns) 2 n (h + w) d, and windows of s × s pay 2 n s² d, where a window that is
# larger than the grid ends at its border. Return "plain", "axial" or "window": the cheapest, and where two are equal the
# one that is named first here.
#
# <details><summary>Hint 1</summary>n = h w. Divide all three by 2 n d.</details>
# <details><summary>Hint 2</summary>Compare h w, h + w and s²; a window is never larger than the grid.</details>
# <details><summary>Solution</summary>
#
# ```python
# def cheapest_mixer(h, w, s):
#     costs = {"plain": h * w, "axial": h + w, "window": min(s, h) * min(s, w)}
#     return min(costs, key=costs.get)
# ```
#
# </details>


# %% tags=["exercise"]
def cheapest_mixer(h, w, s):
    # your code here
    return ""


# %%
labkit.check.cheapest_mixer(cheapest_mixer)

# %% [markdown]
# ### Exercise 3: the other way round
#
# *Medium, 15 minutes.* Write `feature_attention(a, b, v)` for positive features a of the queries, (queries, f), b of the
# keys, (keys, f), and values v, (keys, d): the rows of a bᵀ, each divided by its sum, times v, without ever making a
# matrix of queries × keys.
#
# <details><summary>Hint 1</summary>(a bᵀ) v = a (bᵀ v).</details>
# <details><summary>Hint 2</summary>The sum of row i of a bᵀ is a[i] times the sum of all keys' features.</details>
# <details><summary>Solution</summary>
#
# ```python
# def feature_attention(a, b, v):
#     return a @ (b.T @ v) / (a @ b.sum(dim=0))[:, None]
# ```
#
# </details>


# %% tags=["exercise"]
def feature_attention(a, b, v):
    # your code here
    return torch.zeros(a.shape[0], v.shape[1])


# %%
labkit.check.feature_attention(feature_attention)

# %% [markdown]
# ### Exercise 4: how many blocks until everybody has met?
#
# *Medium, 15 minutes.* Write `blocks_until_met(supports)`. `supports` is a list of boolean (n, n) matrices, one for each
# block: row i is True where token i hears token j. After how many blocks can every token have heard of every token,
# directly or through others? Return 0 if that never happens. A token keeps what it has heard: the residual.
#
# <details><summary>Hint 1</summary>Two blocks behind each other are the product of their matrices, the later one on the
# left.</details>
# <details><summary>Hint 2</summary>Multiply them as floats and ask where the product is above zero. Every token also hears
# itself: the residual.</details>
# <details><summary>Solution</summary>
#
# ```python
# def blocks_until_met(supports):
#     reach = torch.eye(len(supports[0]))
#     for count, support in enumerate(supports, start=1):
#         reach = (support.float() + torch.eye(len(support))) @ reach
#         if (reach > 0).all():
#             return count
#     return 0
# ```
#
# </details>


# %% tags=["exercise"]
def blocks_until_met(supports):
    # your code here
    return None


# %%
labkit.check.blocks_until_met(blocks_until_met)

# %% [markdown]
# ### Exercise 5: a convolution as a matrix
#
# *Hard, 20 minutes.* Write `convolution_matrix(kernel, h, w)`: the (h w, h w) matrix by which a k × k convolution (k is
# odd) mixes the tokens of an h × w grid, counted row by row. The middle of the kernel lies on the query, as in torch the
# kernel is not turned round, and what lies outside the grid counts as zero.
#
# <details><summary>Hint 1</summary>The query at (r, c) reads the key at (r + i - k // 2, c + j - k // 2) with the weight
# <code>kernel[i, j]</code>.</details>
# <details><summary>Hint 2</summary>Four loops are fine: over r, c, i, j. Leave out keys outside the grid; token (r, c)
# has the number r w + c.</details>
# <details><summary>Solution</summary>
#
# ```python
# def convolution_matrix(kernel, h, w):
#     matrix, half = torch.zeros(h * w, h * w), len(kernel) // 2
#     for r in range(h):
#         for c in range(w):
#             for i in range(len(kernel)):
#                 for j in range(len(kernel)):
#                     y, x = r + i - half, c + j - half
#                     if 0 <= y < h and 0 <= x < w:
#                         matrix[r * w + c, y * w + x] = kernel[i, j]
#     return matrix
# ```
#
# </details>


# %% tags=["exercise"]
def convolution_matrix(kernel, h, w):
    # your code here
    return torch.zeros(h * w, h * w)


# %%
labkit.check.convolution_matrix(convolution_matrix)

# %% [markdown]
# ## Papers

# %%
cited = sorted({paper for variant in gallery.VARIANTS for paper in variant.papers})
for paper in cited:
    print(labkit.papers.cite(paper))

# %% [markdown]
# ## Next
#
# So far every token went on to the next block. It need not: [07 Token pruning](07_token_pruning.ipynb) drops those that are not needed.
