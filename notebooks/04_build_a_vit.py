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
# # 04 Build a ViT
#
# **By the end you will have built a vision transformer from pixels to logits, shown that its logits equal those of
# the widely used timm library, and trained one on handwriting.**
#
# *Needs:* [00 Start here](00_start_here.ipynb); matrix products, softmax, a little PyTorch. · *Time:* 45 minutes; the
# cells take about one. · *Device:* any computer; no GPU and no network.

# %% tags=["parameters"]
seed = 0  # every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # the trained model that is taken apart
steps = 200  # of each training run
fast = False  # True: fewer steps and fewer runs

# %%
import copy
import math
from dataclasses import replace
from itertools import pairwise

import torch
from einops import rearrange
from matplotlib.figure import Figure
from torch import nn

import labkit
from labkit import convert, cost, data, vit
from labkit.intervals import wilson
from labkit.train import Recipe, epochs, train
from labkit.viz import figures, live

place = labkit.setup(seed, device)
dice = torch.Generator().manual_seed(seed)
net = labkit.load(model).to(place)
shapes = data.shapes("test", 200, seed=seed).to(place)
images = shapes.images[:8]


def largest(a, b):
    """The largest absolute difference between two tensors."""
    return (a - b).abs().max().item()


def agree(name, a, b):
    """Equal but for rounding: to 1e-5 of the largest entry, or of 1 where all are smaller."""
    difference = largest(a, b) / max(1.0, b.abs().max().item())
    assert difference <= 1e-5, f"{name}: {difference:.1e}"
    print(f"{name}: equal to within 1e-05.")


# %% [markdown]
# ## 1. From pixels to tokens
#
# A transformer reads a list of vectors. An image becomes one like this: cut it into squares of p × p pixels, write
# the 3p² numbers of each square in a row, and multiply every row by one and the same matrix. Each result is a
# *token*.
#
# > **Predict.** Our images are 64 × 64 pixels and the patches 8 × 8. How many tokens does an image give? How many
# > numbers go into each, and, if the width is 128, is a token larger or smaller than its patch?

# %%
labkit.show(vit.PatchEmbed)

# %% [markdown]
# There is no cutting in that code: it is a convolution whose stride is as large as its kernel, so that each output
# sees one patch and no patch is seen twice. If that is the same thing, we can do it by hand with a cut and a
# product.

# %%
proj = net.patch_embed.proj
p = proj.kernel_size[0]
squares = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
with torch.inference_mode():
    by_hand = squares @ proj.weight.flatten(1).T + proj.bias
    by_convolution, grid = net.patch_embed(images)
agree("Cut and multiply, or convolve", by_hand, by_convolution)
d, n = by_hand.shape[-1], squares.shape[1]
print(f"{n} tokens in a grid {grid[0]} x {grid[1]}; {squares.shape[-1]} numbers in a patch, {d} in its token.")

# %%
cut = nn.functional.pad(rearrange(squares[0], "n (c p q) -> n c p q", c=3, p=p), (1, 1, 1, 1), value=1.0)
cut = rearrange(cut, "(h w) c p q -> c (h p) (w q)", h=grid[0])
filters = proj.weight.detach()[proj.weight.detach().flatten(1).norm(dim=1).argsort(descending=True)[:10]]
filters = (filters / (2 * filters.abs().amax(dim=(1, 2, 3), keepdim=True)) + 0.5).clamp(0, 1)
labkit.figure(
    figures.image_strip(
        [images[0], cut, *filters], ["image", "cut", *(f"filter {i}" for i in range(1, 11))], columns=6
    ),
    alt=f"A test image ({shapes.names[int(shapes.labels[0])]}), the same image cut into {n} squares, and the ten "
    "strongest rows of the learned matrix drawn as patches: each is a pattern that its channel of the token measures.",
)

# %% [markdown]
# ## 2. Attention: from q, k and v to a mixed token
#
# Every token sends out a *query* q (what am I looking for?), a *key* k (what do I have?) and a *value* v (what do I
# give?). Token i looks at token j with the probability
#
# $$\text{attn}_{ij} = \text{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt{d_\text{head}}}\right)$$
#
# and takes home the mixture Σⱼ attnᵢⱼ vⱼ. Several *heads* do this side by side, each in its own slice of the
# channels.
#
# > **Predict.** With the class token there are 65 tokens. If all queries were zero, which probability would each
# > token get? And how does what a token takes home then differ from what its neighbour takes home?

# %%
labkit.show(vit.Attention.attend)

# %% [markdown]
# `evidence` keeps q and k, so that the probabilities can be looked at afterwards. Here is the same by hand:

# %%
with torch.inference_mode():
    x, grid = net.embed(images)
    block = net.blocks[1]
    q, k, v = block.attn.project(block.norm1(x))
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    attn = scores.softmax(dim=-1)
    mixed = block.attn.proj(rearrange(attn @ v, "b heads n d -> b n (heads d)"))
    plain = copy.deepcopy(block.attn)
    plain.impl = "plain"
    fused = copy.deepcopy(block.attn)
    fused.impl = "fast"
    agree("By hand, and impl='plain'", mixed, plain(block.norm1(x)))
    agree("Written out, and the fused kernel", mixed, fused(block.norm1(x)))
    uniform = (0 * q @ k.transpose(-2, -1)).softmax(dim=-1)
    same = uniform @ v
sums = attn.sum(dim=-1)
agree("The sum of each row of attention, and 1", sums, torch.ones_like(sums))
agree("With zero queries, what every token takes home, and what the first does", same, same[:, :, :1].expand_as(same))
print(
    f"attn has shape {tuple(attn.shape)}: images, heads, queries, keys; 1/{attn.shape[-1]} = {1 / attn.shape[-1]:.4f},"
)
print(f"and with zero queries every probability is {labkit.text(uniform[0, 0, 0, 0])}.")

# %% [markdown]
# One row of attention is a picture: how much one token looks at each place. These are the rows of the class token in
# the four heads of one block, for one image, in one colour scale.

# %%
with torch.inference_mode():
    seen = net.observe(images)
layer = 1
rows = seen.steps[layer].evidence.attention(slice(0, 1))[0, :, 0, net.prefix :].unflatten(-1, grid)
spent = [f"{value:.0%}" for value in rows.sum(dim=(1, 2)).tolist()]
labkit.figure(
    figures.heat_on_image(images[0], rows, [f"head {i}: {value}" for i, value in enumerate(spent)], "attention"),
    alt=f"The class token's attention to the patches of one image in the {len(rows)} heads of block {layer}, which spend "
    f"{', '.join(spent)} of it there. The rest is its attention to itself.",
)

# %% [markdown]
# ## 3. The block: a stream, and what is added to it
#
# A block never replaces a token. It *adds* to it, twice: x += attention(norm(x)), then x += mlp(norm(x)). What runs
# along from the first block to the last is called the residual stream. Because the norms sit on the branches
# (*pre-norm*), nothing stands in the stream's own way.

# %%
labkit.show(vit.Block.forward)

# %%
with torch.inference_mode():
    half = x + block.attn(block.norm1(x))
    whole = half + block.mlp(block.norm2(half))
    agree("Two additions by hand, and the block", whole, block(x, grid, prefix=net.prefix).x)

# %% [markdown]
# **LayerScale** multiplies each branch by a learned gain γ per channel before it is added. It begins near zero.
#
# > **Predict.** Twelve fresh blocks with γ = 0: what comes out? And with γ = 1e-5? Commit before you run on.

# %%
labkit.predict(
    "04 small gains",
    "Twelve fresh blocks with γ = 1e-5: by how much, relative to its length, has a token changed behind them?",
    options=["about 1e-4: twelve times as much as in one", "about 1e-5: as much as γ", "about 1: the blocks win"],
)


# %%
def change(gain):
    """Twelve fresh blocks: relative length of what each adds, and of all they added."""
    torch.manual_seed(seed)
    blocks = [vit.Block(64, 4, layer_scale=gain).to(place).eval() for _ in range(12)]
    start = now = torch.randn(4, 17, 64, generator=torch.Generator().manual_seed(seed)).to(place)
    added = []
    with torch.inference_mode():
        for one in blocks:
            after = one(now, (4, 4), prefix=1).x
            added.append(((after - now).norm() / now.norm()).item())
            now = after
    return added, ((now - start).norm() / start.norm()).item(), torch.equal(now, start)


added, total, identical = {}, {}, {}
for gain in (0.0, 1e-5, 1e-2, 1.0):
    added[gain], total[gain], identical[gain] = change(gain)
assert identical[0.0] and not identical[1e-5]
assert 1e-6 < total[1e-5] < 1e-3 < total[1.0]
labkit.table(
    [[f"{gain:g}", "yes" if identical[gain] else "no", f"{total[gain]:.0e}"] for gain in added],
    headers=["γ at the start", "output = input, bit for bit", "relative change after 12 blocks"],
)

# %%
orders_of_ten = {
    "about 1e-5: as much as γ": -5,
    "about 1e-4: twelve times as much as in one": -4,
    "about 1: the blocks win": 0,
}
each, together = sum(added[1e-5]) / 12, total[1e-5]
print(f"With γ = 1e-5 a block adds {each:.0e} of the stream's length; twelve add {together / each:.1f} times as much.")
labkit.reveal("04 small gains", min(orders_of_ten, key=lambda name: abs(math.log10(total[1e-5]) - orders_of_ten[name])))

# %% [markdown]
# With γ = 0 the stack is the identity *exactly*, however deep. With a small γ the twelve additions point in directions
# that have little to do with each other, so together they are about √12 = 3.5 times as long as one, not twelve times.
# The paper (S182) found that deep stacks that begin so train better, and each γ then grows as far as its branch is
# useful. A trained model without LayerScale has found the size of its branches by other means; here it is, beside fresh
# blocks.

# %%
with torch.inference_mode():
    stream = [seen.embedded, *(step.x for step in seen.steps)]
    trained = [((b - a).norm() / a.norm()).item() for a, b in pairwise(stream)]

fig = Figure(figsize=(6.5, 3), layout="constrained")
ax = fig.subplots()
for (name, line), marker in zip(
    {f"{model}, trained": trained, **{f"fresh, γ = {g:g}": added[g] for g in (1.0, 1e-2, 1e-5)}}.items(),
    "osD^",
    strict=True,
):
    ax.plot(range(len(line)), line, marker=marker, label=name)
ax.set(yscale="log", xlabel="block", ylabel="length of what is added\n/ length of the stream", xticks=range(12))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
labkit.figure(
    fig,
    alt="What each block adds, relative to the stream, on a logarithmic scale: the trained model lies far above fresh "
    "blocks, and the fresh blocks follow their γ = 1, 0.01 and 0.00001.",
)
assert min(trained) > max(added[1.0]) > max(added[1e-2]) > max(added[1e-5])

# %% [markdown]
# ## 4. Who speaks for the image?
#
# After the last block there is a token for each patch, and the head wants one vector. Three answers:
#
# - a **class token**: one more token, learned, that belongs to no place and collects what it needs;
# - the **average** of the patch tokens: no extra token at all;
# - **registers**: extra tokens that nobody reads at the end, room for the network to take notes.
#
# > **Predict.** Attention and MLP treat all tokens alike. If you shuffle the patches of an image like cards, and
# > the model has *no* position embedding, what happens to the logits? Does the answer depend on which of the three
# > speaks?


# %%
def shuffled(images, p, order):
    """The same patches in another order."""
    h = images.shape[-2] // p
    cards = rearrange(images, "b c (h p) (w q) -> b (h w) c p q", p=p, q=p)[:, order]
    return rearrange(cards, "b (h w) c p q -> b c (h p) (w q)", h=h)


order = torch.randperm(n, generator=dice)
variants = {
    "class token": {"pool": "class"},
    "average": {"pool": "avg"},
    "class token + 4 registers": {"pool": "class", "registers": 4},
}
table = []
for name, choice in variants.items():
    moved = {}
    for positions in (False, True):
        torch.manual_seed(seed)
        fresh = labkit.ViT(64, 8, 10, 64, 2, 4, positions=positions, **choice).to(place).eval()
        for weight in fresh.parameters():
            if weight.ndim > 1:  # larger than at birth, so that differences are easy to see
                weight.data = 0.2 * torch.randn(weight.shape, generator=dice).to(place)
        with torch.inference_mode():
            moved[positions] = largest(fresh(images), fresh(shuffled(images, 8, order)))
        assert moved[positions] > 1e-2 if positions else moved[positions] < 1e-4
    size = sum(weight.numel() for weight in fresh.parameters())
    sees = {False: "the same", True: "different"}
    table.append([name, n + fresh.prefix, size, sees[moved[False] > 1e-4], sees[moved[True] > 1e-4]])
labkit.table(
    table, headers=["who speaks", "tokens", "parameters", "shuffled, no positions", "shuffled, with positions"]
)

# %% [markdown]
# Without positions a ViT sees a *bag* of patches, whoever speaks. An extra token costs 64 weights here, and as many
# again for its position.
#
# > **Predict.** shapes-vit was trained with positions, and it is right in more than 90 %. Commit before you run on.

# %%
labkit.predict(
    "04 shuffled patches",
    "Shuffle the patches of its test images: to what does its accuracy fall? (Guessing is right in 10 %.)",
    number=10,
    unit="%",
)


# %%
@torch.inference_mode()
def right(network, pictures, labels):
    """How many pictures the network names correctly."""
    return int((network(pictures).argmax(dim=-1) == labels).sum())


share = right(net, shapes.images, shapes.labels) / len(shapes)
orders = [order] + [torch.randperm(n, generator=dice) for _ in range(2)]
shuffles = [right(net, shuffled(shapes.images, 8, o), shapes.labels) / len(shapes) for o in orders]
labkit.figure(
    figures.image_strip([images[0], shuffled(images[:1], 8, order)[0]], ["as it is", "shuffled"]),
    alt="A test image as it is, and with its 64 patches in another order, in which no outline is whole.",
)
assert share > 0.85 and 0.7 < min(shuffles) <= share
print(f"Right answers of the trained model: {share:.0%}; with shuffled patches, three orders:", end=" ")
print(", ".join(f"{value:.0%}" for value in shuffles) + ".")

# %%
labkit.reveal("04 shuffled patches", round(100 * sum(shuffles) / len(shuffles)))

# %% [markdown]
# Did you expect that? The trained model has learned positions and loses little when they are scrambled: for ten
# silhouettes, the bag of patches says nearly enough. What a model *could* use and what it *does* use are two
# questions, and only a control like this one tells them apart. In section 8 the same control gives another answer.

# %% [markdown]
# ## 5. The same logits as timm
#
# If our few lines are really *the* ViT, then with timm's weights they must give timm's logits. No weights are
# downloaded: random ones do, since equality does not depend on what a model knows.
#
# > **Predict.** Both are float32 and add numbers in slightly different orders. After 12 blocks, are the logits
# > equal bit for bit, to about 1e-6, or to about 1e-2?

# %%
import timm

theirs = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()
for weight in theirs.parameters():
    weight.data = 0.05 * torch.randn(weight.shape, generator=dice)
theirs = theirs.to(place)
ours = labkit.ViT.from_timm(theirs)
pictures = torch.rand(2, 3, 224, 224, generator=dice).to(place)
with torch.inference_mode():
    logits = theirs(pictures)
    assert logits.std() > 0.01  # they do depend on something
    assert largest(ours(pictures), logits) <= 1e-5
    agree("Logits of deit_tiny_patch16_224, ours and timm's", ours(pictures), logits)
    watched = ours.observe(pictures)
    patches = theirs.forward_intermediates(pictures, output_fmt="NLC", intermediates_only=True)
    for i, (step, features) in enumerate(zip(watched.steps, patches, strict=True)):
        agree(f"Patch features after block {i}", step.x[:, ours.prefix :], features)
print("Parameters:", *(f"{sum(w.numel() for w in m.parameters()):,}" for m in (ours, theirs)))

# %% [markdown]
# And back: weights that were trained here load into timm without a translation table, because they carry timm's
# names.

# %%
back = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval().to(place)
back.load_state_dict(convert.to_timm_state_dict(ours))
with torch.inference_mode():
    assert torch.equal(back(pictures), logits)
print("timm with our weights: the same logits, bit for bit.")

# %% [markdown]
# It is not one lucky model. Here are others from the family, with parts that you have met above (built small,
# random weights), and one model that is no plain ViT: it is refused, with the reason.

# %%
for name, small in {
    "vit_small_patch14_reg4_dinov2": {"img_size": 70, "depth": 2},  # registers and LayerScale
    "vit_base_patch16_siglip_224": {
        "img_size": 64,
        "depth": 2,
        "embed_dim": 192,
        "num_heads": 3,
    },  # attention pooling, no class token
}.items():
    theirs = timm.create_model(name, pretrained=False, **small).eval().to(place)
    pictures = torch.rand(2, 3, small["img_size"], small["img_size"], generator=dice).to(place)
    with torch.inference_mode():
        agree(name, labkit.ViT.from_timm(theirs)(pictures), theirs(pictures))
try:
    labkit.ViT.from_timm("resnet18")
except labkit.errors.LabkitError as error:
    print(error)

# %% [markdown]
# ## 6. Train one
#
# Now a small ViT of our own learns to read: scikit-learn's handwritten digits, 1,438 to learn from, 359 held out.
# The model has 16 patches of 4 × 4 pixels, width 64 and two blocks. A training step is what you would write: a
# batch, a loss, `backward`, and a step of the optimizer
# (Muon, which orthogonalises the update of each matrix).

# %%
labkit.show(epochs)

# %% [markdown]
# > **Predict.** Ten classes, so guessing is right in 10 %. The model sees 200 batches of 32 images, each image four
# > or five times.

# %%
ends = {"about 30 %": 0.3, "about 60 %": 0.6, "about 90 %": 0.9}
labkit.predict("04 digits", "Where does it end on digits that it has never seen?", options=list(ends))

# %%
count_of_steps = 100 if fast else steps
train_digits, held_out = data.digits("train", size=16), data.digits("val", size=16).to(place)
held_out = replace(held_out, images=(held_out.images - 0.5) / 0.25)
reader = {"image_size": 16, "patch_size": 4, "classes": 10, "dim": 64, "depth": 2, "heads": 4}


def learn(network, number, watch=None):
    """Train a network on the digits, on the CPU, so that all machines learn alike; how many held-out ones it reads."""
    train(network.cpu(), normalised(number), recipe(number), every=10, watch=watch)
    return right(network.to(place), held_out.images, held_out.labels)


def normalised(number):
    batches = epochs(train_digits, 32, seed=number)

    def at(step, done):
        batch = batches(step, done)
        return replace(batch, images=(batch.images - 0.5) / 0.25)

    return at


def recipe(number):
    return Recipe(count_of_steps, "muon", lr=6e-3, weight_decay=0.05, warmup=0.1, seed=number)


def fresh_reader(number, **choice):
    torch.manual_seed(number)
    return labkit.ViT(**reader, **choice)


# %% tags=["nbval-ignore-output"]
plot = live.LossPlot(count_of_steps)
plot

# %% tags=["nbval-ignore-output"]
mine = fresh_reader(seed)
untrained = right(mine.to(place).eval(), held_out.images, held_out.labels)
hits = learn(mine, seed, watch=plot)
low, high = wilson(hits, len(held_out))
print(
    f"Held-out digits read correctly: {hits / len(held_out):.0%} [{low:.0%}, {high:.0%}]; "
    f"before training {untrained / len(held_out):.0%}."
)
labkit.figure(live.curves(plot.rows, count_of_steps), alt=f"Loss and accuracy while training. {plot.state()}")

# %%
assert hits / len(held_out) > (0.15 if fast else 0.8)
assert low > wilson(untrained, len(held_out))[1] or fast
print("The ViT that you built learns to read.")

# %%
labkit.reveal("04 digits", min(ends, key=lambda name: abs(ends[name] - hits / len(held_out))))

# %% [markdown]
# ## 7. Where the weights and the work are
#
# A multiply-accumulate (MAC) is one multiplication and one addition. For n tokens of width d, a block has four
# parts: q, k, v cost 3nd², the pairs of tokens 2n²d, the projection nd², and the MLP, four times as wide as the
# tokens, 8nd².
#
# > **Predict.** deit_small has 224 × 224 pixels, patches of 16, width 384, 12 blocks. Everybody knows that
# > attention is *quadratic*.

# %%
labkit.predict("04 pairs", "Which share of deit_small's MACs goes to the pairs of tokens?", number=80, unit="%")

# %%
with torch.device("meta"):  # shapes only: no memory, no arithmetic
    small = labkit.ViT(224, 16, 1000, 384, 12, 6)
small.last = "full"  # all rows of the last block, as timm computes it
of_small, of_mine = cost.count(small), cost.count(mine)
assert abs(of_small.macs / 4.599e9 - 1) < 0.003
of_small

# %%
of_mine

# %%
kinds = ["patch", "qkv", "attention", "proj", "mlp", "head"]
fig = Figure(figsize=(7.6, 2.8), layout="constrained")
ax = fig.subplots()
for i, (name, counted, hatch) in enumerate((("deit_small", of_small, ""), ("our digit reader", of_mine, "//"))):
    parts = [counted.parts[kind]["macs"] / counted.macs for kind in kinds]
    places = [j + 0.4 * i - 0.2 for j in range(len(kinds))]
    ax.bar(places, parts, width=0.38, hatch=hatch, edgecolor="white", label=f"{name}, {counted.macs / 1e6:,.1f} M MACs")
    for at, part in zip(places, parts, strict=True):
        ax.annotate(f"{part:.0%}", (at, part), ha="center", va="bottom", fontsize=9)
ax.set(xticks=range(len(kinds)), xticklabels=kinds, ylabel="share of the MACs", ylim=(0, 0.8))
ax.legend(frameon=False)
pairs = of_small.parts["attention"]["macs"] / of_small.macs
mlp = of_small.parts["mlp"]["macs"] / of_small.macs
labkit.figure(
    fig,
    alt=f"Bars: in deit_small {mlp:.0%} of the MACs are in the MLPs and {pairs:.0%} between pairs of tokens; "
    "the small digit reader has a similar profile.",
)
half, whole = (sum(cost.block_macs(tokens, 384).values()) for tokens in (98, 196))
assert pairs < 0.1 and mlp > 0.5 and 0.45 < half / whole < 0.5
print(f"A block on half the tokens costs {half / whole:.0%}.")

# %%
labkit.reveal("04 pairs", round(100 * pairs))

# %% [markdown]
# At this size nearly all work is *linear* in the number of tokens: dropping half of them halves it, whatever one
# thinks of the quadratic part. The pairs take over when n is large beside d. When? That is exercise 4.
#
# And in seconds? A fair race needs a quiet machine and many turns, so it was run once and stored; let the pointer rest
# on the caption to see where it comes from. `fast` leaves out the rows of the last block that no head reads.

# %% tags=["nbval-ignore-output"]
race = labkit.results.load("bench-vit")
for name, row in race["cpu"].items():
    print(f"{name:15} {row['ratio']:.2f} × timm's time [{row['low']:.2f}, {row['high']:.2f}]")
race

# %% [markdown]
# ## 8. The result: does it matter who speaks, and was a transformer needed?
#
# One training says little: another seed is another model. So each model is trained twice, with the same number
# of steps and the same batches:
#
# - **class token** and **average**: the two that are compared;
# - **no positions**: the control, a bag of patches; if it did as well, the order of the patches would not matter;
# - **linear on pixels**: the baseline, a single matrix from pixels to digits;
# - **untrained**: chance.
#
# > **Predict.** Put the five in order. How far apart are two seeds of the *same* model, and is the distance between
# > class token and average larger than that?

# %%
labkit.predict(
    "04 best reader",
    "Which of them reads most of the held-out digits?",
    options=["class token", "average", "no positions", "linear on pixels", "untrained"],
)

# %% tags=["nbval-ignore-output"]
seeds = (seed,) if fast else (seed, seed + 1)
found = {"class token": [hits, *(learn(fresh_reader(number), number) for number in seeds[1:])]}

# %% tags=["nbval-ignore-output"]
found["average"] = [learn(fresh_reader(number, pool="avg"), number) for number in seeds]

# %% tags=["nbval-ignore-output"]
found["no positions"] = [learn(fresh_reader(number, positions=False), number) for number in seeds]


# %% tags=["nbval-ignore-output"]
def linear(number):
    torch.manual_seed(number)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))


found["linear on pixels"] = [learn(linear(number), number) for number in seeds]
found["untrained"] = [
    right(fresh_reader(number).to(place).eval(), held_out.images, held_out.labels) for number in seeds
]
mean = {name: sum(runs) / len(runs) / len(held_out) for name, runs in found.items()}
fig = figures.bars(
    list(mean),
    list(mean.values()),
    [[min(runs) / len(held_out), max(runs) / len(held_out)] for runs in found.values()],
    label="held-out digits read correctly: mean of two seeds, and both",
)
labkit.figure(
    fig,
    alt="Bars with both seeds: "
    + ", ".join(f"{name} {' and '.join(f'{r / len(held_out):.0%}' for r in runs)}" for name, runs in found.items())
    + ".",
)
low, high = wilson(hits, len(held_out))
print(f"With 359 images, one accuracy is known to about ± {(high - low) / 2:.0%}.")

# %%
assert mean["linear on pixels"] > mean["untrained"] + 0.2
if not fast:
    assert min(mean["class token"], mean["average"]) > 0.75
    assert abs(mean["class token"] - mean["average"]) < 0.15
    assert mean["no positions"] < min(mean["class token"], mean["average"])
    assert mean["linear on pixels"] > max(mean["class token"], mean["average"]) - 0.05
one = cost.count(linear(seed), image_size=16)
print("Both ways to speak learn; a single matrix on pixels is a strong baseline here,")
print(f"with {one.macs:,} MACs where the ViT has {of_mine.macs:,}.")

# %%
labkit.reveal("04 best reader", max(mean, key=mean.get))

# %% [markdown]
# Read it soberly. Class token and average lie close, and two seeds cannot say which is better: that takes more runs
# and more images. Positions are worth something here: the bag of patches stays behind. And one matrix on raw pixels
# does about as well as the transformer, for much less: these digits are centred and upright, so that each pixel means
# something by itself. A baseline like that belongs in every table. (On `shapes`, where the object lies anywhere, it is a
# different story: exercise 6.)

# %% [markdown]
# ## Limits
#
# - **Equal to timm in float32, in eval mode.** Dropout and stochastic depth are left out of our blocks, and half
#   precision rounds in other places.
# - **Digits are easy, and the run is short.** It shows that the parts work together, not what a ViT can do.
# - **Two seeds.** They show that a spread exists, not how large it is.
# - **MACs are not milliseconds**, and parameters are not memory; later lessons hold a clock beside the count.

# %% [markdown]
# ## Exercises
#
# The stubs run as they are. The line behind each stub says whether your function is right; if it is not, `labkit.check`
# names the mistake, or shows the smallest case that fails. `labkit.check.image_vector.hint(1)` gives the first hint.
#
# ### Exercise 1: who speaks
#
# *Easy, 10 minutes.* Write `image_vector(x, prefix, pool)`: the one vector of each image, (batch, d), from the tokens
# x (batch, n, d) behind the last block. The first `prefix` tokens are no patches: the class token, if there is one,
# and registers behind it. With pool = "class" the class token speaks, with "avg" the mean of the patches.
#
# <details><summary>Hint 1</summary><code>x[:, 0]</code> is the first token of every image.</details>
# <details><summary>Hint 2</summary><code>x[:, prefix:]</code> are the patches; their mean runs over the tokens,
# axis 1.</details>
# <details><summary>Solution</summary>
#
# ```python
# def image_vector(x, prefix, pool):
#     return x[:, 0] if pool == "class" else x[:, prefix:].mean(dim=1)
# ```
#
# </details>


# %% tags=["exercise"]
def image_vector(x, prefix, pool):
    # your code here
    return torch.zeros(x.shape[0], x.shape[2])


# %%
labkit.check.image_vector(image_vector)

# %% [markdown]
# ### Exercise 2: the block
#
# *Easy, 10 minutes.* Write `transformer_block(x, norm1, attn, norm2, mlp)`: one pre-norm block on tokens x (batch, n,
# d). The four parts are functions of tokens, and each returns the shape that it gets.
#
# <details><summary>Hint 1</summary>The first branch reads norm1 of the stream; what it gives is added to the stream,
# not to norm1 of it.</details>
# <details><summary>Hint 2</summary>The second branch does the same with norm2 and mlp, and reads what the first
# addition has made.</details>
# <details><summary>Solution</summary>
#
# ```python
# def transformer_block(x, norm1, attn, norm2, mlp):
#     x = x + attn(norm1(x))
#     return x + mlp(norm2(x))
# ```
#
# </details>


# %% tags=["exercise"]
def transformer_block(x, norm1, attn, norm2, mlp):
    # your code here
    return torch.zeros_like(x)


# %%
labkit.check.transformer_block(transformer_block)

# %% [markdown]
# ### Exercise 3: heads
#
# *Medium, 20 minutes.* Write `self_attention(x, qkv, proj, heads)` for tokens x (batch, n, d). The layer `qkv` makes 3d
# numbers of each token: all of q, then all of k, then all of v. Of each of these, the first head has the first d /
# heads channels, the second the next, and so on. Every head attends alone; their results are joined again and go
# through `proj`.
#
# <details><summary>Hint 1</summary><code>q, k, v = rearrange(qkv(x), "b n (three h d) -> three b h n d", three=3,
# h=heads)</code>.</details>
# <details><summary>Hint 2</summary>The scores are divided by the root of the width of one head; the way back is "b h n
# d -> b n (h d)".</details>
# <details><summary>Solution</summary>
#
# ```python
# def self_attention(x, qkv, proj, heads):
#     q, k, v = rearrange(qkv(x), "b n (three h d) -> three b h n d", three=3, h=heads)
#     attn = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
#     return proj(rearrange(attn @ v, "b h n d -> b n (h d)"))
# ```
#
# </details>


# %% tags=["exercise"]
def self_attention(x, qkv, proj, heads):
    # your code here
    return torch.zeros_like(x)


# %%
labkit.check.self_attention(self_attention)

# %% [markdown]
# ### Exercise 4: count the work
#
# *Medium, 15 minutes.* Write `block_work(n, d, depth)`: the MACs of all `depth` blocks of a ViT with n tokens of width d
# and an MLP four times as wide. Then find the n at which the pairs of tokens cost as much as everything else in a
# block.
#
# <details><summary>Hint 1</summary>The four parts are in section 7.</details>
# <details><summary>Hint 2</summary>3nd² + nd² + 8nd² = 12nd², and 2n²d for the pairs.</details>
# <details><summary>Solution</summary>
#
# ```python
# def block_work(n, d, depth):
#     return depth * (12 * n * d**2 + 2 * n**2 * d)
# ```
#
# 2n²d = 12nd² when n = 6d: for d = 384, at 2,304 tokens, an image of 768 × 768 pixels.
#
# </details>


# %% tags=["exercise"]
def block_work(n, d, depth):
    # your code here
    return 0


# %%
labkit.check.block_work(block_work)

# %% [markdown]
# ### Exercise 5: count the weights
#
# *Hard, 20 minutes.* Write `count_weights(image, patch, classes, d, depth)`: how many numbers does this ViT learn? Its
# images have image × image pixels in 3 colours and are cut into squares of patch × patch. There is a class token; every
# token has a learned position; each of the blocks has two norms, attention and an MLP of width 4d; behind them stand
# one more norm and the head. All linear layers have a bias, the patches' too. (Section 5 shows the sum for a model
# that you know.)
#
# <details><summary>Hint 1</summary>A linear layer from a to b numbers has a · b + b weights; a norm has 2d: a gain and a
# bias for each channel.</details>
# <details><summary>Hint 2</summary>A block has 12d² + 13d. Around the blocks stand patches, class token, positions (of
# all tokens), norm, head.</details>
# <details><summary>Solution</summary>
#
# ```python
# def count_weights(image, patch, classes, d, depth):
#     tokens = (image // patch) ** 2 + 1
#     before = (3 * patch**2 * d + d) + d + tokens * d
#     block = 2 * d + (3 * d * d + 3 * d) + (d * d + d) + 2 * d + (4 * d * d + 4 * d) + (4 * d * d + d)
#     return before + depth * block + 2 * d + (d * classes + classes)
# ```
#
# </details>


# %% tags=["exercise"]
def count_weights(image, patch, classes, d, depth):
    # your code here
    return 0


# %%
labkit.check.count_weights(count_weights)

# %% [markdown]
# ### Exercise 6: one matrix against clutter
#
# *Medium, 15 minutes.* This one is open: there is no single right answer, so it shows what you found. Write
# `linear_accuracy(train_set, test_set)`: train one matrix on the pixels of `train_set` and return its share of right
# answers on `test_set`, as a number between 0 and 1. Then explain why it is so far from shapes-vit.
#
# <details><summary>Hint 1</summary><code>labkit.train.train</code> takes any module: <code>nn.Sequential(nn.Flatten(),
# nn.Linear(3 * 64 * 64, 10))</code>.</details>
# <details><summary>Hint 2</summary>100 steps of <code>Recipe(100, lr=1e-3)</code> with
# <code>epochs(train_set, 32)</code> are enough. <code>right(network, images, labels)</code> counts.</details>
# <details><summary>Solution</summary>
#
# ```python
# def linear_accuracy(train_set, test_set):
#     one = nn.Sequential(nn.Flatten(), nn.Linear(train_set.images[0].numel(), 10))
#     train(one, epochs(train_set, 32), Recipe(100, lr=1e-3))
#     return right(one, test_set.images, test_set.labels) / len(test_set)
# ```
#
# One matrix has one template for each class, and here the object lies anywhere, turned and coloured at random.
#
# </details>


# %% tags=["exercise"]
def linear_accuracy(train_set, test_set):
    return 0.0  # your code here


# %%
got = linear_accuracy(data.shapes("train", 320, seed=seed), data.shapes("test", 200, seed=seed))
if got == 0:
    print("Not started yet.")
else:
    low, high = wilson(round(got * 200), 200)
    print(f"One matrix: {got:.0%} [{low:.0%}, {high:.0%}]; chance is 10%, shapes-vit has {share:.0%}.")

# %% [markdown]
# ## Papers

# %%
for paper in ("S207", "S182", "S203", "S226", "S383"):
    print(labkit.papers.cite(paper))

# %% [markdown]
# ## Next
#
# You have the whole machine in your hands now: every later lesson turns one of its dials. But first look inside it while
# it works: [05 Seeing attention](05_seeing_attention.ipynb). Back to the [overview](00_start_here.ipynb).
