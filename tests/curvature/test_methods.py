"""Ways to make a product: all of one matrix, chosen by memory and by what the module allows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.cases import case, dense_gauss_newton, dense_hessian
from support.dense import dense_hessian_of
from support.habits import OnceTanh
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sloppy import fisher_spectrum, hessian_spectrum, jacobian_spectrum
from lightning_sloppy.curvature import kept_graph
from lightning_sloppy.curvature.central_differences import CentralDifferences, GaussNewtonDifferences
from lightning_sloppy.curvature.cotangents import Fisher
from lightning_sloppy.curvature.fisher import FisherOperator
from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import UnsupportedError
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.vectors import generator, unit_gaussian
from lightning_sloppy.records import Spectrum, Status

SMOOTH = ("linear regression", "softmax regression", "mlp", "mlp mse", "mlp bce", "tied", "gru", "lstm", "tokens")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_central_differences_of_smooth_modules(name: str) -> None:
    this = case(name)
    layout, objective = ParameterLayout.of(this.module), Objective(this.module, this.loss)
    for build, reference in ((CentralDifferences, dense_hessian), (GaussNewtonDifferences, dense_gauss_newton)):
        expected = reference(this)
        found = build(objective, layout, this.batches).dense()
        assert (found - expected).abs().max() < 1e-7 * max(float(expected.abs().max()), 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stated_error_of_a_difference_covers_a_kinked_network(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)).to(dtype)
    batch = (torch.randn(200, 20, dtype=dtype), torch.randint(0, 5, (200,)))
    objective, layout = Objective(module, F.cross_entropy), ParameterLayout.of(module)
    exact = HessianOperator(objective, layout, [batch])
    near = CentralDifferences(objective, layout, [batch])
    largest = hessian_spectrum(module, [batch], F.cross_entropy, k=1).largest
    vectors = F.normalize(torch.randn(layout.dim, 10, dtype=dtype), dim=0)
    errors = torch.linalg.vector_norm(near.matmat(vectors) - exact.matmat(vectors), dim=0) / largest
    near.measure_rounding(generator(0))
    assert near.products == 10 + 4
    # Half a step meets half as many kinks, so the change is of the size of the error, not above it by far.
    assert float(errors.median()) < 3 * near.rounding
    assert (near.rounding < 1e-6) == (dtype == torch.float64)


def bag() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Callable[[Tensor, Tensor], Tensor]]:
    module = nn.Sequential(nn.EmbeddingBag(6, 3, mode="mean"), nn.Tanh(), nn.Linear(3, 2)).double()
    return module, [(torch.randint(0, 6, (5, 4)), torch.randint(0, 2, (5,)))], F.cross_entropy


def ctc() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Callable[[Tensor, Tensor], Tensor]]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        steps = torch.full((len(outputs),), outputs.shape[1])
        lengths = torch.full((len(targets),), targets.shape[1])
        return F.ctc_loss(outputs.log_softmax(2).movedim(1, 0), targets, steps, lengths)

    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    return module, [(torch.randn(3, 6, 3).double(), torch.randint(1, 5, (3, 2)))], loss


@pytest.mark.parametrize(("build", "layer"), [(bag, "0"), (ctc, "")])
def test_no_double_backward_falls_back_to_differences(build: Callable[[], tuple], layer: str) -> None:
    torch.manual_seed(0)
    module, batches, loss = build()
    found = hessian_spectrum(module, batches, loss, k=5)
    assert found.cost.method == "central_differences"
    assert "central differences were used" in str(found.detail["fallback"])
    assert (f"Without a double backward: {layer}." in str(found.detail["fallback"])) == bool(layer)
    # The second difference of the loss along the top eigenvector is its eigenvalue.
    top = hessian_spectrum(module, batches, loss, k=1, eigenvectors=True)
    objective, layout = Objective(module, loss), ParameterLayout.of(module)
    centre = layout.vector(module)
    assert top.eigenvectors is not None
    values = [
        float(objective.mean_loss(layout.table(centre + s * top.eigenvectors[:, 0]), batches)) for s in (-1e-3, 0, 1e-3)
    ]
    assert (values[0] - 2 * values[1] + values[2]) / 1e-6 == pytest.approx(top.eigenvalues[0].item(), rel=1e-3)
    for method in ("kept_graph", "recomputed"):
        with pytest.raises(UnsupportedError, match=f"central_differences.*{layer}"):
            hessian_spectrum(module, batches, loss, method=method)


def test_gauss_newton_products_without_a_double_backward() -> None:
    torch.manual_seed(0)
    module, batches, loss = bag()
    by_gram = fisher_spectrum(module, batches, loss, "exact").eigenvalues
    by_products = fisher_spectrum(module, batches, loss, "exact", method="products", k=len(by_gram))
    assert by_products.cost.method == "central_differences"
    torch.testing.assert_close(by_products.eigenvalues[: len(by_gram)], by_gram, rtol=1e-4, atol=1e-7)
    with pytest.raises(UnsupportedError, match="fewer samples"):
        fisher_spectrum(module, batches, loss, "empirical", method="products")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact"])
@pytest.mark.parametrize("name", ["mlp", "mlp mse", "mlp bce", "sequence", "cnn"])
def test_fisher_by_products_is_fisher_by_gram(name: str, kind: str) -> None:
    this = case(name)
    gram = fisher_spectrum(this.module, this.batches, this.loss, kind, labels=3, seed=5)
    found = fisher_spectrum(this.module, this.batches, this.loss, kind, labels=3, seed=5, method="products", k=this.dim)
    values = torch.zeros(this.dim, dtype=torch.float64)
    values[: len(gram.eigenvalues)] = gram.eigenvalues
    torch.testing.assert_close(found.eigenvalues, values, rtol=1e-7, atol=1e-12)
    assert found.rank_bound is not None
    assert found.rank_bound >= int((gram.eigenvalues > gram.floor).sum())


@pytest.mark.slow
@pytest.mark.parametrize("build", [HessianOperator, GaussNewtonOperator, FisherOperator])
def test_micro_batches_are_the_same_matrix(build: type, monkeypatch: pytest.MonkeyPatch) -> None:
    this = case("mlp", (8, 5))
    extra = {"fisher": Fisher("sampled")} if build is FisherOperator else {}
    objective, layout = Objective(this.module, this.loss), ParameterLayout.of(this.module)
    whole = build(objective, layout, this.batches, method="kept_graph", **extra)
    assert whole.method == "kept_graph"
    monkeypatch.setattr(kept_graph, "free_bytes", lambda device: 2_000)
    small = build(objective, layout, this.batches, **extra)
    assert small.method.startswith("recomputed, micro-batches of ")
    torch.testing.assert_close(small.dense(), whole.dense(), rtol=1e-10, atol=1e-13)
    monkeypatch.setattr(kept_graph, "free_bytes", lambda device: 10**9)
    assert build(objective, layout, this.batches, **extra).method == "kept_graph"
    assert build(objective, layout, this.batches, method="recomputed", **extra).method == "recomputed"


def test_running_out_of_memory_in_a_product_halves_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    this = case("mlp", (8, 6))
    objective, layout = Objective(this.module, this.loss), ParameterLayout.of(this.module)
    operator = HessianOperator(objective, layout, this.batches, method="recomputed")
    expected = operator.dense()
    loss = objective.loss

    def small_device(parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        if len(batch[1]) > 3 and any(leaf.requires_grad for leaf in parameters.values()):
            raise torch.OutOfMemoryError("no room")
        return loss(parameters, batch)

    monkeypatch.setattr(objective, "loss", small_device)
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-10, atol=1e-13)
    assert operator.method == "recomputed, micro-batches of 2"
    with pytest.raises(torch.OutOfMemoryError):
        HessianOperator(objective, layout, this.batches, method="kept_graph")


def test_a_loss_that_is_no_mean_over_samples_is_never_divided() -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 3).double()
    batch = (torch.randn(6, 4).double(), torch.zeros(6))
    objective = Objective(module, lambda f, y: f.var(0).sum())
    operator = HessianOperator(objective, ParameterLayout.of(module), [batch], method="recomputed")
    assert not operator._divide(2)
    assert operator.method == "recomputed"


def test_two_products_with_one_vector_are_the_same_bit_for_bit() -> None:
    this = case("cnn")
    for method in ("kept_graph", "recomputed", "central_differences"):
        layout, objective = ParameterLayout.of(this.module), Objective(this.module, this.loss)
        if method == "central_differences":
            operator = CentralDifferences(objective, layout, this.batches)
        else:
            operator = HessianOperator(objective, layout, this.batches, method=method)
        vector = torch.randn(this.dim, dtype=torch.float64)
        assert torch.equal(operator.matvec(vector), operator.matvec(vector))


class Noisy(nn.Module):
    """Dropout that eval mode does not switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(F.dropout(inputs, 0.5, training=True))


@pytest.mark.parametrize("method", ["kept_graph", "recomputed", "central_differences"])
def test_a_module_that_draws_has_the_matrix_of_one_draw(method: str) -> None:
    module = Noisy().double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 3, (9,))
    found = hessian_spectrum(module, [(x, y)], F.cross_entropy, k=15, method=method)
    assert found.status is Status.ONE_DRAW
    assert found.status.ok

    def one_draw() -> Tensor:
        torch.manual_seed(0)
        return F.cross_entropy(module(x), y)

    right = torch.linalg.eigvalsh(dense_hessian_of(module, one_draw)).flip(0)
    torch.testing.assert_close(found.eigenvalues, right, atol=1e-6, rtol=1e-6)


def test_a_module_that_is_not_deterministic_is_reported() -> None:
    batch = (torch.randn(9, 4), torch.randint(0, 3, (9,)))
    for noisy in (
        hessian_spectrum(Noisy(), [batch], F.cross_entropy),
        fisher_spectrum(Noisy(), [batch], F.cross_entropy),
        fisher_spectrum(Noisy(), [batch], F.cross_entropy, method="products"),
        jacobian_spectrum(Noisy(), [batch]),
        jacobian_spectrum(Noisy(), [batch], method="products", probes=2),
    ):
        assert "not deterministic" in str(noisy.detail["unsteady"])
        assert noisy.status is Status.ONE_DRAW
    steady = hessian_spectrum(Noisy(), [batch], F.cross_entropy, mode="train")
    assert "unsteady" not in steady.detail
    dropout = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3)).train()
    for mode in ("eval", "train"):
        assert "unsteady" not in hessian_spectrum(dropout, [batch], F.cross_entropy, mode=mode).detail
    assert "unsteady" not in fisher_spectrum(dropout, [batch], F.cross_entropy).detail


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        def block(x: Tensor) -> Tensor:
            return torch.tanh(self.first(x))

        if self.reentrant is None:
            return self.second(block(inputs))
        return self.second(checkpoint(block, inputs.requires_grad_(), use_reentrant=self.reentrant))


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", ["auto", "recomputed", "central_differences"])
def test_checkpointing_with_and_without_reentry(reentrant: bool, method: str) -> None:
    torch.manual_seed(0)
    plain = Checkpointed(None).double()
    module = Checkpointed(reentrant).double()
    module.load_state_dict(plain.state_dict())
    batch = (torch.randn(6, 4).double(), torch.randint(0, 3, (6,)))
    expected = hessian_spectrum(plain, [batch], F.cross_entropy, k=43).eigenvalues
    found = hessian_spectrum(module, [batch], F.cross_entropy, k=43, method=method)
    torch.testing.assert_close(found.eigenvalues, expected, rtol=1e-6, atol=1e-8)
    exact = fisher_spectrum(module, [batch], F.cross_entropy, "exact").eigenvalues
    torch.testing.assert_close(exact, fisher_spectrum(plain, [batch], F.cross_entropy, "exact").eigenvalues)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_through_a_float32_copy(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3)).to(dtype)
    batch = (torch.randn(8, 4, dtype=dtype), torch.randint(0, 3, (8,)))
    copy = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3))
    copy.load_state_dict({name: value.float() for name, value in module.state_dict().items()})
    expected = hessian_spectrum(copy, [(batch[0].float(), batch[1])], F.cross_entropy)
    found = hessian_spectrum(module, [batch], F.cross_entropy)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-6, atol=1e-7)
    assert {p.dtype for p in module.parameters()} == {dtype}


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_a_function_marked_once_differentiable_is_never_left_out(matrix: str) -> None:
    """Double backward through it would silently miss its part; differences of gradients do not."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)]
    smooth, once = nn.Sequential(*layers).double(), nn.Sequential(layers[0], OnceTanh(), layers[2]).double()
    batch = (torch.randn(9, 4).double(), torch.randint(0, 3, (9,)))

    def measured(module: nn.Module, **options: str) -> Spectrum:
        if matrix == "hessian":
            return hessian_spectrum(module, [batch], F.cross_entropy, k=5, **options)
        return fisher_spectrum(module, [batch], F.cross_entropy, "exact", method="products", k=5)

    found, expected = measured(once), measured(smooth)
    assert "central_differences" in found.cost.method
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-5, atol=1e-7)
    if matrix == "hessian":
        with pytest.raises(UnsupportedError, match=r"once_differentiable has no.*backward: 1\."):
            measured(once, method="kept_graph")


@pytest.mark.parametrize("kind", ["empirical", "sampled"])
def test_recomputed_fisher_products_weigh_their_samples_once(kind: str) -> None:
    this, weighed = case("mlp"), 0

    class Counting(Objective):
        def sample_weights(self, batch: object) -> Tensor:
            nonlocal weighed
            weighed += 1
            return super().sample_weights(batch)  # type: ignore[arg-type]

    objective = Counting(this.module, this.loss)
    operator = FisherOperator(
        objective, ParameterLayout.of(this.module), this.batches, fisher=Fisher(kind), method="recomputed"
    )
    vector = torch.randn(this.dim, dtype=torch.float64)
    first, before = operator.matvec(vector), weighed
    assert torch.equal(operator.matvec(vector), first)
    assert weighed == before


@pytest.mark.parametrize("build", [CentralDifferences, GaussNewtonDifferences])
def test_measuring_the_rounding_leaves_the_step_as_it_was(build: type) -> None:
    this = case("mlp")
    operator = build(Objective(this.module, this.loss), ParameterLayout.of(this.module), this.batches)
    vector = unit_gaussian(operator.dim, generator(3)).to(operator.dtype)
    before, count = operator.matvec(vector), operator.products
    assumed = operator.rounding
    operator.measure_rounding(generator(4))
    assert operator.products - count == 4
    assert operator.rounding >= assumed
    assert torch.equal(operator.matvec(vector), before)


def test_the_error_of_a_difference_is_part_of_every_residual() -> None:
    this = case("mlp")
    module, batches = this.module.float(), [(inputs.float(), targets) for inputs, targets in this.batches]
    found = hessian_spectrum(module, batches, this.loss, k=3, method="central_differences")
    size = float(found.residuals[0])
    assert size > 0
    torch.testing.assert_close(found.residuals, torch.full_like(found.residuals, size))
    assert found.largest_residual == found.smallest_residual == pytest.approx(size, rel=1e-9)
    assert size >= 1e-7 * float(found.eigenvalues.abs().max())
