"""Keep the tokens with the highest scores and drop the rest; what the score is, is the whole question.

The class token's own attention as the score is from "Not All Patches are What You Need: Expediting Vision
Transformers via Token Reorganizations", 2022 (EViT, S029); random and least-attended are the controls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError
from labkit.vit import Evidence

Score = Callable[[Evidence, int], Tensor]  # (evidence, prefix) → (b, patches)


def class_attention(evidence: Evidence, prefix: int) -> Tensor:
    """How much the class token looks at each patch, the mean over heads."""
    return evidence.attention(slice(0, 1)).mean(dim=1)[:, 0, prefix:]


@dataclass
class Keep:
    """A reducer: keeps the `keep` share of the patch tokens that `score` ranks highest, and every prefix token.

    `keep=1` is the identity. Order is preserved, ties go to the earlier token.
    """

    keep: float
    score: Score = class_attention

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        if not 0 < self.keep <= 1:
            raise LabkitError(f"keep={self.keep} is not a share; expected a number above 0 and at most 1.")
        scores = self.score(evidence, prefix).expand(len(x), -1)
        count = max(1, round(self.keep * scores.shape[1]))
        chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values + prefix
        kept = torch.cat([torch.arange(prefix, device=x.device).expand(len(x), -1), chosen], dim=1)
        rows = torch.arange(len(x), device=x.device)[:, None]
        return x[rows, kept], F.one_hot(kept, x.shape[1]).to(x.dtype)
