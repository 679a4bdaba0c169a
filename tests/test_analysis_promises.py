"""What the functions promise beside their numbers: nothing is left behind, and bad input gets a sentence."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.cases import Case, case
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy.analysis import fisher_spectrum, hessian_spectrum
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.measures.effective_dimension import effective_dimension
from lightning_sloppy.records import Spectrum, Status

Runner = Callable[..., Spectrum]
FUNCTIONS: dict[str, Runner] = {"hessian": hessian_spectrum, "fisher": fisher_spectrum}


def measured(function: Runner, this: Case, *args: Any, **options: Any) -> Spectrum:
    return function(this.module, this.batches, this.loss, *args, **options)


# -- both: nothing is left behind -------------------------------------------------------------------------------------


class Touchy(nn.Module):
    """Buffers that move, dropout, flags of its own, and a first layer that works in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(width).eval()
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(self.drop(self.norm(self.hidden(self.first(x))))))


def snapshot(module: nn.Module) -> dict[str, Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "flags": [child.training for child in module.modules()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "hooks": [len(child._forward_hooks) for child in module.modules()],
        "torch": torch.get_rng_state(),
        "numpy": numpy_state[1].tolist(),
        "python": random.getstate(),
    }


def assert_same(before: Any, after: Any) -> None:
    if isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    else:
        assert before == after


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(
    ("function", "options"),
    [
        (hessian_spectrum, {}),
        (hessian_spectrum, {"mode": "train", "probes": 2}),
        (fisher_spectrum, {}),
        (fisher_spectrum, {"kind": "sampled"}),
        (fisher_spectrum, {"kind": "exact"}),
    ],
)
def test_the_module_is_left_as_it_was(function: Runner, options: dict[str, Any], broken: bool) -> None:
    torch.manual_seed(0)
    module = Touchy(40).train()
    module.frozen.eval()
    module.head.bias.requires_grad_(False)
    inputs, targets = torch.randn(12, 4), torch.randint(0, 3, (12,))
    F.cross_entropy(module(inputs.clone()), targets).backward()
    # A shuffling loader draws from the global stream whenever it is read.
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=5, shuffle=True)
    before, kept = snapshot(module), inputs.clone()

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        torch.rand(3)
        raise ZeroDivisionError

    if broken:
        with pytest.raises(ZeroDivisionError):
            function(module, loader, failing, **{**options, "kind": "empirical"} if "kind" in options else options)
    else:
        function(module, loader, F.cross_entropy, **options)
    assert_same(before, snapshot(module))
    assert torch.equal(inputs, kept)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_dropout_of_a_module_in_train_mode_does_not_act(function: str) -> None:
    torch.manual_seed(0)
    module = Touchy(4)
    batches = [(torch.randn(9, 4), torch.randint(0, 3, (9,)))]
    results = [FUNCTIONS[function](module.train(flag), batches, F.cross_entropy).eigenvalues for flag in (True, False)]
    assert torch.equal(results[0], results[1])


def test_train_mode_on_request_is_one_fixed_function() -> None:
    torch.manual_seed(0)
    module = Touchy(4).train()
    batches = [(torch.randn(9, 4), torch.randint(0, 3, (9,)))]
    first, second, other = (
        hessian_spectrum(module, batches, F.cross_entropy, mode="train", seed=seed).eigenvalues for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    plain = hessian_spectrum(module, batches, F.cross_entropy).eigenvalues
    assert not torch.equal(first, plain)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_need_not_be_on_outside(function: str) -> None:
    this = case("mlp")
    expected = measured(FUNCTIONS[function], this).eigenvalues
    for outside in (torch.no_grad, torch.inference_mode):
        with outside():
            copies = Case(this.module, this.loss, [(x.clone(), y.clone()) for x, y in this.batches])
            found = measured(FUNCTIONS[function], copies).eigenvalues
        torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_half_precision_is_measured_in_float32(function: str) -> None:
    this = case("mlp")
    half = Case(this.module.bfloat16(), this.loss, [(x.bfloat16(), y) for x, y in this.batches])
    found = measured(FUNCTIONS[function], half)
    exact = Case(case("mlp").module, this.loss, [(x.double(), y) for x, y in half.batches])
    exact.module.load_state_dict({name: value.double() for name, value in half.module.state_dict().items()})
    expected = measured(FUNCTIONS[function], exact)
    assert half.module[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, atol=1e-6, rtol=1e-5)
    assert found.floor == pytest.approx(8 * torch.finfo(torch.float32).eps * found.largest, rel=1e-3)


@pytest.mark.parametrize("size", [4, 40])
@pytest.mark.parametrize("kind", ["hessian", "empirical", "sampled", "exact"])
def test_values_that_are_not_finite_have_a_status_and_no_numbers(kind: str, size: int) -> None:
    module = nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs = torch.zeros(5, size)
    inputs[2, 1] = torch.nan
    batches = [(inputs, torch.zeros(5, dtype=torch.long))]
    if kind == "hessian":
        spectrum = hessian_spectrum(module, batches, F.cross_entropy, probes=2)
    else:
        spectrum = fisher_spectrum(module, batches, F.cross_entropy, kind)
    assert spectrum.status is Status.NON_FINITE
    assert not spectrum.status.ok
    assert len(spectrum.eigenvalues) == 0
    assert effective_dimension(spectrum, 1.0).status is Status.UNAVAILABLE


# -- both: what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 0}, "k=0 eigenpairs.*pass k >= 1"),
        ({"probes": 1}, "one has no standard error; pass 0, at least 2"),
        ({"probes": -2}, "pass 0, at least 2"),
        ({"steps": 0}, "pass steps >= 1"),
        ({"tol": 0.0}, "between 0 and 1; pass None"),
        ({"tol": 2.0}, "between 0 and 1; pass None"),
        ({"max_products": 0}, "pass at least k, or None"),
        ({"mode": "evaluation"}, "mode='evaluation' is unknown; choose one of eval, train"),
        ({"method": "dense"}, "method='dense' is unknown; choose one of auto, kept_graph, recomputed"),
    ],
)
def test_hessian_arguments_out_of_range(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        measured(hessian_spectrum, case("mlp"), **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"kind": "true"}, "choose one of empirical, sampled, exact"), ({"mode": "both"}, "choose one of eval, train")],
)
def test_fisher_arguments_out_of_range(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        measured(fisher_spectrum, case("mlp"), **options)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        ("generator", "read more than once"),
        ("empty", "the batches are empty"),
        ("triples", r"pairs \(inputs, targets\), but the data contain a tuple of 3"),
    ],
)
def test_batches_that_cannot_be_used(function: str, batches: str, sentence: str) -> None:
    this = case("mlp")
    given: dict[str, Any] = {
        "generator": (batch for batch in this.batches),
        "empty": [],
        "triples": [(x, y, y) for x, y in this.batches],
    }
    with pytest.raises(ConfigurationError, match=sentence):
        FUNCTIONS[function](this.module, given[batches], this.loss)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_loss_and_module_that_cannot_be_used(function: str) -> None:
    this = case("mlp")
    with pytest.raises(ConfigurationError, match=r"its shape is \(3,\); use reduction='mean'"):
        FUNCTIONS[function](this.module, this.batches, lambda f, y: F.cross_entropy(f, y, reduction="none"))
    with pytest.raises(ConfigurationError, match="has no trainable parameters"):
        FUNCTIONS[function](this.module.requires_grad_(False), this.batches, this.loss)


def test_missing_second_derivative_names_operation_and_remedy() -> None:
    module = nn.Sequential(nn.EmbeddingBag(5, 4), nn.Linear(4, 3))
    batches = [(torch.randint(0, 5, (6, 2)), torch.randint(0, 3, (6,)))]
    with pytest.raises(UnsupportedError, match=r"embedding_bag.*use method='central_differences'.*: 0\."):
        hessian_spectrum(module, batches, F.cross_entropy, method="kept_graph")
    assert hessian_spectrum(module, batches, F.cross_entropy).cost.method == "central_differences"
    assert fisher_spectrum(module, batches, F.cross_entropy).status is Status.EXACT
