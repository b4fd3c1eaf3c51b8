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
# # 11 One budget
#
# **By the end you will have fitted one model to a limit of time and a floor of accuracy with four dials at once, found the dial
# that the clock does not pay, and measured when the losses of dials add up and when they do not.**
#
# *Needs:* [07 Token pruning](07_token_pruning.ipynb), [08 Token merging](08_token_merging.ipynb) and
# [10 Quantizing a ViT](10_quantizing_a_vit.ipynb). · *Time:* 60 minutes; the cells take less than one. · *Device:* any computer; no
# GPU and no network.

# %% tags=["parameters"]
seed = 0  # which images are drawn, and every random choice below
device = "auto"  # "cpu", "cuda" or "auto"
model = "shapes-vit-flexi"  # the trained model on which all dials are turned
fast = False  # True: fewer images, fewer draws
budget = 0.5  # your limit: time, the plain model is 1
floor = 0.93  # your floor: share of right answers
schema = 1  # what follows is your recipe, in the form that the last section exports
patch = 8  # side of a patch in pixels
mixer = "dense"  # "dense", "window", "dilated" or "pooled"
mixed = ""  # the blocks that mix so, as "0, 1"
reducer = "merge"  # "none", "keep", "fuse", "merge" or "random"
keep = 0.5  # share of the patches that is left
where = "1, 2"  # the blocks that reduce
weights = 8  # bits; 32 is float
activations = 8
attention = 32
per = "channel"  # one weight grid for each "channel", or for the whole "tensor"
clip = "min_max"  # where activation grids end
fold = "none"  # "channels" evens out what the layers read
softmax = "uniform"
backend = "int8"  # "int8" computes with integers, "simulate" with floats that carry them
calibrate = "stack"  # are the grids read from the reduced model, or from the "whole" one?

# %%
import io
import tempfile
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

import labkit
from labkit import clock, cost, data
from labkit.errors import LabkitError
from labkit.intervals import bootstrap, paired_difference, wilson
from labkit.stack import Stack
from labkit.stack.build import build
from labkit.verify import hits
from labkit.viz import charts, figures
from labkit.viz.budget_dial import BudgetDial
from labkit.viz.paint import LINES

place = labkit.setup(seed, device)
torch.set_grad_enabled(False)  # nothing is trained here
if "patches" not in labkit.zoo.card(model):
    raise LabkitError(f"This lesson changes the patch size, for which {model} was not trained; take shapes-vit-flexi.")
net = labkit.load(model).to(place)
test = data.shapes("test", 120 if fast else 300, seed=seed).to(place)
probe = test[:100]  # where fewer images are enough
draws = 2 if fast else 3  # of calibration images and of dice
clocks = ("cpu",) if place.type == "cpu" else ("wall",)


def drawn(number):
    """Calibration images: no labels, no test images, 16 of them."""
    return data.shapes("train", 16, seed=1000 * seed + number).images.to(place)


calib = drawn(0)
mine = Stack(
    patch, mixer, mixed, reducer, keep, where, weights, activations, attention, per, clip, fold, softmax, backend,
    calibrate, seed,
)  # fmt: skip


def right(stack, images=test, calibration=calib):
    """Which of the images the stacked model names correctly."""
    return hits(stack.build(net, calibration), images, 100).cpu()


def share(answers):
    """The share of right answers, between 0 and 1."""
    return answers.double().mean().item()


def small(fig):
    """The figure in few colours, so that the saved lesson stays light."""
    return Image.open(io.BytesIO(figures.png(fig))).quantize(128, dither=0)


plain = right(Stack())
low, high = wilson(int(plain.sum()), len(plain))
whole = cost.count(net)
print(
    f"{net.grid[0] * net.grid[1]} patches, {len(net.blocks)} blocks: {whole.macs / 1e6:.0f} million MACs for an image."
)
print(f"{share(plain):.1%} of {len(test)} images right ({low:.0%} to {high:.0%}).")

# %% [markdown]
# ## 1. Four dials, one model
#
# Each lesson so far turned one dial: how large a patch is, who talks to whom, which tokens stay, how many bits. Here they all meet. A
# `Stack` says what each is turned to, and this is all that puts them together:

# %%
labkit.show(build)

# %% [markdown]
# The order is not a matter of taste. Patches decide how many tokens there are; windows need the tokens in their places; so tokens are
# reduced after that; and the grids of the bits are read from what will really flow, the reduced model.
#
# At full budget nothing may change:

# %%
some = test.images[:20]
logits = net(some)
for stack in (
    Stack(),
    Stack(patch=8),
    Stack(reducer="merge", keep=1.0, where="1, 2"),
    Stack(reducer="fuse", keep=1.0, where="2"),
):
    assert (stack.build(net)(some) - logits).abs().max() < 1e-4
    print(f"{stack.describe()}: no logit has moved.")

# %% [markdown]
# Our model is `shapes-vit`, trained on for a few minutes with patches of 8 *and* of 16 pixels ("FlexiViT: One Model for All Patch
# Sizes", 2022): the same weights, only those of the patches are resized.
#
# > **Predict.** Patches of 16 pixels leave 16 tokens of 64. Commit two numbers before you run on. And `shapes-vit`, which never met
# > patches of 16: how often is it right with them?

# %%
labkit.predict("11 large patches", "How often is the model right with patches of 16 pixels?", number=50, unit="% right")

# %%
labkit.predict(
    "11 windows save",
    "Windows in the first two of six blocks: what share of all multiply-accumulates (MACs) do they save?",
    number=20,
    unit="% of the MACs",
)

# %%
alone = {
    "patches of 16 pixels": Stack(patch=16),
    "windows in blocks 0, 1": Stack(mixer="window", mixed="0, 1"),
    "half of the patches kept": Stack(reducer="keep", keep=0.5, where="1"),
    "half of the patches merged": Stack(reducer="merge", keep=0.5, where="1"),
    "8 bits": Stack(weights=8, activations=8, backend="int8"),
    "4 bits, min-max": Stack(weights=4, activations=4, per="tensor", backend="int8"),
    "4 bits, careful": Stack(weights=4, activations=4, clip="percentile", fold="channels", backend="int8"),
}
built = {"plain": net} | {name: stack.build(net, calib) for name, stack in alone.items()}
answers = {name: hits(slim, test, 100).cpu() for name, slim in built.items()}


def paper(slim):
    """MACs and bytes of the weights, as shares of the plain model's."""
    counted = cost.count(slim)
    return [f"{counted.total(column) / whole.total(column):.0%}" for column in ("macs", "weight_bytes")]


labkit.table(
    [[name, f"{share(answers[name]):.0%}", *paper(slim)] for name, slim in built.items()],
    headers=["one dial turned", "right", "MACs", "bytes of weights"],
)

# %%
never = labkit.load("shapes-vit").to(place)
strange = share(hits(Stack(patch=16).build(never), test, 100))
assert share(answers["patches of 16 pixels"]) > strange + 0.3
assert share(answers["half of the patches merged"]) > share(answers["half of the patches kept"]) + 0.05
pairs = whole.parts["attention"]["macs"] / whole.macs
met = share(answers["patches of 16 pixels"])
print(f"16-pixel patches: {met:.0%} right; shapes-vit, which never met them: {strange:.0%}.")
print(f"All products of queries, keys and values together are {pairs:.0%} of the MACs.")

# %%
labkit.reveal("11 large patches", round(100 * met))

# %%
saved = 1 - cost.count(built["windows in blocks 0, 1"]).macs / whole.macs
labkit.reveal("11 windows save", round(100 * saved))

# %% [markdown]
# So a patch size must be *trained for*; then it is the strongest dial of all. Windows are the weakest: they can only save on
# the products of queries, keys and values, which are a few per cent of the work at 64 tokens, and they do it in two blocks of six.
# That is *Amdahl's law*: nobody gets faster than the rest allows.
#
# ## 2. What does the clock pay?
#
# MACs are paper. Every model is now timed in turns with the plain one, on one thread, with 32 images at once and with one.
#
# > **Predict.** Which of the seven is *slower* than the plain model at 32 images? And with one image at a time: which of them
# > still saves time?

# %% tags=["nbval-ignore-output"]
took = {
    count: clock.compare(built, test.images[:count], rounds=7, warmup=1, seconds=2, clocks=clocks) for count in (32, 1)
}
labkit.table(
    [
        [name, *("{:.2f} [{:.2f}, {:.2f}]".format(*timing.ratio(name)) for timing in took.values()), paper(slim)[0]]
        for name, slim in built.items()
    ],
    headers=["time, the plain model is 1 [95 %]", "32 images at once", "one image", "MACs"],
)

# %% [markdown]
# On the machine of the saved run, windows saved 2% of the MACs and no time that could be measured: cutting into windows is work
# too. Larger patches and fewer tokens took about the share of the time that their MACs promise, *at 32 images*; few bits, which
# leave the MACs as they are, took about half. One image is another world: there much of the time goes into calling many small
# kernels, not into multiplying, and whoever calls more of them pays. Windows and integers made one image slower, fewer tokens won
# little or nothing, and only larger patches clearly won.
#
# A budget is a budget *for a machine and a batch*. Measure yours.
#
# ## 3. Do losses add up?
#
# Here is a thought that sounds right: windows cost so many points, keeping half of the patches so many, four bits so many (the table
# is above), so all three together cost the sum. The stack below is what one gets who reads three papers and turns each dial to its
# favourite, one on top of the other:

# %%
naive = Stack(
    mixer="window", mixed="0, 1", reducer="keep", keep=0.5, where="1", weights=4, activations=4, per="tensor", backend="int8"
)  # fmt: skip
print(naive.describe())

# %% [markdown]
# > **Predict.** Add up what its three dials lose in the table above, and commit a number and a word before you run on.

# %%
labkit.predict("11 three at once", "How often is this stack right?", number=70, unit="% right")

# %%
words = ["as much", "less", "more"]
labkit.predict(
    "11 beyond the sum", "What does it lose, beside what its three dials lose alone, added up?", options=words
)

# %% [markdown]
# A sum gathers the luck of everything that is added. So this section asks more images, and first what each dial loses on them alone:

# %%
many = data.shapes("test", 120 if fast else 600, seed=seed).to(place)
turned = {
    "patches of 16 pixels": {"patch": 16},
    "windows in blocks 0, 1": {"mixer": "window", "mixed": "0, 1"},
    "half of the patches kept": {"reducer": "keep", "keep": 0.5, "where": "1"},
    "half of the patches merged": {"reducer": "merge", "keep": 0.5, "where": "1"},
    "4 bits, min-max": {"weights": 4, "activations": 4, "per": "tensor", "backend": "int8"},
}
assert all(Stack(**dial) == alone[name] for name, dial in turned.items())
unturned = right(Stack(), many).double()
lost = {name: 100 * (unturned - hits(built[name], many, 100).cpu().double()) for name in turned}
print(f"Points lost, of {len(many)} images: " + "; ".join(f"{name} {lost[name].mean():.0f}" for name in turned) + ".")


def beyond(names):
    """Points that a stack of these dials loses beyond what they lose alone: (value, low, high), 95 % over the images."""
    together = right(Stack(**{key: value for name in names for key, value in turned[name].items()}), many)
    points = 100 * (unturned - together.double()) - sum(lost[name] for name in names)
    return points.mean().item(), *bootstrap(points)


def signed(value, low, high):
    """Whole points with their sign; nothing is +0."""
    return f"{round(value):+d} ({round(low):+d} to {round(high):+d})"


# %%
same_dial = {"half of the patches kept", "half of the patches merged"}
extra = {pair: beyond(pair) for pair in combinations(turned, 2) if set(pair) != same_dial}
fig = Figure(figsize=(7.2, 3.4), layout="constrained")
ax = fig.subplots()
ordered = sorted(extra, key=lambda pair: extra[pair][0])
for row, pair in enumerate(ordered):
    value, low, high = extra[pair]
    color = LINES[4] if low > 0 else "#777777"
    ax.plot([low, high], [row, row], color=color)
    ax.plot(value, row, "o" if low > 0 else "x", color=color)
short = {name: name.replace(" in blocks 0, 1", "").replace("of the patches ", "") for name in turned}
ax.set_yticks(range(len(ordered)), [" + ".join(short[name] for name in pair) for pair in ordered], fontsize=9)
ax.axvline(0, color="black", linewidth=0.8)
ax.set(xlabel="points lost beyond the sum of both dials alone")
labkit.figure(
    small(fig),
    alt="Points that two dials together lose beyond their sum, with 95 % intervals: "
    + "; ".join(f"{' + '.join(short[name] for name in pair)} {signed(*extra[pair])}" for pair in ordered[::-1])
    + ".",
)

# %%
three = ("windows in blocks 0, 1", "half of the patches kept", "4 bits, min-max")
together, alone_sum = right(naive, many), sum(lost[name].mean().item() for name in three)
value, low, high = beyond(three)
truth = "more" if low > 0 else "less" if high < 0 else "as much"
coarse = extra["patches of 16 pixels", "4 bits, min-max"]
assert coarse[0] > 3 and abs(extra["half of the patches merged", "4 bits, min-max"][0]) < 6
whole_loss = 100 * (share(unturned) - share(together))
print(f"The naive stack: {share(together):.0%} right, {whole_loss:.0f} points lost; its dials alone: {alone_sum:.0f}.")
beyond_sum = sum(interval[1] > 0 for interval in extra.values())
print(f"The naive stack, beyond that sum: {signed(value, low, high)} points.")
print(f"Of {len(extra)} pairs, {beyond_sum} clearly lose more than their sum.")

# %%
labkit.reveal("11 three at once", round(100 * share(together)), within=3)

# %%
labkit.reveal("11 beyond the sum", truth)

# %% [markdown]
# Adding up is a good *first* guess, and it errs mostly on one side: where a pair clearly misses its sum, it loses more. Two such
# pairs have four bits in them: alone they cost four points, and in windows or with patches of 16 about eight points more. One pair
# lies on the edge of losing *less*, large patches of which half are kept. (Of plots with nine such intervals about every third shows
# a false alarm: believe those that stay well away from zero.)
#
# A guess that fits the picture: rounding errors *average out* over the tokens that attention takes the mean of. With 16 large patches,
# or in a window of 16, there are fewer to take it of. Merged tokens are means already, and four bits cost them nothing extra that we
# could measure.
#
# ## 4. The naive stack and the careful one
#
# Now the same dials with care: no windows, since the clock does not pay for them; merging in place of keeping, both ways, as in lesson 08;
# one grid for each channel, a clip at a percentile, and the norms folded, as in lesson 10. The bits are as many, the tokens
# as few. We go there in steps, and each step changes one thing.
#
# Two controls: *dice* keep as many of the patches; a *smaller image*, of 48 pixels, has 36 patches from the start and is a little cheaper.
#
# > **Predict.** Commit before you run on. And the two controls: will the careful stack beat the smaller image, and the dice?

# %%
labkit.predict(
    "11 least of three",
    "Three steps: no windows, merging in place of keeping, careful grids. Which of them wins fewest points?",
    options=["no windows", "merged, not kept", "careful grids"],
)

# %%
steps = {"naive: windows, keep, min-max": naive}
steps["no windows"] = replace(naive, mixer="dense", mixed="")
steps["merged, not kept"] = replace(steps["no windows"], reducer="merge")
steps["careful grids"] = replace(steps["merged, not kept"], per="channel", clip="percentile", fold="channels")
steps["grids of the whole model"] = replace(steps["careful grids"], calibrate="whole")
steps["control: dice"] = replace(steps["careful grids"], reducer="random")
careful = steps["careful grids"]
shrunk = replace(careful, reducer="none", keep=1.0, where="")


def smaller(images):
    """The same images with 48 x 48 pixels."""
    return F.interpolate(images, size=(48, 48), mode="bicubic", antialias=True).clamp(0, 1)


found = {name: [] for name in steps} | {"control: a smaller image": []}
for number in range(draws):
    calibration = drawn(number)
    for name, stack in steps.items():
        found[name].append(right(replace(stack, seed=seed + number), calibration=calibration))
    on_small = shrunk.build(net, smaller(calibration))
    found["control: a smaller image"].append(
        hits(on_small, replace(test, images=smaller(test.images), masks=None), 100).cpu()
    )

# %%
shares = {name: [share(each) for each in several] for name, several in found.items()}
fig = Figure(figsize=(7.6, 2.9), layout="constrained")
ax = fig.subplots()
for row, (name, values) in enumerate(shares.items()):
    control = "control" in name
    ax.barh(row, 100 * sum(values) / draws, height=0.6, color="#777777" if control else LINES[0], alpha=0.45)
    ax.plot([100 * value for value in values], [row] * draws, "|", color="black", markersize=11)
    ax.annotate(f"{sum(values) / draws:.0%}", (101, row), va="center")
ax.axvline(100 * share(plain), color="black", linewidth=0.8, linestyle=":")
ax.set_yticks(range(len(shares)), list(shares))
ax.invert_yaxis()
ax.set(xlabel="right (%); dotted: the plain model", xlim=(0, 112))
labkit.figure(
    small(fig),
    alt=f"Right answers of stacks with four bits, a line for each of {draws} draws of calibration images and dice: "
    + "; ".join(f"{name} {', '.join(f'{value:.0%}' for value in values)}" for name, values in shares.items())
    + f". The plain model: {share(plain):.0%}.",
)

# %%
middle = {name: sum(values) / draws for name, values in shares.items()}
assert min(shares["careful grids"]) > max(shares["naive: windows, keep, min-max"]) + 0.15
assert min(shares["careful grids"]) > max(shares["control: dice"]) + 0.15
assert min(shares["merged, not kept"]) > max(shares["no windows"]) + 0.05
order = list(steps)[:4]
for before, after in pairwise(order):
    print(f"{after}: {100 * (middle[after] - middle[before]):+.0f} points.")
tiny, trim = cost.count(on_small, 48).macs / whole.macs, careful.cost(net, calib).macs / whole.macs
print(f"The smaller image takes {tiny:.0%} of the MACs, the careful stack {trim:.0%}.")
gain, low, high = (100 * v for v in paired_difference(found["careful grids"][0], found["grids of the whole model"][0]))
print(f"Grids from the reduced model in place of the whole: {gain:+.1f} points ({low:+.1f} to {high:+.1f}).")
below = {name: 100 * (share(plain) - middle[name]) for name in (order[0], "careful grids")}
print(f"Below the plain model: naive {below[order[0]]:.0f} points, careful {below['careful grids']:.0f}.")

# %%
won = {after: middle[after] - middle[before] for before, after in pairwise(order)}
labkit.reveal("11 least of three", min(won, key=won.get))

# %% [markdown]
# Two steps win most, and nearly alike: leaving out the dial that saves nothing, and merging tokens in place of dropping them. The
# care for the grids, the star of lesson 10, is worth less here, where the products of attention stay in float. And one rule that
# everybody repeats, to read the grids from the reduced model, made no difference that we could measure: merged tokens are means of
# those that there were, so they lie within the same range. Both controls stay behind, dice by some thirty points and the smaller
# image, which costs a little less, by six.
#
# Do the two stacks cost the same? On paper and on the clock:

# %% tags=["nbval-ignore-output"]
rivals = {
    "plain": (Stack(), share(plain)),
    "naive": (naive, middle[order[0]]),
    "careful": (careful, middle["careful grids"]),
    "dice": (steps["control: dice"], middle["control: dice"]),
    "16 pixels, 8 bits": (Stack(patch=16, weights=8, activations=8, backend="int8"), None),
    "8 bits": (alone["8 bits"], share(answers["8 bits"])),
}
models = {name: stack.build(net, calib) for name, (stack, _) in rivals.items()}
timing = clock.compare(models, test.images[:32], rounds=7, warmup=1, seconds=2, clocks=clocks)
reach = {name: share(right(stack)) if known is None else known for name, (stack, known) in rivals.items()}
points = {
    name: charts.Point(
        1000 * timing.median(name) / 32,
        100 * reach[name],
        *(100 * end for end in wilson(round(reach[name] * len(test)), len(test))),
    )
    for name in rivals
}
charts.chart(
    charts.pareto(points, "measured milliseconds for an image, 32 at once", "right answers (%)"),
    alt="Right answers over measured milliseconds for an image: "
    + ", ".join(f"{name} {point.value:.0f}% at {point.cost:.2f}" for name, point in points.items())
    + ".",
)

# %% tags=["nbval-ignore-output"]
labkit.table(
    [
        [name, f"{reach[name]:.0%}", "{:.2f} [{:.2f}, {:.2f}]".format(*timing.ratio(name)), *paper(slim)]
        for name, slim in models.items()
    ],
    headers=["", "right", "time, plain is 1 [95 %]", "MACs", "bytes of weights"],
)

# %% [markdown]
# About the same time and bytes, and some thirty points between the naive stack and the careful one. That is the whole course in one
# picture: *how much* is saved is set by the budget, *what is lost* by the care.
#
# On the front stand several, and none is best: with patches of 16 pixels and eight bits a fifth of the time buys nearly nine right answers in ten. And four
# bits, as section 2 has shown, are not clearly faster than eight, because this processor multiplies bytes; they only take half of the memory.
#
# ## 5. Your budget
#
# Now you. Five menus, one model; each choice is built, asked and timed, and stays in the picture. The shaded corner is inside your budget and
# above your floor (both are parameters of this lesson). With a running kernel, go on where the code below stops.
#
# > **Predict.** Which is the fastest choice that stays in the corner?

# %% tags=["nbval-ignore-output"]
dial = BudgetDial(net, probe, calib, patches=(16,), budget=budget, floor=floor, seconds=0.3)
dial.set(bits=8)
dial.set(patch=16)
dial.set(patch=8, mixer="window", keep=0.5)
dial.set(mixer="dense")
dial.set(keep=0.35)
dial

# %% tags=["nbval-ignore-output"]
print(dial.state())
best = dial.best()
print("The best so far:", best.sentence())

# %% [markdown]
# ### Your recipe
#
# The recipe in the parameters of this lesson is measured like all others, on all test images:

# %%
answer = right(mine)
low, high = wilson(int(answer.sum()), len(answer))
verdict = "above" if share(answer) >= floor else "below"
print(f"{mine.describe()}: {share(answer):.1%} right ({low:.0%} to {high:.0%}), {verdict} the floor of {floor:.0%}.")
print("MACs and bytes of weights:", " and ".join(paper(mine.build(net, calib))), "of the plain model's.")

# %% [markdown]
# A recipe is a small file. Whoever has it can run this very lesson with it, and gets the same model:

# %%
folder = Path(tempfile.mkdtemp())  # or a folder of yours, which all of the class can read
mine.to_json(folder / "mine.json")
replace(careful, seed=seed).to_json(folder / "careful.json")
naive.to_json(folder / "naive.json")
again = Stack.from_json(folder / "mine.json")
assert again == mine and torch.equal(again.build(net, calib)(some), mine.build(net, calib)(some))
print((folder / "mine.json").read_text().splitlines()[1].strip(), "...", len(mine.choices()), "choices")
print("labkit report lesson 11_one_budget --parameters mine.json")

# %% [markdown]
# The class puts its files into one folder; here they are judged, each timed in turns with the plain model. The fastest above the floor
# wins.

# %% tags=["nbval-ignore-output"]
best.stack.to_json(folder / "best.json")  # what you found with the menus
entries = {file.stem: Stack.from_json(file) for file in sorted(folder.glob("*.json"))}
models = {"plain": net} | {name: stack.build(net, calib) for name, stack in entries.items()}
timing = clock.compare(models, test.images[:32], rounds=5, warmup=1, clocks=clocks)
board = [(timing.ratio(name)[0], share(hits(models[name], test, 100)), name) for name in entries]
board.sort(key=lambda row: (row[1] < floor, row[0]))
labkit.table(
    [
        [name, f"{time_share:.2f}", f"{reached:.0%}", "yes" if reached >= floor and time_share <= budget else "no"]
        for time_share, reached, name in board
    ],
    headers=["recipe", "time, plain is 1", "right", "inside"],
)

# %% [markdown]
# ## Limits
#
# - **One small model, one processor.** At 64 tokens the products of attention are a few per cent, so another mixing cannot pay; with thousands of
#   tokens it is the first dial to turn. A processor with 4-bit kernels, or a GPU, moves every point of the plot.
# - **No training after the turn.** Only the patch sizes were trained for. Tokens and bits that are trained with lose less.
# - **300 images, 600 in section 3.** A difference below three points may be luck; the intervals say so.
# - **Three draws show the spread of calibration images and dice,** not of training the model again.
# - **The best of many looks is flattered.** Who tries fifty recipes on the same test images and reports the best has chosen by luck, too: judge the
#   winner on images that nobody has looked at.
#
# ## Exercises
#
# The line below each stub judges your function: `labkit.check` tries it on small cases, shows the smallest that fails and names
# the mistake. `labkit.check.amdahl.hint(1)` says a little, `hint(2)` more. The stubs run as they are.
#
# ### Exercise 1: what the rest allows
#
# *Easy, 10 minutes.* A part takes the share `part` of the time and becomes `factor` times as fast. Write `amdahl(part, factor)`: the
# time of the whole afterwards, if it was 1 before.
#
# <details><summary>Hint 1</summary>The rest takes as long as ever.</details>
# <details><summary>Hint 2</summary>What takes the time t and is twice as fast takes t / 2.</details>
# <details><summary>Solution</summary>
#
# ```python
# def amdahl(part, factor):
#     return (1 - part) + part / factor
# ```
#
# </details>


# %% tags=["exercise"]
def amdahl(part, factor):
    return 0.0  # your code here


# %%
labkit.check.amdahl(amdahl)

# %% [markdown]
# ### Exercise 2: who stands on the front?
#
# *Medium, 15 minutes.* Write `pareto_front(points)`: points are pairs (time, right answers); for each a bool: is there no other
# point that is at least as fast *and* at least as good, and better in one of the two?
#
# <details><summary>Hint 1</summary>For a point p, look for any other q with <code>q[0] <= p[0]</code> and
# <code>q[1] >= p[1]</code>.</details>
# <details><summary>Hint 2</summary>Two equal points do not beat each other: <code>q != p</code>.</details>
# <details><summary>Solution</summary>
#
# ```python
# def pareto_front(points):
#     return [not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points) for p in points]
# ```
#
# </details>


# %% tags=["exercise"]
def pareto_front(points):
    return [False for _ in points]  # your code here


# %%
labkit.check.pareto_front(pareto_front)

# %% [markdown]
# ### Exercise 3: the cheapest that is good enough
#
# *Medium, 10 minutes.* Write `cheapest_inside(points, budget, floor)`: points is a dict, name → (time, right answers). Return the
# name of the fastest one whose time is at most the budget and whose right answers are at least the floor; of equally fast ones the
# better; `None` if there is none.
#
# <details><summary>Hint 1</summary>First filter, then take a <code>min</code>.</details>
# <details><summary>Hint 2</summary>
# <code>min(inside, key=lambda name: (points[name][0], -points[name][1]), default=None)</code></details>
# <details><summary>Solution</summary>
#
# ```python
# def cheapest_inside(points, budget, floor):
#     inside = [name for name, (took, right) in points.items() if took <= budget and right >= floor]
#     return min(inside, key=lambda name: (points[name][0], -points[name][1]), default=None)
# ```
#
# </details>


# %% tags=["exercise"]
def cheapest_inside(points, budget, floor):
    return "nobody"  # your code here


# %%
labkit.check.cheapest_inside(cheapest_inside)

# %% [markdown]
# ### Exercise 4: points beyond the sum
#
# *Medium, 15 minutes.* Write `more_than_sum(full, alone, together)`: `full` and `together` are bool tensors, right or wrong for
# each image, of the plain model and of the stack; `alone` is a list of such tensors, one for each dial. How many points (per cent)
# does the stack lose beyond the sum of what the dials lose?
#
# <details><summary>Hint 1</summary>What a model loses is <code>full.double().mean() - other.double().mean()</code>.</details>
# <details><summary>Hint 2</summary>The loss of the stack minus the sum of the losses, times 100.</details>
# <details><summary>Solution</summary>
#
# ```python
# def more_than_sum(full, alone, together):
#     def lost(other):
#         return 100 * (full.double().mean() - other.double().mean()).item()
#     return lost(together) - sum(lost(other) for other in alone)
# ```
#
# </details>


# %% tags=["exercise"]
def more_than_sum(full, alone, together):
    return 0.0  # your code here


# %%
labkit.check.more_than_sum(more_than_sum)

# %% [markdown]
# ### Exercise 5: your own stack
#
# *Hard, 20 minutes.* Many answers are right here, so the cell below measures yours. Write `my_stack()`: a `Stack` with at most 60% of the MACs and 16% of the bytes that is right as often as the floor of this lesson demands.
# (`labkit.show(Stack)` lists what can be chosen.)
#
# <details><summary>Hint 1</summary>Sixteen per cent of the bytes are four bits.</details>
# <details><summary>Hint 2</summary>Merge early, in two blocks; you know the careful grids.</details>
# <details><summary>Solution</summary>
#
# ```python
# def my_stack():
#     return Stack(reducer="merge", keep=0.5, where="0, 1", weights=4, activations=4, clip="percentile", fold="channels", backend="int8")
# ```
#
# </details>


# %% tags=["exercise"]
def my_stack():
    return Stack()  # your choices here


# %%
own = my_stack()
slim = own.build(net, calib)
macs, size = (cost.count(slim).total(column) / whole.total(column) for column in ("macs", "weight_bytes"))
reached = share(hits(slim, test, 100))
said = f"{own.describe()}: {macs:.0%} of the MACs, {size:.0%} of the bytes, {reached:.0%} right"
if own == Stack():
    print("Not started yet.")
elif macs <= 0.6 and size <= 0.16 and reached >= floor:
    print(f"Right. {said}.")
else:
    print(f"Not yet. {said}; asked are at most 60%, at most 16%, at least {floor:.0%}.")

# %% [markdown]
# ## Papers

# %%
for paper in ("S083", "S104", "S187", "S029", "S040"):
    print(labkit.papers.cite(paper))
for paper in (
    '"FlexiViT: One Model for All Patch Sizes", 2022 (patches of every size)',
    '"Token Merging: Your ViT But Faster", 2022',
    "Gene Amdahl's rule is from 1967",
):
    print(paper)

# %% [markdown]
# ## Next
#
# This was the last dial: from here on you choose. Build a `Stack` on a model and images of your own, or meet all papers of the kit,
# with the check of each that works, in [12 A gallery](12_gallery.ipynb).
