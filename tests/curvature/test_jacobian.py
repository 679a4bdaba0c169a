"""The spectrum of the outputs' Jacobian against dense autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sloppy import ConfigurationError, Status, fisher_spectrum, jacobian_spectrum, relative_dimension
from lightning_sloppy.curvature.jacobian import jacobian_objective, kernel_of, sample_norms, weighted
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.linalg.vectors import generator


class Sequence(nn.Module):
    """Scores for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


class Tied(nn.Module):
    """Weights used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.inner(x)), self.inner.weight.T)


class Parts(nn.Module):
    """Several outputs by name, one of them no scores."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"logits": hidden[:, :3], "scale": hidden[:, 3:], "length": torch.ones(len(x), dtype=torch.long)}


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 9, 3))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
    "convolution": (conv, (1, 5, 5)),
    "sequence": (Sequence, (3, 4)),
    "regression": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 2)), (4,)),
    "tied": (Tied, (4,)),
}


def made(name: str, count: int = 12) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = MODULES[name]
    return make().double().eval(), torch.randn(count, *shape).double()


def dense(
    module: nn.Module, inputs: Tensor, *, normalize: bool, pick: Callable[[Any], Tensor] = lambda out: out
) -> Tensor:
    """All eigenvalues of (1/N) sum_i J_i^T J_i, each J_i divided by its norm on request."""
    parameters = list(module.parameters())
    total: Any = 0
    for x in inputs:
        outputs = pick(module(x[None])).flatten()
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        rows = [torch.autograd.grad(f, parameters, **options) for f in outputs]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        if normalize:
            jacobian = jacobian / jacobian.norm()
        total = total + jacobian.T @ jacobian
    return torch.linalg.eigvalsh(total / len(inputs)).flip(0)


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_it_is_the_dense_one(name: str, normalize: bool) -> None:
    module, inputs = made(name)
    right = dense(module, inputs, normalize=normalize)
    for batches in ([(inputs, None)], [inputs], [inputs[:7], inputs[7:]], [(inputs, torch.zeros(12))]):
        found = jacobian_spectrum(module, batches, normalize=normalize)
        assert found.status is Status.EXACT
        count = min(len(found.eigenvalues), len(right))
        torch.testing.assert_close(found.eigenvalues[:count], right[:count], rtol=1e-8, atol=1e-10)
        assert float(right[count:].abs().sum()) < 1e-9
        assert found.trace is not None
        assert found.trace.value == pytest.approx(1.0 if normalize else float(right.sum()))
        half = dense(module, inputs[:6], normalize=normalize)
        assert found.half_eigenvalues is not None
        torch.testing.assert_close(found.half_eigenvalues[:5], half[:5], rtol=1e-8, atol=1e-10)
        assert (found.num_samples, found.dim) == (12, sum(p.numel() for p in module.parameters()))


def test_without_normalisation_it_is_the_fisher_matrix_of_unit_variance() -> None:
    module, inputs = made("mlp")
    targets = torch.zeros(12, 3).double()
    # The loss is a mean over C outputs, whose Hessian in them is 2 / C.
    exact = fisher_spectrum(module, [(inputs, targets)], F.mse_loss, kind="exact")
    found = jacobian_spectrum(module, [inputs], normalize=False)
    torch.testing.assert_close(exact.eigenvalues * 3 / 2, found.eigenvalues, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("outputs", ["logits", lambda out: out["logits"]])
def test_outputs_are_picked_by_key_or_function(outputs: Any) -> None:
    torch.manual_seed(0)
    module, inputs = Parts().double(), torch.randn(9, 4).double()
    found = jacobian_spectrum(module, [inputs], outputs=outputs)
    right = dense(module, inputs, normalize=True, pick=lambda out: out["logits"])
    torch.testing.assert_close(found.eigenvalues, right[: len(found.eigenvalues)], rtol=1e-8, atol=1e-10)
    both = jacobian_spectrum(module, [inputs])
    assert (found.detail["outputs"], both.detail["outputs"]) == (3, 6)
    with pytest.raises(ConfigurationError, match="outputs='scores' was asked for, but forward returns no such part"):
        jacobian_spectrum(module, [inputs], outputs="scores")


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda out: out[:, :1],
    "softmax": lambda out: out.softmax(-1),
    "times ten": lambda out: 10 * out,
    "sum": lambda out: out.sum(1),
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_the_outputs_is_differentiated(name: str, normalize: bool) -> None:
    function = FUNCTIONS[name]
    module, inputs = made("mlp")
    right = dense(module, inputs, normalize=normalize, pick=function)
    found = jacobian_spectrum(module, [inputs[:7], inputs[7:]], outputs=function, normalize=normalize)
    count = min(len(found.eigenvalues), len(right))
    torch.testing.assert_close(found.eigenvalues[:count], right[:count], rtol=1e-8, atol=1e-10)
    seen = jacobian_spectrum(
        module, [inputs], outputs=function, normalize=normalize, method="products", probes=400, steps=40
    )
    exact, estimate = relative_dimension(found), relative_dimension(seen)
    # Of 51 parameters the density is formed exactly where that is cheaper than probe vectors.
    assert estimate.value == pytest.approx(exact.value, abs=4 * estimate.standard_error + 1e-6)


class Squeezing(nn.Module):
    """Drops every dimension of one, that of a single sample too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x)).squeeze()


class Prototypes(nn.Module):
    """Returns a table of seven rows beside its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.table = nn.Linear(4, 3), nn.Parameter(torch.randn(7, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.table, torch.tanh(self.body(x))


def test_only_what_has_a_row_for_each_sample_is_an_output() -> None:
    torch.manual_seed(0)
    module, inputs = Squeezing().double(), torch.randn(9, 4).double()
    right = dense(module, inputs, normalize=True)
    for batches in ([inputs], [inputs[:8], inputs[8:]]):  # a last batch of one
        found = jacobian_spectrum(module, batches)
        torch.testing.assert_close(found.eigenvalues[:5], right[:5], rtol=1e-8, atol=1e-10)
    pair = Prototypes().double()
    for count in (5, 7):  # as many samples as rows of the table
        assert jacobian_spectrum(pair, [torch.randn(count, 4).double()]).detail["outputs"] == 3
    with pytest.raises(
        ConfigurationError, match=r"one row per sample, but for 2 samples forward returned \(\); pass outputs="
    ):
        jacobian_spectrum(module, [inputs], outputs=lambda out: out.mean())


@pytest.mark.slow
def test_norms_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = made("mlp")
    objective = jacobian_objective(module, None)
    layout = ParameterLayout.of(module)
    batches = weighted([(inputs[:7], None), (inputs[7:], None)])
    right = kernel_of(objective, layout, batches, [3, 3]).norms
    monkeypatch.setattr("lightning_sloppy.curvature.jacobian.CHUNK_ROWS", 6)  # two samples at a time
    torch.testing.assert_close(sample_norms(objective, layout, batches, [3, 3], generator(0)), right)
    monkeypatch.setattr("lightning_sloppy.curvature.jacobian.MOST_EXACT", 2)
    monkeypatch.setattr("lightning_sloppy.curvature.jacobian.CHUNK_NUMBERS", 12)  # a few signs at a time
    runs = [sample_norms(objective, layout, batches, [3, 3], generator(seed)) for seed in range(16)]
    ratios = torch.stack([norms / right for norms in runs])
    assert float(ratios.std()) > 0
    assert float(ratios.std()) < 0.25
    error = ratios.std(0) / len(runs) ** 0.5
    assert bool(((ratios.mean(0) - 1).abs() < 4.5 * error).all())


@pytest.mark.slow
def test_products_know_the_trace_also_where_outputs_are_nearly_dependent() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(6, 60), nn.Tanh(), nn.Linear(60, 2)).double(), torch.randn(300, 6).double()
    exact = relative_dimension(jacobian_spectrum(module, [inputs], outputs=lambda out: out.softmax(-1)))
    for seed in range(3):
        seen = jacobian_spectrum(
            module, [inputs], outputs=lambda out: out.softmax(-1), method="products", probes=8, seed=seed
        )
        assert seen.trace is not None
        assert (seen.trace.value, seen.trace.standard_error) == (1.0, 0.0)
        found = relative_dimension(seen)
        assert found.value == pytest.approx(exact.value, abs=5 * found.standard_error)
        assert found.standard_error < 0.2 * exact.value


def test_a_block_of_the_parameters() -> None:
    module, inputs = made("mlp")
    found = jacobian_spectrum(module, [inputs], parameters="2.*")
    for parameter in module[0].parameters():
        parameter.requires_grad_(False)
    rest = jacobian_spectrum(module, [inputs])
    torch.testing.assert_close(found.eigenvalues, rest.eigenvalues)
    assert found.dim == rest.dim == 21


def test_one_row_times_a_thousand_changes_little_but_is_named() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 3)).double(), torch.randn(60, 4).double()
    loud = inputs.clone()
    loud[17] *= 1000
    before, after = (relative_dimension(jacobian_spectrum(module, [x])).value for x in (inputs, loud))
    assert after == pytest.approx(before, rel=0.05)
    raw = jacobian_spectrum(module, [loud], normalize=False)
    assert relative_dimension(raw).value < before / 3
    assert raw.detail["largest_sample"] == 17
    assert float(raw.detail["largest_sample_fraction"]) > 0.99


def test_outputs_times_ten_change_nothing() -> None:
    module, inputs = made("mlp")
    found = jacobian_spectrum(module, [inputs])
    with torch.no_grad():
        scaled = jacobian_spectrum(module, [inputs], outputs=lambda out: 10 * out)
    torch.testing.assert_close(found.eigenvalues, scaled.eigenvalues)


def test_a_sample_without_a_derivative_counts_as_none() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    inputs = torch.cat([torch.randn(6, 3), torch.zeros(1, 3)]).double()
    found = jacobian_spectrum(module, [inputs])
    assert found.trace is not None
    assert found.trace.value == pytest.approx(6 / 7)
    assert bool(torch.isfinite(found.eigenvalues).all())


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [True, False])
def test_products_agree_with_the_kernel_within_their_error(normalize: bool) -> None:
    torch.manual_seed(0)
    module, inputs = nn.Sequential(nn.Linear(6, 60), nn.Tanh(), nn.Linear(60, 4)).double(), torch.randn(80, 6).double()
    exact = relative_dimension(jacobian_spectrum(module, [inputs], normalize=normalize))
    seen = jacobian_spectrum(
        module, [inputs[:50], inputs[50:]], normalize=normalize, method="products", probes=16, steps=80
    )
    found = relative_dimension(seen)
    assert seen.truncated
    assert found.status is Status.CONVERGED
    # The random signs behind the norms add about a per cent.
    assert found.value == pytest.approx(exact.value, abs=4 * found.standard_error + 0.02 * exact.value)
    assert seen.detail["outputs"] == 4


def test_too_many_rows_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sloppy.curvature.jacobian.ROW_LIMIT", 20)
    module, inputs = made("mlp")
    with pytest.raises(ConfigurationError, match=r"36 rows \(12 samples times their outputs\), above 20.*probes=4"):
        jacobian_spectrum(module, [inputs])
    with pytest.raises(ConfigurationError, match="use fewer samples, choose some of the outputs"):
        jacobian_spectrum(module, [inputs], method="gram")
    assert jacobian_spectrum(module, [inputs], probes=4).cost.products > 0


def test_values_that_are_not_finite_are_a_status() -> None:
    module, inputs = made("mlp")
    inputs[0, 0] = torch.nan
    assert jacobian_spectrum(module, [inputs]).status is Status.NON_FINITE


def test_the_module_is_left_as_it_was() -> None:
    module, inputs = made("convolution")
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    jacobian_spectrum(module, [inputs])
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
