"""Complex weights: their real and imaginary parts are the parameters, in every matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.dense import dense_fisher_of, dense_hessian_of, flat_gradient, numbers_of, trained
from torch import Tensor, nn

from lightning_sloppy import fisher_spectrum, hessian_spectrum, jacobian_spectrum
from lightning_sloppy.curvature.diagonal import adam_second_moment, fisher_diagonal
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective

METHODS = ("kept_graph", "recomputed", "central_differences")


class Amplitudes(nn.Module):
    """A complex layer with a complex bias and buffer, then magnitudes and a real layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.cfloat) / 2)
        self.bias = nn.Parameter(torch.randn(3, dtype=torch.cfloat) / 2)
        self.register_buffer("phase", torch.exp(1j * torch.randn(3)))
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(((x.to(self.weight.dtype) @ self.weight.T + self.bias) * self.phase).abs())


class Spectral(nn.Module):
    """A Fourier layer: an odd number of real weights in front, complex ones for the modes, a frozen complex scale."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1))
        self.modes = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
        self.scale = nn.Parameter(torch.randn(3, dtype=torch.cfloat), requires_grad=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(x + self.shift) * self.modes * self.scale
        return self.head(torch.tanh(torch.fft.irfft(waves, n=4)))


class ComplexLinear(nn.Module):
    """``nn.Linear`` with complex weights and inputs, and complex outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.complex(x, x.flip(1)))


class Conjugated(nn.Module):
    """A complex weight and its conjugate, which torch keeps as a mark on the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        product = x.to(self.weight.dtype) @ self.weight
        return (product * (x.to(self.weight.dtype) @ self.weight.conj()).sin()).real


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of complex outputs and class indices."""
    return (outputs - F.one_hot(targets, 3)).abs().square().mean()


CASES: dict[str, tuple[type[nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    "amplitudes": (Amplitudes, F.cross_entropy),
    "spectral": (Spectral, F.cross_entropy),
    "complex outputs": (ComplexLinear, squared),
    "conjugated": (Conjugated, F.cross_entropy),
}


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Complex numbers too, which ``module.double()`` leaves as they are."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.to(dtype.to_complex() if tensor.is_complex() else dtype)


def made(name: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    build, loss = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(6)
        module = build()
        cast(module, torch.float64)
        return module, loss, torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))


def parts(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x[:12], y[:12]), (x[12:], y[12:])]


def eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_the_hessian_is_that_in_both_parts(name: str, method: str) -> None:
    module, loss, x, y = made(name)
    expected = dense_hessian_of(module, lambda: loss(module(x), y))
    assert len(expected) == sum(p.numel() * (2 if p.is_complex() else 1) for p in trained(module))
    found = hessian_spectrum(module, parts(x, y), loss, k=len(expected), method=method, by_layer=True)
    assert found.dim == len(expected) == sum(layer.dim for layer in found.layers.values())
    torch.testing.assert_close(found.eigenvalues, eigenvalues(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gram", "products"])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("name", CASES)
def test_fisher_matrices_are_those_in_both_parts(name: str, kind: str, method: str) -> None:
    module, loss, x, y = made(name)
    if kind == "empirical":
        losses = [lambda i=i: loss(module(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
        expected = eigenvalues(dense_fisher_of(module, losses))
    else:
        expected = eigenvalues(_gauss_newton(module, loss, x, y))
    found = fisher_spectrum(module, parts(x, y), loss, kind=kind, method=method, k=5)
    torch.testing.assert_close(found.eigenvalues[:5], expected[:5], rtol=1e-6, atol=1e-11)


def _gauss_newton(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        outputs = module(x[i : i + 1])
        numbers = numbers_of(outputs)
        rows = torch.stack([flat_gradient(number, trained(module)) for number in numbers])

        def of_numbers(flat: Tensor, i: int = i, like: Tensor = outputs) -> Tensor:
            pairs = (
                torch.view_as_complex(flat.reshape(*like.shape, 2)) if like.is_complex() else flat.reshape(like.shape)
            )
            return loss(pairs, y[i : i + 1])

        inner = torch.autograd.functional.hessian(of_numbers, numbers.detach())
        total = total + rows.T @ inner @ rows / len(x)
    return total


@pytest.mark.parametrize("name", CASES)
def test_the_jacobian_counts_both_parts(name: str) -> None:
    module, _, x, y = made(name)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        outputs = module(x[i : i + 1])
        numbers = numbers_of(outputs)
        rows = torch.stack([flat_gradient(number, trained(module)) for number in numbers])
        total = total + rows.T @ rows / rows.square().sum() / len(x)
    found = jacobian_spectrum(module, parts(x, y))
    assert found.dim == len(total)
    torch.testing.assert_close(found.eigenvalues[:20], eigenvalues(total)[:20], rtol=1e-8, atol=1e-12)


class Mixed(nn.Module):
    """An odd number of real outputs in front of complex ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.real = nn.Linear(4, 2, dtype=torch.cdouble), nn.Linear(4, 1, dtype=torch.double)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.real(x), self.layer(x.to(torch.cdouble))


def test_real_and_complex_outputs_beside_one_another() -> None:
    torch.manual_seed(0)
    module, x, y = Mixed(), torch.randn(12, 4, dtype=torch.float64), torch.randn(12, dtype=torch.float64)

    def loss(found: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return ((found[0][:, 0] + found[1].abs().square().sum(1) - targets) ** 2).mean()

    losses = [lambda i=i: loss(module(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    expected = eigenvalues(dense_fisher_of(module, losses))
    for method in ("gram", "products"):
        found = fisher_spectrum(module, parts(x, y), loss, method=method, k=4)
        torch.testing.assert_close(found.eigenvalues[:4], expected[:4], rtol=1e-7, atol=1e-11)


def test_a_probe_vector_and_a_flat_vector_have_both_parts() -> None:
    module, loss, x, y = made("spectral")
    layout = ParameterLayout.of(module)
    assert layout.dim == 1 + 6 + 15
    vector = layout.vector(module)
    assert vector.dtype == torch.float64
    other = torch.arange(22.0, dtype=torch.float64)
    with layout.holding(module, other):
        assert module.modes.tolist() == [1 + 2j, 3 + 4j, 5 + 6j]
        assert torch.equal(layout.vector(module), other)
    assert torch.equal(layout.vector(module), vector)
    expected = dense_hessian_of(module, lambda: loss(module(x), y))
    found = hessian_spectrum(module, [(x, y)], loss, k=22, probes=4)
    assert found.trace.value == pytest.approx(float(expected.trace()))


def test_single_precision_measures_in_float32() -> None:
    module, loss, x, y = made("amplitudes")
    expected = hessian_spectrum(module, [(x, y)], loss, k=3)
    cast(module, torch.float32)
    found = hessian_spectrum(module, [(x.float(), y)], loss, k=3)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-3, atol=1e-4)
    assert Objective(module, loss).dtype == torch.float32


def test_diagonals_have_both_parts() -> None:
    module, loss, x, y = made("spectral")
    losses = [lambda i=i: loss(module(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    dense = dense_fisher_of(module, losses).diagonal()
    layout = ParameterLayout.of(module)
    found = fisher_diagonal(Objective(module, loss), layout, parts(x, y))
    torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-13)
    optimizer = torch.optim.Adam(trained(module), 1e-3)
    gradient = flat_gradient(loss(module(x), y), trained(module))
    loss(module(x), y).backward()
    optimizer.step()
    torch.testing.assert_close(adam_second_moment(optimizer, module, 1), gradient.square(), rtol=1e-6, atol=1e-12)


class Sums(nn.Module):
    """Complex outputs with time first, (T, N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, dtype=torch.cdouble))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.weight.dtype).cumsum(0) @ self.weight.T


def test_complex_outputs_with_time_first() -> None:
    """Their samples are in the second dimension; the loss is quadratic, so the exact Fisher matrix is the Hessian."""
    torch.manual_seed(0)
    module, x, y = Sums(), torch.randn(5, 13, 4).double(), torch.randn(5, 13, 2, dtype=torch.cdouble)
    batches = [(x[:, part], y[:, part]) for part in (slice(0, 8), slice(8, 13))]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().square().mean()

    right = torch.linalg.eigvalsh(dense_hessian_of(module, lambda: loss(module(x), y))).flip(0)
    fisher = fisher_spectrum(module, batches, loss, kind="exact")
    assert fisher.num_samples == 13
    torch.testing.assert_close(fisher.eigenvalues, right)
    torch.testing.assert_close(hessian_spectrum(module, batches, loss, k=16).eigenvalues, right)
    losses = [lambda i=i: loss(module(x[:, [i]]), y[:, [i]]) for i in range(13)]
    dense = torch.linalg.eigvalsh(dense_fisher_of(module, losses)).flip(0)
    empirical = fisher_spectrum(module, batches, loss).eigenvalues
    torch.testing.assert_close(empirical, dense[: len(empirical)])
