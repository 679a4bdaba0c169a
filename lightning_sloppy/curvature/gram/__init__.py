"""Gram matrices of per-sample gradients: what layers tell of them, and formed ones for all others."""
