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
# # 00 Start here: a vision transformer with five dials
#
# **By the end you will have shown that a vision transformer can drop more than half of an image and still name what is
# in it, if it chooses well what to drop, and that choosing badly is worse than choosing blindly.**
#
# *Needs:* a little Python. You have heard that a transformer turns its input into tokens and lets them attend to each
# other; if not, stay, the pictures will do. · *Time:* 20 minutes; the cells take less than one. · *Device:* any
# computer; no GPU and no network.
#
# To run a cell, click into it and press Shift + Enter. To run them all: menu *Run → Run All Cells*.

# %% tags=["parameters"]
seed = 0  # which test images are drawn, and every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit"  # the trained model that came with the course
keep = 0.4  # the share of patches that go on
block = 2  # the block that lets the others go; counting starts at 0, so 2 is the third of six
fast = False  # True: fewer test images, wider intervals

# %%
import torch

import labkit
from labkit import cost, data, quant, tokens
from labkit.intervals import wilson
from labkit.verify import coverage, hits
from labkit.viz import dial, figures

place = labkit.setup(seed, device)
vit = labkit.load(model).to(place)
if not vit.prefix:
    raise labkit.errors.LabkitError(
        f"{model} has no class token, and this lesson asks where it looks; take shapes-vit."
    )
test = data.shapes("test", 200 if fast else 500, seed=seed).to(place)
print(f"The model has {sum(p.numel() for p in vit.parameters()):,} weights. The test set: {test}.")

# %% [markdown]
# ## 1. Five dials
#
# A vision transformer (ViT) cuts an image into square patches, turns each into a token, and lets the tokens look at
# each other in block after block. One more token, the *class token*, gathers the answer. Everything in this course
# makes that cheaper, and every method does it by turning one of five dials:
#
# | dial | the question |
# |---|---|
# | **tokens made** | into how many pieces is the image cut? |
# | **tokens talking** | which pairs of tokens may look at each other? |
# | **tokens kept** | which tokens go on to the next block? |
# | **bits** | how finely is each number written down? |
# | **weights** | how many weights are there at all? |
#
# An efficient ViT is a lossy codec for computation, as JPEG is one for pixels: you spend less, and you pay with
# mistakes. So we always ask three things. Is nothing lost at full budget? How fast does the cost fall? What is the
# price?
#
# > **Predict.** Our model has learned to name ten silhouettes, so blind guessing is right in 10% of the images. Before
# > each result you are asked for it: choose, press *Commit*, then run on. What you said will stand beside what was
# > measured, and nobody else sees it. Being wrong is how it sticks.

# %%
hurts = [
    f"keeping only {keep:.0%} of the patches from block {block} on",
    "writing each weight with 3 bits instead of 32",
    "both about the same",
]
labkit.predict("00 hurts more", "Which hurts the trained model more?", options=hurts)

# %% [markdown]
# In the table a multiply-accumulate (MAC) is one multiplication and one addition.


# %%
def correct(network):
    """True or False for each test image: does the network name it correctly?"""
    return hits(network, test, batch=100)


def share(right):
    """The share of right answers, between 0 and 1."""
    return right.double().mean().item()


def rounded(bits):
    """The network with every weight on the nearest of 2^bits evenly spaced levels: the plainest way there is."""
    return quant.quantize(vit, quant.Recipe(bits, None, ends="same", per="tensor", symmetric=False))


full, slim = cost.count(vit), tokens.attach(vit, tokens.Keep(keep), layers=[block])
coarse = labkit.ViT(image_size=64, patch_size=16, classes=10, dim=128, depth=6, heads=4)  # otherwise as ours
right = {
    "full model": correct(vit),
    "keep": correct(slim),
    "8 bits": correct(rounded(8)),
    "3 bits": correct(rounded(3)),
}
kept_macs, coarse_macs = cost.count(slim).macs / full.macs, cost.count(coarse).macs / full.macs
pair_macs, mlp_weights = full.parts["attention"]["macs"] / full.macs, full.parts["mlp"]["params"] / full.params
labkit.table(
    [
        ["full budget", f"{full.macs / 1e6:.0f} million MACs for one image", f"{share(right['full model']):.0%}"],
        ["tokens made", f"patches of 16 pixels, not 8: {coarse_macs:.0%} of the MACs", "needs training"],
        ["tokens talking", f"all pairs of tokens: {pair_macs:.0%} of the MACs", "needs training"],
        [
            "tokens kept",
            f"{keep:.0%} of them, from block {block} on: {kept_macs:.0%} of the MACs",
            f"{share(right['keep']):.0%}",
        ],
        ["bits", "8 for each weight: a quarter of the memory", f"{share(right['8 bits']):.0%}"],
        ["bits", "3 for each weight: a tenth of the memory", f"{share(right['3 bits']):.0%}"],
        ["weights", f"{full.params / 1e6:.1f} million, {mlp_weights:.0%} of them in the MLPs", "needs training"],
    ],
    headers=["dial", "what it does to the budget", "right answers"],
)

# %%
less = [share(right["full model"]) - share(right[name]) for name in ("keep", "3 bits")]  # what each of the two costs
labkit.reveal("00 hurts more", hurts[2 if abs(less[0] - less[1]) < 0.02 else less.index(max(less))])

# %% [markdown]
# Two dials can be turned on a model that is already trained: tokens kept, and bits. Dropping most of the tokens costs
# almost nothing here, and so do eight bits. Three bits, used this naively, cost a lot. The others need a model trained for it; the lessons to come do that.
#
# And is nothing lost at full budget? A method that fails this is broken, so we test it each time:

# %%
with torch.inference_mode():
    whole = tokens.attach(vit, tokens.Keep(1.0), layers=[block])
    difference = (whole(test.images[:100]) - vit(test.images[:100])).abs().max().item()
assert difference < 1e-4
assert max(abs(share(right[name]) - share(right["full model"])) for name in ("keep", "8 bits")) < 0.04
assert share(right["3 bits"]) < share(right["full model"]) - 0.05
print("Keeping every patch changes no answer: the logits agree to four decimals.")

# %% [markdown]
# ## 2. What the model sees
#
# These are ten test images, one of each class. The computer painted them, so it knows which pixels are the object: the
# *mask*. The other things you see are clutter and pieces of other silhouettes, put there to mislead.
#
# In the third block, the class token has decided how much to look at each patch: its *attention*, 64 numbers
# whose sum, with the class token's share for itself, is 1.
#
# > **Predict.** The object touches fewer than one patch in five. A fifth of the attention on those would be what chance
# > gives.

# %%
labkit.predict(
    "00 on the object",
    "How much of its attention to patches does the class token spend on those that the object touches?",
    number=20,
    unit="%",
)

# %%
chosen = [int((test.labels == c).nonzero()[0]) for c in range(len(test.names))]  # the first image of each class
ten = test[chosen]
with torch.inference_mode():
    seen = vit.observe(ten.images)
maps = tokens.class_attention(seen.steps[block].evidence, vit.prefix).unflatten(1, seen.grid)
sure, guess = seen.logits.softmax(dim=1).max(dim=1)
titles = [
    f"{ten.names[label]}\n{'✓' if label == said else '✗ ' + ten.names[said]} {p:.0%}"
    for label, said, p in zip(ten.labels.tolist(), guess.tolist(), sure.tolist(), strict=True)
]
labkit.figure(
    dial.seen(ten, maps, titles),
    alt=f"Ten test images, and below each the class token's attention with the outline of the true object; the model "
    f"names {int((guess == ten.labels).sum())} of the ten correctly, and the bright patches lie on the object or on clutter near it.",
)

# %% [markdown]
# Ten pictures can mislead. Here is the same on all test images, beside what chance would give.

# %%
with torch.inference_mode():
    batches = [vit.observe(test.images[i : i + 50]).steps[block].evidence for i in range(0, len(test), 50)]
attention = torch.cat([tokens.class_attention(evidence, vit.prefix) for evidence in batches])
inside = coverage(test.masks, vit.grid) > 0  # (images, patches): does this patch hold a piece of the object?
attention = attention / attention.sum(dim=1, keepdim=True)
on_object = (attention * inside).sum(dim=1).mean().item()
by_chance = inside.float().mean().item()
assert on_object > 1.3 * by_chance
print(f"The object touches {by_chance:.0%} of the patches; they get {on_object:.0%} of the attention.")
labkit.reveal("00 on the object", round(100 * on_object))

# %% [markdown]
# ## 3. One slider
#
# If the class token knows where the object is, the model could let go of the patches that it does not look at. This is
# the whole idea, and this is the whole code:

# %%
labkit.show(tokens.Keep)

# %% [markdown]
# The slider below sets the share of patches that go on from the third block. What is dropped is dimmed. The picture
# on the right shows how many of 200 test images the model still names correctly, with a 95% interval: so far can
# 200 images be trusted.
#
# > **Predict.** Where does accuracy begin to fall: at 80%, 50%, 20%? Where would *you* stop recognising this object?
# > Now drag the slider, or click on it and use the arrow keys. Every place you visit leaves a grey dot.

# %%
example = int(right["full model"].nonzero()[0])  # the first image that the full model gets right
ui = dial.KeepDial(vit, test[: 100 if fast else 200], example=example, block=block)
ui

# %% [markdown]
# Code can turn the dial too, so that a lesson can be checked:

# %%
for k in (0.8, 0.6, 0.4, 0.2, 0.1):
    ui.keep = k
    print(ui.state())

# %%
few = [dial.look(vit, test[:100], k, example, block) for k in (1.0, 0.6, 0.4, 0.1)]
labkit.figure(
    figures.image_strip(
        [torch.from_numpy(dial.dimmed(test.images[example], v.kept)).permute(2, 0, 1) for v in few],
        [f"keep {v.keep:.0%}\n{v.prediction} {v.confidence:.0%}" for v in few],
    ),
    alt=f"One image of a {few[0].label} with 100, 60, 40 and 10% of its patches kept and the others dimmed; the model "
    f"says {', '.join(v.prediction for v in few)}.",
)
assert few[0].kept.all() and int(few[-1].kept.sum()) == round(0.1 * few[-1].kept.numel())

# %% [markdown]
# ## 4. The result: choosing well, blindly, and badly
#
# Is it the class token's choice that saves the answer, or would any choice do? A number alone cannot say. So we
# keep the same share of patches and change only who chooses:
#
# - **full model**: nobody chooses, every patch stays. The baseline.
# - **oracle**: patches that hold the object, from the true mask. No real method knows this.
# - **class attention**: patches that the class token looks at.
# - **middle**: patches near the centre of the image, whatever is in it. A control that never looks.
# - **random**: dice, three times with other seeds. The other control.
# - **least attended**: patches that the class token looks at *least*. If attention meant nothing, this would be
#   as good as the others.
#
# > **Predict.** Put the six in order, best first.

# %%
labkit.predict(
    "00 points over dice",
    "How many points lie between class attention and dice, in right answers per hundred?",
    number=10,
    unit="points",
)


# %%
def kept_by(score, block=block):
    """Right or wrong for each test image, when `score(evidence, batch)` ranks the patches in `block`."""
    right = []
    for i in range(0, len(test), 100):
        batch = test[i : i + 100]
        chooser = tokens.Keep(keep, lambda evidence, prefix, batch=batch: score(evidence, batch))
        right.append(hits(tokens.attach(vit, chooser, layers=[block]), batch))
    return torch.cat(right)


def by_mask(evidence, batch):
    return coverage(batch.masks, vit.grid)


def by_attention(evidence, batch):
    return tokens.class_attention(evidence, vit.prefix)


def by_middle(evidence, batch):
    y, x = (torch.arange(side, device=place) - (side - 1) / 2 for side in vit.grid)
    return -(y[:, None] ** 2 + x[None, :] ** 2).flatten().expand(len(batch), -1)


def by_dice(number):
    generator = torch.Generator().manual_seed(number)
    return lambda evidence, batch: torch.rand(len(batch), *vit.grid, generator=generator).flatten(1).to(place)


outcome = {
    "full model": right["full model"],
    "oracle": kept_by(by_mask),
    "class attention": kept_by(by_attention),
    "middle": kept_by(by_middle),
    "random": kept_by(by_dice(seed)),
    "least attended": kept_by(lambda evidence, batch: -by_attention(evidence, batch)),
}
shares = {name: share(r) for name, r in outcome.items()}
intervals = [wilson(int(r.sum()), len(r)) for r in outcome.values()]
labkit.figure(
    figures.bars(list(shares), list(shares.values()), intervals, label=f"right answers at keep {keep:.0%}"),
    alt=f"Bars of right answers at keep {keep:.0%}, with 95% intervals: "
    + ", ".join(
        f"{name} {s:.0%} [{low:.0%}, {high:.0%}]"
        for (name, s), (low, high) in zip(shares.items(), intervals, strict=True)
    ),
)

# %%
throws = [shares["random"], *(share(kept_by(by_dice(seed + more))) for more in (1, 2))]
print("Random with three seeds:", ", ".join(f"{s:.0%}" for s in throws))
assert abs(shares["oracle"] - shares["full model"]) < 0.05
assert abs(shares["oracle"] - shares["class attention"]) < 0.05
assert shares["class attention"] > shares["middle"] > max(throws) and min(throws) > shares["least attended"]
print("class attention > middle > random > least attended")
labkit.reveal("00 points over dice", round(100 * (shares["class attention"] - sum(throws) / len(throws))))

# %% [markdown]
# Look at it twice. The distance from the full model to class attention is the *price* of this method at this budget. The
# distance from a control to class attention is what the *idea* is worth: and see how much of it a rule that never looks
# at the image already has. Objects here fit into the frame, so they touch the middle more often than the corners. Had
# we compared with dice alone, we would have praised attention for the photographer's work.
#
# ### When does the class token know?
#
# Letting go of the patches one block earlier would save more, if the class token knew by then what to keep.
#
# > **Predict.** Commit before you run on.

# %%
earlier = ["yes, by about as much", "yes, by less", "no"]
labkit.predict(
    "00 one block earlier", "Dropped one block earlier, does class attention still beat the middle?", options=earlier
)

# %%
gaps = {}
for where in (block - 1, block):
    gaps[where] = share(kept_by(by_attention, where)) - share(kept_by(by_middle, where))
print("Class attention minus middle:", ", ".join(f"{100 * gap:+.0f} points in block {b}" for b, gap in gaps.items()))
before, now = gaps.values()
labkit.reveal("00 one block earlier", earlier[2 if before < 0.02 else 1 if before < now - 0.02 else 0])

# %% [markdown]
# What a method is worth depends on where it is put.

# %% [markdown]
# ## 5. Is this machine ready?
#
# The doctor looks at everything the course needs, and says what to do where something is missing. In a terminal
# the same is `labkit doctor`.

# %% tags=["nbval-ignore-output"]
from pathlib import Path

from labkit import doctor, paths

verdict = doctor.table(doctor.examine())
print(verdict.replace(str(paths.ROOT), "labkit").replace(str(Path.home()), "~"))

# %% [markdown]
# ## 6. How to work through the course
#
# Every lesson is made of the same four steps, in rounds of a few minutes:
#
# 1. **Predict.** Commit to an answer before you run the cell.
# 2. **Move.** Turn the dial, change a parameter in the second cell, run again.
# 3. **See.** Compare with the baseline and the control, not with your hopes.
# 4. **Write.** Each lesson ends with short functions of your own, and names the mistake where one is not right yet.
#
# Nothing you do here can break anything: `git checkout -- notebooks` brings the lessons back.
#
# | lesson | about | |
# |---|---|---|
# | **00 Start here** | the five dials, one slider | you are here |
# | [01 Attention](01_attention.ipynb) | from a weighted average to many heads | ready |
# | [02 Images to tokens](02_images_to_tokens.ipynb) | tokens made: how an image is cut | ready |
# | [03 Where am I?](03_where_am_i.ipynb) | how a token knows its place | ready |
# | [04 Build a ViT](04_build_a_vit.ipynb) | from pixels to logits in our own blocks, equal to timm | ready |
# | [05 Seeing attention](05_seeing_attention.ipynb) | what attention maps show, and what they do not | ready |
# | [06 Cheaper attention](06_cheaper_attention.ipynb) | tokens talking: what to put in attention's place | ready |
# | [07 Token pruning](07_token_pruning.ipynb) | tokens kept: dropping | ready |
# | [08 Token merging](08_token_merging.ipynb) | tokens kept: merging | ready |
# | [09 Quantization](09_quantization.ipynb) | bits: one rounding after the other | ready |
# | [10 Quantizing a ViT](10_quantizing_a_vit.ipynb) | bits: a whole model, what it costs and what it saves | ready |
# | [11 One budget](11_one_budget.ipynb) | several dials at once: a limit of time, a floor of accuracy | ready |
# | [12 Gallery](12_gallery.ipynb) | every paper of the course, its check, and whether that check can fail | ready |
# | weights | sharing, folding, distilling | to come |

# %% [markdown]
# ## Limits
#
# - **Ten silhouettes are not the world.** A program paints these images, 64 pixels wide, one object each. The model has
#   never seen a photograph, and what it says about one means nothing. Do not carry the size of these gaps over to
#   large models and real pictures; measure there.
# - **The model is small and was trained once.** The intervals say what other *images* would do, not what another
#   *training* would do. Only the dice were thrown three times.
# - **Nothing here was retrained.** Methods that drop tokens are usually fine-tuned afterwards, and then lose less.
# - **MACs are not milliseconds.** Fewer operations need not be faster; later lessons hold a clock beside the count.

# %% [markdown]
# ## Exercises
#
# Each exercise is a function with one line to replace. The cell below it hands the function to `labkit.check`, which
# tries it on small cases and says *right*, or names the mistake and shows the smallest case where it fails. Stuck?
# Hints and solution unfold, and `labkit.check.attention_on_object.hint(1)` prints the first hint. There is no way to
# fail: change the function and run both cells again.
#
# ### Exercise 1: how much attention is on the object?
#
# *Easy, 5 minutes.* Write `attention_on_object(attention, inside)`: for each image, the share of its attention that
# lies on patches of the object. Both inputs have shape (images, patches), `inside` is True or False; the result has
# shape (images,).
#
# <details><summary>Hint 1</summary>A True counts as 1 in a product, a False as 0.</details>
# <details><summary>Hint 2</summary>Multiply, then sum over the patches: <code>dim=1</code>. A share is a part divided
# by the whole, so do not trust the rows to sum to 1.</details>
# <details><summary>Solution</summary>
#
# ```python
# def attention_on_object(attention, inside):
#     return (attention * inside).sum(dim=1) / attention.sum(dim=1)
# ```
#
# </details>


# %% tags=["exercise"]
def attention_on_object(attention, inside):
    return torch.zeros(len(attention))  # your code here


# %%
labkit.check.attention_on_object(attention_on_object)

# %% [markdown]
# ### Exercise 2: which patches does the object touch?
#
# *Medium, 10 minutes.* Write `touches_object(masks, p)`: masks (images, h, w) say for each pixel whether it is the
# object. Return, as True or False of shape (images, patches), whether a patch of p × p pixels holds at least one such
# pixel. Patches are counted row by row.
#
# <details><summary>Hint 1</summary>Give the rows and the columns of pixels two axes each:
# <code>masks.reshape(len(masks), h // p, p, w // p, p)</code>.</details>
# <details><summary>Hint 2</summary>Axes 2 and 4 are now the pixels of one patch: <code>any</code> over both, then
# <code>flatten(1)</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def touches_object(masks, p):
#     b, h, w = masks.shape
#     pixels = masks.reshape(b, h // p, p, w // p, p)
#     return pixels.any(dim=4).any(dim=2).flatten(1)
# ```
#
# </details>


# %% tags=["exercise"]
def touches_object(masks, p):
    return torch.zeros(len(masks), masks[0].numel() // p**2, dtype=torch.bool)  # your code here


# %%
labkit.check.touches_object(touches_object)

# %% [markdown]
# ### What you have done
#
# Exercises that you tried and predictions that you committed are noted in one file on this machine, and sent nowhere.
# `labkit.progress().to_csv("me.csv")` writes them out, to hand in; `labkit.progress().delete()` forgets them.

# %% tags=["nbval-ignore-output"]
labkit.progress()

# %% [markdown]
# ## Papers

# %%
for paper in ("S207", "S029"):
    print(labkit.papers.cite(paper))

# %% [markdown]
# ## Next
#
# The class token *looked* at patches. What is a look, and what does it cost? [01 Attention](01_attention.ipynb)
