"""The result of a verb as a mapping for ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_sloppy.callbacks.compressing_trainer import CompressingTrainer
from lightning_sloppy.version import __version__

if TYPE_CHECKING:
    from lightning_sloppy.callbacks.compressing_trainer import CompressedCheckpoint
    from lightning_sloppy.callbacks.spectrum_trainer import CheckpointSpectra
    from lightning_sloppy.records import Estimate, Measurement


def result_of(verb: str, trainer: CompressingTrainer) -> dict[str, Any]:
    """What a verb found. The keys are documented in docs/command_line.md.

    Args:
        verb: The verb that has run.
        trainer: Its Trainer.
    """
    head: dict[str, Any] = {"command": verb, "version": __version__}
    if trainer.spectra is not None:
        return {**head, **_of_spectra(trainer.spectra)}
    if trainer.compressed is not None:
        return {**head, **_of_compressed(trainer.compressed)}
    if trainer.certified is not None:
        return {**head, **_of_certificate(trainer)}
    return {**head, **_of_run(trainer)}


def _of_run(trainer: CompressingTrainer) -> dict[str, Any]:
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    return {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "interrupted": trainer.interrupted,
        "folder": trainer.log_dir if trainer.loggers else None,
        "checkpoint": best,
        "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
    }


def _of_certificate(trainer: CompressingTrainer) -> dict[str, Any]:
    final = trainer.certified
    assert final is not None
    latest = final.measurements[-1] if final.measurements else None
    if final.certificates is None:
        found = None if latest is None else latest.certificate
        reasons = list(found.reasons) if found is not None else [] if latest is None else list(latest.notes)
        return {"pair": None, "first_network": None, "reasons": reasons, "folder": None}
    pair, first = final.certificates
    return {"pair": pair.as_dict(), "first_network": first.as_dict(), "reasons": [], "folder": final.folder}


def _of_spectra(found: CheckpointSpectra) -> dict[str, Any]:
    return {
        "checkpoint": found.checkpoint,
        "model": found.model,
        "num_parameters": found.num_parameters,
        "num_training_samples": found.num_training_samples,
        "loss": {"source": found.loss, "checked": found.loss_checked, "value": found.loss_value},
        "spectra": {name: _of_measurement(each) for name, each in found.measurements.items()},
        "left_out": list(found.left_out),
    }


def _of_compressed(found: CompressedCheckpoint) -> dict[str, Any]:
    table, monitored = found.compressed.table, found.monitored
    done = found.compressed
    return {
        "checkpoint": found.source,
        "out": found.out,
        "target": found.target,
        "size_before": table.size_before,
        "size_after": table.size_after,
        "fraction": table.fraction,
        "num_samples": found.num_samples,
        "layers": [dict(vars(record)) for record in table],
        "metric": None
        if monitored is None
        else {
            "name": monitored.name,
            "direction": monitored.direction,
            "before": None if done.metric_before is None else monitored.score(done.metric_before),
            "after": None if done.metric_after is None else monitored.score(done.metric_after),
        },
        "tested": {name: {"before": before, "after": after} for name, (before, after) in found.tested.items()},
        "curve": [
            {
                **vars(point),
                "metric": None if point.metric is None or monitored is None else monitored.score(point.metric),
            }
            for point in done.curve
        ],
        "notes": list(done.notes),
    }


def _of_measurement(measurement: Measurement) -> dict[str, Any]:
    spectra = {} if measurement.spectrum is None else {measurement.spectrum.matrix: measurement.spectrum}
    spectra |= measurement.companions
    return {
        "status": measurement.status.name,
        "num_samples": measurement.num_samples,
        "mode": measurement.mode,
        "precision": measurement.precision,
        "seconds": measurement.cost.seconds,
        "estimates": {name: _of_estimate(each) for name, each in measurement.estimates.items()},
        "eigenvalues": {
            name: {
                "values": spectrum.eigenvalues.tolist(),
                "residuals": spectrum.residuals.tolist(),
                "all": not spectrum.truncated,
                "floor": spectrum.floor,
                "num_samples": spectrum.num_samples,
            }
            for name, spectrum in spectra.items()
        },
        "notes": list(measurement.notes),
    }


def _of_estimate(estimate: Estimate) -> Mapping[str, Any]:
    usable = estimate.status.ok
    return {
        "value": estimate.value if usable else None,
        "standard_error": estimate.standard_error,
        "truncation_error": estimate.truncation_error,
        "lower_bound": estimate.lower_bound,
        "status": estimate.status.name,
    }
