"""Gram matrices of per-sample gradients, from inputs and output gradients of layers, or from formed gradients."""
