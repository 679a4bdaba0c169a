"""From a spectrum to a certificate on a softmax problem small enough to know its truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from support.softmax import CLASSES, FEATURES, TRAIN, Problem, softmax_problem
from torch import Tensor

from lightning_sloppy.bounds import kl_inverse
from lightning_sloppy.bounds.relative_entropy import log_xi
from lightning_sloppy.certificate import Certificate
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors import Evidence, certify
from lightning_sloppy.posteriors.drawing import draw_and_judge
from lightning_sloppy.posteriors.gaussian import PRIOR_GRID, kl_parts, log_density_ratio, mixture_log_ratio
from lightning_sloppy.posteriors.posterior import PosteriorFamily, posterior_family
from lightning_sloppy.posteriors.posterior_search import TAU_GRID, Choice, _Pilot, member, select_posterior


@pytest.fixture(scope="module")
def problem() -> Problem:
    return softmax_problem(random_labels=False)


@pytest.fixture(scope="module")
def arguments(problem: Problem) -> dict[str, object]:
    return {
        "weights": problem.weights,
        "prior_mean": torch.zeros_like(problem.weights),
        "eigenvalues": problem.eigenvalues,
        "eigenvectors": problem.eigenvectors,
        "trace": problem.trace,
        "n": TRAIN,
        "delta": 0.05,
        "evaluation": 1,
        "risk": problem.risk,
    }


def family_of(problem: Problem) -> PosteriorFamily:
    return posterior_family(
        problem.weights,
        torch.zeros_like(problem.weights),
        eigenvalues=problem.eigenvalues,
        eigenvectors=problem.eigenvectors,
        trace=problem.trace,
    )


def certified(**given: object) -> Certificate:
    """``certify`` with its evidence among the other arguments."""
    names = {field.name for field in fields(Evidence)}
    return certify(
        evidence_of(given), **{name: value for name, value in given.items() if name not in names}
    ).certificate


def evidence_of(given: dict[str, object], **more: object) -> Evidence:
    """What of the arguments is evidence."""
    names = {field.name for field in fields(Evidence)}
    return Evidence(**{name: value for name, value in given.items() if name in names}, **more)


def recorded(
    risk: Callable[[Tensor, Tensor], int],
) -> tuple[Callable[[Tensor, Tensor], int], list[tuple[Tensor, Tensor]]]:
    calls: list[tuple[Tensor, Tensor]] = []

    def recording(flat: Tensor, indices: Tensor) -> int:
        calls.append((flat, indices))
        return risk(flat, indices)

    return recording, calls


@pytest.mark.parametrize("risk_samples", [10_000, 800])
@pytest.mark.parametrize("seed", [0, 1])
def test_non_vacuous_and_above_the_true_error(
    problem: Problem, arguments: dict[str, object], seed: int, risk_samples: int
) -> None:
    risk, calls = recorded(problem.risk)
    certificate = certified(
        **{**arguments, "risk": risk}, generator=torch.Generator().manual_seed(seed), risk_samples=risk_samples
    )
    pair = [flat for flat, _ in calls[-2:]]
    true = sum(problem.true_error(flat) for flat in pair) / 2
    assert true < certificate.value < 0.35  # chance is .67
    assert certificate.empirical_risk <= certificate.risk_upper <= certificate.value
    assert certificate.valid
    assert certificate.reasons == ()
    assert certificate.log_ratio < certificate.kl_displacement + certificate.kl_covariance + math.log(100) + 20


def test_every_field_is_filled(arguments: dict[str, object]) -> None:
    certificate = certified(
        **{**arguments, "evaluation": 2},
        generator=torch.Generator().manual_seed(0),
        risk_samples=801,
        conditions=("independent examples",),
        prior="zeros",
    )
    assert (certificate.kind, certificate.certified_predictor) == ("pac_bayes_pair", "pair_of_draws")
    assert (certificate.n, certificate.risk_samples, certificate.rank) == (TRAIN, 800, 4)
    assert certificate.delta_pac == pytest.approx(0.03 * 6 / (math.pi**2 * 4))
    assert certificate.delta_risk == pytest.approx(0.01 * 6 / (math.pi**2 * 4))
    assert certificate.epsilon in PRIOR_GRID
    assert certificate.tau / TRAIN in TAU_GRID
    assert certificate.log_xi == log_xi(TRAIN)
    assert (certificate.evaluation, certificate.prior) == (2, "zeros")
    assert certificate.conditions[0] == "independent examples"
    risk_upper = kl_inverse(certificate.empirical_risk, -math.log(certificate.delta_risk) / 800)
    assert certificate.risk_upper == risk_upper > certificate.empirical_risk
    budget = (certificate.log_ratio + certificate.log_xi - math.log(certificate.delta_pac)) / TRAIN
    assert certificate.value == pytest.approx(kl_inverse(risk_upper, budget), rel=1e-12)


def test_what_chose_the_posterior_is_not_drawn_again(problem: Problem, arguments: dict[str, object]) -> None:
    risk, calls = recorded(problem.risk)
    certified(**{**arguments, "risk": risk}, generator=torch.Generator().manual_seed(0))
    steps = [(plus - minus).double() for (plus, _), (minus, _) in zip(calls[::2], calls[1::2], strict=True)]
    similar = [float(torch.cosine_similarity(step, steps[-1], dim=0)) for step in steps[:-1]]
    assert len(similar) > 8
    assert max(map(abs, similar)) < 0.99


def test_the_pair_sees_all_examples_when_they_are_few(problem: Problem, arguments: dict[str, object]) -> None:
    risk, calls = recorded(problem.risk)
    certificate = certified(**{**arguments, "risk": risk}, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(indices, torch.arange(TRAIN)) for _, indices in calls[-2:])
    assert certificate.risk_upper == certificate.empirical_risk
    assert certificate.delta_risk == 0.0


def test_subsamples_are_fresh_disjoint_in_themselves_and_shared_out(
    problem: Problem, arguments: dict[str, object]
) -> None:
    risk, calls = recorded(problem.risk)
    certified(**{**arguments, "risk": risk}, generator=torch.Generator().manual_seed(0), risk_samples=800)
    first, second = (indices for _, indices in calls[-2:])
    assert len(first.unique()) == len(second.unique()) == 400
    assert not torch.equal(first, second)
    pilot = [indices for _, indices in calls[:-2]]
    assert all(not torch.equal(indices, first[: len(indices)]) for indices in pilot)
    assert sum(len(indices) for indices in pilot) <= 20 * 1_000


def test_same_generator_same_certificate_and_no_global_randomness(arguments: dict[str, object]) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = (certified(**arguments, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_labels_are_never_certified_below_chance(seed: int) -> None:
    noise = softmax_problem(random_labels=True)
    certificate = certified(
        weights=noise.weights,
        prior_mean=torch.zeros_like(noise.weights),
        eigenvalues=noise.eigenvalues,
        eigenvectors=noise.eigenvectors,
        trace=noise.trace,
        n=TRAIN,
        delta=0.05,
        evaluation=1,
        risk=noise.risk,
        generator=torch.Generator().manual_seed(seed),
    )
    assert certificate.value >= 1 - 1 / CLASSES


def test_an_unknown_trace_and_no_eigenpairs_still_give_a_bound(problem: Problem, arguments: dict[str, object]) -> None:
    dim = problem.weights.numel()
    bare = {**arguments, "trace": None, "eigenvalues": torch.zeros(0), "eigenvectors": torch.zeros(dim, 0)}
    certificate = certified(**bare, generator=torch.Generator().manual_seed(0))
    assert certificate.rank == 0
    assert certificate.value < 0.5


def test_parts_without_a_bound(arguments: dict[str, object]) -> None:
    certificate = certified(
        **arguments, generator=torch.Generator().manual_seed(0), reasons=("BatchNorm statistics are not in the prior.",)
    )
    assert not certificate.valid
    assert math.isnan(certificate.value)
    assert math.isnan(certificate.risk_upper)
    assert certificate.reasons == ("BatchNorm statistics are not in the prior.",)
    assert (certificate.delta_pac, certificate.delta_risk) == (0.0, 0.0)
    with_bound = certified(**arguments, generator=torch.Generator().manual_seed(0))
    for name in ("empirical_risk", "log_ratio", "kl_displacement", "kl_covariance", "epsilon", "tau", "mean_scale"):
        assert getattr(certificate, name) == getattr(with_bound, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.5}, "delta"),
        ({"evaluation": 0}, "numbered from 1"),
        ({"n": 0}, "n >= 1"),
        ({"risk_samples": 1}, "risk_samples >= 2"),
        ({"weights": torch.zeros(15, dtype=torch.float16)}, "float32"),
        ({"prior_mean": torch.zeros(3)}, "flatten"),
        ({"risk": lambda flat, indices: -1}, "number of mistakes"),
        ({"risk": lambda flat, indices: len(indices) + 1}, "number of mistakes"),
    ],
)
def test_bad_input_is_told_what_to_do(arguments: dict[str, object], change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        certified(**{**arguments, **change}, generator=torch.Generator().manual_seed(0))


def test_the_search_keeps_its_budget_and_moves_on_from_its_first_look(problem: Problem) -> None:
    family = family_of(problem)
    penalty = log_xi(TRAIN) - math.log(0.03)

    def search(evaluations: int) -> tuple[int, float]:
        risk, calls = recorded(problem.risk)
        choice = select_posterior(
            family,
            n=TRAIN,
            log_penalty=penalty,
            risk=risk,
            generator=torch.Generator().manual_seed(0),
            max_evaluations=evaluations,
        )
        return sum(len(indices) for _, indices in calls), choice.epsilon

    assert search(1)[0] == 1_000
    forward_passes, epsilon = search(20)
    assert forward_passes <= 20_000
    assert epsilon != search(1)[1]


def test_one_example_is_bounded_by_one(problem: Problem, arguments: dict[str, object]) -> None:
    certificate = certified(**{**arguments, "n": 1}, generator=torch.Generator().manual_seed(0))
    assert 0.0 < certificate.value <= 1.0
    evidence = Evidence(
        **{name: value for name, value in arguments.items() if name not in ("delta", "evaluation", "n")},
        n=1,
        risk_samples=10,
        pilot_samples=10,
    )
    judged = draw_and_judge(evidence, delta_pac=0.03, generator=torch.Generator().manual_seed(0))
    assert judged.exact


def test_at_the_prior_the_widest_posterior_that_costs_little_is_taken(problem: Problem) -> None:
    family = posterior_family(
        problem.weights, problem.weights, eigenvalues=torch.zeros(0), eigenvectors=torch.zeros(FEATURES * CLASSES, 0)
    )
    choice = select_posterior(
        family, n=TRAIN, log_penalty=9.0, risk=problem.risk, generator=torch.Generator().manual_seed(0)
    )
    errors = []
    for epsilon in (choice.epsilon, choice.epsilon / 10, PRIOR_GRID[-1]):
        noise = torch.randn(20, len(problem.weights), generator=torch.Generator().manual_seed(1)) / epsilon**0.5
        errors.append(sum(problem.risk(problem.weights + row, torch.arange(TRAIN)) for row in noise) / 20 / TRAIN)
    own, wider, narrowest = errors
    assert own < 1.5 * narrowest + 0.01
    assert wider > own + 0.01


def test_a_search_that_goes_on_is_as_good_and_cheaper(problem: Problem) -> None:
    family = family_of(problem)
    looks = []
    choices = []
    for start in (None, "first"):
        risk, calls = recorded(problem.risk)
        choices.append(
            select_posterior(
                family,
                n=TRAIN,
                log_penalty=9.0,
                risk=risk,
                generator=torch.Generator().manual_seed(0),
                start=choices[0] if start else None,
            )
        )
        looks.append(len(calls))
    assert looks[1] < 0.75 * looks[0]
    limits = []
    for choice in choices:
        posterior = member(family, choice, TRAIN)
        noise = torch.randn(50, posterior.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        networks = [(posterior.mean + posterior.root_covariance_times(row)).float() for row in noise]
        risk = sum(problem.risk(network, torch.arange(TRAIN)) for network in networks) / 50 / TRAIN
        nats = sum(kl_parts(posterior, family.prior_mean, choice.epsilon)) + 9.0
        limits.append(kl_inverse(risk, nats / TRAIN))
    assert limits[1] < limits[0] + 0.02


def test_a_choice_can_be_kept_without_a_look(arguments: dict[str, object], problem: Problem) -> None:
    kept = Choice(40, tau_index=2, scale_index=4, shrink=True)
    for start, looks in ((kept, 2), (None, 20)):
        risk, calls = recorded(problem.risk)
        generator = torch.Generator().manual_seed(0)
        evidence = evidence_of({**arguments, "risk": risk}, start=start, search=False)
        found = certify(evidence, delta=0.05, evaluation=1, generator=generator)
        assert len(calls) >= looks
        if start is not None:
            assert len(calls) == looks
            seen = found.certificate
            assert (seen.epsilon, seen.tau, seen.mean_scale) == (kept.epsilon, kept.tau(TRAIN), kept.mean_scale)
            assert found.choice == kept


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.3])
def test_the_basis_is_orthonormal_however_the_vectors_were(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(30, 4, generator=generator, dtype=torch.float64)).Q
    vectors = vectors + size * torch.randn(30, 4, generator=generator, dtype=torch.float64)
    family = posterior_family(torch.ones(30), torch.zeros(30), eigenvalues=torch.ones(4), eigenvectors=vectors)
    torch.testing.assert_close(family.vectors.T @ family.vectors, torch.eye(4).double(), rtol=0, atol=1e-12)
    # The same space.
    outside = vectors - family.vectors @ (family.vectors.T @ vectors)
    assert float(outside.abs().max()) < 1e-12


@pytest.mark.parametrize("risk_samples", [10_000, 800])
def test_complexity_and_error_are_those_of_both_draws(
    problem: Problem, arguments: dict[str, object], risk_samples: int
) -> None:
    risk, calls = recorded(problem.risk)
    found = certify(
        evidence_of({**arguments, "risk": risk}, risk_samples=risk_samples),
        delta=0.05,
        evaluation=1,
        generator=torch.Generator().manual_seed(0),
    )
    (first, seen), (second, also_seen) = calls[-2:]
    posterior = member(family_of(problem), found.choice, TRAIN)
    ratios = [
        mixture_log_ratio(log_density_ratio(posterior, torch.zeros_like(problem.weights), PRIOR_GRID, drawn))
        for drawn in (first, second)
    ]
    errors = [problem.risk(first, seen) / len(seen), problem.risk(second, also_seen) / len(also_seen)]
    assert abs(ratios[0] - ratios[1]) > 0.01
    assert errors[0] != errors[1]
    assert found.certificate.log_ratio == pytest.approx(sum(ratios) / 2, rel=1e-9)
    assert found.certificate.empirical_risk == pytest.approx(sum(errors) / 2, rel=1e-12)
    budget = found.certificate.log_ratio + log_xi(TRAIN) - math.log(found.certificate.delta_pac)
    upper = found.certificate.risk_upper if risk_samples < TRAIN else sum(errors) / 2
    assert found.certificate.value == pytest.approx(kl_inverse(upper, max(budget, 0.0) / TRAIN), abs=1e-12)


def test_the_pilot_pays_for_the_choice_of_the_prior(problem: Problem) -> None:
    """It estimates the bound that will be paid: with the ln 100 nats of the mixture beside the KL."""
    pilot = _Pilot(
        family=family_of(problem),
        n=TRAIN,
        log_penalty=7.0,
        risk=problem.risk,
        noises=(torch.randn(FEATURES * CLASSES, generator=torch.Generator().manual_seed(1)),),
        indices=torch.arange(400),
        dtype=torch.float32,
        budget=50,
    )
    for choice in (Choice(60), Choice(45, tau_index=5, scale_index=5)):
        posterior = member(family_of(problem), choice, TRAIN)
        kl = sum(kl_parts(posterior, torch.zeros_like(problem.weights), choice.epsilon))
        risk = pilot._risk(choice)
        assert pilot.bound(choice) == pytest.approx(kl_inverse(risk, (kl + math.log(100) + 7.0) / TRAIN), rel=1e-5)
        pilot.values.clear()
