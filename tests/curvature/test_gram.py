"""Gram matrices of per-sample gradients against explicit ones, whatever path serves a layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.cases import NAMES, Batch, Case, case, dense_gauss_newton, gradients
from torch import Tensor, nn

from lightning_sloppy import fisher_spectrum
from lightning_sloppy.curvature.cotangents import Fisher, Kind, pulled_cotangents
from lightning_sloppy.curvature.double_backward import double_backward
from lightning_sloppy.curvature.fisher_spectra import fisher_of
from lightning_sloppy.curvature.gram.matrix import Gram, gram_of
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.curvature.spectra import Solve
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.vectors import generator

PATHS = {
    "linear regression": "linear",
    "in-place relu": "linear linear linear linear",
    "cnn": "conv conv norm norm linear linear",
    "tied": "linear linear linear linear linear",
    "elsewhere": "linear linear linear linear",
    # Only the layer whose rows are the samples in their own order is served without vmap.
    "flipped": "vmap vmap linear linear",
    "class rows": "vmap vmap vmap",
    "gru": "loop loop loop loop linear linear",
    "tokens": "embedding norm norm linear linear",
    "squeezed": "conv conv linear linear",
    "partly frozen": "unused linear",
}


def fisher_gram(objective: Objective, batches: list[Batch], kind: Kind, seed: int = 0) -> Gram:
    """The Gram matrix divided by the weight of the probe."""
    layout = ParameterLayout.of(objective.module)
    leaves = {name: leaf.detach() for name, leaf in layout.leaves(objective.module, objective.dtype).items()}
    with double_backward(objective.module):
        pulled = pulled_cotangents(objective, leaves, batches, Fisher(kind, seed=seed))
        gram = gram_of(objective, layout, pulled, batches)
    return replace(gram, matrix=gram.matrix / sum(map(objective.batch_weight, batches)))


def gram_matrix(this: Case, kind: Kind = "empirical", seed: int = 0) -> Tensor:
    return fisher_gram(Objective(this.module, this.loss), this.batches, kind, seed).matrix


def top(matrix: Tensor, count: int) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)[:count]


@pytest.mark.parametrize("name", NAMES)
def test_empirical_gram_is_that_of_explicit_gradients(name: str) -> None:
    this = case(name)
    rows = gradients(this)
    objective = Objective(this.module, this.loss)
    gram = fisher_gram(objective, this.batches, "empirical")
    shares = torch.cat([objective.sample_weights(batch) for batch in this.batches])
    shares = shares / shares.sum()
    torch.testing.assert_close(gram.matrix, rows @ rows.T * torch.outer(shares, shares).sqrt(), atol=1e-12, rtol=1e-8)
    if name in PATHS:
        assert " ".join(gram.paths.values()) == PATHS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_exact_gram_has_the_eigenvalues_of_the_gauss_newton_matrix(name: str) -> None:
    this = case(name)
    gram = gram_matrix(this, "exact")
    expected = dense_gauss_newton(this)
    count = min(len(gram), len(expected))
    torch.testing.assert_close(top(gram, count), top(expected, count), atol=1e-10, rtol=1e-8)


def test_softmax_regression_has_a_null_space_of_every_feature() -> None:
    """Adding one vector to the weights of all classes changes nothing: d + 1 zeros with the bias."""
    this = case("softmax regression", (7, 5))
    values = top(gram_matrix(this, "exact"), this.dim)
    assert int((values < 1e-12).sum()) == 5
    assert float(values[:10].min()) > 1e-4


@pytest.mark.parametrize("outputs", [1, 3])
def test_empirical_convention_of_the_mean_squared_error(outputs: int) -> None:
    """The gradient is that of each sample's mean over its C outputs: 4/C^2 in the matrix, where the Hessian has 2/C."""
    module = nn.Linear(1, outputs, bias=False).double()
    nn.init.zeros_(module.weight)
    targets = torch.ones(5, outputs, dtype=torch.float64)
    this = Case(module, F.mse_loss, [(torch.ones(5, 1, dtype=torch.float64), targets)])
    assert float(gram_matrix(this).trace()) == pytest.approx(outputs * 4 / outputs**2)
    assert float(gram_matrix(this, "exact").trace()) == pytest.approx(2.0)


def test_mean_and_not_the_sum_over_uneven_batches() -> None:
    joined = case("mlp mse")
    together = Case(joined.module, joined.loss, [tuple(map(torch.cat, zip(*joined.batches, strict=True)))])
    torch.testing.assert_close(gram_matrix(together), gram_matrix(joined), atol=1e-14, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "mlp mse", "mlp bce", "sequence"])
def test_sampled_trace_is_the_exact_one_on_average(name: str) -> None:
    this = case(name)
    exact = float(gram_matrix(this, "exact").trace())
    draws = torch.stack([gram_matrix(this, "sampled", seed).trace() for seed in range(150)])
    error = float(draws.std()) / 150**0.5
    assert abs(float(draws.mean()) - exact) < 4 * error < 0.5 * exact


def test_sampled_matrix_depends_on_the_seed_alone() -> None:
    this = case("mlp")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = (gram_matrix(this, "sampled", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_chunks_of_vmap_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gram_matrix(case("flipped"))
    monkeypatch.setattr("lightning_sloppy.curvature.gram.per_sample.VMAP_CHUNK", 2)
    torch.testing.assert_close(gram_matrix(case("flipped")), whole, atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("broken", ["inputs", "weights"])
@pytest.mark.parametrize("kind", ["empirical", "sampled", "exact"])
def test_values_that_are_not_finite_come_out_as_such(kind: Kind, broken: str) -> None:
    this = case("mlp")
    if broken == "inputs":
        this.batches[1][0][0, 0] = torch.nan
    else:
        with torch.no_grad():
            this.module[2].weight.fill_(torch.inf)
    assert not bool(torch.isfinite(gram_matrix(this, kind)).all())


class Trained(nn.Module):
    """In train mode: dropout, and a recurrent layer that only the loop can serve."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.cell = nn.GRU(2, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.cell(self.drop(x))[0][:, -1]))


def test_dropout_in_train_mode_is_one_function_for_all_layers() -> None:
    torch.manual_seed(3)
    module = Trained().double()
    batches = [(torch.randn(4, 4, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))]
    objective = Objective(module, F.cross_entropy, seed=5)
    gram = fisher_gram(objective, batches, "empirical")
    assert " ".join(gram.paths.values()) == "loop loop loop loop linear linear"
    torch.manual_seed(5)
    rows = gradients(Case(module, F.cross_entropy, batches))
    torch.testing.assert_close(gram.matrix, rows @ rows.T / 4, atol=1e-12, rtol=1e-8)


def test_batch_statistics_are_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    batches = [(torch.randn(5, 4), torch.zeros(5, dtype=torch.long))]
    with pytest.raises(ConfigurationError, match=r"Layer '1' normalises by the statistics of the batch.*mode='eval'"):
        gram_matrix(Case(module, F.cross_entropy, batches))
    gram_matrix(Case(module.eval(), F.cross_entropy, batches))
    without = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(ConfigurationError, match="track_running_stats=True"):
        gram_matrix(Case(without, F.cross_entropy, batches))


def test_too_many_rows_say_what_to_lower() -> None:
    objective = Objective(nn.Linear(2, 10), F.cross_entropy)
    batches = [(torch.zeros(1000, 2), torch.zeros(1000, dtype=torch.long))]
    with pytest.raises(ConfigurationError, match=r"10,000 rows, above 8,192; use fewer samples"):
        fisher_of(objective, batches, fisher=Fisher("exact"), solve=Solve(k=1), rng=generator(0), method="gram")


def test_outputs_must_have_a_row_for_each_sample() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0))
    batches = [(torch.zeros(2, 4), torch.zeros(6))]
    with pytest.raises(ConfigurationError, match=r"one row for each of the 2 samples, .*forward returned \(6,\)"):
        gram_matrix(Case(module, F.mse_loss, batches))


def test_a_whole_training_step_has_no_outputs() -> None:
    objective = Objective(nn.Linear(4, 3), None)
    batches = [(torch.zeros(2, 4), torch.zeros(2))]
    with pytest.raises(UnsupportedError, match="pass loss_fn="):
        fisher_of(objective, batches, fisher=Fisher(), solve=Solve(k=1), rng=generator(0))


def test_sampling_from_an_unknown_loss_names_the_alternatives() -> None:
    this = case("mlp mse")
    huber = Case(this.module, F.huber_loss, this.batches)
    with pytest.raises(ConfigurationError, match="kind='empirical' or 'exact'"):
        gram_matrix(huber, "sampled")
    gram_matrix(huber, "exact")


class Parts(nn.Module):
    """What a loss uses, and states beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"mean": self.head(hidden), "hidden": hidden}


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_outputs_that_the_loss_does_not_use_play_no_part(kind: str) -> None:
    torch.manual_seed(0)
    module, inputs, targets = Parts().double(), torch.randn(9, 4).double(), torch.randn(9, 2).double()
    found = fisher_spectrum(module, [(inputs, targets)], lambda out, y: F.mse_loss(out["mean"], y), kind=kind)
    alone = nn.Sequential(module.body, nn.Tanh(), module.head)
    right = fisher_spectrum(alone, [(inputs, targets)], F.mse_loss, kind=kind)
    torch.testing.assert_close(found.eigenvalues, right.eigenvalues)
