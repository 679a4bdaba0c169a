"""What README and user guide promise, with the tests that fail when it is broken; and the defaults they name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_sloppy import (
    EffectiveDimensionEarlyStopping,
    FinalCertificate,
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    JacobianSpectrum,
    LearningPlan,
    PACBayesBound,
    Schedule,
    SloppyMonitor,
    fisher_spectrum,
    hessian_spectrum,
    input_spectrum,
    jacobian_spectrum,
)

ROOT = Path(__file__).parents[2]

PROMISES = {
    "a direction that holds a thousandth of the trace counts one half": (
        "measures/test_relative_dimension.py::test_of_a_flat_spectrum_it_is_the_closed_form",
        "callbacks/test_live_values.py::test_jacobian",
    ),
    "the eigenvalues of the correlation matrix of the training inputs": ("callbacks/test_live_values.py::test_inputs",),
    "the spectra of the Jacobian of the outputs and of the Fisher matrix are exact on the probe samples": (
        "callbacks/test_jacobian_spectrum.py::test_live_values_are_those_of_the_function",
        "test_analysis.py::test_empirical_fisher_has_all_eigenvalues_and_those_of_half_the_samples",
    ),
    "a bound comes with its conditions, or there is a reason why there is none": (
        "callbacks/test_pac_bayes_bound.py::test_the_bound_is_what_its_parts_say_and_lies_above_the_truth",
        "callbacks/test_refusals_of_bounds.py::test_a_run_that_must_be_refused_is_refused_for_this_reason_alone",
    ),
    "two networks are saved with their certificates": (
        "callbacks/test_final_certificate.py::test_networks_and_certificates_are_files_and_hold",
        "callbacks/test_final_certificate.py::test_what_was_judged_is_what_was_saved",
    ),
    "training stops when the hold-out loss has not improved and the effective dimension has settled": (
        "callbacks/test_early_stopping.py::"
        "test_with_hold_out_samples_it_stops_when_their_loss_is_old_and_the_dimension_settled",
    ),
    "without hold-out samples it stops when the entropy rank has doubled": (
        "callbacks/test_early_stopping.py::test_without_hold_out_samples_it_stops_when_the_entropy_rank_has_grown",
    ),
    "the trained weights are bitwise those of a run without the callbacks": (
        "contract/test_features_of_the_host.py::test_everything_is_bitwise_the_same",
        "contract/test_training_is_sacred.py::test_training_is_bitwise_the_same",
    ),
    "a summary is printed at the end": ("reporting/test_summary.py::test_the_whole_story_in_words_and_numbers",),
    "each callback of the monitor can be replaced, or disabled with None": (
        "callbacks/test_several_instruments.py::test_the_monitor_passes_on_what_a_part_was_not_given",
        "callbacks/test_life_in_a_trainer.py::test_a_monitor_without_spectra_of_the_model_has_no_bound",
    ),
    "the Jacobian needs no labels": ("callbacks/test_jacobian_spectrum.py::test_it_needs_no_loss_and_picks_outputs",),
    "the effective dimension of the Gauss-Newton part is exact on few samples, or has both errors with probes=4": (
        "callbacks/test_gauss_newton_part.py::test_by_default_it_is_exact_on_a_small_probe",
        "callbacks/test_gauss_newton_part.py::test_the_quadrature_goes_on_until_the_brackets_are_narrow",
    ),
    "Fisher: the effective dimension at three scales and on N/2 samples": (
        "callbacks/test_live_values.py::test_fisher",
    ),
    "the bound follows the Hessian, or the Fisher matrix where there is no Hessian": (
        "callbacks/test_pac_bayes_bound.py::test_without_a_hessian_it_follows_the_fisher_matrix",
        "callbacks/test_pac_bayes_bound.py::test_beside_a_hessian_the_fisher_matrix_makes_no_vectors",
    ),
    "the bound, its terms, and a hold-out bound next to it": (
        "callbacks/test_evaluations_of_the_bound.py::test_the_parts_of_every_bound_by_hand",
        "callbacks/test_refusals_of_bounds.py::test_the_hold_out_bound_counts_the_errors_of_the_model_itself",
    ),
    "a split prior is certified on samples that training never saw": (
        "callbacks/test_final_certificate.py::test_a_split_prior_certifies_on_what_training_never_saw",
    ),
    "DistanceToInit adds gamma times the squared distance to the loss": (
        "callbacks/test_distance_to_init.py::test_it_is_the_term_in_the_loss",
    ),
    "two callbacks of the same class get different names in tags and checkpoints": (
        "callbacks/test_several_instruments.py::test_two_fisher_spectra_have_a_name_and_a_state_each",
    ),
    "the base class adds curves, charts, CSV columns, the summary and the schedule": (
        "callbacks/test_instrument.py::test_a_minimal_instrument_has_all_that_the_others_have",
    ),
    "the first and the last measurement always happen": (
        "callbacks/test_early_stopping.py::"
        "test_what_is_watched_is_measured_at_every_step_of_its_schedule_whatever_it_costs",
    ),
    "all measuring together stays below max_overhead of the training time, after grace_seconds": (
        "callbacks/test_schedule_and_budget.py::test_the_overhead_stays_below_its_limit_and_near_it",
        "callbacks/test_schedule_and_budget.py::test_a_round_leaves_room_for_the_other_instruments",
        "callbacks/test_schedule_and_budget.py::test_all_that_runs_the_module_beside_the_training_counts_as_measuring",
    ),
    "where fewer than ten would be left, each becomes smaller: probe vectors, then samples, then k": (
        "callbacks/test_schedule_and_budget.py::test_where_there_would_be_few_measurements_each_does_less",
        "probing/test_schedule.py::test_smaller_sizes_end_at_the_least",
    ),
    "the same happens when the device runs out of memory": (
        "callbacks/test_schedule_and_budget.py::test_out_of_memory_does_less_until_it_fits",
    ),
    "sloppy_cost/overhead shows the overhead": (
        "callbacks/test_schedule_and_budget.py::"
        "test_the_overhead_is_the_seconds_of_measuring_for_each_second_of_training_without_it",
    ),
    "schedule, clock, scale, initial weights, early stopping and counters of the bound are in the checkpoint": (
        "callbacks/test_schedule_and_budget.py::test_one_clock_that_two_callbacks_have_kept_counts_once",
        "callbacks/test_second_fit.py::test_a_resumed_fisher_spectrum_keeps_its_scale_by_itself",
        "callbacks/test_resume.py::test_curves_directions_and_the_early_stopping_go_on",
        "callbacks/test_life_in_a_trainer.py::test_a_resumed_run_keeps_scale_prior_and_counters",
    ),
    "values at common steps are identical after a resume, also after kill -9": (
        "callbacks/test_resume.py::test_a_run_that_is_killed_goes_on_with_equal_values",
    ),
    "a warning names other settings and training inputs with another spectrum": (
        "callbacks/test_resume.py::test_every_part_says_what_differs_from_the_checkpoint",
        "callbacks/test_resume.py::test_other_inputs_than_before_are_noticed",
    ),
    "DDP: every rank computes its part, and gets the full result": (
        "contract/test_ddp.py::test_two_processes_agree_with_one",
    ),
    "DDP: streamed batches are taken from all ranks": (
        "contract/test_ddp.py::test_the_probe_is_the_union_of_the_samples_of_all_ranks",
    ),
    "DDP: if one rank fails all skip the measurement; if one has no memory all measure less": (
        "contract/test_ddp.py::test_when_a_rank_fails_all_ranks_skip_that_measurement",
        "contract/test_ddp.py::test_when_a_rank_has_no_memory_all_ranks_do_less",
        "evaluation/test_ranks.py::test_sums_and_failures",
    ),
    "every scalar is also in trainer.callback_metrics": (
        "callbacks/test_live_values.py::test_hessian",
        "callbacks/test_life_in_a_trainer.py::test_lightnings_own_callbacks_can_monitor_in_any_order",
    ),
    "graphs are kept while all fit into a quarter of the free memory, else rebuilt, in micro-batches if need be": (
        "curvature/test_operators.py::test_the_graphs_of_all_batches_are_held_against_the_budget",
        "curvature/test_operators.py::test_graphs_that_would_not_fit_are_recomputed",
    ),
    "modules without a double backward use central differences, whose error is measured": (
        "curvature/test_methods.py::test_no_double_backward_falls_back_to_differences",
        "curvature/test_methods.py::test_measuring_the_rounding_leaves_the_step_as_it_was",
    ),
    "the matrix is that of the mean loss over all probe samples, for any batch sizes": (
        "curvature/test_operators.py::test_an_average_without_weights_would_fail",
    ),
    "losses with ignore_index or class weights are weighted by their valid tokens": (
        "curvature/test_whole_probe.py::test_sequences_are_weighted_by_their_valid_tokens",
    ),
    "a loss with reduction='sum': the functions return the spectrum of the sum and say so": (
        "curvature/test_summed.py::test_hessian_of_a_sum",
    ),
    "the Lanczos basis stays within basis_memory, by default a quarter of the free memory": (
        "linalg/test_restart.py::test_the_same_pairs_in_any_memory",
        "curvature/test_operators.py::test_the_lanczos_basis_takes_a_quarter_of_what_is_free",
    ),
    "above 8,192 rows the k largest eigenpairs come from products": (
        "contract/test_what_the_readme_promises.py::test_beyond_the_limit_of_rows_the_largest_pairs_come_by_products",
    ),
    "an error on one rank is raised on all ranks": ("evaluation/test_ranks.py::test_sums_and_failures",),
    "the functions import neither Lightning nor a logger": (
        "contract/test_layering.py::test_works_without_importing_lightning",
    ),
    "the loss that was found is compared with that of the first step, without calling the step": (
        "callbacks/test_first_step.py::test_a_right_guess_is_confirmed_and_the_step_called_by_the_training_alone",
    ),
    "nothing that was measured with the wrong loss is logged": (
        "callbacks/test_first_step.py::test_what_is_measured_anew_has_the_buffers_from_before_the_step",
    ),
    "train mode: the modes of the fit, and the same random numbers in every forward": (
        "callbacks/test_live_values.py::test_in_train_mode_every_measurement_has_one_random_stream",
    ),
    "no bound with trained BatchNorm, random augmentation, or a resume without the state": (
        "callbacks/test_refusals_of_bounds.py::test_a_run_that_must_be_refused_is_refused_for_this_reason_alone",
        "callbacks/test_pac_bayes_bound.py::test_a_resume_without_the_state_has_no_bound",
    ),
    "equal samples may or may not be copies: duplicates=": (
        "callbacks/test_repeated_samples.py::test_without_a_word_the_bound_holds_either_way",
    ),
    "iterable data sets and several loaders are measured on the first batches": (
        "callbacks/test_probes.py::test_a_stream_is_measured_on_its_first_batches",
        "callbacks/test_probes.py::test_several_loaders_are_measured_through_training_step",
    ),
    "sharded strategies are refused, except by InputSpectrum": (
        "callbacks/test_life_in_a_trainer.py::test_sharded_strategies_are_refused_at_setup",
        "callbacks/test_life_in_a_trainer.py::test_the_inputs_are_measured_under_sharded_strategies",
    ),
}


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_has_its_tests(promise: str) -> None:
    for where in PROMISES[promise]:
        path, name = where.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / path).read_text(), re.MULTILINE), where


DEFAULTS: dict[Callable[..., Any], dict[str, Any]] = {
    HessianSpectrum: {"k": 10, "num_samples": 1024, "steps": 100},
    FisherSpectrum: {"kind": "empirical", "num_samples": 1024},
    JacobianSpectrum: {"normalize": True, "probes": 4, "steps": 100, "null": False},
    InputSpectrum: {"kind": "correlation", "max_samples": 50_000, "null": True},
    PACBayesBound: {"delta": 0.05, "prior": "initialization", "risk_samples": 10_000},
    FinalCertificate: {"delta": None, "prior": "initialization"},
    LearningPlan: {"seconds": 300.0},
    EffectiveDimensionEarlyStopping: {
        "patience": 5, "rel_tol": 0.05, "growth": 2.0, "hold_out": "auto", "patience_unit": "epochs",
    },
    Schedule: {"max_overhead": 0.1, "grace_seconds": 60.0},
    SloppyMonitor: {
        **dict.fromkeys(("jacobian", "input", "hessian", "fisher", "bound"), True),
        **dict.fromkeys(("certificate", "early_stopping"), None),
        "measure_on": "fixed_samples", "mode": "eval", "max_overhead": 0.1, "grace_seconds": 60.0, "seed": 0,
        "strict": False,
    },
    hessian_spectrum: {"k": 10, "which": "magnitude", "by_layer": False},
    fisher_spectrum: {"kind": "empirical", "method": "auto", "k": 10, "labels": 1},
    jacobian_spectrum: {"normalize": True},
    input_spectrum: {"kind": "correlation"},
}  # fmt: skip
"""What the documentation says of arguments that are not given."""


@pytest.mark.parametrize("made", DEFAULTS, ids=lambda made: made.__name__)
def test_defaults_are_those_that_are_documented(made: Callable[..., Any]) -> None:
    parameters = inspect.signature(made).parameters
    assert {name: parameters[name].default for name in DEFAULTS[made]} == DEFAULTS[made]
    assert Schedule().every_n_epochs == 1
    options = {} if made in (Schedule, LearningPlan) else {"seed": 0}
    if isinstance(made, type) and "seed" in parameters and made is not SloppyMonitor:
        assert {name: getattr(made(), name) for name in options} == options


def test_beyond_the_limit_of_rows_the_largest_pairs_come_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch import nn

    from lightning_sloppy.curvature import fisher_spectra

    assert fisher_spectra.ROW_LIMIT == 8_192
    module, samples = nn.Linear(40, 8).double(), (torch.randn(12, 40).double(), torch.randint(8, (12,)))
    whole = fisher_spectrum(module, [samples], nn.CrossEntropyLoss())
    assert whole.cost.method.startswith("gram")
    for limit, cut in ((12, False), (11, True)):
        monkeypatch.setattr(fisher_spectra, "ROW_LIMIT", limit)
        found = fisher_spectrum(module, [samples], nn.CrossEntropyLoss(), k=3)
        assert found.truncated is cut
        assert found.cost.method.startswith("gram") is not cut
        torch.testing.assert_close(found.eigenvalues[:3], whole.eigenvalues[:3])
        assert len(found.eigenvalues) == (3 if cut else 12)
