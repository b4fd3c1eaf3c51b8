"""Draws the pictures of the README: docs/overview.png, what shapes-vit says about ten images, and docs/explorer.png."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import colormaps

import labkit
from labkit.viz.figures import image_strip

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = 2  # the third: its class token has found the object


def main() -> None:
    model = labkit.load("shapes-vit")
    data = labkit.data.shapes("test", 10)
    with torch.inference_mode():
        seen = model.observe(data.images)
    sure, said = seen.logits.softmax(-1).max(-1)
    evidence = seen.steps[BLOCK].evidence
    assert evidence is not None and data.labels is not None and data.masks is not None
    look = evidence.attention(slice(0, 1)).mean(1)[:, 0, model.prefix :].reshape(-1, 1, *seen.grid)
    look = F.interpolate(look / look.amax((1, 2, 3), keepdim=True), size=64, mode="nearest")[:, 0]
    heat = torch.from_numpy(colormaps["cividis"](look.numpy()))[..., :3].permute(0, 3, 1, 2).float()
    masks = data.masks[:, None].expand(-1, 3, -1, -1).float()
    labels, names = data.labels, data.names
    titles = [f"{names[k]} {p:.0%}{'' if k == y else ' ✗'}" for k, p, y in zip(said, sure, labels, strict=True)]
    fig = image_strip(torch.cat([data.images, heat, masks]), [*titles, *[""] * 20], columns=10)
    fig.savefig(DOCS / "overview.png", dpi=110)
    labkit.Explorer(model, data, image=4, layer=4, query="class").to_png(DOCS / "explorer.png")


if __name__ == "__main__":
    main()
