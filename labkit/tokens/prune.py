"""Keep the tokens with the highest scores and drop the rest; what the score is, is the whole question.

The class token's own attention as the score is from "Not All Patches are What You Need: Expediting Vision
Transformers via Token Reorganizations", 2022 (EViT, S029); `labkit.tokens.score` has others, and the controls.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Groups, taken
from labkit.tokens.score import Score, class_attention, highest, present


@dataclass
class Keep:
    """A reducer: keeps the `keep` share of the patch tokens that `score` ranks highest, and every prefix token.

    `keep=1` is the identity. Order is preserved, ties go to the earlier token.
    """

    keep: float
    score: Score = class_attention

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        if not 0 < self.keep <= 1:
            raise LabkitError(f"keep={self.keep} is not a share; expected a number above 0 and at most 1.")
        scores = present(self.score(evidence, prefix).expand(len(x), -1), sizes, prefix)
        count = max(1, round(self.keep * scores.shape[1]))
        kept = highest(scores, count, prefix)
        return taken(x, kept), Groups.choice(kept, x.shape[1])
