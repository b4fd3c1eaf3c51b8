"""Did the object survive? The share of its patches that are still in a token of their own kind.

A patch is recalled when some token holds it and at least half of what this token stands for lies inside the object.
For pruning that is the share of the object's patches that were kept. A merged token recalls its patches as long as it
is mostly object; one that fused the object into the background does not.

    seen = slim.observe(images)
    object_recall(provenance(seen.maps, 64, slim.prefix, len(images)), coverage(masks, slim.grid) >= 0.5)
"""

from __future__ import annotations

from torch import Tensor

from labkit.errors import LabkitError


def object_recall(provenance: Tensor, inside: Tensor) -> Tensor:
    """(b,): for each image the share of the patches `inside` (b, patches) that its tokens (b, tokens, patches) recall.

    Every token's members count alike. An image without an object has nothing to recall: its share is not a number.
    """
    if provenance.shape[0] != inside.shape[0] or provenance.shape[2] != inside.shape[1]:
        raise LabkitError(
            f"The provenance {tuple(provenance.shape)} and the patches inside {tuple(inside.shape)} do not fit; "
            "expected (b, tokens, patches) and (b, patches) of the same images and the same grid."
        )
    held = (provenance > 0).float()
    object_patches = inside.float()
    purity = (held @ object_patches[..., None]) / held.sum(dim=2, keepdim=True).clamp_min(1)
    recalled = (held * (purity >= 0.5)).amax(dim=1)
    return (recalled * object_patches).sum(dim=1) / object_patches.sum(dim=1)
