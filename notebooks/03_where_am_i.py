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
# # 03 Where am I?
#
# **By the end you will have shuffled the patches of an image and seen which models notice, proved in three lines that a
# whole family of position schemes cannot say where a token is, repaired it in one, and measured which schemes survive
# an image that is larger than any in training.**
#
# *Needs:* [01 Attention](01_attention.ipynb) and [02 Images to tokens](02_images_to_tokens.ipynb). · *Time:* 50 minutes;
# the cells take about one. · *Device:* any computer; no GPU and no network.

# %% tags=["parameters"]
seed = 0  # every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # the trained model that is asked whether it notices
steps = 120  # of each training run
fast = False  # True: shorter runs, so that fewer of them get anywhere

# %%
import copy
import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

import labkit
from labkit import data
from labkit.data.batch import ImageSet
from labkit.intervals import wilson
from labkit.positions.alibi import ALiBi
from labkit.positions.conditional import PEG
from labkit.positions.learned import LearnedTable
from labkit.positions.lookhere import LookHere
from labkit.positions.probe import bias_map, permutation_gap, position_map, shuffle_patches
from labkit.positions.relative import RelativeBias
from labkit.positions.rope import RoPE, RoPEAxial, RoPEMixed, rotate
from labkit.positions.sinusoidal import Sinusoidal
from labkit.positions.urpe import URPEAttention
from labkit.train import Recipe, epochs, train
from labkit.viz import figures

place = labkit.setup(seed, device)
dice = torch.Generator().manual_seed(seed)
net = labkit.load(model).to(place)
shapes = data.shapes("test", 100 if fast else 200, seed=seed).to(place)


@torch.inference_mode()
def right(network, pictures, labels):
    """How many pictures the network names correctly."""
    parts = zip(pictures.split(50), labels.split(50), strict=True)  # memory for 50 pictures, not for all
    return sum(int((network(part).argmax(dim=-1) == names).sum()) for part, names in parts)


def largest(a, b):
    """The largest absolute difference between two tensors."""
    return (a - b).abs().max().item()


def maps_figure(panels, label, low, high):
    """Maps (h, w) by name, side by side, in one colour scale; the cross is the query."""
    rows = 1 if len(panels) < 6 else 2
    columns = math.ceil(len(panels) / rows)
    fig = Figure(figsize=(1.45 * columns + 0.8, 1.9 * rows + 0.2), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (name, heat) in zip(axes, panels.items(), strict=False):
        drawn = ax.imshow(heat.cpu(), vmin=low, vmax=high)
        ax.plot(*reversed(query), marker="+", color="white", markeredgecolor="tab:red", markersize=9)
        ax.set_title(name, fontsize=9)
        ax.set_axis_off()
    fig.colorbar(drawn, ax=axes, aspect=20, pad=0.01).set_label(label, fontsize=9)
    return fig


# %% [markdown]
# ## 1. Shuffle the patches: who notices?
#
# Attention sums over keys, and a sum has no order. An MLP treats every token alone. So a transformer does not know where
# its tokens are, unless it is told. The test is simple: cut the image into its patches, shuffle them like cards, and
# see how far the logits move. `permutation_gap` gives that as a share of their size: 0 means that nobody noticed.

# %%
labkit.show(permutation_gap)

# %% [markdown]
# Schemes differ in *where* they tell: at the tokens (add a vector), at the scores (add a number to each pair, or turn q
# and k), or between blocks (a convolution). All of them plug into `labkit.ViT(position=...)`.
#
# > **Predict.** Eight small models with random weights, which differ only in their position scheme. In which of them
# > does a shuffle change the logits? Is a random model enough to see it?

# %%
dim, depth, heads, side = 64, 2, 4, 4
schemes = {
    "no positions": lambda: {"positions": False},
    "learned table": lambda: {"position": wide(LearnedTable((side, side), dim), 1.0)},
    "sinusoidal": lambda: {"position": Sinusoidal(dim)},
    "relative bias": lambda: {"position": [wide(RelativeBias((side, side), heads), 2.0) for _ in range(depth)]},
    "RoPE, axial": lambda: {"position": RoPEAxial(dim // heads)},
    "ALiBi": lambda: {"position": ALiBi(heads)},
    "LookHere": lambda: {"position": LookHere(heads)},
    "PEG": lambda: {"position": PEG(dim)},
}


def wide(position, std):
    """Usual tables begin at 0.02 and need long to grow; a short run begins where they are heard."""
    for table in position.parameters():
        nn.init.normal_(table, std=std)
    return position


def fresh(name, number=seed):
    """A small ViT for images of 4 x 4 patches, 4 x 4 pixels each; it averages its patches and names four classes."""
    torch.manual_seed(number)
    return labkit.ViT(4 * side, 4, 4, dim, depth, heads, pool="avg", **schemes[name]()).to(place).eval()


def loud(network):
    """Random weights larger than at birth, so that differences are easy to see."""
    for name, weight in network.named_parameters():
        if weight.ndim > 1 and "position" not in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=dice).to(place)
    return network


noise = torch.randn(16, 3, 4 * side, 4 * side, generator=dice).to(place)
gaps = {name: permutation_gap(loud(fresh(name)), noise, dice) for name in schemes}
labkit.table(
    [[name, "nobody noticed" if gap < 1e-4 else "noticed"] for name, gap in gaps.items()],
    headers=["positions", "after a shuffle"],
)

# %%
assert gaps["no positions"] < 1e-4 and min(gap for name, gap in gaps.items() if name != "no positions") > 1e-2
print("Without positions the gap is zero but for rounding; with any scheme it is not.")

# %% [markdown]
# What a model *can* notice and what it *uses* are two questions. shapes-vit has a learned table, and 64 patches of 8 × 8
# pixels. As a control, shuffle also larger and smaller pieces, and take the table itself apart.
#
# > **Predict.** How often is it right when the image is cut into quarter patches, four pixels wide, and those are
# > shuffled?

# %%
labkit.predict(
    "03 shuffled patches",
    "shapes-vit is right in more than 90 % of its images. In how many when their 64 patches are shuffled?",
    number=10,
    unit="%",
)

# %%
cuts = {}
for cells in (2, 4, 8, 16):
    pictures = shuffle_patches(shapes.images, (cells, cells), torch.Generator().manual_seed(seed))
    cuts[cells] = (pictures[0], right(net, pictures, shapes.labels) / len(shapes))
lost = copy.deepcopy(net)  # all its patches are told the same place
lost.pos_embed.data[:, net.prefix :] = net.pos_embed.data[:, net.prefix :].mean(dim=1, keepdim=True)
same_place = right(lost, shapes.images, shapes.labels) / len(shapes)
whole = right(net, shapes.images, shapes.labels) / len(shapes)
gap = permutation_gap(net, shapes.images[:50], torch.Generator().manual_seed(seed))
labkit.figure(
    figures.image_strip(
        [shapes.images[0], *(picture for picture, _ in cuts.values())],
        [f"as it is\n{whole:.0%} right", *(f"{c} x {c} pieces\n{share:.0%} right" for c, (_, share) in cuts.items())],
    ),
    alt=f"One test image as it is and with its pieces shuffled. shapes-vit is right in {whole:.0%} of the whole images; "
    + ", ".join(f"with {c} x {c} pieces in {share:.0%}" for c, (_, share) in cuts.items())
    + ".",
)
low, high = wilson(round(whole * len(shapes)), len(shapes))
print(f"{len(shapes)} images: {whole:.0%} has the interval [{low:.0%}, {high:.0%}]; chance is 10%.")
print(f"Its permutation gap is {gap:.1f}. All patches get the average row of the table: {same_place:.0%} right.")
assert whole > 0.88 and cuts[8][1] > 0.75 and same_place > 0.8 and cuts[16][1] < 0.4
labkit.reveal("03 shuffled patches", round(100 * cuts[8][1]))

# %% [markdown]
# Look at the two models side by side: left, attention with the learned table; in the middle, every patch is told the same
# place. Choose a patch with the arrow keys: what remains without positions is attention by *content*.

# %%
explorer = labkit.Explorer(
    net,
    shapes[:3],
    other=lost,
    titles=["with its table", "one place for all"],
    view="compare",
    layer=1,
    query=(4, 4),
)
explorer

# %%
for layer in (1, 5):
    explorer.layer = layer
    print(explorer.describe())

# %% [markdown]
# shapes-vit is nearly a *bag of patches*: it loses little when its patches change places, and little when every patch
# is told the same place. Cut through the patches, and it is lost. So its task, to name one silhouette, is a poor test of
# positions. We need a question whose answer *is* a position.
#
# Here is one, the bare bone of `data.shapes(task="relate")`: a red and a blue patch lie anywhere; on which side of the
# blue one is the red one? (`relate` itself, with shapes placed freely, needs more images than a lesson has time for.)


# %%
def scenes(n, cells, number):
    """n images of cells x cells patches in [-2, 2]; the label is the longer of the two ways from blue to red."""
    draw = torch.Generator().manual_seed(number)
    red, blue = torch.randint(cells * cells, (2, 4 * n), generator=draw)
    down, across = red // cells - blue // cells, red % cells - blue % cells
    clear = down.abs() != across.abs()  # no diagonals
    red, blue, down, across = (t[clear][:n] for t in (red, blue, down, across))
    labels = torch.where(across.abs() > down.abs(), (across > 0).long(), 2 + (down > 0).long())
    pixels = 0.2 * torch.rand(n, 3, cells * cells, generator=draw) + 0.4
    pixels[torch.arange(n), :, red] = torch.tensor([1.0, 0.0, 0.0])
    pixels[torch.arange(n), :, blue] = torch.tensor([0.0, 0.0, 1.0])
    pixels = pixels.unflatten(-1, (cells, cells)).repeat_interleave(4, -1).repeat_interleave(4, -2)
    return ImageSet((4 * pixels - 2).to(place), labels.to(place), names=data.shapes("test", 1, task="relate").names)


tests = {cells: scenes(500, cells, 10_000 + seed) for cells in (side, 3 * side // 2, 2 * side)}
shown = [
    ((t.images[i] + 2) / 4, f"{t.names[int(t.labels[i])]}, {c} x {c}") for c, t in tests.items() for i in (0, 1, 2)
]
labkit.figure(
    figures.image_strip([image for image, _ in shown], [name for _, name in shown], columns=3),
    alt="Nine scenes of a red and a blue patch on grey ones, each with its answer, on grids of 4 x 4, 6 x 6 and 8 x 8.",
)

# %% [markdown]
# > **Predict.** Mirror a scene from left to right. Its answer changes from *left* to *right*, or the other way. Which
# > models cannot follow?

# %%
labkit.predict(
    "03 mirrored scenes",
    "How many of the eight models give the mirrored scene exactly the same logits, whatever their weights?",
    number=1,
    unit="of 8",
)

# %%
mirrored = {}
for name in schemes:
    network = loud(fresh(name))
    with torch.inference_mode():
        one, other = network(tests[side].images), network(tests[side].images.flip(-1))
    mirrored[name] = largest(one, other) / one.abs().max().item()
labkit.table(
    [[name, "the same" if change < 1e-4 else "other"] for name, change in mirrored.items()],
    headers=["positions", "logits of the mirrored scene"],
)

# %%
assert {name for name, change in mirrored.items() if change < 1e-4} == {"no positions", "ALiBi"}
print("Two of eight cannot tell left from right, and no training will change that.")
labkit.reveal("03 mirrored scenes", sum(change < 1e-4 for change in mirrored.values()), within=0)

# %% [markdown]
# The bag sees the same patches. ALiBi notices a shuffle, but it knows only *how far* two patches are apart, and a mirror
# keeps all distances. A scheme can tell something and still not tell what the task asks for.
#
# ## 2. Each scheme as a picture
#
# At the tokens, a position is a vector that is added. The cosine between the vector of one place and those of all
# others says how alike two places look.
#
# > **Predict.** Three pictures, for a place in the middle of 8 × 8: waves over the sequence (1-D), waves over row and
# > column (2-D), and what shapes-vit learned. In which of them is the patch below as near as the patch to the right?

# %%
grid, query = (8, 8), (3, 3)
learned = LearnedTable(net.grid, net.pos_embed.shape[-1])
learned.table.data = net.pos_embed.data[:, net.prefix :].cpu()
panels = {
    "waves, 1-D": position_map(Sinusoidal(dim, axes=1), grid, query, dim),
    "waves, 2-D": position_map(Sinusoidal(dim), grid, query, dim),
    "learned": position_map(learned, grid, query, net.pos_embed.shape[-1]),
    "learned, corner": position_map(learned, grid, (0, 0), net.pos_embed.shape[-1]),
    "random": position_map(LearnedTable(grid, dim), grid, query, dim),
}
labkit.figure(
    maps_figure(panels, "cosine", -1, 1),
    alt="How alike the position vectors of one place (cross) and all others are. 1-D waves: stripes along the row. 2-D "
    "waves: a soft spot. The learned table: the middle is alike and the edge is its opposite; a corner (top "
    "left) is like the whole edge. Random vectors: only the place itself.",
)


def neighbours(heat):
    """Below, and to the right."""
    return heat[query[0] + 1, query[1]].item(), heat[query[0], query[1] + 1].item()


labkit.table([[name, *neighbours(heat)] for name, heat in panels.items()], ["", "below", "to the right"], digits=2)

# %%
centred = learned.table.data[0] - learned.table.data[0].mean(dim=0)
directions, sizes, _ = torch.linalg.svd(centred)
first_share = (sizes[0] ** 2 / (sizes**2).sum()).item()
first = directions[:, 0].reshape(grid)
ring = torch.ones(grid, dtype=torch.bool)
ring[1:-1, 1:-1] = False
sides = first * first[ring].mean().sign()
print(f"One direction holds {first_share:.0%} of what differs between the places of the learned table.")
print(f"Along it, the border lies at {sides[ring].mean():+.2f} on average, the inside at {sides[~ring].mean():+.2f}.")
below, beside = neighbours(panels["waves, 1-D"])
assert beside > below + 0.1 and abs(neighbours(panels["waves, 2-D"])[0] - neighbours(panels["waves, 2-D"])[1]) < 1e-5
assert first_share > 0.6 and sides[ring].min() > sides[2:-2, 2:-2].max()

# %% [markdown]
# shapes-vit learned one thing above all: *how near to the border*. That fits its data: an object lies wholly in the frame,
# so its middle is never at the edge. It is a small hint and no map, and section 1 measured that the model hardly
# needs it. The published pictures of learned tables show rows and columns, for models trained long on photographs.
#
# At the scores, a scheme changes what each *pair* gets. So ask: if all tokens were alike, where would a query in the
# middle look? That is the softmax of what the scheme adds, a probability, and so one colour scale serves all.
#
# > **Predict.** Which of these pictures are symmetric about the query? Which looks along the row over the edge, into the
# > next row?

# %%
labkit.show(rotate)

# %%
torch.manual_seed(seed)
asked = {
    "none": torch.zeros(grid),
    "ALiBi, head 1": bias_map(ALiBi(4), grid, query),
    "LookHere, head 1": bias_map(LookHere(4), grid, query, head=0),
    "LookHere, head 2": bias_map(LookHere(4), grid, query, head=1),
    "RoPE, 1-D": bias_map(RoPE(16), grid, query),
    "RoPE, axial": bias_map(RoPEAxial(16), grid, query),
    "RoPE, mixed": bias_map(RoPEMixed(16, 4), grid, query),
}
looks = {name: scores.flatten().softmax(dim=0).reshape(grid) for name, scores in asked.items()}
labkit.figure(
    maps_figure(looks, "share of the attention", 0, max(float(heat.max()) for heat in looks.values())),
    alt="Where a query (cross) looks when all tokens are alike: everywhere without a scheme; around itself with ALiBi; to "
    "the right or up with LookHere; along the row with 1-D RoPE; around itself with axial and mixed RoPE.",
)
inner = {name: heat[:7, :7] for name, heat in looks.items()}  # the part with the query in its centre
symmetric = [name for name, heat in inner.items() if largest(heat, heat.flip(1)) < 1e-5]
print("The same to the left and to the right:", ", ".join(symmetric) + ".")
assert "LookHere, head 1" not in symmetric and "ALiBi, head 1" in symmetric and "RoPE, axial" in symmetric

# %% [markdown]
# For RoPE the picture holds for q and k that are all ones; other q and k see other waves, and a trained model chooses
# them. What never changes is this: the product depends on the *difference* of the places alone.

# %%
angles = RoPEAxial(16).angles((6, 6), torch.zeros(1)).unflatten(0, (6, 6))
q, k = torch.randn(2, 16, generator=dice)
here = (rotate(q, angles[1, 1]) @ rotate(k, angles[2, 3])).item()
moved = (rotate(q, angles[3, 2]) @ rotate(k, angles[4, 4])).item()
elsewhere = (rotate(q, angles[1, 1]) @ rotate(k, angles[3, 2])).item()
assert abs(here - moved) < 1e-4 < abs(here - elsewhere)
print(
    f"Key one down and two right of the query: {here:.3f}; the same pair moved: {moved:.3f}; another way: {elsewhere:.3f}."
)

# %% [markdown]
# ## 3. What a relative bias can never say, and a repair
#
# Relative schemes tell how far apart two tokens are. Can a token find out from that where *it* is? Suppose that all
# tokens are the same vector v, as in an image of one colour. Attention with *any* bias B then gives, at every place i,
#
# $$\sum_j \text{softmax}_j(s_{ij} + B_{ij})\, v = v \sum_j \text{softmax}_j(s_{ij} + B_{ij}) = v$$
#
# because a row of a softmax sums to 1 ("Your Transformer May Not be as Powerful as You Expect", S101). In code:
#
# > **Predict.** The repair multiplies the probabilities by a gain c for each displacement, *after* the softmax. Why can a
# > corner now be told from the centre, when the gain is relative, too?

# %%
n = 64
bias, v = torch.randn(n, n, generator=dice), torch.randn(16, generator=dice).expand(n, 16)  # equal tokens
attn = bias.softmax(dim=-1)
stuck = attn @ v
gain = URPEAttention(64, 4, grid)
nn.init.normal_(gain.gains, mean=1.0, std=0.3, generator=dice)
c = gain.gain(grid)[0].detach()
repaired = (attn * c) @ v  # the one-line repair
assert largest(stuck, v) < 1e-5 and (repaired - repaired[:1]).norm(dim=-1)[1:].min() > 1e-4
print(f"Softmax with any bias: all 64 places give the same token: {largest(stuck, stuck[:1].expand_as(stuck)) < 1e-5}.")
print(f"With a gain for each displacement: the places differ: {largest(repaired, repaired[:1].expand_as(v)) > 1e-2}.")

# %%
even = torch.full((n, n), 1 / n)  # no bias at all, to see the gain alone
rows = (even * c).sum(dim=-1).reshape(grid)
labkit.figure(
    maps_figure({"softmax": even.sum(dim=-1).reshape(grid), "softmax x gain": rows}, "sum of the row", 0.9, 1.1),
    alt="The sum of each row of attention, drawn at the place of its query: 1 everywhere for a softmax; with gains it "
    "differs from place to place.",
)
assert rows.std() > 0.01

# %% [markdown]
# Near an edge other displacements occur than in the middle, so the rows of `attn * c` sum to other numbers: that is the
# place, and it needs no table of places. The package has it as `URPEAttention`; with all gains at one it is the
# attention that it repairs.
#
# ## 4. Zero padding tells where the edge is
#
# Relative schemes need another way to learn about edges, or a convolution: a 3 × 3 kernel at the border multiplies
# zeros that are not in the image. "Conditional Positional Encodings for Vision Transformers" (S285) puts
# one such convolution, a *PEG*, behind a block, and needs nothing else.
#
# > **Predict.** An image of one single grey, as 8 × 8 equal tokens. A convolution runs over it, once, twice, three times.
# > And with *circular* padding, where the left edge continues on the right?

# %%
labkit.predict(
    "03 equal tokens",
    "After one pass with zeros around the edge, how many outputs differ from the one in the middle?",
    number=0,
    unit="of 64",
)

# %%
labkit.show(PEG)

# %%
torch.manual_seed(seed)
zeros, circular = PEG(dim), PEG(dim, padding="circular")
circular.load_state_dict(zeros.state_dict())
flat = torch.ones(1, 64, dim)  # 64 equal tokens


@torch.no_grad()
def news(peg, times):
    """(8, 8): how far each token is from the one in the middle after the convolution has run `times` times."""
    x = flat
    for _ in range(times):
        x = peg(x, grid)
    x = x[0].reshape(*grid, dim)
    return (x - x[4, 4]).norm(dim=-1) / x[4, 4].norm()


spread = {f"zeros, {t} x": news(zeros, t) for t in (1, 2, 3)} | {f"circular, {t} x": news(circular, t) for t in (1, 3)}
query = (4, 4)
labkit.figure(
    maps_figure(spread, "distance from\nthe middle token", 0, float(max(heat.max() for heat in spread.values()))),
    alt="Equal tokens after a convolution. With zeros around the edge the outermost ring differs from the middle after "
    "one pass, two rings after two, three after three; with circular padding nothing differs.",
)
for name, heat in spread.items():
    print(f"{name}: {int((heat > 1e-5).sum())} of 64 tokens differ from the middle.")
assert int((spread["zeros, 1 x"] > 1e-5).sum()) == 28 and spread["circular, 3 x"].max() < 1e-5
labkit.reveal("03 equal tokens", int((spread["zeros, 1 x"] > 1e-5).sum()))

# %% [markdown]
# After one pass only the 28 tokens of the border know; each further pass carries the news one ring inwards. With
# circular padding there is no edge and no news. (A patch embedding whose stride is its kernel has no padding either.)
#
# ## 5. The result: train small, test large
#
# Two questions are often mixed: does the *position scheme* stand a larger grid, and does the *model* stand larger
# objects? First shapes-vit, made for 64 × 64. For a larger grid its table is stretched by bicubic interpolation. Its
# control: the same pixels of the object on a larger canvas, so that only the grid grows.
#
# > **Predict.** shapes-vit at 96 and 128 pixels, with the objects 1.5 and 2 times as large: still 90 %? And with
# > objects of the old size on a larger canvas?

# %%
rows, half = [], shapes[: len(shapes) // 3]
for size in (64, 96, 128):
    big = data.shapes("test", len(half), seed=seed, size=size).to(place)
    edge = (size - 64) // 2
    canvas = F.pad(half.images, (edge,) * 4, mode="replicate")
    shrunk = F.interpolate(big.images, size=(64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    tried = ((net, shrunk), (net, canvas), (net, big.images), (lost, canvas), (lost, big.images))
    scores = [right(network, pictures, big.labels) / len(big) for network, pictures in tried]
    rows.append([f"{size} x {size}", *(f"{score:.0%}" for score in scores)])
    if size == 128:
        assert max(scores[1:]) < 0.85 < scores[0] and scores[2] < scores[1]
    if size == 96 and model == "shapes-vit":
        assert scores[2] < scores[1] - 0.05 and scores[1] > 0.85
labkit.table(
    rows,
    ["test images", "shrunk to 64 x 64", "larger canvas", "larger objects", "canvas, no table", "objects, no table"],
)

# %% [markdown]
# At 96 the stretched table serves well: on the larger canvas little is lost. What the larger *objects* lose there
# is the patch's fault: its eight pixels show less of a corner than they used to. At 128 the canvas alone costs, too: there
# are four times as many tokens, of which the object holds the same few. And the table that seemed idle at 64 is worth
# something on strange grids: without it (the last two columns) everything is worse. "Fails at another resolution" has
# several causes, and each control takes one of them away.
#
# Now the position schemes alone, where patches look the same at every size: our scenes, trained on 4 × 4 patches, tested
# on 6 × 6 (1.5 ×) and 8 × 8 (2 ×). *No positions* is the control; PEG with circular padding is a second one, for the
# claim of section 4.
#
# > **Predict.** Which schemes learn it? Which one has no answer at 2 × at all?

# %%
learners = ["learned table", "sinusoidal", "relative bias", "RoPE, axial", "LookHere", "PEG"]
labkit.predict("03 at twice the size", "Which keeps the largest part of its right answers at 2 x?", options=learners)

# %%
schemes["PEG, circular"] = lambda: {"position": PEG(dim, padding="circular")}
count_of_steps = steps // 3 if fast else steps
few, many = len(tests[side]), scenes(3000, side, seed).to("cpu")


def learn(name, number=seed):
    """Train one fresh model on 4 x 4 patches; the number of right answers on each grid, None where it refuses.

    It learns on the CPU: a GPU rounds otherwise, and after a hundred steps it would be another model.
    """
    network = fresh(name, number).cpu()
    recipe = Recipe(count_of_steps, "adamw", lr=6e-3, weight_decay=0.05, warmup=0.1, seed=number)
    train(network, epochs(many, 64, seed=number), recipe)
    network.to(place)
    hits = []
    for cells, test in tests.items():
        try:
            hits.append(right(network, test.images, test.labels))
        except labkit.errors.LabkitError as refusal:
            hits.append(None)
            if cells == 3 * side // 2:
                print(f"{name}: {refusal}")
    return hits


# %% tags=["nbval-ignore-output"]
found = {name: learn(name) for name in ("no positions", "learned table")}

# %% tags=["nbval-ignore-output"]
found |= {name: learn(name) for name in ("sinusoidal", "relative bias")}

# %% tags=["nbval-ignore-output"]
found |= {name: learn(name) for name in ("RoPE, axial", "LookHere")}

# %% tags=["nbval-ignore-output"]
found |= {name: learn(name) for name in ("PEG", "PEG, circular")}

# %% tags=["nbval-ignore-output"]
again = {name: learn(name, seed + 1) for name in ("RoPE, axial", "LookHere") if not fast}

# %% tags=["nbval-ignore-output"]
fig = Figure(figsize=(7.2, 3.2), layout="constrained")
ax = fig.subplots()
sizes = ["4 x 4\n(trained)", "6 x 6\n(1.5 x)", "8 x 8\n(2 x)"]
for i, (name, hits) in enumerate(found.items()):
    points = [(j, hit / few) for j, hit in enumerate(hits) if hit is not None]
    ax.plot(*zip(*points, strict=True), marker="osD^vP*X"[i], label=name, linestyle="--" if "no " in name else "-")
ax.axhline(0.25, color="black", linewidth=0.8, linestyle=":")
ax.set(xticks=range(3), xticklabels=sizes, ylim=(0, 1.04), ylabel="right answers")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)


def said(hits):
    return ", ".join("-" if hit is None else f"{hit / few:.0%}" for hit in hits)


labkit.figure(
    fig,
    alt="Right answers on grids of 4 x 4 (trained), 6 x 6 and 8 x 8; chance is 25%. "
    + "; ".join(f"{name}: {said(hits)}" for name, hits in found.items())
    + ".",
)
for name, hits in again.items():
    print(f"A second seed, {name}: {said(hits)}.")
low, high = wilson(few * 9 // 10, few)
print(f"{few} scenes: 90% has the interval [{low:.0%}, {high:.0%}].")

# %%
assert max(found["no positions"]) < 0.35 * few and max(found["PEG, circular"]) < 0.35 * few
assert found["relative bias"][1:] == [None, None]
kept = {name: found[name][2] / max(1, found[name][0]) for name in learners if found[name][2] is not None}
if not fast:
    assert sum(found[name][0] > 0.7 * few for name in learners) >= 4
    assert kept["LookHere"] > kept["sinusoidal"] + 0.1 and kept["LookHere"] > kept["PEG"] + 0.1
print("The two controls stay near chance. The table of displacements refuses a larger grid.")
labkit.reveal("03 at twice the size", max(kept, key=kept.get))

# %% [markdown]
# Read it so:
#
# - **The controls hold.** Without positions the answer is out of reach, and so it is with PEG once its edge is taken away.
# - **What is absolute breaks.** Sinusoids at places never seen are new to the model, and PEG's news from the edge fades
#   on the way to the middle.
# - **What is relative and has no size keeps most.** LookHere ("Directed Attention", S227) has nothing that knows the
#   grid, and loses least; RoPE comes next where it learned the task.
# - **A table of displacements has no entry for a longer way**, and ours refuses with a sentence.
# - The learned table, stretched, does better than its fame on this task: *left of* survives stretching.
#
# This is a toy question with one pair of patches, and models of two blocks. It shows the mechanism, not a ranking.

# %% [markdown]
# The same question with real silhouettes was trained once for longer and stored: the task `relate`, where shapes lie
# anywhere and grow with the image, so that both causes act at once. CPE is the PEG.

# %% tags=["nbval-ignore-output"]
stored = labkit.results.load("bench-positions")
scored = {name: list(runs.values()) for name, runs in stored["runs"].items()}
labkit.table(
    [
        [
            name,
            len(runs),
            *(
                sum(run["right"][size] for run in runs) / len(runs) / stored["setting"]["test_images"]
                for size in ("32", "48", "64")
            ),
        ]
        for name, runs in scored.items()
    ],
    headers=["positions", "seeds", "32 x 32 (trained)", "1.5 x", "2 x"],
    digits=2,
)

# %% [markdown]
# ## Limits
#
# - **One question.** Order and direction are not all of position; a task about distances would flatter ALiBi, which here
#   fails by construction.
# - **Short runs, one seed** (two for two schemes). A scheme that is low on 4 × 4 may only be slow: tables were started
#   larger than is usual, to be heard early.
# - **Pictures at the scores** assume that all tokens are alike, for RoPE also that q and k are ones. Trained content bends
#   them.
# - **shapes-vit is small** and nearly a bag; a large model trained on photographs uses its positions more.

# %% [markdown]
# ## Exercises
#
# The cell below each stub hands your function to `labkit.check`, which names the mistake that it makes;
# `labkit.check.distance_bias.hint(1)` prints the first hint. The stubs run as they are.
#
# ### Exercise 1: distance, by hand
#
# *Easy, 10 minutes.* Write `distance_bias(h, w, slope)`: (h·w, h·w), minus slope times the Euclidean distance between
# the patches, which are counted row by row.
#
# <details><summary>Hint 1</summary><code>torch.cartesian_prod(torch.arange(h), torch.arange(w))</code> is the place
# of each patch.</details>
# <details><summary>Hint 2</summary><code>torch.cdist</code> of the places with themselves; it wants floats.</details>
# <details><summary>Solution</summary>
#
# ```python
# def distance_bias(h, w, slope):
#     places = torch.cartesian_prod(torch.arange(h), torch.arange(w)).float()
#     return -slope * torch.cdist(places, places)
# ```
#
# </details>


# %% tags=["exercise"]
def distance_bias(h, w, slope):
    return torch.zeros(h * w, h * w)  # your code here


# %%
labkit.check.distance_bias(distance_bias)

# %% [markdown]
# ### Exercise 2: rotate
#
# *Medium, 15 minutes.* Write `turn_pairs(x, angle)`: x (..., d) has pairs of channels (0, 1), (2, 3), …; turn each by
# `angle` (..., d / 2), counter-clockwise. Then say why it cannot change the length of a query.
#
# <details><summary>Hint 1</summary>A pair (a, b) becomes (a cos - b sin, a sin + b cos).</details>
# <details><summary>Hint 2</summary><code>x[..., ::2]</code> are the first channels of the pairs; put the results back
# with <code>torch.stack(..., dim=-1).flatten(-2)</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def turn_pairs(x, angle):
#     a, b = x[..., ::2], x[..., 1::2]
#     cos, sin = angle.cos(), angle.sin()
#     return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
# ```
#
# A rotation keeps the length of each pair. Only the angle between q and k changes.
#
# </details>


# %% tags=["exercise"]
def turn_pairs(x, angle):
    return torch.zeros_like(x)  # your code here


# %%
labkit.check.turn_pairs(turn_pairs)

# %% [markdown]
# ### Exercise 3: by how much?
#
# *Medium, 15 minutes.* Write `axial_angles(h, w, d)`: the angles (h·w, d / 2) by which axial RoPE turns the pairs of
# a head of d channels. The first d / 4 pairs turn by row · f, the others by column · f, with the same speeds f_i =
# 100^(-i / (d / 4)) for i = 0 … d / 4 - 1. Patches are counted row by row.
#
# <details><summary>Hint 1</summary>Make two blocks of (h·w, d / 4): the row of each patch times the speeds, its
# column times the speeds.</details>
# <details><summary>Hint 2</summary><code>torch.cartesian_prod</code> gives rows and columns; <code>torch.cat(...,
# dim=1)</code> sets the blocks side by side.</details>
# <details><summary>Solution</summary>
#
# ```python
# def axial_angles(h, w, d):
#     rows, columns = torch.cartesian_prod(torch.arange(h), torch.arange(w)).split(1, dim=1)
#     speeds = 100.0 ** (-torch.arange(d // 4) / (d // 4))
#     return torch.cat([rows * speeds, columns * speeds], dim=1)
# ```
#
# </details>


# %% tags=["exercise"]
def axial_angles(h, w, d):
    return torch.zeros(h * w, d // 2)  # your code here


# %%
labkit.check.axial_angles(axial_angles)

# %% [markdown]
# ### Exercise 4: stretch a table
#
# *Hard, 20 minutes.* Write `stretch_table(table, old, new)`: learned positions (1, h·w, d) of the grid `old`,
# resampled to the grid `new`, bicubic and antialiased.
#
# <details><summary>Hint 1</summary><code>F.interpolate</code> wants (batch, channels, rows, columns): the d channels
# come before the grid.</details>
# <details><summary>Hint 2</summary><code>table.mT.unflatten(-1, old)</code> is (1, d, h, w).</details>
# <details><summary>Solution</summary>
#
# ```python
# def stretch_table(table, old, new):
#     picture = table.mT.unflatten(-1, old)
#     picture = F.interpolate(picture, size=new, mode="bicubic", antialias=True)
#     return picture.flatten(2).mT
# ```
#
# Try `mode="nearest"` on `net.pos_embed`, too: does shapes-vit on the larger canvas care?
#
# </details>


# %% tags=["exercise"]
def stretch_table(table, old, new):
    return torch.zeros(1, new[0] * new[1], table.shape[-1])  # your code here


# %%
labkit.check.stretch_table(stretch_table)

# %% [markdown]
# ### Exercise 5: a table of displacements
#
# *Hard, 20 minutes.* Write `table_to_pairs(table, h, w)`: `table` has one number for each way (Δrow, Δcolumn) = place
# of the query minus place of the key, (2h - 1)(2w - 1) in all, counted row by row from (-(h - 1), -(w - 1)). Return
# the number of each pair of patches, (h·w queries, h·w keys).
#
# <details><summary>Hint 1</summary>Δrow = row[:, None] - row[None, :] is (h·w, h·w), from -(h - 1) to h - 1; add h -
# 1, and it counts from 0.</details>
# <details><summary>Hint 2</summary>A row of the table has 2w - 1 entries: the number of a way is (Δrow + h - 1)(2w -
# 1) + Δcolumn + w - 1.</details>
# <details><summary>Solution</summary>
#
# ```python
# def table_to_pairs(table, h, w):
#     row, column = torch.cartesian_prod(torch.arange(h), torch.arange(w)).unbind(dim=1)
#     down, across = row[:, None] - row, column[:, None] - column
#     return table[(down + h - 1) * (2 * w - 1) + across + w - 1]
# ```
#
# Test it on a grid that is not square: most mistakes hide in square ones.
#
# </details>


# %% tags=["exercise"]
def table_to_pairs(table, h, w):
    return torch.zeros(h * w, h * w)  # your code here


# %%
labkit.check.table_to_pairs(table_to_pairs)

# %% [markdown]
# ## Papers

# %%
for paper in ("S207", "S101", "S285", "S227"):
    print(labkit.papers.cite(paper))
for paper in (
    '"Attention Is All You Need", 2017 (sinusoids)',
    '"RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021',
    '"Rotary Position Embedding for Vision Transformer", 2024 (axial and mixed)',
    '"Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", 2021 (ALiBi)',
):
    print(paper)

# %% [markdown]
# ## Next
#
# Tokens know where they are, and you know what that costs when the image grows. Next, the machine that reads them:
# [04 Build a ViT](04_build_a_vit.ipynb). Back to the [overview](00_start_here.ipynb).
