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
# # 07 Is the background needed?
#
# **By the end you will have shown that a vision transformer needs its background for a moment, and even then a summary of it is
# enough; that a good score depends on the block it is asked in; and that a number about pruning says nothing without dice
# beside it.**
#
# *Needs:* [04 Build a ViT](04_build_a_vit.ipynb): blocks, the class token, attention. · *Time:* 50 minutes; the cells take
# about one. · *Device:* any computer; no GPU and no network.

# %% tags=["parameters"]
seed = 0  # which test images are drawn, and every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # the trained model whose tokens are dropped
fast = False  # True: fewer test images, wider intervals, shorter training

# %%
import copy
import io

import torch
from matplotlib.figure import Figure
from PIL import Image

import labkit
from labkit import data, tokens
from labkit.evidence import Groups, provenance
from labkit.intervals import paired_difference, wilson
from labkit.operations import operations
from labkit.token_labels import coverage
from labkit.tokens import learned, score
from labkit.tokens.recall import object_recall
from labkit.tokens.words import pixel_variance
from labkit.train import Recipe, epochs, train
from labkit.verify import hits
from labkit.viz import charts, dial, explorer_film, figures, strips

place = labkit.setup(seed, device)
dice = torch.Generator().manual_seed(seed)
net = labkit.load(model).to(place).set_impl("fast")
if not net.prefix:
    raise labkit.errors.LabkitError(
        f"{model} has no class token, and this lesson asks where it looks; take shapes-vit."
    )
test = data.shapes("test", 120 if fast else 150, seed=seed).to(place)
n = net.grid[0] * net.grid[1]
covered = coverage(test.masks.cpu(), net.grid)  # the share of each patch that is object


def lean(fig):
    """The figure in few colours, so that the saved lesson stays small."""
    return Image.open(io.BytesIO(figures.png(fig))).quantize(256, dither=0)


def batches():
    return (test[i : i + 50] for i in range(0, len(test), 50))


def named(make):
    """Which of the test images are named correctly? `make(batch)` is the model: an oracle looks at the masks."""
    return torch.cat([hits(make(batch), batch) for batch in batches()]).cpu()


@torch.inference_mode()
def judged(make):
    """The same, and which share of each object's patches is still in a token of its own kind: the recall."""
    right, recalls = [], []
    for batch in batches():
        seen = make(batch).observe(batch.images)
        members = provenance(seen.maps, n, net.prefix, len(batch))
        right.append((seen.logits.argmax(dim=1) == batch.labels).cpu())
        recalls.append(object_recall(members, coverage(batch.masks.cpu(), net.grid) >= 0.5))
    return torch.cat(right), torch.cat(recalls)


def share(right):
    """The share of right answers, between 0 and 1."""
    return right.double().mean().item()


full = named(lambda batch: net)
print(f"{len(net.blocks)} blocks, {n} patches and a class token; right in {share(full):.0%} of {len(test)} images.")
print(f"The object touches {(covered > 0).sum(dim=1).double().mean():.0f} of the {n} patches.")

# %% [markdown]
# ## 1. Take the background away
#
# The cheapest token is the one that is not there. If the object touches a fifth of the patches, are the other four fifths
# needed? We know the true mask, so we can ask before we build anything: keep every patch of the object and thin out the
# background by dice. Then the other way round: keep all background and thin out the object. Then both alike.
#
# A block is told to let patches go by a *reducer*. It gets the tokens and what attention knew, and returns fewer tokens.
# This is the plainest one:

# %%
labkit.show(tokens.Keep)

# %% [markdown]
# > **Predict.** Our model drops patches behind its attention in the second block (block 1; we count from 0). Commit a number for the
# > first case. And when the background goes already at the *entry*, in front of the first block? And when everything stays but
# > half of the object's own patches?

# %%
labkit.predict(
    "07 no background",
    "How often is it right without any background, dropped behind block 1?",
    number=50,
    unit="% right",
)


# %%
def thinned(of_object, of_background, where):
    """Keeps these shares, by dice, of the patches that touch the object and of all others."""

    def make(batch):
        touches = coverage(batch.masks.cpu(), net.grid) > 0
        stays = torch.rand(touches.shape, generator=dice) < torch.where(touches, of_object, of_background)
        return tokens.attach(net, tokens.KeepShare(1.0, score.known(stays.float())), where)

    return make


few, many = (0.0, 0.1, 0.3), (0.2, 0.5, 0.8)
curves = {
    "background thinned, behind block 1": {s: share(named(thinned(1.0, s, [1]))) for s in few},
    "background thinned, at the entry": {s: share(named(thinned(1.0, s, "entry"))) for s in few},
    "object thinned, behind block 1": {s: share(named(thinned(s, 1.0, [1]))) for s in many},
    "both thinned (dice), behind block 1": {s: share(named(thinned(s, s, [1]))) for s in many},
}
fig = Figure(figsize=(7.6, 2.8), layout="constrained")
ax = fig.subplots()
for (name, points), mark, color in zip(
    curves.items(), "osDx", ("#0072B2", "#56B4E9", "#D55E00", "#555555"), strict=True
):
    ax.plot(
        [100 * s for s in (*points, 1.0)],
        [100 * r for r in (*points.values(), share(full))],
        marker=mark,
        color=color,
        linestyle=":" if "dice" in name else "-",
        label=name,
    )
ax.set(xlabel="share that stays (%)", ylabel="right answers (%)", ylim=(0, 102))
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
labkit.figure(
    lean(fig),
    alt="Right answers over the share that stays. "
    + "; ".join(f"{name}: {', '.join(f'{r:.0%} at {s:.0%}' for s, r in line.items())}" for name, line in curves.items())
    + ".",
)

# %%
late, early, hurt, blind = curves.values()
assert min(late.values()) > share(full) - 0.05
assert early[0.0] < share(full) - 0.1 and early[0.3] > early[0.0] + 0.1
assert hurt[0.5] < share(full) - 0.2
apart = [blind[s] - hurt[s] for s in many]
assert abs(sum(apart)) / len(apart) < 0.1
print(
    f"No background behind block 1: {late[0.0]:.0%}; none at the entry: {early[0.0]:.0%}; all of it: {share(full):.0%}."
)
print(f"Half of the object: {hurt[0.5]:.0%} with all background, {blind[0.5]:.0%} with half of it.")

# %%
labkit.reveal("07 no background", round(100 * late[0.0]))

# %% [markdown]
# Three answers. Behind the second block the background is *not needed*: all of it can go. At the entry it is, or some of it is.
# And the last two curves lie close together: what hurts is losing the object, whatever happens around it.
#
# Keep the dotted curve in mind. It is a *method*: "keep a random share s". Dice keep the share s of the object, and since
# the object is many patches, losing a few of them costs little. So at a high share the dumbest method looks good, and
# every table that stops at 70% flatters whatever stands in it. This is why dice come with every number below.
#
# ## 2. Score, keep, fuse
#
# A real method has no mask. It makes three decisions:
#
# 1. **score** the patches by something that is already there, say the class token's attention;
# 2. **keep** the best ones;
# 3. **fuse** the rest into one token more, or drop it.
#
# This is EViT ("Not All Patches are What You Need", 2022). We begin with the last decision, since the entry just gave us a
# riddle: does the model miss the *patches* of the background there, or only to be told that there is one?

# %%
labkit.show(tokens.fuse.fuse)

# %% [markdown]
# > **Predict.** Thirteen patches are kept at the entry, by the true mask, and the other 51 become one token: their mean. What is it
# > worth? And does it help if dice choose the thirteen?

# %%
worth = ["next to nothing", "some of the loss", "nearly all of the loss"]
labkit.predict(
    "07 one token for the rest", "In place of dropping the 51, their mean as one token wins back:", options=worth
)


# %%
def cut(by, keep, where, how=tokens.Keep):
    """The models that reduce there, by a score that `by(batch)` makes."""
    return lambda batch: tokens.attach(net, how(keep, by(batch)), where)


def by_mask(batch):
    return score.known(coverage(batch.masks, net.grid))


def by_dice(batch):
    return score.random(dice)


def by_pixels(batch):
    return pixel_variance


def by_middle(batch):
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in net.grid)
    return score.known(-(rows[:, None] ** 2 + columns**2).flatten()[None])


rest = {}
for name, by, where in (
    ("true mask, at the entry", by_mask, "entry"),
    ("true mask, behind block 0", by_mask, [0]),
    ("true mask, behind block 1", by_mask, [1]),
    ("flat patches go, at the entry", by_pixels, "entry"),
    ("dice, at the entry", by_dice, "entry"),
):
    rest[name] = [named(cut(by, 0.2, where, how)) for how in (tokens.Keep, tokens.Fuse)]
labkit.table(
    [
        [name, f"{share(gone):.0%}", f"{share(melted):.0%}", "{:+.0f} [{:+.0f}, {:+.0f}]".format(*gain)]
        for name, (gone, melted) in rest.items()
        for gain in [[100 * value for value in paired_difference(melted, gone)]]
    ],
    headers=["who chooses the 20 % that stay, and where", "rest dropped", "rest fused", "points gained [95 %]"],
)

# %%
gone, melted = rest["true mask, at the entry"]
assert share(melted) > share(gone) + 0.08 and share(melted) > share(full) - 0.04
assert share(rest["dice, at the entry"][1]) < share(rest["dice, at the entry"][0]) + 0.1
flat = rest["flat patches go, at the entry"]
assert share(rest["dice, at the entry"][0]) + 0.02 < share(flat[0]) and share(flat[1]) < share(melted) - 0.1
print(f"The object and one token for all else: {share(melted):.0%}, as good as the whole image ({share(full):.0%}).")

# %%
back = (share(melted) - share(gone)) / (share(full) - share(gone))  # the part of the loss that is won back
labkit.reveal("07 one token for the rest", worth[(back > 0.2) + (back > 0.8)])

# %% [markdown]
# So the answer to the title: *yes, but one token of it is enough*. What the first two blocks miss is no single patch
# and no place: the mean of 51 patches, attended to as 51, does as well. Behind block 1 it is worth
# nothing that we could measure any more: the tokens that stay have heard it already.
#
# Two rows are warnings. Fusing does not save a bad choice: with dice most of the object is in the fused token. And the
# plainest score at the entry, the variance of a patch's pixels, which needs no block at all ("Efficient Online
# Inference of Vision Transformers by Training-Free Tokenization", 2024), beats dice but is far from the mask: the inside of
# an object may be as smooth as the sky.
#
# ### Which score?
#
# Now the first decision. Six scores that read what attention has at hand: the class token's
# attention; the same times the norm of the value; the attention *received* from all; its fixed point ("Zero-TPrune",
# 2023: a token matters if tokens that matter look at it); the norm of the key; and *away from the crowd*, high for
# patches whose key is like few others.
#
# > **Predict.** We keep 30%. Which score names most images right behind block 1? And one block later: the same?

# %%
labkit.predict(
    "07 best score in block 1",
    "Keeping 30 % behind block 1, which score is right most often?",
    options=[
        "class attention",
        "class attention × value",
        "attention received",
        "PageRank of attention",
        "norm of the key",
        "away from the crowd",
    ],
)

# %%
scores = {
    "class attention": score.class_attention,
    "class attention × value": score.class_value,
    "attention received": score.attention_received,
    "PageRank of attention": score.page_rank(),
    "norm of the key": score.key_norm,
    "away from the crowd": score.reverse(score.energy()),
}
example = int(((covered >= 0.5).sum(dim=1) >= 6).nonzero()[0])
with torch.inference_mode():
    steps = net.observe(test.images[example : example + 1]).steps
fig = Figure(figsize=(8.2, 3.0), layout="constrained")
axes = fig.subplots(2, len(scores) + 1)
titles = ("class\nattention", "class att.\n× value", "attention\nreceived", "PageRank\nof att.", "norm of\nthe key")
titles = (*titles, "away from\nthe crowd")
side = test.masks.shape[-1]
for line, layer in zip(axes, (1, 2), strict=True):
    line[0].imshow(test.images[example].permute(1, 2, 0).cpu())
    line[0].set_ylabel(f"behind block {layer}")
    for ax, title, rank in zip(line[1:], titles, scores.values(), strict=True):
        ranks = rank(steps[layer].evidence, net.prefix)[0].argsort().argsort().reshape(net.grid)  # units differ
        drawn = ax.imshow(100 * ranks.cpu() / n, vmin=0, vmax=100, extent=(-0.5, side - 0.5, side - 0.5, -0.5))
        ax.contour(test.masks[example].cpu(), [0.5], colors="#FF7F0E", linewidths=1.5)
        if layer == 1:
            ax.set_title(title, fontsize=11)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
fig.colorbar(drawn, ax=axes, aspect=20, pad=0.01, label="patches that\nscore lower (%)")
labkit.figure(
    fig,
    alt="One image, and how six scores rank its patches behind block 1 (above) and block 2 (below), with the outline of the object.",
)

# %%
choosers = {name: (lambda batch, rank=rank: rank) for name, rank in scores.items()}
choosers |= {
    "the true mask": by_mask,
    "the middle": by_middle,
    "dice": by_dice,
    "least attended": lambda batch: score.reverse(score.class_attention),
}
table = {name: [judged(cut(by, 0.3, [layer])) for layer in (1, 2)] for name, by in choosers.items()}
labkit.table(
    [
        [
            name,
            *(f"{share(right):.0%}" for right, _ in pair),
            *(f"{recall.nanmean():.0%}" for _, recall in pair),
        ]
        for name, pair in table.items()
    ],
    headers=["kept 30 % by", "right, block 1", "right, block 2", "recall, block 1", "recall, block 2"],
)

# %%
early, late = ({name: share(pair[i][0]) for name, pair in table.items()} for i in (0, 1))
assert late["class attention"] > early["class attention"] + 0.05
assert early["norm of the key"] > late["norm of the key"] + 0.1 and late["norm of the key"] < late["dice"] + 0.3
assert late["attention received"] > early["attention received"] + 0.25
assert early["away from the crowd"] > early["class attention"] + 0.05
for found in (early, late):
    assert found["the true mask"] > share(full) - 0.05
    assert found["least attended"] < found["dice"] < found["class attention"]
best = [max(scores, key=found.get) for found in (early, late)]
print(f"Best score behind block 1: {best[0]}; behind block 2: {best[1]}.")
print(f"Class attention: {early['class attention']:.0%} behind block 1, {late['class attention']:.0%} behind block 2.")
print(f"The norm of the key: {early['norm of the key']:.0%}, then {late['norm of the key']:.0%}.")

# %%
labkit.reveal("07 best score in block 1", best[0])

# %% [markdown]
# *Recall* is the share of the object's patches that are still in a token of their own kind, and right answers follow it. But no
# score is good by itself. In block 1 the class token does not know yet where the object is, but the keys already tell
# who differs from the rest. One block later the class token knows, and the norm of the key is not far above dice. A paper's
# score is a statement about *its* model at *its* block: measure yours.
#
# Is nothing lost at full budget? Each reducer has an end at which it must be the plain model:

# %%
with torch.inference_mode():
    some = test.images[:20]
    for reducer in (tokens.Keep(1.0), tokens.Fuse(1.0), tokens.KeepShare(1.0), tokens.Sample(10**5)):
        slim = tokens.attach(net, reducer, [1, 2, 3])
        assert (slim(some) - net(some)).abs().max() < 1e-4, reducer
        print(f"{type(reducer).__name__} at its full budget: the logits of the plain model.")

# %% [markdown]
# ## 3. As many as an image needs
#
# An easy image should need fewer patches than a hard one. Two rules let each image decide: keep the fewest patches that
# together get a given *share* of the attention; or draw *samples* from the scores, laid end to end, and keep whoever is met
# (ATS, "Adaptive Token Sampling", 2021). Here is the first:

# %%
labkit.show(tokens.adaptive.fewest)

# %% [markdown]
# > **Predict.** Does an image without clutter keep fewer patches? Does one with a larger object keep more? And the question that
# > counts: at the same *average* number of tokens, is the adaptive rule right more often than the fixed one?


# %%
@torch.inference_mode()
def counts(slim, images):
    """How many patches each image has left behind block 2."""
    step = slim.observe(images).steps[2]
    there = torch.ones(step.x.shape[:2]) if step.sizes is None else step.sizes.cpu() > 0
    return there[:, net.prefix :].sum(dim=1).double()


adaptive = {f"share {amount}": (tokens.KeepShare(amount), score.class_attention) for amount in (0.8, 0.9)} | {
    f"{amount} samples": (tokens.Sample(amount), score.class_value) for amount in (16, 64)
}
rows, gains = [], []
for name, (reducer, rank) in adaptive.items():
    slim = tokens.attach(net, reducer, [2])
    each = counts(slim, test.images)
    same = tokens.attach(net, tokens.Keep(round(each.mean().item()) / n, rank), [2])
    same, own = (named(lambda batch, slim=slim: slim) for slim in (same, slim))
    gains.append(paired_difference(own, same))
    rows.append(
        [
            name,
            f"{each.mean():.1f}",
            f"{int(each.min())} to {int(each.max())}",
            f"{share(own):.0%}",
            f"{share(same):.0%}",
            "{:+.0f} [{:+.0f}, {:+.0f}]".format(*(100 * value for value in gains[-1])),
        ]
    )
labkit.table(rows, headers=["rule", "patches, mean", "least to most", "right", "as many for all", "points [95 %]"])

# %%
adaptively = tokens.attach(net, tokens.KeepShare(0.8), [2])
each = counts(adaptively, test.images)
plainly = data.shapes("test", len(test), seed=seed, difficulty=0.0).to(place)  # the same objects without the clutter
easy = counts(adaptively, plainly.images)
size = torch.corrcoef(torch.stack([each, (covered > 0).sum(dim=1).double()]))[0, 1].item()
order = each.argsort(stable=True).tolist()
chosen = order[:3] + order[-3:]
with torch.inference_mode():
    how = adaptively.observe(test.images[chosen]).steps[2].map[:, net.prefix :, net.prefix :].sum(dim=1).bool().cpu()
labkit.figure(
    lean(
        figures.image_strip(
            [
                torch.from_numpy(dial.dimmed(test.images[i], kept.unflatten(0, net.grid))).permute(2, 0, 1)
                for i, kept in zip(chosen, how, strict=True)
            ],
            [
                f"{test.names[int(test.labels[i])]}\n{int(kept.sum())} patches"
                for i, kept in zip(chosen, how, strict=True)
            ],
        )
    ),
    alt="Three images that keep the fewest patches and three that keep the most, when 80% of the attention is to stay; "
    "what is dropped is dimmed.",
)
print(f"With clutter {each.mean():.1f} patches on average, the same objects without {easy.mean():.1f}.")
print(f"Correlation of the number kept with the size of the object: {size:+.2f}.")
assert easy.mean() < each.mean() - 1.5 and abs(size) < 0.6
assert max(low for _, low, _ in gains) < 0.05

# %% [markdown]
# The rule notices clutter: undecided attention is spread over more patches. But at the same average none of these is better than one
# number for all: no interval lies clearly above 0, and few samples do worse. Every image of ours holds one object, all of similar size; the number kept goes only weakly with
# that size, and what it follows is doubt. Adaptive counts can pay where images differ in what they need.
#
# They have a price, too. A batch is a block of memory, as long as its longest image: the others wait with empty places.
# `packed` parts the batch by length so that nobody computes them. The answers are the same:

# %%
with torch.inference_mode():
    together = adaptively(test.images)
    parted = tokens.packed(adaptively, test.images)
assert (together - parted).abs().max() < 1e-3
print(f"The longest image has {int(each.max())} patches, the average {each.mean():.1f}:")
print(f"{1 - each.mean() / each.max():.0%} of the places in the batch are empty. Packed, the logits are the same.")

# %% [markdown]
# ## 4. The film of what was dropped
#
# Most methods cut several times: after each cut the model looks again. Here half stay behind each of blocks 1, 2 and 3. Step through
# the film with Page Up and Page Down; dark patches are gone. (Without a running kernel you see a picture.)
#
# > **Predict.** Look at an image that the full model names and the slim one does not. What will be missing from it?

# %%
staged = tokens.attach(net, tokens.Keep(0.5), [1, 2, 3])
slim_right, recall = judged(lambda batch: staged)
lost = (full & ~slim_right & (recall < 0.5)).nonzero().flatten().tolist()
fine = (slim_right & (recall >= 0.9)).nonzero().flatten().tolist()
pair = test[[lost[0], fine[0]]]
film = labkit.Explorer(staged, pair, view="film", step=3, query="class", titles=["slim"])
film

# %%
for step in (1, 2, 3, 4, 6):
    film.step = step
    print(film.describe())

# %%
seen = labkit.trace(staged, pair.images)
labkit.figure(
    lean(strips.film_strip(pair.images[1], explorer_film.film(seen, 1), net.grid)),
    alt=f"Another image, a {test.names[int(pair.labels[1])]}: {recall[fine[0]]:.0%} of the object is left at the end, "
    f"and the model says {test.names[int(seen.logits[1].argmax())]}.",
)
print(
    f"Of the first one, a {test.names[int(pair.labels[0])]}, {recall[lost[0]]:.0%} is left, and it is called a "
    f"{test.names[int(seen.logits[0].argmax())]}."
)

# %% [markdown]
# A film is one image. The number behind it is the recall. If losing the object is what goes wrong, then right answers should
# fall with the recall, and on *the same* images the full model should be as good as anywhere: that is the control, as
# these might just be hard images.

# %%
bins = {"less than half": (0, 0.5), "half to nine tenths": (0.5, 0.9), "nine tenths or more": (0.9, 2)}
rows, found = [], {}
for name, (low, high) in bins.items():
    inside = (recall >= low) & (recall < high)
    found[name] = share(slim_right[inside]), share(full[inside])
    ends = "{:.0%} to {:.0%}".format(*wilson(int(slim_right[inside].sum()), int(inside.sum())))
    rows.append([name, int(inside.sum()), f"{found[name][0]:.0%}", ends, f"{found[name][1]:.0%}"])
labkit.table(rows, headers=["of the object is left", "images", "slim is right", "95 % interval", "full is right"])

# %%
worst, best = found["less than half"], found["nine tenths or more"]
assert best[0] > worst[0] + 0.2 and worst[1] > worst[0] + 0.2
print(
    f"Where the object was lost the slim model falls to {worst[0]:.0%}; the full one is right in {worst[1]:.0%} of the same images."
)

# %% [markdown]
# And what do the tokens that stay look at, once the others are gone? The compare view shows both models, and the difference. The
# attention has to go somewhere: it always sums to 1.

# %%
both = labkit.Explorer(
    net, pair, other=staged, titles=["full", "slim"], view="compare", layer=4, query="class", head="mean"
)
both

# %%
both.image = 1
print(both.describe())

# %% [markdown]
# Dropping for good is not the only way. *Evo-ViT* (2021) lets the unimportant patches skip a block and moves them along with one
# representative, so that a mistake can be undone; in *A-ViT* (2021) every token halts by itself, when it has had enough;
# both are in `labkit.tokens`, as `slow_fast` and `halting`. In *training*, patches can be dropped by dice to save time, and
# less is lost when a light mixer has let them talk first ("Stretching Each Dollar", 2024): the same finding as in round 1,
# where the background had been heard after two blocks.
#
# ## 5. Learn what may go
#
# Instead of choosing a score by hand, train one. *DynamicViT* (2021) puts a small network in front of the cut that gives every patch
# a logit. Two obstacles: keeping or dropping is a jump, through which no gradient flows; and images of one batch would have different
# lengths. Both are solved in training only:
#
# - **masking**: a dropped token stays in its place, but nobody sees it;
# - **straight-through**: forward the decision is 0 or 1, backward its gradient is that of the sigmoid that was cut.

# %%
labkit.show(learned.LearnedDrop.draw)

# %% [markdown]
# > **Predict.** Masked tokens still walk through all blocks. Will the logits be those of a model that really removed them: exactly,
# > nearly, or only on average?


# %%
class Masked(tokens.Keep):
    """As `Keep`, but who is dropped stays in place, out of sight."""

    def reduce(self, x, evidence, sizes, prefix):
        groups = super().reduce(x, evidence, sizes, prefix)[1]
        return x, Groups.masked((groups.home >= 0).to(x))


with torch.inference_mode():
    removed, hidden = (tokens.attach(net, kind(0.3), [2]) for kind in (tokens.Keep, Masked))
    gap = (removed(some) - hidden(some)).abs().max().item()
    lengths = [m.observe(some).steps[2].x.shape[1] for m in (removed, hidden)]
assert gap < 1e-3
print(f"{lengths[0]} tokens or {lengths[1]}: the logits agree to three decimals. So training sees what use will do.")

# %% [markdown]
# Masking saves nothing, it only makes training possible; in use the tokens are gathered and the time is really saved.
#
# Now live: the backbone is frozen, and a predictor in block 2 learns for two dozen steps of 16 images to keep 20%. It never sees a
# mask. Its loss is that of the labels, plus a term that holds the number of kept patches to the budget.
#
# > **Predict.** After 384 images: nearer to dice or nearer to class attention? And will two trainings, from two seeds, end alike?


# %% tags=["nbval-ignore-output"]
def taught(number, steps):
    """The frozen model with a predictor in block 2, trained for so many steps: on the CPU, the same everywhere."""
    torch.manual_seed(number)
    frozen = copy.deepcopy(net).cpu().requires_grad_(False)
    drop = learned.LearnedDrop(net.norm.weight.numel(), 0.2)
    drop.predictor.judge[-1].bias.data.fill_(1.0)  # at first three of four stay: where little is left, little is learnt
    slim = tokens.attach(frozen, drop, [2])
    if steps:
        recipe = Recipe(steps, lr=4e-3, weight_decay=0.0, warmup=0.2, seed=number)
        train(slim, epochs(lessons, 16, number), recipe, loss=learned.dropping_loss())
    return slim.eval().to(place)


lessons = data.shapes("train", 384, seed=seed)
students = [taught(number, 12 if fast else 24) for number in range(seed, seed + (1 if fast else 2))]
trials = {f"learned, seed {seed + i}": judged(lambda batch, slim=slim: slim) for i, slim in enumerate(students)}
untaught = taught(seed, 0)
trials["learned, before training"] = judged(lambda batch: untaught)
trials |= {name: judged(cut(choosers[name], 0.2, [2])) for name in ("class attention", "dice")}
labkit.figure(
    figures.bars(
        list(trials),
        [share(right) for right, _ in trials.values()],
        [wilson(int(right.sum()), len(right)) for right, _ in trials.values()],
        label="right answers with 20 % of the patches behind block 2",
    ),
    alt="Right answers with 20% of the patches, with 95% intervals: "
    + ", ".join(f"{name} {share(right):.0%}" for name, (right, _) in trials.items())
    + ".",
)

# %% tags=["nbval-ignore-output"]
reached = [share(right) for name, (right, _) in trials.items() if name.startswith("learned, seed")]
if not fast:
    assert min(reached) > share(trials["dice"][0]) + 0.15
print("Object recall:", ", ".join(f"{name} {recall.nanmean():.0%}" for name, (_, recall) in trials.items()))

# %% [markdown]
# Labels alone have taught it where the object is, in seconds. That is no law: begin with a bias of 0 in place of 1, a coin
# toss for each patch, and look how the seeds end then. The same idea carries further: learn *how many* as well, by a softmax over the
# counts of each block with a term for the MACs ("DiffRate", 2023; `tokens.rates`); or draw the decisions and reward what went well
# ("IA-RED²", 2021; `tokens.policy`), where what was kept is offered as an explanation.
#
# ## 6. The result: how much may go, and who may choose
#
# Everything at once: one cut behind block 2, from mild to harsh, the true mask above and three controls below. Dice are thrown five times; the
# band is from the worst to the best throw.
#
# > **Predict.** How far is class attention ahead of dice at 90%? At 20%? Where does *the middle* lie, which never looks?

# %%
labkit.predict("07 ahead of dice", "At 90 % kept, how far is class attention ahead of dice?", number=20, unit="points")

# %% tags=["nbval-ignore-output"]
keeps = (0.9, 0.6, 0.2)
lines = {
    name: [share(named(cut(choosers[name], keep, [2]))) for keep in keeps]
    for name in ("the true mask", "class attention", "the middle", "least attended")
}
trained = []
for slim in students:
    for keep in keeps:
        slim.blocks[2].reducer.keep = keep
        trained.append(share(named(lambda batch, slim=slim: slim)))
trained = 100 * torch.tensor(trained).reshape(-1, len(keeps))
throws = []
for number in range(5):
    own = torch.Generator().manual_seed(1000 * seed + number)
    throws.append([share(named(cut(lambda batch, own=own: score.random(own), keep, [2]))) for keep in keeps])
throws = 100 * torch.tensor(throws)
percent = [100 * keep for keep in keeps]
fig = Figure(figsize=(7.6, 3.0), layout="constrained")
ax = fig.subplots()
looks = {
    "the true mask": ("v", "#009E73"),
    "class attention": ("o", "#0072B2"),
    "the middle": ("D", "#E69F00"),
    "least attended": ("^", "#D55E00"),
}
for name, (mark, color) in looks.items():
    style = "-" if name == "class attention" else "--"
    ax.plot(percent, [100 * r for r in lines[name]], marker=mark, color=color, linestyle=style, label=name)
for several, mark, color, name in (
    (trained, "s", "#CC79A7", f"learned at 20 %, {len(trained)} seed{'s' * (len(trained) > 1)}"),
    (throws, "x", "#444444", "dice, five throws"),
):
    ax.fill_between(percent, several.amin(dim=0), several.amax(dim=0), color=color, alpha=0.35, linewidth=0)
    ax.plot(percent, several.mean(dim=0), marker=mark, color=color, linestyle=":", label=name)
ax.axhline(100 * share(full), color="#777777", linewidth=0.8)
ax.set(xlabel="patches kept behind block 2 (%)", ylabel="right answers (%)", ylim=(0, 102))
ax.invert_xaxis()
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
bands = {
    name: ", ".join(f"{low:.0f} to {high:.0f}%" for low, high in zip(*several.aminmax(dim=0), strict=True))
    for name, several in (("learned", trained), ("dice", throws))
}
labkit.figure(
    lean(fig),
    alt=f"Right answers at {', '.join(f'{keep:.0%}' for keep in keeps)} kept: "
    + "; ".join(f"{name} {', '.join(f'{r:.0%}' for r in line)}" for name, line in lines.items())
    + "".join(f"; {name} {band}" for name, band in bands.items())
    + ".",
)

# %%
gaps = [100 * lines["class attention"][i] - throws[:, i] for i in range(len(keeps))]
assert gaps[0].mean() < 8 and gaps[1].min() > 5 and gaps[2].min() > 20
assert min(lines["the true mask"]) > share(full) - 0.05
assert all(lines["least attended"][i] < throws[:, i].min() / 100 for i in range(len(keeps)))
assert lines["least attended"][0] < throws[:, 1].mean() / 100 + 0.03
assert lines["the middle"][2] > throws[:, 2].max() / 100
for keep, gap in zip(keeps, gaps, strict=True):
    print(f"Keep {keep:.0%}: class attention is ahead of dice by {gap.min():.0f} to {gap.max():.0f} points.")
low, high = wilson(round(0.95 * len(test)), len(test))
print(
    f"Without the 10% most attended: {lines['least attended'][0]:.0%}. Without 40% by dice: {throws[:, 1].mean():.0f}%."
)
print(f"For comparison: the interval of 95% measured on {len(test)} images is {100 * (high - low):.0f} points wide.")

# %%
labkit.reveal("07 ahead of dice", round(gaps[0].mean().item()), within=2)

# %% [markdown]
# At 90% the whole benefit of a method over dice is no wider than the interval of a small test set; at 60% and below nobody can
# miss it. And a bad choice is worse than a blind one: losing the 10% most attended costs about as much as 40% by dice, or more. So ask of a table: *where is the row of dice, and where does it collapse?* The middle of the frame, which looks at nothing, beats dice
# for free, because objects here lie within the frame. And the true mask says what is still to be won:
# even at 20% nothing need be lost.
#
# ### And the milliseconds?
#
# Fewer tokens are not yet less time. Here every model is timed in turns with the full one on the same 32 images; 1 is the full
# model's time (*crowd* is cut behind block 1, all others behind block 2). Up and left is better; the staircase joins those that nothing else beats in both.

# %% tags=["nbval-ignore-output"]
students[0].blocks[2].reducer.keep = 0.2
candidates = {
    "full": net,
    "attention 60 %": tokens.attach(net, tokens.Keep(0.6), [2]),
    "attention 30 %": tokens.attach(net, tokens.Keep(0.3), [2]),
    "fused 15 %": tokens.attach(net, tokens.Fuse(0.15), [2]),
    "PageRank 15 %": tokens.attach(net, tokens.Keep(0.15, scores["PageRank of attention"]), [2]),
    "crowd 30 %": tokens.attach(net, tokens.Keep(0.3, scores["away from the crowd"]), [1]),
    "learned 20 %": students[0],
    "dice 60 %": tokens.attach(net, tokens.Keep(0.6, score.random(dice)), [2]),
    "share 0.8": adaptively,
}
reach = {name: named(lambda batch, slim=slim: slim) for name, slim in candidates.items()}
reach["share 0.8, packed"] = reach["share 0.8"]
candidates["share 0.8, packed"] = lambda images: tokens.packed(adaptively, images)
clocks = ("cpu",) if place.type == "cpu" else ("wall",)
took = labkit.clock.compare(candidates, test.images[:32], rounds=7, warmup=1, seconds=3, clocks=clocks)
points = {
    name: charts.Point(
        took.ratio(name)[0], 100 * share(right), *(100 * end for end in wilson(int(right.sum()), len(right)))
    )
    for name, right in reach.items()
}
charts.chart(
    charts.pareto(points, "time, the full model is 1", "right answers (%)"),
    alt="Right answers over time, the full model being 1: "
    + ", ".join(f"{name} {point.value:.0f}% at {point.cost:.2f}" for name, point in points.items())
    + ".",
)


# %% tags=["nbval-ignore-output"]
def macs(call):
    with torch.inference_mode():
        return sum(operation.macs for operation in operations(call, test.images[:32]))


whole = macs(net)
labkit.table(
    [
        [
            name,
            f"{1000 * took.median(name) / 32:.2f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*took.ratio(name)),
            f"{macs(call) / whole:.2f}",
        ]
        for name, call in candidates.items()
    ],
    headers=["", "ms for an image", "time, full is 1 [95 %]", "MACs, full is 1"],
)

# %% [markdown]
# Compare the last two columns: what was promised on paper and what the clock gives. Packing, too: it saves
# the empty places on paper, but it cuts 32 images into many small batches, and small batches are slow. On another machine and
# with larger batches the points move: run the cell there.
#
# ## Limits
#
# - **One object on a background that means nothing.** On photographs a cow stands on grass, and the grass tells; there the
#   background may be needed for the answer, not only as one token of contrast.
# - **One small model, 64 tokens.** Where dice collapse with 197 or 577 tokens is another measurement.
# - **No training with the cut.** Only the predictor of round 5 was trained; papers fine-tune the backbone as well.
# - **Recall needs a mask**, and an object patch is one that is at least half object: its rim does not count.
# - **Five throws show the spread of the dice,** not that of training the model again.

# %% [markdown]
# ## Exercises
#
# The line below each stub judges your function: `labkit.check` tries it on small cases, shows the smallest that fails and names
# the mistake. `labkit.check.class_scores.hint(1)` says a little, `hint(2)` more. The stubs run as they are.
#
# ### Exercise 1: a score that costs nothing
#
# *Easy, 5 minutes.* Write `class_scores(attn, prefix)`: from attention (images, heads, tokens, tokens), how much the
# class token looks at each patch, the mean over heads: (images, patches). The first `prefix` tokens are no patches.
#
# <details><summary>Hint 1</summary>Row i of attn[image, head] says where token i looks; the class token is token
# 0.</details>
# <details><summary>Hint 2</summary><code>attn.mean(dim=1)</code> is the mean over heads; the patches come behind the
# first <code>prefix</code> tokens.</details>
# <details><summary>Solution</summary>
#
# ```python
# def class_scores(attn, prefix):
#     return attn.mean(dim=1)[:, 0, prefix:]
# ```
#
# </details>


# %% tags=["exercise"]
def class_scores(attn, prefix):
    return torch.zeros(attn.shape[0], attn.shape[-1] - prefix)  # your code here


# %%
labkit.check.class_scores(class_scores)

# %% [markdown]
# ### Exercise 2: keep the best, in order
#
# *Easy, 10 minutes.* Write `best_in_order(scores, count)`: of one image's scores (patches,), the places of the
# `count` highest, in the order of the image. Of equal scores the earlier wins.
#
# <details><summary>Hint 1</summary><code>argsort(descending=True, stable=True)</code> puts the earlier of equals
# first.</details>
# <details><summary>Hint 2</summary>Take the first <code>count</code> of them, and sort the places again.</details>
# <details><summary>Solution</summary>
#
# ```python
# def best_in_order(scores, count):
#     return scores.argsort(descending=True, stable=True)[:count].sort().values
# ```
#
# </details>


# %% tags=["exercise"]
def best_in_order(scores, count):
    return torch.zeros(count, dtype=torch.long)  # your code here


# %%
labkit.check.best_in_order(best_in_order)

# %% [markdown]
# ### Exercise 3: fuse the rest
#
# *Medium, 15 minutes.* Write `fuse_the_rest(x, scores, count)` for one image: x is (patches, d), the scores are
# positive. The `count` best stay, in order, and behind them comes one token more: the mean of the others, weighted by
# their scores.
#
# <details><summary>Hint 1</summary>A boolean mask of who stays: zeros, and True at the places of the best.</details>
# <details><summary>Hint 2</summary>The weights of the others must sum to 1: <code>w = scores[~stays] /
# scores[~stays].sum()</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def fuse_the_rest(x, scores, count):
#     stays = torch.zeros(len(x), dtype=torch.bool)
#     stays[scores.argsort(descending=True, stable=True)[:count]] = True
#     weight = scores[~stays] / scores[~stays].sum()
#     return torch.cat([x[stays], weight[None] @ x[~stays]])
# ```
#
# </details>


# %% tags=["exercise"]
def fuse_the_rest(x, scores, count):
    return torch.zeros(count + 1, x.shape[1])  # your code here


# %%
labkit.check.fuse_the_rest(fuse_the_rest)

# %% [markdown]
# ### Exercise 4: how many are enough?
#
# *Medium, 15 minutes.* Write `fewest_patches(scores, part)`: how many of one image's highest scores (patches,) it
# takes to get at least the share `part` of their sum. An image always keeps one.
#
# <details><summary>Hint 1</summary>Sort falling, and sum up with <code>cumsum</code>.</details>
# <details><summary>Hint 2</summary>A patch is needed while the sum of those before it is below the share.</details>
# <details><summary>Solution</summary>
#
# ```python
# def fewest_patches(scores, part):
#     falling = scores.sort(descending=True).values
#     before = falling.cumsum(dim=0) - falling
#     return max(1, int((before < part * falling.sum()).sum()))
# ```
#
# </details>


# %% tags=["exercise"]
def fewest_patches(scores, part):
    return 0  # your code here


# %%
labkit.check.fewest_patches(fewest_patches)

# %% [markdown]
# ### Exercise 5: a jump with a gradient
#
# *Hard, 15 minutes.* Write `straight_through(logits)`: forward exactly 1 where a logit is above 0 and exactly 0
# elsewhere; backward the gradient of the sigmoid.
#
# <details><summary>Hint 1</summary><code>hard + something</code>, whose value is 0 but whose gradient is that of the
# sigmoid.</details>
# <details><summary>Hint 2</summary><code>soft - soft.detach()</code> is 0, and only one of the two has a
# gradient.</details>
# <details><summary>Solution</summary>
#
# ```python
# def straight_through(logits):
#     soft = logits.sigmoid()
#     return (logits > 0).float() + (soft - soft.detach())
# ```
#
# </details>


# %% tags=["exercise"]
def straight_through(logits):
    return logits * 0  # your code here


# %%
labkit.check.straight_through(straight_through)

# %% [markdown]
# ### Exercise 6: beat the class token
#
# *Hard, 20 minutes, and open: there is no one right answer.* Behind block 1 class attention is poor. Write `my_score(evidence, prefix)`: (images, patches), high for those
# that should stay. You may read `evidence.q`, `.k`, `.v`, (images, heads, tokens, width), `evidence.attention()`, and everything in
# `labkit.tokens.score`; but no mask. Do you beat *away from the crowd*, too?
#
# <details><summary>Hint 1</summary>The object is what differs from the rest of this image.</details>
# <details><summary>Hint 2</summary>How far is the key (or the value) of a patch from the mean of all patches?</details>
# <details><summary>Solution</summary>
#
# ```python
# def my_score(evidence, prefix):
#     keys = evidence.k[:, :, prefix:].transpose(1, 2).flatten(2)
#     return (keys - keys.mean(dim=1, keepdim=True)).norm(dim=2)
# ```
#
# </details>


# %% tags=["exercise"]
def my_score(evidence, prefix):
    return torch.zeros(len(evidence.k), evidence.k.shape[2] - prefix, device=evidence.k.device)  # your code here


# %%
with torch.inference_mode():
    probe = my_score(net.observe(test.images[:2]).steps[1].evidence, net.prefix)
if not probe.any():
    print("Not started yet.")
elif probe.shape != (2, n):
    print(f"Not yet: the shape should be (2, {n}); yours is {tuple(probe.shape)}.")
else:
    mine = judged(cut(lambda batch: my_score, 0.3, [1]))
    for rival in ("dice", "the middle", "class attention", "away from the crowd"):
        ahead, low, high = (100 * value for value in paired_difference(mine[0], table[rival][0][0]))
        print(f"Against {rival}: {ahead:+.0f} points [{low:+.0f}, {high:+.0f}].")
    print(f"Yours is right in {share(mine[0]):.0%} of the images and recalls {mine[1].nanmean():.0%} of the object.")

# %% [markdown]
# ## Papers

# %%
for paper in ("S029", "S011", "S066", "S188", "S312", "S007", "S053"):
    print(labkit.papers.cite(paper))
for paper in (
    '"DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", 2021',
    '"A-ViT: Adaptive Tokens for Efficient Vision Transformer", 2021',
    '"Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", 2021',
):
    print(paper)

# %% [markdown]
# ## Next
#
# Whatever is dropped is gone. [08 Token merging](08_token_merging.ipynb): put what is alike together instead, so that nothing is lost
# but the difference.
