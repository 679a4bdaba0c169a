"""Errors of validation samples by where the energy of their inputs lies; no Trainer."""
