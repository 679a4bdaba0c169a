from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_sloppy.curvature.cotangents import Fisher, Kind, checked_fisher, checked_kind, cotangents
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.weights import known_loss, term_weights

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, tuple[Loss, tuple[int, ...], Tensor]] = {
    "cross-entropy": (F.cross_entropy, (3,), torch.tensor([1])),
    "cross-entropy module": (nn.CrossEntropyLoss(), (3,), torch.tensor([1])),
    "cross-entropy of a sequence": (F.cross_entropy, (3, 2), torch.tensor([[1, 0]])),
    "binary": (F.binary_cross_entropy_with_logits, (2,), torch.tensor([[1.0, 0.0]]).double()),
    "binary with heavy ones": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([4.0, 0.5]).double()),
        (2,),
        torch.tensor([[1.0, 0.0]]).double(),
    ),
    "binary module": (nn.BCEWithLogitsLoss(), (1,), torch.tensor([[1.0]]).double()),
    "squared error": (F.mse_loss, (3,), torch.tensor([[0.2, 1.0, -1.0]]).double()),
    "squared error of numbers": (nn.MSELoss(), (), torch.tensor([0.3]).double()),
}


def drawn(name: str, count: int) -> tuple[Loss, Tensor, Tensor]:
    """The same outputs and target many times over."""
    loss, shape, target = LOSSES[name]
    output = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return loss, output.expand(count, *shape), target.expand(count, *target.shape[1:])


def pulled(kind: Kind, loss: Loss, outputs: Tensor, targets: Tensor | None) -> tuple[Tensor, float]:
    """Cotangents, and the weight of a sample: its number of tokens for cross-entropy, else 1."""
    objective = Objective(nn.Linear(1, 1).double(), loss)
    batch = (outputs, targets)
    rows = outputs.reshape(len(outputs), -1)
    return cotangents(objective, Fisher(kind), rows, outputs, batch), float(objective.sample_weights(batch)[0])


def output_hessian(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    width = output.numel()
    return torch.autograd.functional.hessian(lambda f: loss(f, target), output).reshape(width, width)


@pytest.mark.parametrize("name", LOSSES)
def test_exact_cotangents_factorise_the_hessian_of_the_loss(name: str) -> None:
    loss, outputs, targets = drawn(name, 4)
    factors, weight = pulled("exact", loss, outputs, targets)
    width = outputs[0].numel()
    assert factors.shape == (width, len(outputs), width)
    expected = output_hessian(loss, outputs[:1], targets[:1])
    for sample in range(4):
        rows = factors[:, sample]
        torch.testing.assert_close(rows.T @ rows, weight * expected, atol=1e-12, rtol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_sampled_cotangents_have_the_hessian_as_second_moment(name: str) -> None:
    """Also where a sample's loss is the mean over several outputs or positions."""
    count = 4_000
    loss, outputs, targets = drawn(name, count)
    found, weight = pulled("sampled", loss, outputs, targets)
    rows = found.reshape(count, -1)
    products = rows.unsqueeze(2) * rows.unsqueeze(1)
    error = products.std(0) / count**0.5
    difference = products.mean(0) - weight * output_hessian(loss, outputs[:1], targets[:1])
    assert bool((difference.abs() <= 5 * error + 1e-12).all())
    assert bool((error.diagonal() < 0.1 * products.mean(0).diagonal()).all())


@pytest.mark.parametrize("name", LOSSES)
def test_empirical_cotangents_are_gradients_of_each_samples_own_loss(name: str) -> None:
    loss, outputs, targets = drawn(name, 3)
    (rows,), weight = pulled("empirical", loss, outputs, targets)
    own = torch.autograd.functional.jacobian(lambda f: loss(f, targets[:1]), outputs[:1].clone())
    torch.testing.assert_close(rows, weight**0.5 * own.reshape(1, -1).expand_as(rows), atol=1e-14, rtol=1e-10)


def test_negative_curvature_of_a_loss_is_dropped() -> None:
    outputs = torch.tensor([[0.5, 2.0]]).double()
    factors, _ = pulled("exact", lambda f, _: (f**4 / 12 - f**2 / 2).sum(1).mean(), outputs, None)
    rows = factors[:, 0]
    # The second derivative is f^2 - 1: below zero for the first output.
    torch.testing.assert_close(rows.T @ rows, torch.tensor([[0.0, 0.0], [0.0, 3.0]]).double())


def test_linear_loss_has_no_curvature() -> None:
    factors, _ = pulled("exact", lambda f, _: f.mean(), torch.ones(2, 3).double(), None)
    assert factors.shape == (3, 2, 3)
    assert float(factors.abs().max()) == 0.0


def test_unknown_kind_names_the_known_ones() -> None:
    assert checked_kind("exact") == "exact"
    with pytest.raises(ConfigurationError, match=r"kind='true'.*empirical, sampled, exact"):
        checked_kind("true")


def test_choices_out_of_range_are_named() -> None:
    with pytest.raises(ConfigurationError, match="labels=0"):
        checked_fisher("sampled", labels=0)
    with pytest.raises(ConfigurationError, match="likelihood='poisson'"):
        checked_fisher("sampled", likelihood="poisson")


def test_a_loss_of_ones_own_is_recognised_or_says_its_likelihood() -> None:
    module = nn.Linear(4, 3).double()
    inputs, targets = torch.randn(6, 4).double(), torch.randint(0, 3, (6,))
    outputs = module(inputs).detach()
    right = cotangents(Objective(module, F.cross_entropy), Fisher("sampled", 5), outputs, outputs, (inputs, targets))

    def of(loss: Callable[[Tensor, Tensor], Tensor], *likelihood: str) -> Tensor:
        fisher = Fisher("sampled", 5, *likelihood)  # type: ignore[arg-type]
        return cotangents(Objective(module, loss), fisher, outputs, outputs, (inputs, targets))

    torch.testing.assert_close(of(lambda f, y: F.nll_loss(f.log_softmax(1), y)), right)
    with pytest.raises(ConfigurationError, match="pass likelihood="):
        of(lambda f, y: F.cross_entropy(2 * f, y))
    torch.testing.assert_close(of(lambda f, y: F.cross_entropy(2 * f, y), "categorical"), right)


def test_log_probabilities_have_no_exact_kind() -> None:
    objective = Objective(nn.Linear(1, 1).double(), F.nll_loss)
    outputs = torch.randn(6, 3).double().log_softmax(1)
    with pytest.raises(ConfigurationError, match="return scores, and use cross_entropy"):
        cotangents(objective, Fisher("exact"), outputs, outputs, (outputs, torch.zeros(6, dtype=torch.long)))


def test_the_weight_of_positive_targets_counts_for_the_ones_alone() -> None:
    """Weights times plain terms add up to what torch makes of ``pos_weight``, for any mixture of zeros and ones."""
    rng = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 3, dtype=torch.float64, generator=rng)
    targets = torch.randint(2, (6, 3), generator=rng).double()
    heavy = torch.tensor([4.0, 0.5, 1.0], dtype=torch.float64)
    plain = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    for loss in (
        nn.BCEWithLogitsLoss(pos_weight=heavy),
        nn.BCEWithLogitsLoss(pos_weight=heavy, weight=torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)),
        partial(F.binary_cross_entropy_with_logits, pos_weight=heavy),
    ):
        weights = term_weights(known_loss(loss), outputs, targets)
        torch.testing.assert_close((weights * plain).sum() / 6, loss(outputs, targets))
