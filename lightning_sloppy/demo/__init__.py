"""Small data sets and networks for the configurations in ``configs/``."""

from __future__ import annotations

from lightning_sloppy.demo.data import DigitsDataModule
from lightning_sloppy.demo.idx import IDXDataModule
from lightning_sloppy.demo.models import MLPClassifier, MLPRegressor

__all__ = ["DigitsDataModule", "IDXDataModule", "MLPClassifier", "MLPRegressor"]
