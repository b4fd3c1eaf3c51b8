"""A small model for the tests that ask for one and have none of their own."""

from __future__ import annotations

import pytest

from labkit.vit import ViT
from tests import oblong


@pytest.fixture(scope="module")
def model() -> ViT:
    return oblong.model()
