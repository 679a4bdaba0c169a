"""What holds for every test."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    """A test is the same whichever ran before it: one honest start in 201 is taken for a trained one, for instance."""
    torch.manual_seed(0)
