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
# # 02 Images to tokens
#
# **By the end you will have cut images into tokens in eight ways, measured what each costs and what it loses, and made
# a trained model answer the same wherever the grid of its patches begins.**
#
# *Needs:* [00 Start here](00_start_here.ipynb); a little PyTorch. · *Time:* 50 minutes; the cells take about one. ·
# *Device:* any computer; no GPU and no network.

# %% tags=["parameters"]
seed = 0  # which test images are drawn, and every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # the trained model whose patches are changed: 64 x 64 pixels in patches of 8 x 8
image = 4  # the test image that is looked at closely
fast = False  # True: fewer test images and shorter training, wider intervals

# %%
import copy
from dataclasses import replace

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import interpolate, pad

import labkit
from labkit import cost, data
from labkit.intervals import wilson
from labkit.patching import channels, overlap, packing, patches, polyphase, reconstruct, segments, t2t, tiles
from labkit.patching.conv_stem import ConvStem
from labkit.patching.flexi import flexible
from labkit.train import Recipe, epochs, train
from labkit.verify import hits
from labkit.viz import figures
from labkit.viz.patch_dial import PatchDial

place = labkit.setup(seed, device)
dice = torch.Generator().manual_seed(seed)
net = labkit.load(model).to(place)
test = data.shapes("test", 50 if fast else 72, seed=seed).to(place)
images = test.images
p, d = net.patch_embed.proj.stride[0], net.patch_embed.proj.out_channels
print(f"{test}; {model} cuts them into patches of {p} x {p} pixels, a token has {d} numbers.")


def decibels(a, b):
    """The PSNR of all images taken together."""
    return reconstruct.psnr(a.flatten()[None], b.flatten()[None]).item()


def share(right):
    """A share of right answers and its 95 % interval, in words."""
    low, high = wilson(int(right.sum()), len(right))
    return f"{right.double().mean():.0%} [{low:.0%}, {high:.0%}]"


# %% [markdown]
# ## 1. Cut, three ways
#
# A transformer reads a list of vectors. The plain way to make one from an image: cut it into squares, write the pixels
# of each in a row, and multiply every row by one and the same matrix. The cut alone can be written as two loops, as a new
# shape for the same numbers, or as a convolution whose stride is as large as its kernel.
#
# > **Predict.** An image of 64 × 64 pixels in three colours, patches of 8 × 8. How many squares, and how many numbers in
# > each? The kernels of a convolution that only *cuts*: what do they look like, and how many are there?

# %%
labkit.show(patches.cut_by_loops)

# %%
labkit.show(patches.cut)

# %%
labkit.show(patches.cut_by_convolution)

# %%
by_loops, by_shape = patches.cut_by_loops(images, p), patches.cut(images, p)
by_convolution = patches.cut_by_convolution(images, p)
grid = (images.shape[-2] // p, images.shape[-1] // p)
assert torch.equal(by_loops, by_shape)
assert (by_convolution - by_shape).abs().max() < 1e-6
assert torch.equal(patches.uncut(by_shape, p, grid), images)
with torch.inference_mode():
    tokens, _ = net.patch_embed(images)
    by_hand = patches.patch_embed(images, p, net.patch_embed.proj.weight, net.patch_embed.proj.bias)
assert (tokens - by_hand).abs().max() < 1e-4 * tokens.abs().max()
print(f"Loops, shape and convolution agree: {by_shape.shape[1]} squares of {by_shape.shape[2]} numbers,")
print("and the image comes back bit for bit. Cut and multiply is what the model's convolution does.")


# %%
def spaced(squares, grid, p):
    """Flattened patches as an image with white lines between them."""
    squares = pad(squares.unflatten(1, (-1, p, p)), (1, 1, 1, 1), value=1.0)
    return patches.uncut(squares.flatten(1)[None], p + 2, grid)[0]


cut = spaced(by_shape[image], grid, p)
labkit.figure(
    figures.image_strip([images[image], cut], ["image", f"{len(by_shape[image])} squares"]),
    alt=f"A test image ({test.names[int(test.labels[image])]}) and the same image cut into {len(by_shape[image])} squares.",
)

# %% [markdown]
# ## 2. The first dial: how large is a patch?
#
# A patch of p × p pixels holds 3p² numbers, a token d. A smaller patch loses less and costs more: half the side is four
# times the tokens. What a token *must* lose has a bound: no linear code of d numbers a patch beats the d leading
# principal components (PCA) of the patches.
#
# > **Predict.** At which patch size does a token of 128 numbers begin to lose pixels?

# %%
labkit.predict(
    "02 half the side",
    "From 8 to 4 pixels, by how much do the multiply-accumulates (MACs) of the model grow?",
    number=4,
    unit="times",
)

# %%
rows = patches.patch_sweep(images, (16, 8, 4, 2, 1), d, len(net.blocks))
labkit.table(
    [
        [
            f"{row.patch} x {row.patch}",
            row.tokens,
            f"{row.macs / 1e6:,.0f}",
            row.numbers,
            row.rank,
            "no loss" if row.error < 1e-12 else f"{-10 * torch.tensor(row.error).log10():.1f} dB",
        ]
        for row in rows
    ],
    headers=["patch", "tokens", "million MACs", "numbers in a patch", "kept at most", "PCA bound"],
)

# %%
at = {row.patch: row for row in rows}
print(f"A token of {d} numbers holds all of a patch of up to {int((d / 3) ** 0.5)} x {int((d / 3) ** 0.5)} pixels.")
print(f"From 8 to 4: {at[4].macs / at[8].macs:.1f} times the MACs. From 2 to 1: {at[1].macs / at[2].macs:.1f} times.")
assert 4 < at[4].macs / at[8].macs < 5 < at[1].macs / at[2].macs < 16
assert at[4].error < 1e-12 < at[8].error < at[16].error
labkit.reveal("02 half the side", round(at[4].macs / at[8].macs, 1))

# %% [markdown]
# While tokens are few, the cost is almost linear in them (the MLPs); when they are many, the pairs take over.
#
# Now turn the dial. It *resizes* the patches of the trained model: the weights w of a patch become those that give the
# resized patch the same token, by a pseudo-inverse ("FlexiViT: One Model for All Patch Sizes", 2022); everything else
# stays. Left, the image under its grid; in the middle, the best linear guess of the image from its tokens; right, what
# the model still answers. (Without a running kernel you see a picture.)
#
# > **Predict.** Patches of 4 × 4 lose nothing and cost five times as much; patches of 16 × 16 lose a lot. Commit before
# > you run on.

# %%
resized = ["better, as its tokens hold every pixel", "about as good as before", "worse"]
labkit.predict("02 resized to 4 x 4", "Resized to 4 x 4 without training, the model answers …", options=resized)

# %%
dial = PatchDial(net, test[:40], [(4, 4), (8, 8), (8, 16), (16, 16)], (8, 8), example=image)
dial

# %%
for size in ((4, 4), (16, 16), (8, 16)):
    dial.patch = size
    print(dial.state())
looks = dial.looks
assert looks[8, 8].resized[0] > 0.85 > max(looks[4, 4].resized[0], looks[16, 16].resized[0])
assert all(look.psnr < look.bound or look.psnr > 100 for look in looks.values())
assert looks[8, 8].psnr > looks[8, 16].psnr > looks[16, 16].psnr
gained = looks[4, 4].resized[0] - looks[8, 8].resized[0]  # in shares of right answers
labkit.reveal("02 resized to 4 x 4", resized[0 if gained > 0.05 else 2 if gained < -0.05 else 1])

# %% [markdown]
# Two things to read from it. The pictures are good everywhere: at 16 × 16 *you* still see the object, so what the tokens hold
# is not what stops the model. And smaller patches, which lose nothing, make it *worse*: the model was never trained to put
# an object together from 256 pieces. Tokens that hold more are not tokens that the model can read.
#
# Is the pseudo-inverse worth its name? The control resizes the weights like any other image.

# %%
plain = flexible(net, 16)
weight = interpolate(net.patch_embed.proj.weight, (16, 16), mode="bicubic", antialias=True)
plain.patch_embed.proj.weight = nn.Parameter(weight)
control, found = hits(plain, test[:40]), looks[16, 16].resized
print("16 x 16 by the pseudo-inverse: {:.0%} [{:.0%}, {:.0%}];".format(*found), f"control: {share(control)}.")
assert found[0] > control.double().mean()

# %% [markdown]
# And what does the model look at, when its tokens are four times as many? The two side by side; the arrow
# keys move the query.

# %%
explorer = labkit.Explorer(
    net,
    test[:3],
    other=flexible(net, 4),
    titles=["8 x 8", "4 x 4"],
    view="compare",
    image=min(image, 2),
    layer=3,
    query="class" if net.prefix else (3, 3),
)
explorer

# %%
explorer.layer = 5
print(explorer.describe())

# %% [markdown]
# ### Short training, live
#
# How fast does the model learn to read the other size? Resized to 16 × 16, it is trained for a few seconds; the control
# is a fresh model with the same steps and the same images.
#
# > **Predict.** After a short training: does the resized one come half of the way back to the answers it gave at 8 × 8?
# > And the fresh one?

# %% tags=["nbval-ignore-output"]
steps = 20 if fast else 60
lessons = data.shapes("train", 32 * steps)


def taught(network, batch_source, recipe, held_out):
    """Train a copy, on the CPU, so that all machines learn alike; returns which held-out images it then gets right."""
    network = copy.deepcopy(network).cpu()
    train(network, batch_source, recipe)
    return hits(network.to(place).eval(), held_out.to(place))


torch.manual_seed(seed)
brief = Recipe(steps, "adamw", lr=1e-3, weight_decay=0.01, seed=seed)
starts = {"resized": flexible(net, 16), "fresh": labkit.ViT(64, 16, 10, d, len(net.blocks), 4)}
learned = {name: taught(start, epochs(lessons, 32, seed), brief, test) for name, start in starts.items()}
before = {name: hits(start.to(place).eval(), test) for name, start in starts.items()}
labkit.table(
    [[name, share(before[name]), share(right)] for name, right in learned.items()],
    headers=["patches of 16 x 16", "before", f"after {len(lessons):,} images"],
)

# %% tags=["nbval-ignore-output"]
first, last, goal = (right.double().mean().item() for right in (before["resized"], learned["resized"], hits(net, test)))
print(
    f"From {first:.0%} to {last:.0%}; with patches of 8 x 8 it is {goal:.0%}: {(last - first) / (goal - first):.0%} of the way back."
)

# %%
assert learned["resized"].double().mean() > learned["fresh"].double().mean()
assert fast or last > first + 0.05
print("A resized model goes on from what it knows; a fresh one has hardly begun.")

# %% [markdown]
# ### Is smaller better, then?
#
# "Scaling Laws in Patchification" (2025) found accuracy to grow down to patches of one pixel, on photographs and with long
# training. Before you carry that to your own data, try another set: handwritten digits of 16 × 16 pixels, a small ViT, and the
# same few steps for every patch size. With one patch of 16 × 16 there is nothing left to attend to: the model is an MLP.
#
# > **Predict.** Order the patch sizes 4, 8 and 16 by accuracy.

# %% tags=["nbval-ignore-output"]
reading = {part: data.digits(part, size=16) for part in ("train", "val")}
reading = {part: replace(found, images=(found.images - 0.5) / 0.25) for part, found in reading.items()}
scores = {}
for size in (4, 8, 16):
    torch.manual_seed(seed)
    small = labkit.ViT(16, size, 10, 64, 2, 4)
    recipe = Recipe(50, "muon", lr=6e-3, weight_decay=0.05, warmup=0.1, seed=seed)
    scores[size] = taught(small, epochs(reading["train"], 32, seed), recipe, reading["val"])
mean = {size: right.double().mean().item() for size, right in scores.items()}
labkit.figure(
    figures.bars(
        [f"{size} x {size}: {(16 // size) ** 2} tokens" for size in scores],
        list(mean.values()),
        [wilson(int(right.sum()), len(right)) for right in scores.values()],
        label="held-out digits read correctly, with 95 % intervals",
    ),
    alt="Digits read correctly after the same short training: "
    + ", ".join(f"{size} x {size} {share(right)}" for size, right in scores.items())
    + ".",
)

# %%
assert mean[16] > mean[4] + 0.03
print("On these digits one patch of 16 x 16 beats sixteen patches of 4 x 4.")

# %% [markdown]
# On these digits the order is turned around: they are centred and upright, so each pixel means something by itself, and a
# short training has no time to learn what a position is.
#
# Two more witnesses ran longer than a lesson may, and were stored: a small ViT from scratch with every way of making
# tokens, three seeds each and the same number of images seen, on noisy silhouettes and on the digits, both of 32 × 32 pixels.

# %% tags=["nbval-ignore-output"]
stored = {name: labkit.results.load(f"bench-{name}") for name in ("patching", "digits")}


def right_in(study, row, over="32"):
    """The share of right answers of each run."""
    runs = stored[study]["runs"][row].values()
    return [run["right"][over] / stored[study]["setting"]["test_images"] for run in runs]


def middle(study, row):
    return sum(right_in(study, row)) / len(right_in(study, row))


order = sorted(stored["patching"]["runs"], key=lambda row: -middle("patching", row))
labkit.table(
    [
        [
            row,
            *(", ".join(f"{share:.0%}" for share in right_in(study, row)) for study in stored),
            next(iter(stored["patching"]["runs"][row].values()))["macs"] / 1e6,
        ]
        for row in order
    ],
    headers=["", "silhouettes right, run by run", "digits right", "million MACs"],
    digits=1,
)

# %% tags=["nbval-ignore-output"]
print(stored["patching"].caption())

# %%
for study in stored:
    sizes = sorted(("patch 4", "patch 8", "patch 16"), key=lambda row: -middle(study, row))
    print(
        f"{study}: best first, {', '.join(sizes)}; in front of all rows: {max(order, key=lambda row: middle(study, row))}."
    )
assert middle("patching", "patch 16") < middle("patching", "patch 4") < middle("patching", "patch 8")
assert min(right_in("patching", "segments")) > max(right_in("patching", "patch 8"))

# %% [markdown]
# *Smaller is better* is a law of its data and its budget, like every law in this course. The best tokens are those that know
# something of the image: segments find the silhouettes before anything is learned. They pay for it with four times the
# MACs, and with k-means, which no MAC counts.
#
# ## 3. Patches that overlap
#
# The knife goes through everything: two neighbouring pixels on the two sides of a cut meet for the first time in the
# attention. Let the squares overlap (kernel wider than stride), stack small convolutions (a *stem*), or cut softly
# several times with a little attention in between (*T2T*, "Tokens-to-Token ViT", 2021).
#
# > **Predict.** With patches of 8, which share of neighbouring pixels is torn apart? How many pixels does a token see
# > through three convolutions of kernel 3 and stride 2? And through T2T?

# %%
labkit.show(t2t.soft_split)

# %%
soft, soft_grid = t2t.soft_split(images[:9], kernel=7, stride=4, padding=2)
assert (t2t.soft_merge(soft, (64, 64), 7, 4, 2) - images[:9]).abs().max() < 1e-5
print(f"A soft split of 7, stride 4: {soft.shape[1]} tokens of {soft.shape[2]} numbers; merged, it is the image again.")


def torn(kernel, stride, padding):
    """The share of horizontal neighbours that no token sees together."""
    columns = torch.arange(1.0, 65.0).expand(1, 1, 64, 64)
    windows, (_, wide) = t2t.soft_split(columns, kernel, stride, padding)
    seen = [set(window[window > 0].tolist()) for window in windows[0, :wide]]
    pairs = [(float(at), float(at + 1)) for at in range(1, 64)]
    return sum(not any(a in window and b in window for window in seen) for a, b in pairs) / len(pairs)


torch.manual_seed(seed)
makers = {
    "patches": labkit.vit.PatchEmbed(8, 3, d),
    "overlap": overlap.OverlapPatchEmbed(d, 15, 8),
    "conv stem": ConvStem(8, d),
    "T2T": t2t.TokensToToken(d, ((7, 4, 2), (3, 2, 1))),
}
fields, lines = [], []
for name, maker in makers.items():
    pixels = torch.rand(1, 3, 64, 64, generator=dice).requires_grad_()
    x, (high, wide) = maker.eval()(pixels)
    x[:, (high // 2) * wide + wide // 2].square().sum().backward()
    field = pixels.grad.abs().sum(dim=(0, 1))
    fields.append(field / field.max())
    whole = cost.count(labkit.ViT(64, 8, 10, d, 6, 4, patching=maker), image_size=64)
    lines.append([name, x.shape[1], int((field > 0).sum()), whole.parts["patch"]["macs"] / 1e6, whole.macs / 1e6])
labkit.table(
    lines,
    headers=["", "tokens", "pixels that a token sees", "million MACs of the patches", "of the whole model"],
    digits=1,
)

# %%
labkit.figure(
    figures.matrices([field.sqrt() for field in fields], list(makers), "root of the influence"),
    alt="Which pixels move one token in the middle, for random weights: those of one square for patches, a larger square "
    "for overlap and stem, and for T2T a square and, faintly, the whole image.",
)

# %%
print(f"Neighbours torn apart: patches {torn(8, 8, 0):.0%}, kernel 15 with stride 8 {torn(15, 8, 7):.0%}.")
assert torn(15, 8, 7) == 0 < torn(8, 8, 0) < 0.12
assert [line[2] for line in lines] == [64, 225, 225, 4096]
assert lines[3][4] > lines[0][4] * 1.2

# %% [markdown]
# All four make 64 tokens; what differs is who saw what, and the price, which the table shows. Whether it pays depends on the
# training: the stored table above shows two small cases.
#
# ## 4. Tokens that follow the image
#
# A grid asks nothing of the image. Four ways to ask.
#
# ### Segments
#
# Superpixels: k-means on colour and place, from a grid of centres. One token a segment, the mean of its pixels. Squares are
# the limit when place outweighs colour, which makes a fair control: the same number of tokens, the same mean.
#
# > **Predict.** If an oracle marks each token as object or background, how much of the object's outline is right
# > (intersection over union)?

# %%
labkit.predict(
    "02 segments",
    "Replace each pixel by the mean of its token: by how many decibels do 64 segments beat 64 squares?",
    number=1,
    unit="dB",
)

# %%
some = test[:16]
drawn, lines = {}, []
for name, compactness in (("squares", 1e6), ("segments", 0.3)):
    labels = segments.slic_labels(some.images, (8, 8), compactness)
    means = segments.segment_tokens(some.images, labels, 64)
    back = segments.unpool(means.x, labels)
    inside = segments.segment_tokens(some.masks[:, None].float(), labels, 64).x
    marked = segments.unpool((inside > 0.5).float(), labels)[:, 0].bool()
    overlap_of = (marked & some.masks).sum(dim=(1, 2)) / (marked | some.masks).sum(dim=(1, 2))
    drawn[name] = (labels, back, marked)
    lines.append(
        [name, f"{int((means.sizes > 0).sum()) / len(some):g}", decibels(some.images, back), overlap_of.mean().item()]
    )
labkit.table(lines, headers=["", "tokens an image", "PSNR of the means, dB", "outline, at best"], digits=2)


# %%
def outlined(picture, labels):
    """White where a pixel's right or lower neighbour belongs to another segment."""
    edge = torch.zeros_like(labels, dtype=torch.bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return torch.where(edge.to(picture.device), torch.ones_like(picture), picture)


labkit.figure(
    figures.image_strip(
        [part for name in drawn for part in (outlined(images[image], drawn[name][0][image]), drawn[name][1][image])],
        [f"64 {name}{part}" for name in drawn for part in ("", ":\ntheir means")],
    ),
    alt="One image under 64 squares and their mean colours, and under 64 segments and theirs: the segments keep the "
    "outline of the object.",
)
assert lines[1][2] > lines[0][2] + 2 and lines[1][3] > lines[0][3] + 0.2
labkit.reveal("02 segments", round(lines[1][2] - lines[0][2], 1), within=1)

# %% [markdown]
# The price: segments need k-means before the first layer, a token no longer has one size or one place, and both must be
# told (`SegmentEmbed` adds them). And a mean forgets texture, which a patch keeps.
#
# ### Channels
#
# One token for each patch *of each channel* ("Channel Vision Transformers", 2023): microscopes and satellites have
# channels that are no colours and may be missing.
#
# > **Predict.** Three channels make three times the tokens. How many times the MACs? And if one channel is missing, may
# > what stands in its place change the answer?

# %%
torch.manual_seed(seed)
by_channel = channels.ChannelPatchEmbed(64, 8, d, 3)
wide = labkit.ViT(64, 8, 10, d, 6, 4, patching=by_channel, positions=False).eval().to(place)
times = cost.count(wide, image_size=64).macs / cost.count(net, image_size=64).macs
present = torch.tensor([[True, False, True]] * 2, device=place)
noisy = images[:2].clone()
noisy[:, 1] = torch.rand(2, 64, 64, generator=dice).to(place)
with torch.inference_mode():
    quiet, loud = (channels.present_forward(wide, batch, present) for batch in (images[:2], noisy))
    by_channel.holds = (0, 2)
    alone = wide(images[:2, [0, 2]])
    by_channel.holds = (0, 1, 2)
assert (quiet - loud).abs().max() < 1e-5 and (quiet - alone).abs().max() < 1e-4
print(f"{wide.grid[0] * wide.grid[1]} tokens, {times:.1f} times the MACs.")
print("Whatever stands in a missing channel, the answer is that of the other two alone.")
planes = [torch.where(torch.arange(3, device=place)[:, None, None] == c, images[image], 0.0) for c in range(3)]
labkit.figure(
    figures.image_strip(
        [spaced(patches.cut(plane[None], p)[0], grid, p) for plane in planes],
        [f"{name}: 64 tokens" for name in ("red", "green", "blue")],
    ),
    alt="The red, green and blue channels of an image, each cut into 64 squares: 192 tokens.",
)

# %% [markdown]
# ### Tiles and a thumbnail
#
# A model made for 64 × 64 meets a large picture. Shrink it, or cut it into *tiles* of the size that the model knows and
# add a *thumbnail* of the whole ("InternLM-XComposer2-4KHD", 2024)? Here are pictures of nine scenes, three by three.
#
# > **Predict.** shapes-vit reads each scene from its tile, and, as the control, from its ninth of the thumbnail, enlarged.
# > How many answers are right each time?

# %%
many = len(test) // 9
scenes = test.images[: 9 * many].unflatten(0, (many, 9))
large = tiles.untile(scenes, (3, 3))
tile_grid = tiles.dynamic_partition(*large.shape[-2:], 64, budget=9)
pieces = tiles.tile(tiles.fit(large, 64, tile_grid), 64)
thumbnail = tiles.resize(large, (64, 64))
enlarged = tiles.tile(tiles.resize(thumbnail, (192, 192)), 64)
with torch.inference_mode():
    answers = {
        name: net(found.flatten(0, 1)).argmax(dim=1) for name, found in (("tiles", pieces), ("thumbnail", enlarged))
    }
right = {name: found == test.labels[: 9 * many] for name, found in answers.items()}
assert torch.equal(pieces, scenes)
print(f"{large.shape[-2]} x {large.shape[-1]} pixels in at most 9 tiles: {tile_grid[0]} x {tile_grid[1]}.")
labkit.table([[name, share(found)] for name, found in right.items()], headers=["read from", "right"])

# %%
labkit.figure(
    figures.image_strip(
        [thumbnail[0], pieces[0, 0], enlarged[0, 0]],
        ["thumbnail", "one tile", "the same in\nthe thumbnail"],
    ),
    alt="The thumbnail of a picture of nine scenes, the first of the tiles, and the same scene as it is in the "
    "thumbnail: coarse.",
)
assert right["tiles"].double().mean() > 0.8
print(f"PSNR of the enlarged thumbnail: {decibels(enlarged, pieces):.1f} dB; the tiles hold every pixel.")

# %% [markdown]
# The thumbnail loses most pixels and hardly an answer: these silhouettes are large, and a ninth of the tokens does. Ask
# what the task needs before paying for tiles. Tiles cost as many tokens as the image
# has patches, and no tile sees its neighbour before the attention joins them; the thumbnail
# is there for what is larger than a tile.
#
# ### Native resolution, packed
#
# Or leave every image as it is, and put the patches of several images into one sequence, with a mask so that none sees
# another's ("Patch n' Pack", 2023; "UniViTAR", 2025). The answer must be the one that each image gives alone.
#
# > **Predict.** Six images between 32 × 32 and 64 × 64. Padded to the largest they are 384 patches. Packed into rows of 130
# > places, how many? And does one long row, masked, cost less attention than padding?

# %%
sizes = [(64, 64), (32, 48), (48, 48), (64, 40), (32, 32), (40, 56)]
crowd = [images[i][:, : size[0], : size[1]] for i, size in enumerate(sizes)]
lengths = [net.prefix + size[0] // p * (size[1] // p) for size in sizes]
row = 130
with torch.inference_mode():
    together = packing.packed_forward(net, crowd, length=row)
    one_by_one = torch.cat([net(one[None]) for one in crowd])
assert (together - one_by_one).abs().max() < 1e-3
prices = packing.bills(lengths, row) | {"packed, one row": packing.bills(lengths)["packed"]}
labkit.table([[name, *bill] for name, bill in prices.items()], headers=["", "places", "pairs of places"])

# %%
packed = packing.layout(lengths, row)
fig = Figure(figsize=(9, 3.2), layout="constrained")
axes = fig.subplots(1, len(packed) + 1, width_ratios=[1.6, *[1] * len(packed)])
axes[0].imshow(packed.masked_fill(packed < 0, -1), aspect="auto", cmap="viridis", interpolation="nearest")
axes[0].set(title="whose place is it?", xlabel="place", yticks=range(len(packed)), ylabel="row")
for number, (ax, own) in enumerate(
    zip(axes[1:], packing.block_diagonal_bias(packed, torch.float32)[:, 0], strict=True)
):
    ax.imshow((own == 0).float(), cmap="cividis", vmin=0, vmax=1)
    ax.set(title=f"row {number}: who sees whom", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
labkit.figure(
    fig,
    alt=f"Six images of different sizes in {len(packed)} rows of {row} places, and the mask of each row: bright blocks "
    "on the diagonal, one for each image.",
)
print("Packed or alone, the answers are the same.")

# %% [markdown]
# Packing saves the places that padding wastes. It does not save attention by itself: a masked pair is computed and thrown
# away, and one long row is the dearest of all. Here even padding
# scores fewer pairs than packed rows. Packing wins where sizes differ more, or with a kernel that skips empty blocks.
#
# ## 5. One pixel to the right
#
# The grid of patches begins at the corner of the image, and the object does not know that. Shift the image by one pixel:
# nothing has happened, and every token is another one.
#
# > **Predict.** By how much does a token change, relative to its length, when the image moves one pixel? Four? And eight,
# > a whole patch? How many of a hundred answers change?

# %%
few = images[:10]
with torch.inference_mode():
    start = net.patch_embed(few)[0]

    def jump(patching, steps):
        """How far the tokens are from those before the shift, wherever on the grid these are now: relative length."""
        before, after = (patching(batch)[0] for batch in (few, few.roll(steps, -1)))
        nearest = torch.cdist(after, before, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=-1)
        return (nearest / after.norm(dim=-1)).mean().item()

    anchored = polyphase.Anchored(net.patch_embed, p)
    shifts = list(range(17))
    curves = {"grid at the corner": net.patch_embed, "grid where the image says": anchored}
    jumps = {name: [jump(patching, steps) for steps in shifts] for name, patching in curves.items()}
fig = Figure(figsize=(7, 2.8), layout="constrained")
ax = fig.subplots()
for (name, found), marker in zip(jumps.items(), "os", strict=True):
    ax.plot(shifts, found, marker=marker, label=name)
ax.set(xlabel="shift (pixels)", ylabel="change of a token", ylim=(-0.02, None), xticks=shifts[::2])
ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
corner, chosen = jumps.values()
labkit.figure(
    fig,
    alt=f"The distance of each token to the nearest old one, as a share of its length: with the grid at the corner "
    f"{corner[1]:.2f} after one pixel, {corner[4]:.2f} after four, {corner[8]:.2f} after a patch; with the chosen grid always "
    f"{max(chosen):.2f}.",
)

# %%
assert corner[1] > 0.1 and corner[4] > corner[1] and corner[8] < 1e-3 and max(chosen) < 1e-3

# %% [markdown]
# The fix ("Reviving Shift Equivariance in Vision Transformers", 2023): a grid of stride 8 can begin at 64 *phases*. Take
# the one whose pixels have the largest norm, and roll it into the corner. Move the image, and the phase moves along.

# %%
labkit.show(polyphase.polyphase_anchor)

# %%
moved = images[image].roll((3, 5), (-2, -1))
views = torch.stack([images[image], moved])
rolled, phase = polyphase.polyphase_anchor(views, p)


def gridded(picture):
    return spaced(patches.cut(picture[None], p)[0], grid, p)


labkit.figure(
    figures.image_strip(
        [*map(gridded, views), *map(gridded, rolled)],
        ["image", "shifted by (3, 5)", "image,\nanchored", "shifted,\nanchored"],
    ),
    alt="An image and its copy shifted by (3, 5), each cut at the corner: different pieces. And both anchored first: the "
    "same pieces, in other places of the grid.",
)
cut_before, cut_after = (patches.cut(picture[None], p)[0] for picture in rolled)
apart = torch.cdist(cut_after, cut_before, compute_mode="donot_use_mm_for_euclid_dist")
same = (apart.amin(dim=1) == 0).double().mean()
print(f"Phases {phase[0].tolist()} and {phase[1].tolist()}; {same:.0%} of the anchored pieces are the same.")
assert same == 1

# %% [markdown]
# ## 6. The result: does the answer stay?
#
# The tokens are the same now, but in other places of the grid, and the learned table of positions gives each place another
# vector. So there are two things to switch: the grid (at the corner, or anchored) and the table (as learned, or its mean
# for every patch: no position). Nothing is trained again. For each of the four: right answers, and the share of images that
# keep their answer under three shifts, on three draws of test images.
#
# > **Predict.** How many right answers does the model lose when it has no positions?

# %%
labkit.predict(
    "02 keeps its answers",
    "Which of the four keeps all its answers?",
    options=["anchored", "no positions", "anchored, no positions", "as trained"],
)

# %%
table = net.pos_embed
average = table[:, net.prefix :].mean(dim=1, keepdim=True).expand(-1, grid[0] * grid[1], -1)
average = torch.cat([table[:, : net.prefix], average], dim=1)


def variant(patching, positions):
    """The trained model with another patching and other positions, sharing all the rest."""
    view = copy.copy(net)
    view._modules = {**net._modules, "patch_embed": patching}
    view._parameters = {**net._parameters, "pos_embed": nn.Parameter(positions)}
    return view


variants = {
    "as trained": variant(net.patch_embed, table),
    "anchored": variant(anchored, table),
    "no positions": variant(net.patch_embed, average),
    "anchored, no positions": variant(anchored, average),
}
draw = torch.Generator().manual_seed(seed)
moves = [(0, 1), (3, 5), tuple(torch.randint(16, 49, (2,), generator=draw).tolist())]
sets = [data.shapes("test", 16, seed=seed + number).to(place) for number in (1, 2, 3)]


@torch.inference_mode()
def answers_of(view, batch):
    """The class of each image as it is, and after each move: (1 + moves, images)."""
    return torch.stack([view(batch.roll(move, (-2, -1))).argmax(dim=1) for move in [(0, 0), *moves]])


kept, correct = {}, {}
for name, view in variants.items():
    found = [answers_of(view, drawn.images) for drawn in sets]
    correct[name] = torch.cat([a[0] == drawn.labels for a, drawn in zip(found, sets, strict=True)])
    kept[name] = [(a[1:] == a[0]).double().mean(dim=1).tolist() for a in found]
labkit.table(
    [
        [name, share(correct[name]), *(f"{min(v):.0%} to {max(v):.0%}" for v in zip(*kept[name], strict=True))]
        for name in variants
    ],
    headers=["", "right", *(f"keep it at {move}" for move in moves)],
)

# %%
assert all(v == 1 for found in kept["anchored, no positions"] for v in found)
worst = {name: min(v for found in kept[name] for v in found) for name in variants}
assert worst["as trained"] < 0.97 and worst["no positions"] < 1
lost = correct["as trained"].double().mean() - correct["anchored, no positions"].double().mean()
assert abs(lost) < 0.15
print(f"Anchored and without positions, no answer ever changes; right answers lost: {100 * lost:.0f} of 100.")
labkit.reveal("02 keeps its answers", max(reversed(worst), key=worst.get))  # of equals the last

# %% [markdown]
# Both switches are needed. Anchoring alone repairs a small shift almost completely; a large one moves the patches into other
# rows of the table. Taking the positions away alone leaves the tokens jumping. With both the answer is *exactly* the same, and
# for this model it costs next to nothing: it hardly uses positions (lesson [03](03_where_am_i.ipynb) shuffles its patches). A model that needs them would want *relative* ones.
#
# That was a shift around the edges, the only one for which the promise is exact. A real camera loses a column on one side
# and gains one on the other:

# %%
larger = data.shapes("test", 60, size=72, seed=seed).images.to(place)
crops = {step: larger[:, :, :64, step : step + 64] for step in (0, 1, 3)}
lines, pair = [], ("as trained", "anchored")
with torch.inference_mode():
    _, first = polyphase.polyphase_anchor(crops[0], p)
    before = {name: variants[name](crops[0]).argmax(dim=1) for name in pair}
    for step in (1, 3):
        follows = polyphase.polyphase_anchor(crops[step], p)[1][:, 1] == (first[:, 1] - step) % p
        stays = [variants[name](crops[step]).argmax(dim=1) == before[name] for name in pair]
        lines.append([f"{step}", share(follows), *map(share, stays)])
labkit.table(lines, headers=["pixels", "the phase follows", *(f"{name}: keep the answer" for name in pair)])

# %% [markdown]
# The new column changes the sums, and sometimes another phase wins: then *all* tokens jump at once. A guarantee for one kind
# of shift is no guarantee for another; exercise 5 looks for a better score.

# %% [markdown]
# ## Limits
#
# - **One trained model, one synthetic task.** shapes-vit was trained at 8 × 8 only. A model that is trained with many
#   patch sizes keeps its accuracy over them.
# - **PSNR is not understanding.** It says what could be read from a token by linear means, not what the model reads.
# - **The bound is for linear codes.** A convolution stem with bends is not held by it.
# - **Overlap, T2T, channels and segments have random weights here.** Their costs are exact, what they bring after a long
#   training is not shown.
# - **Shifts around the edges** are exact by construction; real shifts are not.

# %% [markdown]
# ## Exercises
#
# The cell below each stub hands your function to `labkit.check`, which names the mistake that it makes;
# `labkit.check.glue_patches.hint(1)` prints the first hint. The stubs run as they are. The last one is open: it is
# measured, and not counted.
#
# ### Exercise 1: put the squares back
#
# *Easy, 10 minutes.* Write `glue_patches(squares, p, h, w)`: flattened patches (b, h w, 3 p²), h rows of w patches,
# each flattened from (3, p, p) → images (b, 3, h p, w p).
#
# <details><summary>Hint 1</summary>Give the numbers their six axes with <code>reshape</code>: image, row of patches,
# column of patches, colour, row and column in the patch.</details>
# <details><summary>Hint 2</summary><code>permute</code> to image, colour, row of patches, row in the patch, column of
# patches, column in the patch; then <code>reshape</code> again.</details>
# <details><summary>Solution</summary>
#
# ```python
# def glue_patches(squares, p, h, w):
#     six = squares.reshape(len(squares), h, w, 3, p, p)
#     return six.permute(0, 3, 1, 4, 2, 5).reshape(len(squares), 3, h * p, w * p)
# ```
#
# </details>


# %% tags=["exercise"]
def glue_patches(squares, p, h, w):
    return torch.zeros(len(squares), 3, h * p, w * p)  # your code here


# %%
labkit.check.glue_patches(glue_patches)

# %% [markdown]
# ### Exercise 2: one row, several images
#
# *Easy, 10 minutes.* Write `who_sees_whom(segments)`: `segments` (rows, places) holds the number of the image that
# each place belongs to, and -1 where a place is empty. Return (rows, places, places): True where the first place may
# see the second, as both are of one image. Empty places see each other, so that no softmax is over nothing.
#
# <details><summary>Hint 1</summary>Compare every place with every other place of its row: one of them as a column,
# one as a row.</details>
# <details><summary>Hint 2</summary><code>segments[:, :, None]</code> is (rows, places, 1) and <code>segments[:, None,
# :]</code> is (rows, 1, places); <code>==</code> makes the square.</details>
# <details><summary>Solution</summary>
#
# ```python
# def who_sees_whom(segments):
#     return segments[:, :, None] == segments[:, None, :]
# ```
#
# -1 equals -1, so the empty places are a group of their own.
#
# </details>


# %% tags=["exercise"]
def who_sees_whom(segments):
    return torch.zeros(*segments.shape, segments.shape[1], dtype=torch.bool)  # your code here


# %%
labkit.check.who_sees_whom(who_sees_whom)

# %% [markdown]
# ### Exercise 3: one token a segment
#
# *Medium, 15 minutes.* Write `segment_means(features, labels, n)`: features (b, d, h, w), and for each pixel the
# number of its segment, labels (b, h, w) from 0 to n - 1. Return the mean of each segment, (b, n, d); a segment
# without pixels gets zeros.
#
# <details><summary>Hint 1</summary>Which pixel is in which segment is a matrix of zeros and ones:
# <code>labels.flatten(1)[:, None] == torch.arange(n)[:, None]</code> is (b, n, pixels).</details>
# <details><summary>Hint 2</summary>That matrix times the features (b, pixels, d) is the sum over each segment; its
# row sums are the pixels of each. <code>clamp(min=1)</code> saves the empty ones from 0 / 0.</details>
# <details><summary>Solution</summary>
#
# ```python
# def segment_means(features, labels, n):
#     inside = (labels.flatten(1)[:, None] == torch.arange(n)[:, None]).float()
#     pixels = features.flatten(2).transpose(1, 2)
#     return inside @ pixels / inside.sum(dim=-1, keepdim=True).clamp(min=1)
# ```
#
# </details>


# %% tags=["exercise"]
def segment_means(features, labels, n):
    return torch.zeros(len(features), n, features.shape[1])  # your code here


# %%
labkit.check.segment_means(segment_means)

# %% [markdown]
# ### Exercise 4: the best phase
#
# *Medium, 15 minutes.* Write `best_phase(picture, p)`: for a picture (c, h, w), the (row, column) in 0 … p - 1 at
# which the pixels that lie p apart, over all channels, have the largest norm together.
#
# <details><summary>Hint 1</summary>The pixels of phase (i, j) are <code>picture[:, i::p, j::p]</code>.</details>
# <details><summary>Hint 2</summary>Loop over i and j, and take the largest of the norms with <code>max</code> and a
# key.</details>
# <details><summary>Solution</summary>
#
# ```python
# def best_phase(picture, p):
#     phases = [(i, j) for i in range(p) for j in range(p)]
#     return max(phases, key=lambda at: picture[:, at[0] :: p, at[1] :: p].double().norm().item())
# ```
#
# </details>


# %% tags=["exercise"]
def best_phase(picture, p):
    return -1, -1  # your code here


# %%
labkit.check.best_phase(best_phase)

# %% [markdown]
# ### Exercise 5: a score for a real camera
#
# *Hard, open, 20 minutes.* The phase followed a real shift in only some of the images. `polyphase_anchor(..., score=...)` takes any
# score: `my_score(phases)` gets (b, phases, values), the pixels of each phase in any order, and returns (b, phases). Find one
# whose winner follows more often than the norm's.
#
# <details><summary>Hint 1</summary>Each pixel on the new edge counts as much as any other in a norm. Which function of the values
# is decided by a few of them, that are rarely on the edge?</details>
# <details><summary>Hint 2</summary>The objects stand out. Try higher powers of how far the values are from their mean.</details>
# <details><summary>Solution</summary>
#
# ```python
# def my_score(phases):
#     centre = phases.double().mean(dim=(1, 2), keepdim=True)
#     return (phases.double() - centre).abs().pow(16).sum(dim=-1)
# ```
#
# </details>


# %% tags=["exercise"]
def my_score(phases):
    return phases.new_zeros(phases.shape[:2])  # your code here


# %%
def following(score):
    """The share of images whose phase moves along with a crop one and three pixels further."""
    found = {step: polyphase.polyphase_anchor(crop, p, score)[1][:, 1] for step, crop in crops.items()}
    return torch.cat([found[step] == (found[0] - step) % p for step in (1, 3)]).double().mean().item()


ours, norms = following(my_score), following(polyphase.norm)
if not my_score(torch.rand(1, 4, 9, generator=dice)).any():
    print("Not started yet.")
elif ours > norms + 0.03:
    print(f"Right: it follows in {ours:.0%}, the norm in {norms:.0%}.")
else:
    print(f"Not yet: it follows in {ours:.0%}, the norm in {norms:.0%}.")

# %% [markdown]
# ## Papers

# %%
for paper in ("S207", "S183", "S123", "S259", "S308", "S046", "S374", "S349"):
    print(labkit.papers.cite(paper))

# %% [markdown]
# ## Next
#
# The tokens know what they hold, and not yet where they are: [03 Where am I?](03_where_am_i.ipynb)
