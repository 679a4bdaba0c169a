"""Spectra, effective dimensions and PAC-Bayes bounds of a network while Lightning trains it."""

from __future__ import annotations

__version__ = "0.1.0"
