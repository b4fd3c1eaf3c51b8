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
# # 05 Seeing attention
#
# **By the end you will have looked through every head of a trained vision transformer, caught two bugs that published
# visualizers still draw, and know which explanation of its answers deserves trust, because you held each against the
# truth and against maps that know nothing.**
#
# *Needs:* [04 Build a ViT](04_build_a_vit.ipynb): queries, keys, the class token, residuals. · *Time:* 50 minutes; the
# cells take about one. · *Device:* any computer; no GPU and no network.

# %% tags=["parameters"]
seed = 0  # which test images are drawn, and every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # or one of timm's, as "timm:deit_tiny_patch16_224"; without the network its weights are random
image = 4  # the test image that is looked at closely
fast = False  # True: fewer test images, wider intervals

# %%
import timm
import torch
from matplotlib.figure import Figure

import labkit
from labkit import data, explain, results, tracing
from labkit.errors import LabkitError
from labkit.explain.heads import distances, mean_distance
from labkit.token_labels import coverage
from labkit.viz import charts, figures, strips

place = labkit.setup(seed, device)
try:
    net = labkit.load(model).to(place)
    trained = True
except LabkitError as error:
    net = labkit.ViT.from_timm(model.removeprefix("timm:")).eval().to(place)
    trained = False
    print(f"{error}\nSo its weights are random, and its maps show what a model looks at that knows nothing.")
if not net.prefix:
    raise LabkitError(f"{model} has no class token, and this lesson asks where it looks; take shapes-vit.")
ours = model == "shapes-vit"  # what the text says was measured on this one
stride = net.patch_embed.proj.stride
size = net.grid[0] * stride[0]
test = data.shapes("test", 40 if fast or not ours else 80, seed=seed, size=size).to(place)
images, masks = test.images, test.masks
inside = coverage(masks, net.grid).cpu()  # the share of each patch that is object
print(f"{model}: {len(net.blocks)} blocks, a grid of {net.grid[0]} x {net.grid[1]} patches. {test}.")
print(f"The object covers {inside.mean():.0%} of an image.")


# %% [markdown]
# ## 1. Record once, look often
#
# Attention is computed and thrown away in every forward pass, and fused kernels never even write it down. `labkit.trace`
# runs the model once and keeps what you ask for: the attention of every layer, the tokens, and which patches are inside
# each token.
#
# > **Predict.** Our model has 6 blocks with 4 heads each, and 65 tokens: 64 patches and the class token. Does its answer
# > change when somebody watches?

# %%
labkit.predict("05 kilobytes", "How large is the attention of one image, at 4 bytes a number?", number=17, unit="kB")

# %%
labkit.show(tracing.capture.Watch.fused)

# %% [markdown]
# That is the whole trick for a model that is not ours: whenever torch is asked for fused attention, the probabilities are
# computed *beside* it from the same q and k, and the model gets the result of its own kernel. Our ViT needs no trick; it
# hands over its q and k.

# %%
print(tracing.record.plan(net, images[:1]))
seen = labkit.trace(net, images)
with torch.inference_mode():
    untouched = net(images)
numbers = seen.attention[0][0].numel() * len(seen.layers)
print(f"One image: {numbers:,} numbers, {4 * numbers / 1000:,.0f} kB.")
rows = max((attn.sum(dim=-1) - 1).abs().max().item() for attn in seen.attention)
change = (seen.logits - untouched).abs().max().item() / untouched.abs().max().item()
watched = labkit.trace(torch.nn.Sequential(net), images[:8])  # the same model, as a stranger would see it
apart = max((a[:8] - b).abs().max().item() for a, b in zip(seen.attention[:-1], watched.attention[:-1], strict=True))
assert rows < 1e-5 and change < 1e-5 and apart < 1e-4
print(f"Rows sum to 1, the logits are what they were, and watching from outside shows the same maps: {apart < 1e-4}.")

# %%
labkit.reveal("05 kilobytes", round(4 * numbers / 1000))

# %% [markdown]
# Now look. Click a patch, or move with the arrow keys; Page Up and Page Down change the layer, D switches between *looks at*
# and *looked at by*, and C asks for the class token. (Without a running kernel you see a picture.)

# %%
explorer = labkit.Explorer(net, test[:12], image=min(image, 11), layer=len(net.blocks) - 2, head="mean", query="class")
explorer

# %%
explorer.query, explorer.layer = (net.grid[0] // 2, net.grid[1] // 2), 1
print(explorer.describe())

# %% [markdown]
# ## 2. What heads look at
#
# Two numbers sort heads at first sight. *Entropy* says how spread out a head looks: at its largest, log(number of tokens),
# it looks everywhere alike. *Mean distance* says how far, in patches. And because our images come with masks, there is a
# third: the share of the class token's attention that lies on the object.
#
# > **Predict.** A head that looks everywhere alike has a mean distance of about 4.1 patches on an 8 × 8 grid. Where do
# > you expect heads that look at their neighbours, in the first block or in the last? And where does the class token find
# > the object, which covers only a twelfth of the image?

# %%
labkit.predict(
    "05 finds the object",
    "Which is the first block, counted from 0, with a head in which the class token spends more than half of its "
    "attention on the object? (The last one is number 5.)",
    number=5,
)

# %%
measures = explain.head_measures(seen)
class_maps = torch.stack([explain.class_rows(seen, layer) for layer in range(len(seen.layers))]).flatten(3)
share = class_maps / class_maps.sum(dim=-1, keepdim=True)
on_object = (share * inside[:, None]).sum(dim=-1).mean(dim=1)  # (layers, heads)
apart = distances(net.grid, net.grid, net.grid)
everywhere = apart.mean().item()
labkit.table(
    [
        [
            str(layer),
            measures.normalised[layer].mean().item(),
            measures.normalised[layer].min().item(),
            measures.patches[layer].min().item(),
            measures.patches[layer].max().item(),
            f"{on_object[layer].mean():.0%}",
            f"{on_object[layer].max():.0%}",
        ]
        for layer in range(len(seen.layers))
    ],
    headers=["block", "entropy, mean", "least", "distance, nearest", "farthest", "on object, mean", "most"],
    digits=2,
)

# %%
labkit.figure(
    strips.head_montage(class_maps[:, min(image, len(test) - 1)], net.grid, label="attention of the class token"),
    alt="Where the class token looks in every head of every block, for one image, in one colour scale: evenly in the "
    "first blocks, at a few patches in the last.",
)

# %%
layer, head = divmod(int(on_object.argmax()), on_object.shape[1])
near_layer, near_head = divmod(int(measures.patches.argmin()), measures.patches.shape[1])
nearest = measures.patches.min().item()
neighbour = torch.softmax(-(apart**2) / 2, dim=-1)  # a head made by hand, which looks at its neighbours
by_hand = mean_distance(neighbour[None], apart)[0].item()
print(f"Looking everywhere alike: {everywhere:.2f} patches away. A head made to look at neighbours: {by_hand:.2f}.")
print(f"The nearest of ours, head {near_head} of block {near_layer}: {nearest:.2f}.")
print(f"Head {head} of block {layer} puts {on_object.max():.0%} of the class token's attention on the object;")
print(f"chance is {inside.mean():.0%}, and block 0 reaches {on_object[0].max():.0%}.")
if ours:
    assert on_object.max() > 0.6 and on_object[0].max() < 0.2 and nearest > 2

# %%
finding = [number for number, row in enumerate(on_object) if row.max() > 0.5]
labkit.reveal("05 finds the object", min(finding, default=len(on_object)))

# %% [markdown]
# The class token finds the object from the third block on, and no label ever told it where to look. But *no head of this
# model looks at its neighbours*: even the nearest is more like an even head than like a neighbour head. Large models
# trained on photographs have such heads in their first blocks; this small one reads its shapes almost as a bag of
# patches. A picture from a paper is not a fact about your model: measure.
#
# The same goes for *outlier tokens*. Large models use a few background patches as scratch paper; their norm sticks out,
# and maps of such models are speckled ("Vision Transformers Need Registers", 2023). Does ours do that? To trust a
# detector that says no, plant something it must find.

# %%
found = explain.outliers(seen)
planted = labkit.trace(net, images[:8])
planted.tokens[-1][:, net.prefix + 3] *= 8
early = found.flags[0].flatten(1)
caught = explain.outliers(planted).flags[-1].flatten(1)
print("Share of patches that stick out, before the first block and after each:", labkit.text(found.shares(), 3))
if early.any():
    print(f"Of those that stick out before the first block, {inside[early].mean():.0%} of the area is object.")
print(f"Planted in one patch of 8 images: found in {int(caught[:, 3].sum())} of them.")
assert caught[:, 3].all()
if ours:
    assert found.shares()[-3:].max() < 0.01 and inside[early].mean() > 2 * inside.mean()

# %% [markdown]
# The detector finds what was planted, and nothing in our last blocks. The few early ones are no scratch paper: they lie
# on the object, whose patches begin with more contrast.
#
# ## 3. From many layers to one map, and two bugs
#
# One head of one block says little about what reaches the answer. *Rollout* follows the attention through all blocks
# ("Quantifying Attention Flow in Transformers", 2020). Half of what a token becomes is itself (the residual), half is what
# it attends to; then multiply the blocks:
#
# $$R = \prod_l \tfrac12\,(A_l + I)$$
#
# Each row of R sums to 1, because each factor's rows do. *Gradient rollout* asks about one class: it weighs the attention
# with its gradient and keeps what is positive. Rows then sum to anything, so each factor is normalised again. Two widely
# copied visualizers get this wrong. Here are four gradient rollouts; every one draws a plausible picture.
#
# > **Predict.** Read the four functions, and look at the four maps. Which two are wrong? (It is one line in each.) Commit
# > before you test them.


# %%
def helps(attn, gradient):
    """What raises the class, and the residual: (batch, n, n)."""
    return (attn * gradient).clamp(min=0).mean(dim=1) + torch.eye(attn.shape[-1])


def first(attns, gradients):
    total = torch.eye(attns[0].shape[-1])
    for attn, gradient in zip(attns, gradients, strict=True):
        mix = helps(attn, gradient)
        total = mix / mix.sum(dim=-1, keepdim=True) @ total
    return total


def second(attns, gradients):
    total = torch.eye(attns[0].shape[-1])
    for attn, gradient in zip(attns, gradients, strict=True):
        mix = helps(attn, gradient)
        total = mix / mix.sum(dim=-1) @ total
    return total


def third(attns, gradients):
    total = torch.eye(attns[0].shape[-1])
    for attn, gradient in zip(attns, gradients[::-1], strict=True):
        mix = helps(attn, gradient)
        total = mix / mix.sum(dim=-1, keepdim=True) @ total
    return total


def fourth(attns, gradients):
    total = torch.eye(attns[0].shape[-1])
    for attn, gradient in zip(attns[::-1], gradients[::-1], strict=True):
        mix = helps(attn, gradient)
        total = total @ (mix / mix.sum(dim=-1, keepdim=True))
    return total


# %%
number = min(image, len(test) - 1)
one = images[number : number + 1]
graph = labkit.trace(net, one, grads=True)
attns, gradients = list(graph.attention), graph.gradients()
candidates = (first, second, third, fourth)
maps = torch.stack([rollout(attns, gradients)[0, 0, net.prefix :].unflatten(0, net.grid) for rollout in candidates])
labkit.figure(
    figures.heat_on_image(one[0], maps / maps.amax(dim=(1, 2), keepdim=True), [f.__name__ for f in candidates]),
    alt="One image and four gradient rollouts of its attention, each scaled to its own largest value. All look "
    "plausible; two come from code with a bug.",
)

# %%
labkit.predict(
    "05 two bugs",
    "Which two of the four are wrong?",
    options=[
        *("third and fourth", "first and second", "first and third"),
        *("first and fourth", "second and third", "second and fourth"),
    ],
)

# %% [markdown]
# Looking does not find it. *Properties* do: write down what must hold for any correct rollout, and test that.

# %%
n = attns[0].shape[-1]
ones = [torch.ones_like(g) for g in gradients]
equal = [torch.full_like(a, 1 / n) for a in attns]
itself = [torch.eye(n).expand_as(a) for a in attns]
only_last = [torch.zeros_like(g) for g in gradients[:-1]] + ones[-1:]  # no other layer may matter then
alone = helps(attns[-1], ones[-1]) / 2


def row_error(total):
    """How far the rows are from summing to 1."""
    return (total.sum(dim=-1) - 1).abs().max().item()


def off(a, b):
    return f"{(a - b).abs().max():.2f}"


labkit.table(
    [
        [
            rollout.__name__,
            f"{row_error(rollout(attns, gradients)):.2f}",
            off(rollout(equal, ones)[0, 0, 1], rollout(equal, ones)[0, 0, 1:]),
            off(rollout(itself, ones), torch.eye(n)),
            off(rollout(attns, only_last), alone),
        ]
        for rollout in candidates
    ],
    headers=["", "rows sum to 1", "equal stays equal", "identity stays identity", "a gradient meets its own layer"],
)

# %%
assert (
    row_error(first(attns, gradients)) < 1e-4
    and (first(attns, gradients) - fourth(attns, gradients)).abs().max() < 1e-5
)
assert (explain.rollout_matrix(attns) - first(attns, ones)).abs().max() < 1e-5
assert row_error(second(attns, gradients)) > 1e-2 and (third(attns, only_last) - alone).abs().max() > 1e-2
print(
    "The numbers are errors, and 0.00 is right. The second lacks keepdim=True and divides columns by the sums of rows."
)
print("The third meets each layer with the gradient of another, as when backward hooks fill a list in reverse order.")
print("First and fourth are the same product, and with gradients of 1 they are the package's rollout.")

# %%
wrong = [
    rollout.__name__
    for rollout in candidates
    if row_error(rollout(attns, gradients)) > 1e-2 or (rollout(attns, only_last) - alone).abs().max() > 1e-2
]
labkit.reveal("05 two bugs", " and ".join(wrong))

# %% [markdown]
# ## 4. Ten answers to "why?"
#
# Attention is one source of explanations. Others ask the gradient: *relevance* multiplies attention with its gradient, and
# lets only what raises the class pass ("Generic Attention-model Explainability", 2021); *Grad-CAM* weighs the channels of
# the tokens; *integrated gradients* walk from a blank of its mean colour to the image. And some simply try: *patch
# ablation* hides each patch and looks at what happens.
#
# > **Predict.** Which one will draw the object most sharply? And which will draw *something* sharp even for a model with
# > random weights?

# %%
drawn = {name: method(net, one, None)[0].cpu() for name, method in explain.METHODS.items()}
stack = torch.stack(list(drawn.values())).clamp(min=0)
stack = stack / stack.amax(dim=(1, 2), keepdim=True).clamp(min=1e-9)
half = len(stack) // 2
for part, names in ((stack[:half], list(drawn)[:half]), (stack[half:], list(drawn)[half:])):
    labkit.figure(
        figures.heat_on_image(one[0].cpu(), part, [name.replace(", ", "\n").replace(" (", "\n(") for name in names]),
        alt=f"One image under {len(names)} explanations, each scaled to its own largest value: {', '.join(names)}.",
    )

# %% [markdown]
# ## 5. Which explanation deserves trust?
#
# Ten maps, and one can like any of them. So hold each against the truth (the mask of the object) and, more important,
# against maps that know nothing about the model: *random* noise, the *centre* of the frame, and the *edges* in the image.
# An explanation that does not beat those has explained nothing.
#
# > **Predict.** The object lies anywhere, and covers 8 % of the image. Which of the quick methods below beat the centre of
# > the frame, and by how much: rollout, the last block's class attention, relevance?

# %%
labkit.predict(
    "05 the centre", "In what share of the images does the centre of the frame hit the object?", number=8, unit="%"
)

# %%
quick = (
    "class attention, last block",
    "class attention, mean of blocks",
    "rollout",
    "gradient rollout",
    "relevance (Chefer)",
    "Grad-CAM",
)
made = {name: explain.METHODS[name](net, images, None).cpu() for name in quick}
scores = explain.judge(made, masks.cpu(), images.cpu())
scores

# %%
pointing = {name: row["pointing"].mean for name, row in scores.summary.items()}
best = max(quick, key=pointing.get)
print(
    f"Best of the quick ones: {best}, {pointing[best]:.0%}; centre {pointing['centre']:.0%}, random {pointing['random']:.0%}."
)
print(f"Rollout: {pointing['rollout']:.0%}.")
if ours:
    assert pointing[best] > pointing["centre"] + 0.2

# %%
covered = inside.mean(dim=0).unflatten(0, net.grid)
(h, w), rim = net.grid, torch.ones(net.grid, dtype=torch.bool)
rim[1:-1, 1:-1] = False
middle = covered[h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1].mean()
print(
    f"In the mean over images, {middle:.0%} of the four middle patches is object, and {covered[rim].mean():.0%} of the rim:"
)
print("an object that lies whole inside the frame lies seldom at its rim.")
assert middle > 2 * covered[rim].mean()
labkit.reveal("05 the centre", round(100 * pointing["centre"]))

# %% [markdown]
# Pointing at the object is not yet being faithful to the *model*. Three judges need no mask. *Deletion* and *insertion*: take
# the patches away in the order of the map, or put them back, and watch the probability. *ROAD* does so with holes that
# are filled from their surroundings, since a grey hole is itself a picture. And the *sanity check*: explain a model whose
# weights are random. A map that stays the same never looked at the model ("Sanity Checks for Saliency Maps", 2018). All of it
# takes minutes for ten methods, so first one of them for three, live, and then the stored table; its caption says how to
# make it again.

# %%
few = images[:20] if fast or not ours else images[:40]
curves = {}
for name, of in (("relevance (Chefer)", explain.METHODS), ("rollout", explain.METHODS), ("random", explain.CONTROLS)):
    ranked = of[name](few, net.grid) if name in explain.CONTROLS else of[name](net, few, None)
    removal = explain.deletion_insertion(net, few, ranked, steps=8)
    curves[name] = charts.Line(removal.shares, removal.most_first.mean(dim=0))
charts.chart(
    charts.curves(curves, x="share of the patches removed, the highest first", y="probability of the class"),
    alt=f"How sure the model stays of its answer while patches go. After {1 / 8:.0%} of them, "
    + ", ".join(f"{name}: {line.y[1]:.0%}" for name, line in curves.items())
    + ".",
)

# %% [markdown]
# A map is faithful when its curve falls at once: the patches that it calls important were. Random patches show how much
# the model can lose without noticing.

# %%
stored = results.load("judge-shapes-vit")
metrics = ["pointing", "mass", "AUC", "deletion", "insertion", "ROAD", "random weights"]


def cell(score):
    if score is None:
        return "-"
    mean, low, high = (f"{score[part]:.2f}".replace("0.", ".") for part in ("mean", "low", "high"))  # narrow columns
    return f"{mean} [{low},\N{NO-BREAK SPACE}{high}]{'*' if score['beats'] else ''}"


labkit.table(
    [
        [name, *(cell(stored["scores"][name].get(metric)) for metric in metrics)]
        for name in (*explain.METHODS, *explain.CONTROLS, "the mask itself")
    ],
    headers=["map", *metrics],
)

# %%
seconds = stored["seconds"]
dearer = seconds["occlusion"] / seconds["relevance (Chefer)"]
print(f"On that machine, a map by occlusion took {dearer:.0f} times as long as one by relevance.")
print(stored.caption())

# %% [markdown]
# Read it by column, and no method wins. *Pointing*: rollout, which spreads the rest of its mass over the whole frame (see its
# *mass*). *Mass*: integrated gradients. *Insertion*: patch ablation, which is nearly the same experiment. *ROAD*: occlusion
# and relevance. All of them beat all controls almost everywhere, so each of them says something; and the mean of the
# blocks' class attention still resembles itself when the weights are random (0.27), so part of what it draws is the
# architecture, not what the model has learned. The row of the mask is worth a look too: removing the object itself is
# no better than removing what relevance points at.
#
# And the price: asking the model again and again costs far more than one look backwards. If you need one map that is right,
# faithful and cheap, relevance is a good first choice *here*; if you need to be sure, look at two that work differently.
#
# One table could be luck. Three other draws of test images, for the two ends and a control:

# %%
spread = []
for number in range(seed + 1, seed + 4):
    drawn = data.shapes("test", 20 if fast or not ours else 32, seed=number, size=size).to(place)
    some = {name: explain.METHODS[name](net, drawn.images, None).cpu() for name in ("rollout", "relevance (Chefer)")}
    again = explain.judge(some, drawn.masks.cpu(), drawn.images.cpu()).summary
    spread.append([f"{number}", *(f"{again[name]['pointing'].mean:.2f}" for name in (*some, "centre", "random"))])
labkit.table(spread, headers=["draw", "rollout", "relevance (Chefer)", "centre", "random"])

# %% [markdown]
# ## 6. Is attention an explanation? Take it away and see
#
# A map says where a head looks. Whether the answer *depends* on that head is another question, and only one experiment
# answers it: silence the head, and see how sure the model still is of the right class.
#
# > **Predict.** You have found the head that looks at the object most. And what if a head of the first block is silenced,
# > which looks everywhere alike?

# %%
labkit.predict(
    "05 silenced",
    "Silence the head that looks at the object most: how many points of probability does the right class lose?",
    number=50,
    unit="points",
)

# %%
effects = explain.head_effects(net, images, test.labels if ours else None)
lost = -100 * effects.probability
costly_layer, costly_head = divmod(int(lost.argmax()), lost.shape[1])
flat = torch.stack([on_object.flatten(), lost.flatten()])
relation = torch.corrcoef(flat)[0, 1].item()
print(f"The head that looks at the object most (block {layer}, head {head}, {on_object.max():.0%} on it):")
print(f"  without it the right class loses {lost[layer, head]:.0f} points of probability.")
print(f"The head that costs most (block {costly_layer}, head {costly_head}): {lost.max():.0f} points,")
print(f"  and {on_object[costly_layer, costly_head]:.0%} of its attention is on the object.")
print(f"Correlation of the two over all {lost.numel()} heads: {relation:.2f}.")

# %%
fig = Figure(figsize=(6, 3.4), layout="constrained")
ax = fig.subplots()
depth = torch.arange(len(lost))[:, None].expand_as(lost)
drawn = ax.scatter(100 * on_object, lost, c=depth, cmap="cividis", s=60, edgecolor="black", linewidth=0.5)
for where, name in (((layer, head), "looks at it most"), ((costly_layer, costly_head), "costs most")):
    ax.annotate(name, (100 * on_object[where], lost[where]), xytext=(8, 4), textcoords="offset points")
ax.set(xlabel="attention on the object (%)", ylabel="points of probability lost")
fig.colorbar(drawn, label="block")
labkit.figure(
    fig,
    alt="Each dot is a head: how much of the class token's attention lies on the object, against the "
    "probability that the right class loses without it. The two do not go together.",
)

# %%
if ours:
    assert lost.max() > 4 and lost[layer, head] < 4 and abs(relation) < 0.4
labkit.reveal("05 silenced", round(lost[layer, head].item()), within=3)

# %% [markdown]
# This is the answer to an old quarrel ("is attention an explanation?") for this model: the head that looks at the object
# like a searchlight can go, and next to nothing is lost; the head that costs most looks everywhere alike, in the first
# block, and no heat map would ever draw your eye to it. *Where a head looks does not tell what it is
# good for.* Attention shows where information may flow from; only an experiment shows what matters.
#
# Try it: silence heads and watch the classes move. (The buttons need a running kernel.)

# %%
ablation = labkit.Explorer(net, test[:12], image=min(image, 11), view="ablate", silenced=[[costly_layer, costly_head]])
ablation

# %%
ablation.silenced = [[costly_layer, h] for h in range(seen.layers[costly_layer].heads)]
print(ablation.describe())

# %% [markdown]
# ## 7. Any model
#
# `labkit.trace` works on any torch model, and says plainly when there is nothing to see. The models below have random
# weights; what counts is *what kind of map* each family has.
#
# > **Predict.** Which of these have a map over the image that you could lay over a photo as it is: a plain ViT, Swin (windows),
# > PVT (fewer keys), XCiT (channels), EfficientViT (linear attention), PoolFormer?

# %%
families = [
    *("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "xcit_tiny_12_p16_224"),
    *("efficientvit_b0", "poolformer_s12"),
]
lines = []
for name in families[:3] if fast else families:
    with torch.random.fork_rng():
        stranger = timm.create_model(name, num_classes=10)
    watched = labkit.trace(
        stranger, torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(seed)), keep="uint8"
    )
    kinds = sorted({layer.kind for layer in watched.layers})
    lines.append(
        [name, len(watched.layers), ", ".join(kinds) or "none", watched.layers[0].sentence() if kinds else watched.why]
    )
labkit.table(lines, headers=["model", "maps", "kinds", "the first, in words"])

# %% [markdown]
# ## Limits
#
# - **One small model, one synthetic task.** The masks are exact here because the images are drawn; on photographs they are
#   somebody's opinion. Which method wins may change with model and data: the point is the test, not the winner.
# - **The object is not the reason.** A model may well use the background, and a map that shows it would be punished by the mask.
#   Deletion, ROAD and the sanity check ask the model instead.
# - **Probabilities are not contributions.** A head may look somewhere and bring home a value of length zero.
# - **Silencing one head at a time** misses heads that stand in for each other.
#
# ## Exercises
#
# The stubs run as they are. The line behind each stub says whether your function is right; if it is not, `labkit.check`
# names the mistake, or shows the smallest case that fails. `labkit.check.looking_distance.hint(1)` gives the first hint.
#
# ### Exercise 1: how far does a head look?
#
# *Easy, 10 minutes.* Write `looking_distance(attn, places)`: the mean distance at which each head looks, (heads). `attn`
# is (heads, patches, patches), queries before keys, and `places` (patches, 2) has the row and column of each patch. What
# a patch gives to the class token has been cut off, so a row may sum to less than 1; only what is left counts.
#
# <details><summary>Hint 1</summary><code>torch.cdist(places, places)</code> holds all distances.</details>
# <details><summary>Hint 2</summary>Divide each row of <code>attn</code> by its sum, weigh the distances with it, sum over
# the keys, and take the mean over the queries.</details>
# <details><summary>Solution</summary>
#
# ```python
# def looking_distance(attn, places):
#     share = attn / attn.sum(dim=-1, keepdim=True)
#     return (share * torch.cdist(places, places)).sum(dim=-1).mean(dim=-1)
# ```
#
# </details>


# %% tags=["exercise"]
def looking_distance(attn, places):
    # your code here
    return torch.zeros(attn.shape[0])


# %%
labkit.check.looking_distance(looking_distance)

# %% [markdown]
# ### Exercise 2: the pointing game
#
# *Easy, 15 minutes.* Write `pointing_score(maps, inside)`: for each image, the share of object in the cell where its map
# is highest. Both are (images, rows, columns), and `inside` says how much of each cell is object. Where several cells are
# highest, their mean counts.
#
# <details><summary>Hint 1</summary><code>maps.amax(dim=(1, 2), keepdim=True)</code> is the highest value of each map;
# compare the map with it.</details>
# <details><summary>Hint 2</summary>The peak is a map of ones and zeros: multiply it with <code>inside</code>, sum, and
# divide by the number of ones.</details>
# <details><summary>Solution</summary>
#
# ```python
# def pointing_score(maps, inside):
#     peak = (maps == maps.amax(dim=(1, 2), keepdim=True)).float()
#     return (peak * inside).sum(dim=(1, 2)) / peak.sum(dim=(1, 2))
# ```
#
# </details>


# %% tags=["exercise"]
def pointing_score(maps, inside):
    # your code here
    return torch.zeros(maps.shape[0])


# %%
labkit.check.pointing_score(pointing_score)

# %% [markdown]
# ### Exercise 3: how much residual?
#
# *Medium, 15 minutes.* Rollout takes half residual and half attention, which is a guess. Write
# `mixed_rollout(attns, alpha)`: how much of each first token is in each last one, (images, n, n), when a share `alpha` of
# a token is what it attends to and the rest is itself. `attns` is a list of (images, heads, n, n), the first block first;
# the heads of a block count alike. Then look: what are the two extremes, alpha = 0 and alpha = 1?
#
# <details><summary>Hint 1</summary><code>alpha * attn.mean(dim=1) + (1 - alpha) * torch.eye(n)</code> mixes one block, and
# its rows sum to 1 again.</details>
# <details><summary>Hint 2</summary>Start with the first block; each later block multiplies from the left.</details>
# <details><summary>Solution</summary>
#
# ```python
# def mixed_rollout(attns, alpha):
#     total = torch.eye(attns[0].shape[-1])
#     for attn in attns:
#         total = (alpha * attn.mean(dim=1) + (1 - alpha) * torch.eye(attn.shape[-1])) @ total
#     return total
# ```
#
# With alpha = 0 every token stays itself; with 1, six products of averages have forgotten almost where anything was.
#
# </details>


# %% tags=["exercise"]
def mixed_rollout(attns, alpha):
    # your code here
    return torch.ones_like(attns[0][:, 0])


# %%
labkit.check.mixed_rollout(mixed_rollout)

# %% [markdown]
# ### Exercise 4: relevance
#
# *Hard, 20 minutes.* Write `relevance_flow(attns, gradients)`: the relevance R, (images, n, n), of each first token
# (columns) to each last one (rows). At the start every token is relevant to itself alone, R = I. Each block then adds to
# R what R gives when it is passed along the attention that helps: attention times gradient, where that is positive, as
# the mean over the heads. Both lists hold (images, heads, n, n), the first block first.
#
# <details><summary>Hint 1</summary><code>(attn * gradient).clamp(min=0)</code> is what helps, head by head; the mean over
# the heads comes after it.</details>
# <details><summary>Hint 2</summary>Start with the identity and add: <code>total = total + helps @ total</code>, from the
# first block to the last.</details>
# <details><summary>Solution</summary>
#
# ```python
# def relevance_flow(attns, gradients):
#     total = torch.eye(attns[0].shape[-1])
#     for attn, gradient in zip(attns, gradients):
#         total = total + (attn * gradient).clamp(min=0).mean(dim=1) @ total
#     return total
# ```
#
# </details>


# %% tags=["exercise"]
def relevance_flow(attns, gradients):
    # your code here
    return torch.ones_like(attns[0][:, 0])


# %%
labkit.check.relevance_flow(relevance_flow)

# %% [markdown]
# ### Exercise 5: beat the controls
#
# *Hard, 20 minutes.* This one is open: there is no single right answer, so it shows what your map is worth. Write your own
# explanation, `my_map(network, pictures)`, which returns (images, rows, columns). You may use everything in
# `labkit.explain`, the trace, the gradient of the images. Does it beat the controls, and does it beat relevance?
#
# <details><summary>Hint 1</summary>Relevance and class attention make different mistakes.</details>
# <details><summary>Hint 2</summary>Scale two maps to the same sum and multiply or add them.</details>
# <details><summary>Solution</summary>
#
# ```python
# def my_map(network, pictures):
#     one = explain.relevance(labkit.trace(network, pictures, grads=True))
#     two = explain.rollout(labkit.trace(network, pictures))
#     return one / one.sum(dim=(1, 2), keepdim=True) + two / two.sum(dim=(1, 2), keepdim=True)
# ```
#
# </details>


# %% tags=["exercise"]
def my_map(network, pictures):
    return torch.zeros(len(pictures), *network.grid)  # your code here


# %%
mine = my_map(net, images[:40]).cpu()
if not mine.any():
    print("Not started yet.")
else:
    verdict = explain.judge({"mine": mine}, masks[:40].cpu(), images[:40].cpu()).summary
    for metric, score in verdict["mine"].items():
        print(f"{metric}: {score.mean:.2f}" + (", beats the best control" if score.beats else ""))

# %% [markdown]
# ## Papers

# %%
print(labkit.papers.cite("S207"))
for paper in (
    '"Quantifying Attention Flow in Transformers", 2020',
    '"Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", 2021',
    '"Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2016',
    '"Axiomatic Attribution for Deep Networks", 2017 (integrated gradients)',
    '"Sanity Checks for Saliency Maps", 2018',
    '"A Consistent and Efficient Evaluation Strategy for Attribution Methods", 2022 (ROAD)',
    '"Are Sixteen Heads Really Better than One?", 2019',
    '"Vision Transformers Need Registers", 2023',
):
    print(paper)

# %% [markdown]
# ## Next
#
# You can see now what a model looks at, and you know what that is worth. Looking at every pair costs n²:
# [06 Cheaper attention](06_cheaper_attention.ipynb) asks what else would do, and [07](07_token_pruning.ipynb) and
# [08](08_token_merging.ipynb) take the tokens away that are not needed. Back to the [overview](00_start_here.ipynb).
