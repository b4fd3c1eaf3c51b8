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
# # 08 Say it once
#
# **By the end you will have merged equal tokens without changing an answer, seen who is merged with whom and what a wrong
# pair costs, given merged tokens back to a segmentation, and held accuracy against milliseconds.**
#
# *Needs:* [04 Build a ViT](04_build_a_vit.ipynb): keys, softmax, the class token; [07 Token pruning](07_token_pruning.ipynb)
# helps. · *Time:* 60 minutes; the cells take less than one. · *Device:* any computer; no GPU and no network.

# %% tags=["parameters"]
seed = 0  # which images are drawn, and every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # the trained model whose tokens are merged
layer = 1  # the block in which most experiments merge, counted from 0
r = 28  # how many of the 64 patches are merged away there
fast = False  # True: fewer images, fewer throws of the dice

# %%
import copy
import io
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

import labkit
from labkit import clock, data, tokens
from labkit.evidence import provenance
from labkit.intervals import paired_difference, wilson
from labkit.layers import log_sizes
from labkit.operations import operations
from labkit.token_labels import coverage
from labkit.tokens import Cluster, Keep, MaxPool, Merge, MergeByCriteria, MergeByEnergy, Shrink
from labkit.tokens.cluster import dpc_knn, k_medoids, spacing
from labkit.tokens.criteria import multi_criteria_matching, pair_weights
from labkit.tokens.energy import energy_score
from labkit.tokens.merge import bipartite, propose
from labkit.tokens.pyra import PYRA
from labkit.tokens.rates import attach_rates, learned_schedule, rate_loss
from labkit.tokens.recall import object_recall
from labkit.tokens.schedule import attach_schedule, constant, decreasing, model_macs, to_macs, tokens_after
from labkit.tokens.slim import TokenSlimming
from labkit.tokens.squeeze import squeeze
from labkit.tokens.vip import VIPCompress
from labkit.train import Recipe, epochs, train
from labkit.verify import hits
from labkit.viz import charts, strips
from labkit.viz.paint import LINES, picture

place = labkit.setup(seed, device)
dice = torch.Generator().manual_seed(seed)
net = labkit.load(model).to(place).requires_grad_(False)
if not net.prefix:
    raise labkit.errors.LabkitError(
        f"{model} has no class token, and this lesson asks where it looks; take shapes-vit."
    )
test = data.shapes("test", 100 if fast else 200, seed=seed).to(place)
inside = coverage(test.masks, net.grid).cpu()  # the share of each patch that is object
n, early = inside.shape[1], range(len(net.blocks) - 1)  # in the last block nobody reads the patches


def right(slim, images=test):
    """The share of the images that the model names correctly."""
    return hits(slim, images, 50).float().mean().item()


def error(found, wanted):
    """How far logits are off, relative to their size."""
    return ((found - wanted).norm() / wanted.norm()).item()


def small(fig):
    """The figure in few colours, so that the saved lesson stays light."""
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", bbox_inches="tight")
    return Image.open(drawn).convert("RGB").quantize(128)


print(f"{n} patches, {len(net.blocks)} blocks; all tokens: {right(net):.1%} of {len(test)} test images right.")

# %% [markdown]
# ## 1. Twins are free
#
# If two tokens are equal, the second says nothing new. "Token Merging: Your ViT But Faster" (2022, ToMe) joins such pairs to
# their mean. But a softmax *counts*. Two equal keys with score s pay eˢ + eˢ into the sum; one of them alone pays eˢ. So the
# token has to say how many it stands for:
#
# $$2\,e^{s} = e^{s + \log 2}$$
#
# Adding the logarithm of the size to every score is called *proportional attention*. It is one line:

# %%
labkit.show(log_sizes)

# %% [markdown]
# To test it we need exact twins. So we double every second column of patches in real images, and take the positions away from
# the model: then two equal patches are two equal tokens, in every block.
#
# > **Predict.** 64 tokens, 32 pairs of twins. We merge 8, 16 or all 32 pairs in the first block. How far will the logits be
# > off with log s? And without it:

# %%
labkit.predict(
    "08 without log s",
    "Without log s, with how many merged pairs are the logits off most?",
    options=["all 32 pairs", "16 of 32 pairs", "8 of 32 pairs", "all alike"],
)


# %%
@dataclass
class Forget:
    """The same reducer, but nobody remembers how many patches a token stands for."""

    inner: Any

    def reduce(self, x, evidence, sizes, prefix):
        x, groups = self.inner.reduce(x, evidence, sizes, prefix)
        return x, replace(groups, joins=False)


bag = labkit.load(model).to(place).requires_grad_(False)
bag.pos_embed = None  # no token knows where it is
side = test.images.shape[-1] // net.grid[1]
columns = torch.arange(test.images.shape[-1]) // side
copied = (columns // 2 * 2) * side + torch.arange(test.images.shape[-1]) % side  # columns 0 0 2 2 4 4 6 6
doubled = test.images[:50, :, :, copied]
with torch.inference_mode():
    wanted, rows = bag(doubled), {}
    for pairs in (8, 16, 32):
        ways = {"with log s": Merge(pairs), "without": Forget(Merge(pairs)), "random pairs": Merge(pairs, dice)}
        rows[pairs] = {name: error(tokens.attach(bag, way, [0])(doubled), wanted) for name, way in ways.items()}
labkit.table(
    [[f"{pairs} of 32 pairs", *(f"{value:.3f}" for value in row.values())] for pairs, row in rows.items()],
    headers=["error of the logits", *rows[8]],
)

# %%
assert all(row["with log s"] <= 1e-5 for row in rows.values())
assert rows[16]["without"] > rows[32]["without"] > 1e-3
assert min(row["random pairs"] for row in rows.values()) > 0.05
with torch.inference_mode():
    nobody = error(tokens.attach(net, Merge(0), range(len(net.blocks)))(doubled), net(doubled))
assert nobody <= 1e-5
print("Merging 0 pairs is the plain model.")
print("With log s all three are equal to five digits: half of the tokens, and no answer changes.")

# %%
off = {pairs: row["without"] for pairs, row in rows.items()}
worst = max(off, key=off.get)
alike = max(off.values()) < 1.1 * min(off.values())
labkit.reveal("08 without log s", "all alike" if alike else "all 32 pairs" if worst == 32 else f"{worst} of 32 pairs")

# %% [markdown]
# Without log s the error is *largest in the middle*: when all patches are doubled, all are wronged alike, and only the class
# token is heard too loudly. When half are doubled, patches are heard unequally too.
#
# Real twins are rare. So let the second of each pair drift away: noise on every second column, more and more.
#
# > **Predict.** Does the error jump as soon as the twins differ, or does it grow from zero? Will log s still help?

# %%
drift = torch.randn(doubled.shape, generator=dice).to(place) * (columns % 2 == 1).to(place)
strengths = (0.0, 0.05, 0.1, 0.2, 0.4)
lines = {"with log s": [], "without": [], "random pairs (control)": []}
with torch.inference_mode():
    for strength in strengths:
        noisy = doubled + strength * drift
        wanted = bag(noisy)
        for way, line in zip((Merge(16), Forget(Merge(16)), Merge(16, dice)), lines.values(), strict=True):
            line.append(error(tokens.attach(bag, way, [0])(noisy), wanted))
fig = Figure(figsize=(6.6, 2.8), layout="constrained")
ax = fig.subplots()
for (name, line), mark in zip(lines.items(), "osx", strict=True):
    ax.plot(strengths, line, marker=mark, label=name, linestyle=":" if "control" in name else "-")
ax.set(
    xlabel="noise between the twins (standard deviation of a pixel)", ylabel="error of the logits", ylim=(-0.03, None)
)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
labkit.figure(
    small(fig),
    alt="Error of the logits over the noise between twins, 16 pairs merged: with log s it grows from "
    f"{lines['with log s'][0]:.2f} to {lines['with log s'][-1]:.2f}; without, it begins at {lines['without'][0]:.2f}; "
    f"random pairs lie near {lines['random pairs (control)'][0]:.2f}.",
)
assert lines["with log s"][0] < 1e-5 and lines["with log s"][1] < 0.5 * lines["random pairs (control)"][1]

# %% [markdown]
# Near twins are nearly free: there is no jump, and the best 16 of the pairs are taken. At the right end the two lines meet: when the pairs are
# wrong, counting them right does not help.
#
# Now the model as it is, with positions, on images as they are. No two tokens are equal any more.

# %%
for pairs in (8, 12):
    kept, forgot = (hits(tokens.attach(net, way, early), test) for way in (Merge(pairs), Forget(Merge(pairs))))
    gain, low, high = (100 * v for v in paired_difference(kept, forgot))
    print(
        f"{pairs} merged in each of {len(early)} blocks, {n - len(early) * pairs} patches left: {kept.float().mean():.1%} "
        f"with log s, {forgot.float().mean():.1%} without ({low:.1f} to {high:.1f} points)."
    )
assert gain > -2  # of 12 in each block; the interval above says how sure

# %% [markdown]
# ## 2. Who proposes to whom
#
# Comparing all pairs and finding the best matching is slow. ToMe's answer is *bipartite*: every second patch **proposes** to
# the one most like it among the others. The r best proposals are accepted, all at once.

# %%
labkit.show(propose)

# %%
labkit.show(bipartite)

# %% [markdown]
# Patches are counted row by row, and a row has 8. So the even patches are *every second column*, in the whole image.
#
# > **Predict.** We merge 28 of the 64 patches away. Only 32 may propose. What happens to a patch of the object in an even
# > column that is like no other? And in an odd column? How would you repair it?


# %%
@dataclass
class Watched:
    """The same reducer, and it writes down the tokens that came and how far each patch was moved."""

    inner: Any
    came: Any = None
    moved: list = field(default_factory=list)

    def reduce(self, x, evidence, sizes, prefix):
        new, groups = self.inner.reduce(x, evidence, sizes, prefix)
        self.came = x
        self.moved.append((x - tokens.unmerge(new, groups)).square().mean(dim=-1).sqrt()[:, prefix:])
        return new, groups


def edges(weights, amount, both_ways):
    """The accepted proposals (from, to) of the patches of one image, as two lists: from even ones, from odd ones."""
    there = amount // 2 if both_ways else amount
    source, target = propose(weights, there)
    gone = torch.zeros(1, weights.shape[1], dtype=torch.bool, device=weights.device).scatter(1, source, True)
    back, to = propose(weights.masked_fill(gone[..., None], -torch.inf).transpose(1, 2), amount - there)
    pairs = [(2 * source, 2 * target + 1), (2 * back + 1, 2 * to)]
    return [list(zip(a[0].tolist(), b[0].tolist(), strict=True)) for a, b in pairs]


image = int((inside[:12] >= 0.5).sum(dim=1).argmax())  # the largest object of the first twelve images
spy = Watched(MergeByCriteria(r, (1.0, 0.0, 0.0)))
with torch.inference_mode():
    tokens.attach(net, spy, [layer])(test.images[image : image + 1])
    weights = pair_weights(spy.came[:, net.prefix :], None, None, (1.0, 0.0, 0.0))  # by similarity alone

pixels, mask = picture(test.images[image]), test.masks[image].cpu().float().numpy()
centres = [((i % net.grid[1] + 0.5) * side - 0.5, (i // net.grid[1] + 0.5) * side - 0.5) for i in range(n)]
fig = Figure(figsize=(6.4, 6.8), layout="constrained")
axes, groups_of = fig.subplots(2, 2), {}
for both_ways, (ax, beside) in zip((False, True), axes, strict=True):
    name = "both ways" if both_ways else "one way"
    proposals = edges(weights, r, both_ways)
    home = multi_criteria_matching(weights, r, 0, both_ways).home[0].cpu()
    assert all(home[a] == home[b] for part in proposals for a, b in part)  # the picture is the code
    groups_of[name] = home
    ax.imshow(0.4 * pixels + 0.6)
    for part, color, style in zip(proposals, (LINES[0], LINES[4]), ("-", "--"), strict=True):
        for a, b in part:
            ax.plot(*zip(centres[a], centres[b], strict=True), color=color, linestyle=style, linewidth=1.6)
    for parity, face in ((0, "white"), (1, "black")):
        ax.scatter(*zip(*centres[parity::2], strict=True), s=20, c=face, edgecolors="black", linewidths=0.8, zorder=3)
    beside.imshow(strips.tokens_on(pixels, home.numpy(), net.grid))
    for panel, color in ((ax, "black"), (beside, "white")):
        panel.contour(mask, [0.5], colors=color, linewidths=1.8)
        panel.set(xlim=(-0.5, pixels.shape[1] - 0.5), ylim=(pixels.shape[0] - 0.5, -0.5))
        panel.set_axis_off()
    ax.set_title(f"{name}: who proposes to whom")
    beside.set_title(f"{name}: {len(home.unique())} tokens")
labkit.figure(
    small(fig),
    alt=f"An image of a {test.names[test.labels[image]]} with lines between patches that are merged, and the groups coloured "
    "beside it; a patch that stays alone shows the image. One way: white dots (even columns) propose to black ones, blue lines. "
    "Both ways: half of the proposals go back, orange dashes.",
)

# %%
in_object = inside[image] >= 0.5
for name, home in groups_of.items():
    alone = (torch.bincount(home)[home] == 1)[in_object].sum()
    print(f"{name}: {alone} of the {in_object.sum()} patches of the object stay alone.")

# %% [markdown]
# One way, 28 of the 32 even patches *must* go, like it or not, and an odd one never goes. So half of the object is nearly
# forced into whatever is least unlike it. The repair: let even patches send only half of the proposals, and odd ones the
# other half ("Multi-criteria Token Fusion", 2024). Each side then gives away only its best 14.
#
# ### The film
#
# Merging goes on from block to block. Each step of the film shows which patches share a token then; a token keeps its colour
# when it grows. Change the step, or the view.

# %%
both = (1.0, 0.0, 0.0)  # similarity alone, proposals both ways
merged = tokens.attach(net, MergeByCriteria(8, both), early)
film = labkit.Explorer(merged, test[:12], image=image, view="film")
film

# %%
film.step = len(net.blocks)
print(film.describe())

# %% [markdown]
# And beside the full model: where does the class token look, in the same block? (A merged token's attention is shared by its
# patches.)

# %%
beside = labkit.Explorer(
    net,
    test[:12],
    other=merged,
    titles=["all tokens", "merged"],
    view="compare",
    image=image,
    layer=len(net.blocks) - 1,
    query="class",
)
beside

# %%
beside.layer = 3
print(beside.describe())

# %% [markdown]
# ## 3. Which pairs?
#
# Many rules have been proposed. All of them now reduce the same 64 patches to 36, once, in the same block:
#
# - **similar keys**: ToMe as above, one way.
# - **energy** ("Spectrum-Preserving Token Merging", 2024): a token with many neighbours like itself has high energy; only
#   those merge. Whoever stands alone is protected.
# - **several criteria** ("Multi-criteria Token Fusion", 2024): alike, *and* little attended, *and* still small; both ways.
# - **clusters**: every patch goes to its nearest centre. Centres by *density peaks* (many near neighbours, far from anything
#   denser), by *k-medoids* (start at the peaks, then move each centre to the middle of its cluster), or *farthest first*: the
#   next centre is always the token farthest from all centres so far (an old idea: Gonzalez, 1985). The last is not in the
#   package, so you see how a method is added:


# %%
def farthest_first(distances, weights, count):
    """Centres (b, count): begin with the most central token, then always take the one that is farthest from all."""
    chosen = [distances.mean(dim=2).argmin(dim=1)]
    near = distances.gather(1, chosen[0][:, None, None].expand(-1, 1, distances.shape[2]))[:, 0]
    while len(chosen) < count:
        chosen.append(near.argmax(dim=1))
        row = distances.gather(1, chosen[-1][:, None, None].expand(-1, 1, distances.shape[2]))[:, 0]
        near = torch.minimum(near, row)
    return torch.stack(chosen, dim=1).sort(dim=1).values


labkit.show(energy_score)

# %% [markdown]
# The controls: **random pairs**, and a **lower resolution** (the 64 patch tokens shrunk to a grid of 6 × 6, by cosines of low
# frequency): nobody looks at the image there.
#
# > **Predict.** Put them in order, controls and all. And the two that choose centres in opposite ways:

# %%
labkit.predict(
    "08 crowds or loners",
    "Which centres name more images right: density peaks (the middles of crowds) or farthest first (the loners)?",
    options=["density peaks", "farthest first", "cannot be told apart"],
)


# %%
@torch.inference_mode()
def look(slim, spy=None):
    """What a reduced model says and knows of the test images: right answers, the object's recall, its last tokens."""
    answers, recalls, patches = [], [], []
    for i in range(0, len(test), 40):
        seen = slim.observe(test.images[i : i + 40])
        x = seen.steps[-1].x
        for step in reversed(seen.steps):  # undo what each block did to the tokens, the last one first
            x = x if step.how is None else tokens.unmerge(x, step.how)
        members = provenance(seen.maps, n, net.prefix, len(x)).cpu()
        answers.append(seen.logits.argmax(dim=1).cpu())
        recalls.append(object_recall(members, inside[i : i + 40] >= 0.5))
        patches.append(net.norm(x)[:, net.prefix :].half().cpu())  # half the memory
    found = {"right": torch.cat(answers) == test.labels.cpu(), "recall": torch.cat(recalls).nanmean().item()}
    return found | {"patches": torch.cat(patches), "moved": None if spy is None else torch.cat(spy.moved).cpu()}


def cut(reducer):
    """The model with this reducer in the one block, looked at."""
    spy = Watched(reducer)
    return look(tokens.attach(net, spy, [layer]), spy)


throws = 2 if fast else 5
shrunk = (round((n - r) ** 0.5),) * 2
found = {
    "full": look(net),
    "similar keys": cut(Merge(r)),
    "energy": cut(MergeByEnergy(r)),
    "several criteria": cut(MergeByCriteria(r)),
    "similar tokens, one way": cut(MergeByCriteria(r, both, both_ways=False)),
    "similar tokens, both ways": cut(MergeByCriteria(r, both)),
    "density peaks": cut(Cluster(n - r, dpc_knn)),
    "k-medoids": cut(Cluster(n - r, k_medoids)),
    "farthest first": cut(Cluster(n - r, farthest_first)),
    "lower resolution": cut(Shrink(net.grid, shrunk)),
}
chance = [cut(Merge(r, torch.Generator().manual_seed(100 * seed + number))) for number in range(throws)]
found["random pairs"] = chance[0]


# %%
def share(row):
    return row["right"].float().mean().item()


ranking = sorted(found, key=lambda name: -share(found[name]))
rows = []
for name in ranking:
    row, went = found[name], found[name]["moved"]
    low, high = wilson(int(row["right"].sum()), len(test))
    damage = [None] * 3 if went is None else [went.mean(), went[inside >= 0.5].mean(), went.amax(dim=1).mean()]
    rows.append(
        [
            name,
            f"{share(row):.0%}",
            f"{low:.0%} to {high:.0%}",
            f"{row['recall']:.0%}",
            *("-" if value is None else f"{value:.1f}" for value in damage),
        ]
    )
labkit.table(
    rows,
    headers=["64 to 36 patches", "right", "95 %", "object recalled", "a patch moved by", "of the object", "the worst"],
)

# %% [markdown]
# *Moved by* is the distance from a patch's own token to the one that now speaks for it (root mean square over the channels).
# *Object recalled*: the share of the object's patches in a token that is mostly object. Draw accuracy over the damage:

# %%
fig = Figure(figsize=(9.0, 3.3), layout="constrained")
axes = fig.subplots(1, 2, sharey=True)
offsets = {"several criteria": (7, -3), "farthest first": (-4, 8), "similar tokens, both ways": (-2, -14)}
offsets |= {"density peaks": (-68, -3), "energy": (-6, -14), "similar tokens, one way": (5, 5)}
offsets |= {"k-medoids": (7, 2), "random pairs": (7, -10), "lower resolution": (6, -3)}
words = {"similar tokens, both ways": "both ways", "similar tokens, one way": "one way"}
for name in ranking:
    if found[name]["moved"] is None:
        continue
    went, control = found[name]["moved"], name in ("random pairs", "lower resolution")
    look_of = {"s": 42, "marker": "x" if control else "o", "color": LINES[4 if control else 0]}
    for ax, x in zip(axes, (went.mean().item(), went[inside >= 0.5].mean().item()), strict=True):
        ax.scatter(x, 100 * share(found[name]), **look_of)
    where = {"xytext": offsets.get(name, (7, -3)), "textcoords": "offset points", "fontsize": 8.5}
    ax.annotate(words.get(name, name), (x, 100 * share(found[name])), **where)
axes[0].set(xlabel="how far a patch moved, mean", ylabel="right (%)", xlim=(0, None))
axes[1].set(xlabel="how far a patch of the object moved", xlim=(-0.15, 4.2), ylim=(None, 103))
labkit.figure(
    small(fig),
    alt="Right answers over the damage of ten ways to merge, controls as crosses: over the mean of all patches, and over the patches "
    "of the object. The less the object's patches were moved, the better the answer.",
)
kinds = [name for name in found if found[name]["moved"] is not None]
accuracy = torch.tensor([share(found[name]) for name in kinds])
moved = torch.stack([found[name]["moved"][inside >= 0.5].mean() for name in kinds])
link = torch.corrcoef(torch.stack([moved, accuracy]))[0, 1].item()
print(f"Correlation of accuracy with how far the object's patches moved: {link:.1f}.")

# %%
assert share(found["similar tokens, both ways"]) > share(found["full"]) - 0.04
assert share(found["farthest first"]) > share(found["full"]) - 0.04
assert share(found["similar keys"]) > max(map(share, chance)) + 0.1
assert share(found["k-medoids"]) < share(found["similar keys"]) and link < -0.7
steps_of = ("similar keys", "similar tokens, one way", "similar tokens, both ways", "several criteria")
for less, more in pairwise(steps_of):
    gain, low, high = (100 * v for v in paired_difference(found[more]["right"], found[less]["right"]))
    print(f"From {less} to {more}: {gain:+.1f} points ({low:.1f} to {high:.1f}).")
print("Random pairs, thrown", throws, "times:", ", ".join(f"{share(row):.0%}" for row in chance))

# %%
_, low, high = paired_difference(found["farthest first"]["right"], found["density peaks"]["right"])
labkit.reveal(
    "08 crowds or loners",
    "farthest first" if low > 0 else "density peaks" if high < 0 else "cannot be told apart",
)

# %% [markdown]
# Three things to take home:
#
# - **The matching matters more than the criteria.** Comparing tokens in place of their keys is one step up, proposing both
#   ways is another. What *several criteria* adds to them, attention and size, cannot be told from nothing here. Switch the
#   parts of a method off one by one before you believe its name.
# - **Loners first.** Density peaks are the middles of crowds. The crowd here is background, so the object's patches, each
#   unlike all others, get no centre of their own. Farthest first gives them one at once. Protecting loners is what energy is
#   about, too.
# - **A good objective from a bad start is still bad.** k-medoids begins at the density peaks and moves its centres to the
#   middles of their clusters, step by step. Compare with what farthest first *begins* with:

# %%
with torch.inference_mode():
    spy = Watched(Merge(0))
    tokens.attach(net, spy, [layer])(test.images[:60])
    apart = spacing(spy.came[:, net.prefix :])
    far = {}
    for name, method in (("density peaks", dpc_knn), ("k-medoids", k_medoids), ("farthest first", farthest_first)):
        chosen = method(apart, torch.ones_like(apart[..., 0]), n - r)
        nearest = apart.take_along_dim(chosen[..., None], dim=1).amin(dim=1)
        far[name] = nearest.mean().item()
        print(
            f"{name}: a patch is {far[name]:.1f} from its centre on average, the worst {nearest.amax(dim=1).mean():.1f}."
        )
assert far["farthest first"] < far["k-medoids"] <= far["density peaks"] + 1e-6

# %% [markdown]
# ### Rules that are learned
#
# Some methods have parameters and want training. What are they worth untouched? *Max pooling* of neighbours in the sequence
# ("Scalable Vision Transformers with Hierarchical Pooling", 2021), *slimming* by a learned softmax ("Self-slimmed Vision
# Transformer", 2021), and *re-activation*, which rescales the token that moves ("PYRA", 2024).
#
# > **Predict.** One of the three is exactly plain merging before it is trained.

# %%
labkit.predict(
    "08 plain before training",
    "Untrained, which of the three is plain merging?",
    options=["max pooling", "slimming", "re-activation"],
)

# %%
torch.manual_seed(seed)
late, width = len(net.blocks) // 2, net.blocks[0].norm1.weight.numel()
untrained = {
    "max pooling": MaxPool(kernel=2, stride=2),
    "slimming": TokenSlimming(width, n // 2).to(place),
    "re-activation": PYRA(width, n // 2).to(place),
    "similar keys": Merge(n // 2),
}
for name, reducer in untrained.items():
    print(f"{name}, 64 to 32 in block {late}, untrained: {right(tokens.attach(net, reducer, [late])):.0%} right.")
with torch.inference_mode():
    few = test.images[:50]
    plain = tokens.attach(net, untrained["similar keys"], [late])(few)
    off = {name: error(tokens.attach(net, way, [late])(few), plain) for name, way in untrained.items()}
assert off["re-activation"] < 1e-5
print("Re-activation begins as plain merging, to five digits.")

# %%
labkit.reveal("08 plain before training", min(("max pooling", "slimming", "re-activation"), key=off.get))

# %% [markdown]
# ## 4. Which block, and how many?
#
# Merging early saves more, because every later block has fewer tokens. But early tokens know little.
#
# > **Predict.** Half of the patches are merged in a single block. Where does it cost most? Does that depend on the rule?

# %%
blocks = ["the last: its tokens know most", "one between", "the first: its tokens know least"]
labkit.predict(
    "08 costliest block", "Similar keys, one way: in which block does merging half cost most?", options=blocks
)

# %%
halves = {
    "similar keys, one way": lambda: Merge(n // 2),
    "similar tokens, both ways": lambda: MergeByCriteria(n // 2, both),
    "random pairs (control)": lambda: Merge(n // 2, dice),
}
some = test[: 60 if fast else 120]
by_block = {name: [right(tokens.attach(net, make(), [i]), some) for i in early] for name, make in halves.items()}
fig = Figure(figsize=(6.8, 2.7), layout="constrained")
ax = fig.subplots()
for (name, line), mark in zip(by_block.items(), "osx", strict=True):
    ax.plot(
        list(early),
        [100 * value for value in line],
        marker=mark,
        label=name,
        linestyle=":" if "control" in name else "-",
    )
ax.set(xlabel="the block in which 64 patches become 32", ylabel="right (%)", xticks=list(early))
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
labkit.figure(
    small(fig),
    alt="Right answers when half of the patches are merged in one block, the first to the fifth: "
    + "; ".join(f"{name} {line[0]:.0%} to {line[-1]:.0%}" for name, line in by_block.items())
    + ".",
)
assert by_block["similar keys, one way"][-1] > by_block["similar keys, one way"][0] + 0.1
assert min(by_block["similar tokens, both ways"]) > by_block["similar keys, one way"][0]

# %%
costliest = min(early, key=by_block["similar keys, one way"].__getitem__)
labkit.reveal("08 costliest block", blocks[2 if costliest == early[0] else 0 if costliest == early[-1] else 1])

# %% [markdown]
# Instead of one hard cut, a few pairs in every block: the same number each (*constant*), or many at first and none at the end
# (*decreasing*). `to_macs` finds the mildest schedule that costs at most a share of the multiply-accumulates. A schedule can
# also be *learned*: "DiffRate" (2023) gives every block a distribution over counts and trains it, with frozen weights, until
# the model costs what was asked. (It sorts by the class token's attention and merges the rest into the most similar that
# stays.)

# %% tags=["nbval-ignore-output"]
budget, steps = 0.5, 20 if fast else 32
scenes = data.shapes("train", 16 * steps, seed=seed)
torch.set_flush_denormal(True)  # gradients of a model that is sure are tiny, and tiny numbers are slow on a CPU
with clock.limit_threads(1):
    torch.manual_seed(seed)
    slim = attach_rates(copy.deepcopy(net).cpu(), merge=True)  # on the CPU: the same schedule everywhere
    train(slim, epochs(scenes, 16, seed), Recipe(steps, lr=0.1), loss=rate_loss(budget))
torch.set_flush_denormal(False)
learned = learned_schedule(slim)

plans = {}
for rule, make in (("one way", Merge), ("both ways", lambda k: MergeByCriteria(k, both))):
    for plan in (constant, decreasing):
        amounts = to_macs(net, budget, Merge, plan)
        plans[f"{rule}, {plan.__name__}"] = (make, amounts)
plans["learned"] = (lambda kept: kept, learned)
rows, by_plan = [], {}
for name, (make, amounts) in plans.items():
    after = tokens_after(net, make, amounts)
    by_plan[name] = right(attach_schedule(net, make, amounts))
    spent = model_macs(net, after) / model_macs(net)
    rows.append([name, " ".join(str(m - net.prefix) for m in after), f"{spent:.0%}", f"{by_plan[name]:.0%}"])
labkit.table(rows, headers=["schedule", "patches behind each block", "MACs", "right"])

# %%
spent = model_macs(net, tokens_after(net, lambda kept: kept, learned)) / model_macs(net)
assert abs(spent - budget) < 0.12
assert max(by_plan["both ways, constant"], by_plan["both ways, decreasing"]) > by_plan["one way, constant"]
print(f"The learned schedule costs what was asked, {budget:.0%} of the MACs, up to 12 points.")

# %% [markdown]
# The learned schedule cuts hard at once and then holds. It is learned for a rule of its own, so its row says as much about the rule. And see the order of size:
# *who* is merged matters more here than *when*.
#
# ## 5. Every patch wants an answer
#
# A segmentation asks: object or background, at *every* patch. After merging, several patches share a token. Give each of them
# what its token has become:

# %%
labkit.show(tokens.unmerge)

# %% [markdown]
# For the read-out we take one linear layer on the final patch tokens of the **full** model, fitted on training images with
# their masks, and never touched again. It then reads the merged and unmerged tokens of every other model.
#
# > **Predict.** With 36 tokens instead of 64, will the outline of the object get coarser? Where would the coarseness be?


# %%
def fit(x, truth):
    """A logistic regression on (n, d) features: weights (d + 1,)."""
    x, truth = F.pad(x, (0, 1), value=1.0).double(), truth.double()
    w = torch.zeros(x.shape[1], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ w, truth) + 1e-4 * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach()


lessons = data.shapes("train", 100 if fast else 200, seed=seed).to(place)
with torch.inference_mode():
    last = torch.cat([net.observe(lessons.images[i : i + 40]).steps[-1].x for i in range(0, len(lessons), 40)])
    last = net.norm(last)[:, net.prefix :].cpu()
reader = fit(last.flatten(0, 1).clone(), (coverage(lessons.masks, net.grid).cpu() >= 0.5).flatten())
truth = inside >= 0.5


def read(row):
    """Which patches the read-out calls object, (images, patches)."""
    return F.pad(row["patches"].double(), (0, 1), value=1.0) @ reader > 0


def iou(row):
    """Intersection over union of object patches, over all images together."""
    said = read(row)
    return ((said & truth).sum() / (said | truth).sum()).item()


print(f"Full model: IoU {iou(found['full']):.2f}; calling every patch object: {truth.float().mean():.2f}.")

# %% [markdown]
# There is a second way. Do not merge for good: let a *block* compute on few tokens, give each patch what its token has become
# **more**, and go on with all 64 ("Token Merging for Fast Stable Diffusion", 2023). `squeeze` does this with any reducer;
# "Vcc" (2023) cuts the image finely where the class token looks, anew in every block.

# %%
labkit.show(labkit.tokens.squeeze.decompress)

# %%
deep = range(1, len(net.blocks))
dense = {
    "squeezed: similar keys, 32": squeeze(net, Merge(n // 2), deep),
    "squeezed: both ways, 32": squeeze(net, MergeByCriteria(n // 2, both), deep),
    "squeezed: where the class looks, 32": squeeze(net, VIPCompress(n // 2, net.grid), deep),
    f"squeezed: lower resolution, {shrunk[0] * shrunk[1]}": squeeze(net, Shrink(net.grid, shrunk), deep),
    "squeezed: random pairs, 32": squeeze(net, Merge(n // 2, dice), deep),
    "merged, 8 a block: both ways": merged,
    "merged, 8 a block: random pairs": tokens.attach(net, Merge(8, dice), early),
    "dropped: the least attended": tokens.attach(net, Keep(1 - r / n), [layer]),
}
found |= {name: look(slim) for name, slim in dense.items()}


def macs(slim, images=16):
    """Multiply-accumulates for one image when every patch is read, with the search for pairs."""
    return sum(o.macs for o in operations(lambda x: slim.observe(x).logits, test.images[:images])) / images


once = {
    "full": net,
    "similar keys": tokens.attach(net, Merge(r), [layer]),
    "similar tokens, both ways": tokens.attach(net, MergeByCriteria(r, both), [layer]),
    "farthest first": tokens.attach(net, Cluster(n - r, farthest_first), [layer]),
    "lower resolution": tokens.attach(net, Shrink(net.grid, shrunk), [layer]),
    "random pairs": tokens.attach(net, Merge(r, dice), [layer]),
}
whole = macs(net)
rows = [
    [name, f"{macs(slim) / whole:.0%}", f"{iou(found[name]):.2f}", f"{share(found[name]):.0%}"]
    for name, slim in (once | dense).items()
]
labkit.table(rows, headers=["every patch read", "MACs", "IoU", "right"])

# %%
shown = ("full", "similar tokens, both ways", "similar keys", "lower resolution", "random pairs")
fig = Figure(figsize=(9.2, 3.7), layout="constrained")
examples = (inside >= 0.5).sum(dim=1).argsort(descending=True, stable=True)[:24:12].tolist()
for row, number in enumerate(examples):
    for column, name in enumerate(("image", *shown)):
        ax = fig.add_subplot(len(examples), len(shown) + 1, row * (len(shown) + 1) + column + 1)
        scene = picture(test.images[number])
        if name != "image":
            said = read(found[name])[number].reshape(net.grid).numpy().repeat(side, 0).repeat(side, 1)[..., None]
            scene = np.where(said, 0.35 * scene + 0.65 * np.array([0.90, 0.62, 0.0]), 0.4 * scene)
            ax.contour(test.masks[number].cpu().float().numpy(), [0.5], colors="white", linewidths=1.2)
        ax.imshow(scene)
        ax.set_axis_off()
        if row == 0:
            ax.set_title(name.replace(", ", ",\n"), fontsize=9)
labkit.figure(
    small(fig),
    alt="Two images, and which patches the linear read-out calls object (orange; white: the true outline), from all tokens and from "
    f"{n - r} tokens given back. IoU over all test images: "
    + ", ".join(f"{name} {iou(found[name]):.2f}" for name in shown)
    + ".",
)

# %%
full_iou = iou(found["full"])
with torch.inference_mode():
    undone = error(squeeze(net, Merge(0), deep)(few), net(few))
assert undone <= 1e-5
print("Squeezed by nothing, a block is the plain block.")
assert iou(found["similar tokens, both ways"]) > full_iou - 0.05 and iou(found["farthest first"]) > full_iou - 0.05
assert max(map(iou, chance)) < iou(found["lower resolution"]) + 0.05 < full_iou
assert (
    iou(found["squeezed: both ways, 32"])
    > iou(found["squeezed: similar keys, 32"])
    > iou(found["squeezed: random pairs, 32"])
)
assert share(found["squeezed: random pairs, 32"]) < share(found["merged, 8 a block: random pairs"])
print("Given back, 36 well chosen tokens segment as 64 do; as many random pairs, or an even grid, do not.")

# %% [markdown]
# The outline does not get coarser, because the merging was coarse *elsewhere*: in the background. An even grid is coarse
# everywhere. Dropped patches have nothing to give back: what was dropped reads as zeros, and the read-out was not made for
# that. Squeezing and merging do equally well with good pairs. With bad ones squeezing is the worse: its mistakes are made
# anew in every block.
#
# ## 6. The result
#
# 64 patches to 36, in one block, nothing retrained. Classification and segmentation, random pairs thrown several times.

# %%
order = ("full", "farthest first", "similar tokens, both ways", "several criteria", "energy", "similar keys")
order = (*order, "k-medoids", "density peaks", "lower resolution", "random pairs")
fig = Figure(figsize=(9.0, 3.3), layout="constrained")
axes = fig.subplots(1, 2, sharey=True)
for ax, measure, label in zip(axes, (share, iou), ("right answers", "IoU of the object's patches"), strict=True):
    for place_y, name in enumerate(order):
        values = [measure(row) for row in (chance if name == "random pairs" else [found[name]])]
        middle = sum(values) / len(values)
        color = LINES[4] if name in ("random pairs", "lower resolution") else "#555555" if name == "full" else LINES[0]
        ax.barh(place_y, middle, height=0.65, color=color)
        ends = (min(values), max(values))
        if measure is share and name != "random pairs":
            ends = wilson(int(found[name]["right"].sum()), len(test))
        if ends[0] < ends[1]:
            ax.plot(ends, [place_y] * 2, color="black", marker="|", markersize=8)
        ax.annotate(
            f"{middle:.2f}", (max(middle, ends[1]), place_y), xytext=(5, 0), textcoords="offset points", va="center"
        )
    ax.set(xlabel=label, xlim=(0, 1.12))
axes[0].set_yticks(range(len(order)), order)
axes[0].invert_yaxis()
labkit.figure(
    small(fig),
    alt="Right answers and IoU at 36 of 64 patches: "
    + ", ".join(f"{name} {share(found[name]):.2f} and {iou(found[name]):.2f}" for name in order[:-1])
    + f". Random pairs from {min(map(share, chance)):.2f} to {max(map(share, chance)):.2f} over {throws} throws.",
)

# %% [markdown]
# Lines are 95 % intervals for the right answers and, for random pairs, the span of the throws. And what does the clock say?
# Every model on the same images, in turns, on one thread:

# %% tags=["nbval-ignore-output"]
rules = {
    "both ways": lambda k: MergeByCriteria(k, both),
    "similar keys, one way": Merge,
    "random pairs (control)": lambda k: Merge(k, torch.Generator().manual_seed(seed)),
}
budgets = {"both ways": (0.7, 0.5, 0.4), "similar keys, one way": (0.7, 0.5, 0.4), "random pairs (control)": (0.7, 0.5)}
racers, family = {"full": net}, {"full": "full"}
for name, make in rules.items():
    for spend in budgets[name]:
        racers[f"{name}, {spend:.0%}"] = attach_schedule(net, make, to_macs(net, spend, Merge, decreasing))
        family[f"{name}, {spend:.0%}"] = name
for name, slim in (
    ("farthest first, 36", once["farthest first"]),
    ("lower resolution, 36 (control)", once["lower resolution"]),
):
    racers[name], family[name] = slim, name
batch = test.images[:32]
clocks = ("cpu",) if place.type == "cpu" else ("wall",)
raced = clock.compare(racers, batch, rounds=9, warmup=1, seconds=4, clocks=clocks)
raced

# %% tags=["nbval-ignore-output"]
points = {
    name: charts.Point(1000 * raced.median(name) / len(batch), 100 * right(slim)) for name, slim in racers.items()
}
fig = Figure(figsize=(7.6, 3.4), layout="constrained")
ax = fig.subplots()
for (name, mark), color in zip(
    zip(dict.fromkeys(family.values()), "*os^Dx", strict=True), ("black", *LINES[:5]), strict=True
):
    own = [points[racer] for racer in racers if family[racer] == name]
    ax.plot([p.cost for p in own], [p.value for p in own], marker=mark, color=color, label=name, linewidth=1.2)
ax.set(xlabel="milliseconds for an image", ylabel="right (%)")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
labkit.figure(
    small(fig),
    alt="Right answers over measured milliseconds for an image: "
    + ", ".join(f"{name} {point.cost:.1f} ms and {point.value:.0f} %" for name, point in points.items())
    + ".",
)
front = [name for name, unbeaten in zip(points, charts.front(list(points.values())), strict=True) if unbeaten]
print(f"Beaten by no other in both time and accuracy: {', '.join(front)}.")

# %% [markdown]
# Percentages are of the multiply-accumulates, by a decreasing schedule. Follow each line to the left: the same time is bought
# with less or more accuracy, and the control says how much the choosing is worth. The clock gives back less than the paper
# promises: this model is so small that what surrounds the multiplications counts (the lower resolution, which searches for
# nothing, shows the same gap). On a larger one (DeiT-small's shape, 197 tokens) it was measured before:

# %% tags=["nbval-ignore-output"]
stored = labkit.results.load("bench-tokens")
found_there = stored["methods"]
labkit.table(
    [
        [
            name,
            f"{row['shortcut'] / found_there['whole']:.0%}",
            "{:.0%} ({:.0%} to {:.0%})".format(*(1 / row["faster"][i] for i in (0, 2, 1))),
        ]
        for name, row in found_there["published"].items()
        if name.startswith("merge")
    ],
    headers=["197 tokens", "MACs", "time on one thread"],
)

# %% tags=["nbval-ignore-output"]
print(stored.caption())

# %% [markdown]
# There the time follows the multiply-accumulates within a few points.
#
# ## Limits
#
# - **A flat background.** These images have one object and much that repeats. Photographs repeat less; then there are fewer
#   free pairs.
# - **One small model**, trained once. The dice were thrown several times, the training was not.
# - **Nothing is retrained.** With training, the weaker rules lose less, and the learned ones (slimming, re-activation) begin
#   to work.
# - **A linear read-out** at 8 × 8 patches is a modest segmentation. A decoder may ask more of a patch than its group knows.
# - **64 tokens.** The search costs n² and the saving is in proportion to n and n²; on more tokens the balance is another.
#
# ## Exercises
#
# The line below each stub judges your function: `labkit.check` tries it on small cases, shows the smallest that fails and names
# the mistake. `labkit.check.attend_by_size.hint(1)` says a little, `hint(2)` more. The stubs run as they are.
#
# ### Exercise 1: count the twins
#
# *Easy, 10 minutes.* Write `attend_by_size(q, k, v, sizes)`: softmax attention of queries q (m, d) to keys k (n, d)
# with values v (n, e), where key i stands for sizes[i] equal ones. Divide the scores by √d.
#
# <details><summary>Hint 1</summary>Equal keys pay equal amounts into the softmax: sizes[i] · e^score.</details>
# <details><summary>Hint 2</summary>Add <code>sizes.log()</code> to every row of scores, then softmax.</details>
# <details><summary>Solution</summary>
#
# ```python
# def attend_by_size(q, k, v, sizes):
#     return (q @ k.T / k.shape[1] ** 0.5 + sizes.log()).softmax(dim=-1) @ v
# ```
#
# </details>


# %% tags=["exercise"]
def attend_by_size(q, k, v, sizes):
    return torch.zeros(len(q), v.shape[1])  # your code here


# %%
labkit.check.attend_by_size(attend_by_size)

# %% [markdown]
# ### Exercise 2: the proposals
#
# *Medium, 15 minutes.* Write `partners(x)` for tokens x (n, d): for each even token (0, 2, 4, …), the number of the
# odd token that is most like it, by cosine.
#
# <details><summary>Hint 1</summary><code>F.normalize(x, dim=-1)</code> makes every row as long as 1; then cosines are
# products.</details>
# <details><summary>Hint 2</summary>In <code>x[::2] @ x[1::2].T</code>, column j is token 2j + 1.</details>
# <details><summary>Solution</summary>
#
# ```python
# def partners(x):
#     x = F.normalize(x, dim=-1)
#     return 2 * (x[::2] @ x[1::2].T).argmax(dim=1) + 1
# ```
#
# </details>


# %% tags=["exercise"]
def partners(x):
    return torch.zeros(len(x[::2]), dtype=torch.long)  # your code here


# %%
labkit.check.partners(partners)

# %% [markdown]
# ### Exercise 3: a mean that remembers
#
# *Medium, 15 minutes.* Write `merge_by_size(x, sizes, home, count)`: token i of x (n, d) stands for sizes[i] patches
# and goes into the new token home[i]. Return the `count` new tokens (count, d), each the mean of all patches that it
# stands for, and their sizes (count,).
#
# <details><summary>Hint 1</summary><code>torch.zeros(count).index_add(0, home, sizes)</code> adds up the sizes of
# those that share a home.</details>
# <details><summary>Hint 2</summary>Add up x times its sizes in the same way, and divide by the new sizes.</details>
# <details><summary>Solution</summary>
#
# ```python
# def merge_by_size(x, sizes, home, count):
#     new = torch.zeros(count).index_add(0, home, sizes)
#     total = torch.zeros(count, x.shape[1]).index_add(0, home, x * sizes[:, None])
#     return total / new[:, None], new
# ```
#
# </details>


# %% tags=["exercise"]
def merge_by_size(x, sizes, home, count):
    return torch.zeros(count, x.shape[1]), torch.zeros(count)  # your code here


# %%
labkit.check.merge_by_size(merge_by_size)

# %% [markdown]
# ### Exercise 4: give it back
#
# *Medium, 10 minutes.* Two blocks have merged. `first` (n,) says for each patch which token it went into, `second`
# (m,) the same for those m tokens. Write `give_back(x, first, second)`: the token of x (k, d) for every patch, (n,
# d).
#
# <details><summary>Hint 1</summary><code>x[second]</code> has a row for each of the m tokens.</details>
# <details><summary>Hint 2</summary>Undo the last merge first.</details>
# <details><summary>Solution</summary>
#
# ```python
# def give_back(x, first, second):
#     return x[second][first]
# ```
#
# </details>


# %% tags=["exercise"]
def give_back(x, first, second):
    return torch.zeros(len(first), x.shape[1])  # your code here


# %%
labkit.check.give_back(give_back)

# %% [markdown]
# ### Exercise 5: how many are left?
#
# *Medium, 10 minutes.* Write `patches_left(patches, amounts)`: the number of patches behind each block, a list. A
# block merges amounts[i] of them, but one way never more than half (rounded down) of those that arrive.
#
# <details><summary>Hint 1</summary>With p patches, p // 2 are odd, and each even one goes into an odd one. Of 5
# patches 2 are odd.</details>
# <details><summary>Hint 2</summary><code>min(amount, patches // 2)</code> in a loop.</details>
# <details><summary>Solution</summary>
#
# ```python
# def patches_left(patches, amounts):
#     after = []
#     for amount in amounts:
#         patches -= min(amount, patches // 2)
#         after.append(patches)
#     return after
# ```
#
# </details>


# %% tags=["exercise"]
def patches_left(patches, amounts):
    return [0 for amount in amounts]  # your code here


# %%
labkit.check.patches_left(patches_left)

# %% [markdown]
# ### Exercise 6: your own centres
#
# *Hard, 20 minutes, and open: many answers are right.* Write `my_centres(distances, weights, count)` for `Cluster`: of (b, n, n) distances, the numbers of
# `count` centres (b, count), in order. Come within two points of *farthest first*, without its loop. (The stub takes the
# first tokens of the image. Who does it beat already, and why?)
#
# <details><summary>Hint 1</summary>Who has no near neighbour must be a centre.</details>
# <details><summary>Hint 2</summary>The distance to the nearest other token is small for both of two twins, so one of them may be lost: which order of choosing avoids
# that?</details>
# <details><summary>Solution</summary>
#
# ```python
# def my_centres(distances, weights, count):
#     n = distances.shape[1]
#     near = distances.masked_fill(torch.eye(n, dtype=torch.bool, device=distances.device), torch.inf)
#     near = near.masked_fill(torch.ones(n, n, device=distances.device).triu().bool(), torch.inf)  # earlier ones only
#     lonely = near.amin(dim=2)  # the first token comes first: it has no earlier one
#     return lonely.argsort(dim=1, descending=True)[:, :count].sort(dim=1).values
# ```
#
# </details>


# %% tags=["exercise"]
def my_centres(distances, weights, count):
    return torch.arange(count, device=distances.device).expand(len(distances), -1)  # your code here


# %%
mine = right(tokens.attach(net, Cluster(n - r, my_centres), [layer]))
marks = {name: share(found[name]) for name in ("k-medoids", "similar keys", "farthest first")}
beaten = [name for name, value in marks.items() if mine > value - 0.02]
print(f"Your centres: {mine:.0%} right. Reached or beaten: {', '.join(beaten) or 'nobody yet'}.")
print("Right." if "farthest first" in beaten else "Not yet: who stands alone and has no centre?")

# %% [markdown]
# ## Papers

# %%
for paper in ("S322", "S040", "S204", "S354", "S279", "S165", "S312"):
    print(labkit.papers.cite(paper))
for paper in (
    '"Token Merging: Your ViT But Faster", 2022 (ToMe)',
    '"Token Merging for Fast Stable Diffusion", 2023',
    '"Not All Tokens Are Equal: Human-centric Visual Analysis via Token Clustering Transformer", 2022 (density peaks)',
    '"Token Pooling in Vision Transformers", 2021 (k-medoids)',
    '"Clustering to minimize the maximum intercluster distance", 1985 (farthest first)',
):
    print(paper)

# %% [markdown]
# ## Next
#
# Tokens that say the same are said once now, and you know who must not be merged. In [09 Quantization](09_quantization.ipynb)
# the tokens all stay, and each number gets fewer bits.
