"""Answers of a model without a head: which of the other test images is the most similar, or the class of that image.

Features serve to find what looks alike, so that is what a change must not spoil. The images stay as the untouched model
sees them: whoever changes the model wants to keep what is stored of millions of them. The temperature is that of the
nearest neighbours of "Emerging Properties in Self-Supervised Vision Transformers", 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError

TEMPERATURE = 0.07


@dataclass(frozen=True)
class Index:
    """All test images, in their order."""

    directions: Tensor  # (images, width), of length 1
    answers: Tensor  # (images,): the label of each, or its own number

    @classmethod
    def of(cls, features: Tensor, labels: Tensor | None) -> Index:
        n = len(features)
        if n < 2:
            raise LabkitError("A model without a head is asked which other image is alike; give it two images or more.")
        answers = torch.arange(n, device=features.device) if labels is None else labels
        return cls(F.normalize(features, dim=1), answers)

    def to(self, device: torch.device) -> Index:
        return Index(self.directions.to(device), self.answers.to(device))

    def scores(self, features: Tensor) -> Tensor:
        """(m, answers), of the first m images: the cosine to the nearest with this answer, and nobody is its own."""
        alike = F.normalize(features, dim=1) @ self.directions.T
        alike.fill_diagonal_(-torch.inf)
        empty = alike.new_full((len(alike), int(self.answers.max()) + 1), -torch.inf)
        return empty.scatter_reduce(1, self.answers.expand_as(alike), alike, "amax") / TEMPERATURE
