"""Every way from a parameter to the loss: through the outputs, past them, and through parameters of the loss itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.dense import dense_fisher_of, dense_hessian_of
from torch import Tensor, nn

from lightning_sloppy import fisher_spectrum, hessian_spectrum, jacobian_spectrum
from lightning_sloppy.curvature.spectra import Quadrature, gauss_newton_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.vectors import generator, rademacher

METHODS = ("kept_graph", "recomputed", "central_differences")


class Temperature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(0.3))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs * self.log.exp(), targets)


class Angles(nn.Module):
    """An ArcFace head: outputs are embeddings, classes are in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(outputs), F.normalize(self.weight))
        return F.cross_entropy(4 * (cosines - 0.3 * F.one_hot(targets, 5)), targets)


class Centres(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(3, 3))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + (outputs - self.centres[targets]).square().sum(1).mean() / 2


class Uncertainty(nn.Module):
    """Two terms, each with a learnt weight."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.tensor([0.1, -0.2]))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        terms = torch.stack([F.cross_entropy(outputs, targets), outputs.square().mean()])
        return (self.logs.neg().exp() * terms + self.logs).sum()


class Head(nn.Module):
    """A layer inside the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.layer(torch.tanh(outputs)), targets)


CRITERIA = (Temperature, Angles, Centres, Uncertainty, Head)


class Network(nn.Module):
    def __init__(self, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
        self.criterion = criterion

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def made(criterion: type[nn.Module] | None = None) -> tuple[Network, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        module = Network(criterion() if criterion else None).double().eval()
        return module, torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))


def parts(x: Any, y: Tensor) -> list[tuple[Any, Tensor]]:
    return [(x[:12], y[:12]), (x[12:], y[12:])]


def squares(parameters: Any) -> Tensor:
    return sum((p.square().sum() for p in parameters), torch.zeros(())) / 2


def eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_hessian_has_the_parameters_of_the_loss(criterion: type[nn.Module], method: str) -> None:
    module, x, y = made(criterion)
    expected = dense_hessian_of(module, lambda: module.criterion(module(x), y))
    found = hessian_spectrum(module, parts(x, y), module.criterion, k=len(expected), method=method)
    assert found.dim == len(expected)
    torch.testing.assert_close(found.eigenvalues, eigenvalues(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("held", ["module", "list", "submodule", "layer"])
def test_a_penalty_on_weights_moves_every_eigenvalue(held: str, method: str) -> None:
    module, x, y = made()
    kept = list(module.parameters())
    read: dict[str, Callable[[], Any]] = {
        "module": module.parameters,
        "submodule": module.net.parameters,
        "list": lambda: kept,
        "layer": lambda: [module.net[0].weight, module.net[0].bias, module.net[2].weight, module.net[2].bias],
    }

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + squares(read[held]())

    found = hessian_spectrum(module, parts(x, y), loss, k=27, method=method)
    plain = hessian_spectrum(module, parts(x, y), F.cross_entropy, k=27)
    torch.testing.assert_close(found.eigenvalues, plain.eigenvalues + 1, rtol=1e-7, atol=1e-7)


def test_a_penalty_on_the_gradient_is_differentiated_three_times() -> None:
    module, x, y = made()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        plain = F.cross_entropy(outputs, targets)
        return plain + squares(torch.autograd.grad(plain, list(module.parameters()), create_graph=True))

    expected = dense_hessian_of(module, lambda: loss(module(x), y))
    found = hessian_spectrum(module, [(x, y)], loss, k=27)
    torch.testing.assert_close(found.eigenvalues, eigenvalues(expected), rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gram", "products"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_empirical_fisher_matrix_has_the_parameters_of_the_loss(criterion: type[nn.Module], method: str) -> None:
    module, x, y = made(criterion)
    losses = [lambda i=i: module.criterion(module(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    expected = eigenvalues(dense_fisher_of(module, losses))
    found = fisher_spectrum(module, parts(x, y), module.criterion, method=method, k=8)
    torch.testing.assert_close(found.eigenvalues[:8], expected[:8], rtol=1e-7, atol=1e-12)
    assert "beside_outputs" not in found.detail


def test_weights_of_samples_reach_the_parameters_of_the_loss() -> None:
    module, x, y = made(Temperature)
    weights = torch.linspace(0.5, 2, 3, dtype=torch.float64)
    losses = [
        lambda i=i: module.criterion(module(x[i : i + 1]), y[i : i + 1]) * weights[y[i]].sqrt() for i in range(len(x))
    ]
    expected = dense_fisher_of(module, losses) * len(x) / weights[y].sum()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        scaled = outputs * module.criterion.log.exp()
        return F.cross_entropy(scaled, targets, weight=weights)

    found = fisher_spectrum(module, parts(x, y), loss, sample_weights=lambda targets: weights[targets])
    torch.testing.assert_close(found.eigenvalues[:20], eigenvalues(expected)[:20], rtol=1e-9, atol=1e-13)


def test_layers_and_eigenvectors_with_parameters_of_the_loss() -> None:
    module, x, y = made(Head)
    losses = [lambda i=i: module.criterion(module(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    dense = dense_fisher_of(module, losses)
    found = fisher_spectrum(module, parts(x, y), module.criterion, by_layer=True, eigenvectors=True, k=3)
    vectors = found.eigenvectors
    torch.testing.assert_close(dense @ vectors, vectors * found.eigenvalues[:3], rtol=1e-8, atol=1e-10)
    own = found.layers["criterion.layer"]
    torch.testing.assert_close(own.eigenvalues[:16], eigenvalues(dense[27:, 27:])[:16], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_matrices_of_the_outputs_name_what_only_the_loss_has(kind: str) -> None:
    module, x, y = made(Temperature)
    found = fisher_spectrum(module, [(x, y)], module.criterion, kind=kind, likelihood="categorical")
    assert "Only the loss depends on criterion.log" in str(found.detail["beside_outputs"])
    jacobian = jacobian_spectrum(module, [(x, y)])
    assert (jacobian.dim, jacobian.detail["unused"]) == (28, "criterion.log")


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_a_penalty_is_left_out_of_matrices_of_the_outputs_and_named(kind: str) -> None:
    module, x, y = made()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + squares(module.net[0].parameters())

    found = fisher_spectrum(module, parts(x, y), loss, kind=kind)
    plain = fisher_spectrum(module, parts(x, y), F.cross_entropy, kind=kind)
    torch.testing.assert_close(found.eigenvalues, plain.eigenvalues, rtol=1e-10, atol=1e-12)
    assert str(found.detail["beside_outputs"]).startswith("The loss also depends on net.0.weight, net.0.bias past the")
    assert "beside_outputs" not in plain.detail
    objective = Objective(module, loss)
    quadrature = Quadrature(rademacher(27, 2, generator(0)), steps=20)
    part = gauss_newton_of(objective, [(x, y)], quadrature=quadrature, rng=generator(0))
    assert part.detail["beside_outputs"] == found.detail["beside_outputs"]


class Told(nn.Module):
    """Gives the loss a parameter beside its scores, and a penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.log = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.layer(x), self.log, self.layer.weight.square().sum()


def test_parameters_that_forward_hands_to_the_loss() -> None:
    torch.manual_seed(0)
    module = Told().double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))

    def loss(found: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
        return F.cross_entropy(found[0], targets) * found[1].exp() + found[1] + found[2]

    hessian = hessian_spectrum(module, parts(x, y), loss, k=16)
    expected = dense_hessian_of(module, lambda: loss(module(x), y))
    torch.testing.assert_close(hessian.eigenvalues, eigenvalues(expected), rtol=1e-9, atol=1e-10)

    def apart(i: int) -> Tensor:
        scores, log, _ = module(x[i : i + 1])
        return F.cross_entropy(scores, y[i : i + 1]) * log.exp() + log

    losses = [lambda i=i: apart(i) for i in range(len(x))]
    fisher = fisher_spectrum(module, parts(x, y), loss)
    torch.testing.assert_close(fisher.eigenvalues, eigenvalues(dense_fisher_of(module, losses)), rtol=1e-9, atol=1e-12)
    assert str(fisher.detail["beside_outputs"]).startswith("The loss also depends on layer.weight past")


def test_a_loss_that_compares_samples_keeps_its_own_parameters_out_and_says_so() -> None:
    module, x, y = made(Temperature)

    def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
        likes = F.normalize(outputs) @ F.normalize(outputs).T * module.criterion.log.exp()
        return F.cross_entropy(likes, torch.arange(len(targets)))

    found = fisher_spectrum(module, [(x, y)], contrastive)
    assert "Only the loss depends on criterion.log" in str(found.detail["beside_outputs"])


def test_a_loss_with_parameters_outside_of_the_module_says_that_they_are_constants() -> None:
    module, x, y = made()
    criterion = Temperature().double()
    expected = dense_hessian_of(module, lambda: criterion(module(x), y))
    for found in (
        hessian_spectrum(module, [(x, y)], criterion, k=27),
        fisher_spectrum(module, [(x, y)], criterion),
    ):
        assert "not in Network (log): they are constants" in str(found.detail["constants"])
    found = hessian_spectrum(module, [(x, y)], criterion, k=27)
    torch.testing.assert_close(found.eigenvalues, eigenvalues(expected), rtol=1e-9, atol=1e-10)


def test_a_loss_in_half_precision_is_evaluated_in_float32() -> None:
    module, x, y = made(Angles)
    expected = hessian_spectrum(module.float(), [(x.float(), y)], module.criterion, k=2)
    half = module.to(torch.bfloat16)
    rounded = hessian_spectrum(half.float(), [(x.float(), y)], half.criterion, k=2)
    found = hessian_spectrum(half.to(torch.bfloat16), [(x.float(), y)], half.criterion, k=2)
    torch.testing.assert_close(found.eigenvalues, rounded.eigenvalues, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=0.1, atol=0.05)
    fisher_spectrum(half, [(x.float(), y)], half.criterion)


class Precision(nn.Module):
    """Sequences with time first, a learnt precision in the loss, terms that are averaged or added up."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.layer, self.log = nn.RNN(4, 2), nn.Parameter(torch.tensor(0.3))
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        terms = (outputs - targets).square().mean((0, 2)) * torch.exp(-self.log) + self.log
        return terms.mean() if self.reduction == "mean" else terms.sum()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_own_parameters_of_a_loss_of_sequences_with_time_first(reduction: str) -> None:
    torch.manual_seed(0)
    module = Precision(reduction).double()
    x, y = torch.randn(5, 13, 4).double(), torch.randn(5, 13, 2).double()
    batches = [(x[:, part], y[:, part]) for part in (slice(0, 8), slice(8, 13))]
    found = fisher_spectrum(module, batches, module.loss, reduction="mean")
    losses = [lambda i=i: module.loss(module(x[:, [i]]), y[:, [i]]) for i in range(13)]
    right = torch.linalg.eigvalsh(dense_fisher_of(module, losses)).flip(0)
    assert found.num_samples == 13
    torch.testing.assert_close(found.eigenvalues, right[: len(found.eigenvalues)])


def test_a_sum_of_weighed_samples_with_parameters_of_its_own() -> None:
    """The term of a sample is its weight times its loss: the mean is of weighed losses, over all weights."""
    torch.manual_seed(0)
    module = Precision("sum").double()
    x, y = torch.randn(5, 6, 4).double(), torch.randn(5, 6, 2).double()

    def weights(targets: Tensor) -> Tensor:
        return 1 + targets[0, :, 0].abs()

    found = fisher_spectrum(module, [(x, y)], module.loss, reduction="mean", sample_weights=weights)
    w = weights(y)
    losses = [lambda i=i: module.loss(module(x[:, [i]]), y[:, [i]]) / w[i].sqrt() for i in range(6)]
    right = torch.linalg.eigvalsh(dense_fisher_of(module, losses) * 6 / w.sum()).flip(0)
    torch.testing.assert_close(found.eigenvalues, right[: len(found.eigenvalues)])


class Masked(nn.Module):
    """A learnt temperature, and a mean over the samples that have a label."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.log = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs * self.log.exp(), targets)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(12,), (5, 7), (4, 4, 4)])
@pytest.mark.parametrize("first", [0, 4, 9])
@pytest.mark.parametrize("method", ["auto", "products"])
def test_samples_without_weight_are_left_out(sizes: tuple[int, ...], first: int, method: str) -> None:
    """The mean of no label at all is no number; so it is for a whole batch of such samples, also for the first."""
    torch.manual_seed(0)
    module = Masked().double()
    x, y = torch.randn(12, 4).double(), torch.randint(0, 3, (12,))
    y[:first] = -100
    y[10] = -100
    batches = [*zip(x.split(sizes), y.split(sizes), strict=True)]
    found = fisher_spectrum(
        module, batches, module.loss, sample_weights=lambda targets: (targets >= 0).double(), method=method
    )
    valid = [i for i in range(12) if y[i] >= 0]
    losses = [lambda i=i: module.loss(module(x[[i]]), y[[i]]) for i in valid]
    right = torch.linalg.eigvalsh(dense_fisher_of(module, losses)).flip(0)
    top = min(len(found.eigenvalues), len(valid))
    torch.testing.assert_close(found.eigenvalues[:top], right[:top], rtol=1e-8, atol=1e-10)
    assert "beside_outputs" not in found.detail


def test_a_parameter_among_the_outputs_with_as_many_entries_as_there_are_samples() -> None:
    class Uncertain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.w = nn.Linear(3, 1), nn.Parameter(torch.randn(10))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"pred": self.net(x), "w": self.w}

    def loss_fn(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        w = outputs["w"]
        return (outputs["pred"] - targets).square().mean() * torch.exp(-w).sum() + w.sum()

    torch.manual_seed(0)
    module, x, y = Uncertain().double(), torch.randn(20, 3).double(), torch.randn(20, 1).double()
    one = fisher_spectrum(module, [(x, y)], loss_fn).eigenvalues
    two = fisher_spectrum(module, [(x[:10], y[:10]), (x[10:], y[10:])], loss_fn).eigenvalues
    torch.testing.assert_close(two, one)
