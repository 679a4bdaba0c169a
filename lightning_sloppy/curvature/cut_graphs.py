"""Outputs that have a graph only in train mode, such as forces with ``create_graph=self.training``."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor

from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, private, some_of
from lightning_sloppy.evaluation.nests import tensors_of, with_tensors
from lightning_sloppy.evaluation.objective import Objective

LOOKED_AT = 4
"""Number of samples on which the graphs of outputs are checked."""


def refuse_cut_graphs(objective: Objective, layout: ParameterLayout, batches: list[Batch]) -> None:
    """Raise an error if the loss uses outputs whose dependence on the parameters has a graph only in train mode.

    Autograd would take them for constants in eval mode, and every derivative would leave them out without a word.

    Raises:
        ConfigurationError: With the mode as the reason.
    """
    if objective.loss_fn is None or not batches:
        return
    module, few = objective.module, some_of(batches[0], LOOKED_AT)
    leaves = layout.leaves(module, objective.dtype)
    outputs = objective.outputs(leaves, private(few)[0])
    found = tensors_of(outputs)
    cut = [i for i, tensor in enumerate(found) if tensor.is_floating_point() and not tensor.requires_grad]
    if not cut or any(child.training for child in module.modules()):
        return
    trained: list[Tensor] = []
    # A forward that takes no such samples in train mode tells nothing.
    with suppress(Exception):
        try:
            for child in module.modules():
                child.training = True
            trained = tensors_of(objective.outputs(leaves, private(few)[0]))
        finally:
            for child in module.modules():
                child.training = False
    cut = [i for i in cut if len(trained) == len(found) and trained[i].requires_grad]
    probes = {i: found[i].detach().requires_grad_() for i in cut}
    if not probes:
        return
    replaced = with_tensors(outputs, [probes.get(i, tensor.detach()) for i, tensor in enumerate(found)])
    slopes = grad([objective.loss_of_outputs({}, replaced, few[1])], list(probes.values()))
    used = [tuple(probe.shape) for probe, slope in zip(probes.values(), slopes, strict=True) if slope is not None]
    if used:
        raise ConfigurationError(
            f"{type(module).__name__} gives outputs of shape {', '.join(map(str, used))} that depend on its parameters "
            "in train mode, but have no graph in eval mode (create_graph=self.training?), so derivatives of the loss "
            "would leave them out; make the graph in both modes, or pass mode='train'."
        )
