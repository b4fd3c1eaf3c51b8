"""Keep as many tokens as an image needs: lay the scores end to end, and ask at equal distances who lies there.

"Adaptive Token Sampling For Efficient Vision Transformers", 2021 (ATS, S011). Who holds a large share is asked for
more than once and kept once, so that an image with one object keeps few tokens and a crowded one keeps many.

    shares sorted    |.|.|..|...|......|............|      sampled at (i + ½) / samples
    asked at            ^     ^     ^     ^     ^           5 samples, 4 tokens: the last was met twice
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Groups
from labkit.tokens.adaptive import keep_where
from labkit.tokens.score import Score, class_value, present


def sampled(scores: Tensor, samples: int) -> Tensor:
    """(b, patches) scores → (b, patches) booleans: who is met by the inverse of the cumulated scores.

    Nothing is left to chance. At most `samples` are met, and everyone whose share is at least 1 / samples. Shares are
    laid in rising order, so that where a patch lies in the image does not matter; scores below zero count nothing.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # half precision cannot count to 200
    rising, order = scores.clamp_min(torch.finfo(scores.dtype).tiny).sort(dim=1, stable=True)
    cumulated = rising.cumsum(dim=1)
    asked = (torch.arange(samples, device=scores.device, dtype=scores.dtype) + 0.5) / samples
    met = torch.searchsorted(cumulated, asked * cumulated[:, -1:])
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order.gather(1, met), True)


@dataclass
class Sample:
    """A reducer: keeps the patches that `samples` samples of the scores meet, in order, and every prefix token.

    Every image keeps its own number: in a batch the places behind the shorter ones stay empty. The identity once
    `samples` is at least 1 / the smallest share.
    """

    samples: int
    score: Score = class_value

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        if self.samples < 1:
            raise LabkitError(f"samples={self.samples} keeps nothing; expected a whole number of at least 1.")
        scores = present(self.score(evidence, prefix).expand(len(x), -1), sizes, prefix)
        return keep_where(sampled(scores, self.samples), x, prefix)
