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
# # Audit
#
# Which tokens and bits can a ViT give up, on *your* images? Run it by `labkit report audit --model NAME --weights FILE --images
# FOLDER`, or cell by cell here; each section is a file of `labkit/audit`.

# %% tags=["parameters"]
model = "shapes-vit"  # a model that ships, a name of timm, or a .safetensors file that labkit.save wrote
weights = ""  # a .safetensors file for a model of timm
images = ""  # a folder of images, or of one folder for each class
labels = ""  # a CSV: file name, number of the class
limit = 0  # images that are tested; 0: as many as the time allows
batch = 8  # images that are timed at once
tolerance = 0.01  # the share of right answers that may be lost
out = "."  # where audit.html and audit.json go
seed = 0
device = "auto"
fast = False

# %% tags=["section-images"]
from pathlib import Path

import labkit
from labkit.audit import subject
from labkit.audit.audit import Audit

place = labkit.setup(seed, device)
found = subject(model, weights, images, labels, limit, seed, batch, fast).to(place)
audit = Audit(found, fast, tolerance)
print(f"{found.name}, {len(found.inputs)} images; what is measured is {found.word}.")
for note in found.notes[:10]:
    print(note)

# %% tags=["section-what"]
audit.add("what")

# %% tags=["section-speed"]
audit.add("speed")

# %% tags=["section-looks"]
audit.add("looks")

# %% tags=["section-tokens"]
audit.add("tokens")

# %% tags=["section-bits"]
audit.add("bits")

# %% tags=["section-robust"]
audit.add("robust")

# %% tags=["section-together"]
audit.add("together")

# %% [markdown]
# ## What to do

# %% tags=["section-page"]
print(audit.recommendation()["sentence"])
audit.to_json(Path(out) / "audit.json")
audit.to_html(Path(out) / "audit.html")
