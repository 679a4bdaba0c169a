"""The Gauss-Newton part in a Trainer: exact on a small probe by default, through probe vectors on request."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.tiny import Classifier, Regressor, blobs, loader, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import HessianSpectrum, JacobianSpectrum, Schedule, Status, fisher_spectrum
from lightning_sloppy.callbacks import gauss_newton_part
from lightning_sloppy.curvature.jacobian import jacobian_objective, kernel_of, weighted
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.measures.brackets import soft_count_bracket, step_count_bracket
from lightning_sloppy.probing.samples import probe_indices

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def test_the_kernel_of_the_outputs_gives_both_fisher_matrices() -> None:
    module, (inputs, targets) = small_network(), (blobs().tensors[0].double(), blobs().tensors[1])
    objective = jacobian_objective(module, None)
    with torch.enable_grad():
        kernel = kernel_of(objective, ParameterLayout.of(module), weighted([(inputs, targets)]), [3]).matrix
    n = len(inputs)
    blocks = kernel.reshape(3, n, 3, n).permute(1, 0, 3, 2)  # sample, output, sample, output
    chances = module(inputs).detach().softmax(1)
    roots = torch.linalg.cholesky(torch.diag_embed(chances) - chances[:, :, None] * chances[:, None] + 1e-15)
    exact = torch.einsum("iab,iajc,jcd->ibjd", roots, blocks, roots).reshape(3 * n, 3 * n) / n
    residuals = chances - F.one_hot(targets, 3)
    empirical = torch.einsum("ia,iajc,jc->ij", residuals, blocks, residuals) / n
    for kind, matrix in (("exact", exact), ("empirical", empirical)):
        found = fisher_spectrum(module, [(inputs, targets)], nn.CrossEntropyLoss(), kind=kind).eigenvalues
        right = torch.linalg.eigvalsh(matrix).flip(0)[: len(found)]
        torch.testing.assert_close(found, right, rtol=0, atol=1e-7 * float(right[0]))


def network() -> Classifier:
    """More than the 256 parameters up to which the whole matrix is formed."""
    torch.manual_seed(0)
    model = Classifier()
    model.net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))
    return model


def dense(model: nn.Module, inputs: Tensor) -> np.ndarray:
    """Eigenvalues of the Gauss-Newton matrix of the mean cross-entropy, by the chain rule in float64."""
    module = model.net.double()
    total: Tensor | float = 0.0
    for x in inputs.double():
        outputs = module(x[None])[0]
        rows = [torch.autograd.grad(one, list(module.parameters()), retain_graph=True) for one in outputs]
        jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        chances = outputs.softmax(0).detach()
        total = total + jacobian.T @ (chances.diag() - torch.outer(chances, chances)) @ jacobian / len(inputs)
    module.float()
    return np.linalg.eigvalsh(total.numpy())[::-1]


@pytest.mark.slow
def test_by_default_it_is_exact_on_a_small_probe(tmp_path) -> None:
    callback, model = HessianSpectrum(epsilon=20.0, strict=True), network()
    data = blobs(600)
    host = trainer(tmp_path, callbacks=[callback], max_epochs=1)
    host.fit(model, loader(data))
    inputs = data.tensors[0][probe_indices(600, 1024, 0)]
    values = dense(model, inputs[:256])
    found = callback.latest.companions["gauss_newton"]
    np.testing.assert_allclose(found.eigenvalues[:40], values[:40], rtol=1e-3, atol=1e-6 * values[0])
    estimates, z = callback.latest.estimates, 20.0 / (2 * 599)
    half = dense(model, inputs[:128])
    for name, right in {
        "gauss_newton_samples": 256,
        "effective_dimension": (values / (values + 1e-3 * values.sum())).sum(),
        "effective_dimension_fine": (values / (values + 1e-4 * values.sum())).sum(),
        "effective_dimension_half_samples": (half / (half + 1e-3 * half.sum())).sum(),
        "effective_dimension_at_prior": (values / (values + z)).sum(),
        "effective_dimension_at_prior_coarse": (values / (values + 10 * z)).sum(),
        "eigenvalue_count": (values >= z).sum(),
    }.items():
        # In float32, eigenvalues below the floor count as zero: a little is missing at a ten-thousandth of the trace.
        assert estimates[name].value == pytest.approx(right, rel=5e-3 if name.endswith("fine") else 1e-3), name
        assert estimates[name].total_error == 0, name
        assert float(host.callback_metrics[f"sloppy_hessian/{name}"]) == pytest.approx(right, rel=5e-3)
    trace = estimates["gauss_newton_trace"]
    assert abs(trace.value - dense(model, inputs).sum()) < 4 * trace.standard_error


@pytest.mark.slow
def test_with_probes_it_is_that_of_all_probe_samples(tmp_path) -> None:
    callback, model = HessianSpectrum(probes=16, strict=True), network()
    data = blobs(600)
    trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(model, loader(data))
    values = dense(model, data.tensors[0])
    found = callback.latest.estimates
    assert found["gauss_newton_samples"].value == 600
    right = (values / (values + 1e-3 * values.sum())).sum()
    dimension = found["effective_dimension"]
    assert 0 < dimension.total_error < 2
    assert abs(dimension.value - right) < 4 * dimension.total_error
    assert "effective_dimension_half_samples" not in found


@pytest.mark.slow
def test_of_few_parameters_it_is_exact_on_all_probe_samples(tmp_path) -> None:
    torch.manual_seed(0)
    callback, model = HessianSpectrum(strict=True), Classifier()
    data = blobs(600)
    trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(model, loader(data))
    values = dense(model, data.tensors[0])
    found = callback.latest.estimates
    assert found["gauss_newton_samples"].value == 600
    assert found["effective_dimension"].value == pytest.approx(
        (values / (values + 1e-3 * values.sum())).sum(), rel=1e-3
    )
    assert callback.latest.cost.products == 2 * 83


@pytest.mark.slow
def test_its_cost_is_part_of_the_measurement_and_fewer_products_than_a_quadrature(tmp_path) -> None:
    costs = {}
    for probes in (None, 4):
        callback = HessianSpectrum(probes=probes, strict=True)
        trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(network(), loader(blobs(600)))
        costs[probes] = callback.latest.cost
    assert "gram" in costs[None].method
    assert "gram" not in costs[4].method
    assert 8 <= costs[None].products < costs[4].products - 40


class Wide(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 50)


def test_with_too_many_rows_it_goes_through_probe_vectors(tmp_path) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(300, 6), torch.randn(300, 50))
    callback = HessianSpectrum(k=2, strict=True)
    trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Wide(), DataLoader(data, 100))
    assert gauss_newton_part.MOST_ROWS < 64 * 50
    assert callback.latest.estimates["gauss_newton_samples"].value == 300
    assert "gram" not in callback.latest.cost.method


class Positions(Classifier):
    """Scores at every position of sequences whose length differs from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return F.cross_entropy(self.net(inputs).transpose(1, 2), targets)


def test_sequences_of_several_lengths(tmp_path) -> None:
    torch.manual_seed(0)
    samples = [(torch.randn(8, n, 6), torch.randint(3, (8, n))) for n in (4, 7, 5)]
    callback = HessianSpectrum(
        k=2, num_samples=24, loss_fn=lambda o, y: F.cross_entropy(o.transpose(1, 2), y), strict=True
    )
    trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Positions(), DataLoader(samples, batch_size=None))
    assert callback.latest.estimates["effective_dimension"].value > 1


@pytest.mark.parametrize("probes", [2, 6])
def test_the_quadrature_goes_on_until_the_brackets_are_narrow(tmp_path, probes: int) -> None:
    """Each dimension is known to a hundredth either way before it stops, far below what makes it unresolved."""
    callback = HessianSpectrum(k=2, probes=probes, epsilon=20.0, schedule=Schedule(every_n_epochs=99), strict=True)
    host = trainer(tmp_path, callbacks=[callback], max_epochs=1)
    host.fit(network(), loader(blobs(300)))
    found = callback.latest.estimates
    for name in (
        "effective_dimension",
        "effective_dimension_coarse",
        "effective_dimension_at_prior",
        "effective_dimension_at_prior_fine",
        "effective_dimension_at_prior_coarse",
    ):
        assert 0 < found[name].truncation_error <= 0.0101 * found[name].value, name
        assert found[name].standard_error > 0
    count = found["eigenvalue_count"]
    assert count.truncation_error <= max(0.1 * count.value, 0.5)


class Deep(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3))


@pytest.mark.parametrize("kind", ["gauss-newton", "jacobian"])
def test_each_probe_vector_goes_on_until_its_own_brackets_are_narrow_and_no_further(
    tmp_path, monkeypatch, kind
) -> None:
    """Every tenth step is looked at: a fiftieth of the value is reached at the last one, and was not before."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    inputs = torch.tensor(rng.standard_normal((300, 30)) * np.logspace(0, -3, 30) @ axes.T, dtype=torch.float32)
    data = DataLoader(TensorDataset(inputs, torch.arange(300) % 3), 100)
    never, z = Schedule(every_n_epochs=99), 20.0 / (2 * 299)
    torch.manual_seed(0)
    model = Deep()
    if kind == "jacobian":
        monkeypatch.setattr("lightning_sloppy.callbacks.jacobian_spectrum.MOST_ROWS", 20)
        part = JacobianSpectrum(schedule=never, strict=True)
    else:
        part = HessianSpectrum(k=2, probes=3, epsilon=20.0, schedule=never, strict=True)
    trainer(tmp_path, callbacks=[part], max_epochs=1).fit(model, data)
    dim, depths = sum(p.numel() for p in model.parameters()), []
    for event in part.measurements:
        density = event.companions.get("gauss_newton", event.spectrum).density
        for diagonal, off in zip(density.diagonals, density.offdiagonals, strict=True):

            def wide(depth: int, diagonal=diagonal, off=off) -> bool:
                trace = dim * float(diagonal[0])
                scales = [1e-3 * trace, 1e-2 * trace] + ([] if kind == "jacobian" else [z / 10, z, 10 * z])
                brackets = [soft_count_bracket(diagonal[:depth], off[:depth], scale) for scale in scales]
                low, high = step_count_bracket(diagonal[:depth], off[:depth], z)
                unsure = kind != "jacobian" and (high - low) / 2 > max(0.1 * (low + high) / 2, 0.5 / dim)
                return unsure or any(high - low > 0.02 * (high + low) / 2 for low, high in brackets)

            depths.append(len(diagonal))
            assert len(diagonal) % 10 == 0
            assert not wide(len(diagonal))
            assert len(diagonal) == 10 or wide(len(diagonal) - 10)
    assert max(depths) > 10


def test_what_is_not_resolved_is_said_and_not_logged(tmp_path) -> None:
    callback = HessianSpectrum(k=2, probes=2, steps=2, epsilon=0.01, strict=True)
    host = trainer(tmp_path, callbacks=[callback], max_epochs=1)
    host.fit(network(), loader(blobs(300)))
    event = callback.latest
    unresolved = [name for name, estimate in event.estimates.items() if estimate.status is Status.UNRESOLVED]
    assert {"effective_dimension", "effective_dimension_at_prior"} <= set(unresolved)
    for name in unresolved:
        (names,) = [n.split(": ")[0].split(", ") for n in event.notes if n.endswith(Status.UNRESOLVED.value)]
        assert name in names
        assert f"sloppy_hessian/{name}" not in host.callback_metrics
