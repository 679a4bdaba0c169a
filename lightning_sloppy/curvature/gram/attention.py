"""Multi-head attention with its projections outside, where they are linear layers like others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def with_projections_outside(run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of :func:`torch.nn.functional.multi_head_attention_forward`, its projections apart from it.

    The function itself then gets identities for them.

    Args:
        run: ``run(function, arguments)`` runs what is apart.
        args: Arguments of the function.
        kwargs: Arguments by name.
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    sources = [given["query"], given["key"], given["value"]]
    if given["use_separate_proj_weight"]:
        weights = [given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"]]
        projected = [run(F.linear, (x, w)) for x, w in zip(sources, weights, strict=True)]
        if given["in_proj_bias"] is not None:
            biases = run(torch.chunk, (given["in_proj_bias"], 3))
            projected = [run(torch.add, pair) for pair in zip(projected, biases, strict=True)]
    else:
        # One product for each different input, of which every part takes its own columns.
        packed: dict[int, Tensor] = {}
        for x in sources:
            if id(x) not in packed:
                packed[id(x)] = run(F.linear, (x, given["in_proj_weight"], given["in_proj_bias"]))
        projected = [packed[id(x)].chunk(3, dim=-1)[part] for part, x in enumerate(sources)]
    same = torch.eye(projected[0].shape[-1], dtype=projected[0].dtype, device=projected[0].device)
    weight, bias = given["out_proj_weight"], given["out_proj_bias"]
    given.update(zip(("query", "key", "value"), projected, strict=True))
    given.update(dict.fromkeys(("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight"), same))
    given.update(use_separate_proj_weight=True, in_proj_weight=None, in_proj_bias=None, out_proj_bias=None)
    attended, scores = F.multi_head_attention_forward(**given)
    return run(F.linear, (attended, weight, bias)), scores
