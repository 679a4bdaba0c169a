"""All measurements in one callback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning_sloppy.callbacks.base import Callback, Closing, SloppyCallback, checked_closing
from lightning_sloppy.callbacks.curvature_instrument import check_epsilon
from lightning_sloppy.callbacks.early_stopping import EffectiveDimensionEarlyStopping
from lightning_sloppy.callbacks.final_certificate import FinalCertificate
from lightning_sloppy.callbacks.fisher_spectrum import FisherSpectrum
from lightning_sloppy.callbacks.hessian_spectrum import HessianSpectrum
from lightning_sloppy.callbacks.input_spectrum import InputSpectrum
from lightning_sloppy.callbacks.instrument import check_measure_on, check_mode
from lightning_sloppy.callbacks.jacobian_spectrum import JacobianSpectrum
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.callbacks.pac_bayes_bound import PACBayesBound
from lightning_sloppy.callbacks.periodic import check_schedule
from lightning_sloppy.certifying.clean_samples import Clean, checked_clean
from lightning_sloppy.display import Shown
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import BatchSize, checked_batch_size
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.probing.loss_choice import LossArgument, checked_argument
from lightning_sloppy.probing.probe import MeasureOn
from lightning_sloppy.probing.schedule import Schedule
from lightning_sloppy.quantities import Detail, checked_detail
from lightning_sloppy.records import Measurement

SLOTS: dict[str, type[SloppyCallback]] = {
    "jacobian": JacobianSpectrum,
    "input": InputSpectrum,
    "hessian": HessianSpectrum,
    "fisher": FisherSpectrum,
    "bound": PACBayesBound,
    "certificate": FinalCertificate,
    "early_stopping": EffectiveDimensionEarlyStopping,
}
"""The arguments of the monitor that are callbacks, in the order in which the callbacks run."""


class SloppyMonitor(SloppyCallback):
    """Measure Jacobian, input, Hessian and Fisher spectra, effective dimensions and a PAC-Bayes bound.

    The training is not changed: the trained weights are bitwise identical to those of a run without the monitor. Each
    part is a callback: true selects the callback with its defaults, null and false disable it. The monitor passes
    ``schedule``, ``loss_fn``, ``measure_on``, ``batch_size``, ``mode``, ``epsilon``, ``clean``, ``seed`` and ``strict``
    to each part in which they were not set. If a part has its own schedule, the cost limit of that schedule applies.

    Args:
        jacobian: Spectrum of the Jacobian of the outputs with respect to the parameters, with the effective dimension
            to quote.
        input: Eigenvalue spectrum of the training inputs at train start.
        hessian: Spectrum of the Hessian, for instance ``HessianSpectrum(k=5)``.
        fisher: Spectrum of the Fisher information, for instance ``FisherSpectrum(kind="exact", num_samples=100)``.
        bound: PAC-Bayes bound at every measurement of a HessianSpectrum of all parameters, or of a FisherSpectrum if
            there is none. Without either, true has no effect.
        certificate: Optimise and certify a posterior at the end of the fit. Off by default, because it takes minutes.
        early_stopping: Stop by hold-out loss and effective dimension. Off by default.
        clean: For bound and certificate, if training samples are read with random transforms (augmentation): the same
            samples in the same order without them. See :class:`PACBayesBound`.
        extra: Additional instruments, such as a second FisherSpectrum or your own.
        epsilon: Prior precision for the effective dimensions at the scale of the prior. null: p / ||w0||^2.
        loss_fn: Mean-reduced loss of (outputs, targets). null: found from the module and compared with the first loss
            of the training. "training_step": the loss that ``training_step`` returns.
        measure_on: "fixed_samples": the same samples at every measurement, so that curves change with the network only;
            if samples cannot be read by index (iterable data, several loaders), the first batches of the training.
            "current_batch": the last training batch.
        batch_size: Function that returns the number of samples in a batch. null: found from its tensors and outputs.
        mode: "eval", or "train" with the flags of the fit and a fixed random stream. Bounds always use eval mode.
        every_n_epochs: Measure after the last batch of every n epochs. null: 1 if no other interval is given.
        every_n_steps: Measure after every n effective batches.
        max_overhead: Limit of (seconds of measuring - grace_seconds) / (seconds of training without measuring), for all
            callbacks of the fit together. null: no limit. See :class:`Schedule`.
        grace_seconds: Seconds of measuring that are not limited, so that short runs are measured as requested.
        schedule: A :class:`Schedule`, instead of the four arguments above.
        seed: Seed of probe samples, probe vectors and draws.
        strict: Raise errors of measurements instead of warning.
        picture: Draw the picture of the run after the rounds of measurements 1, 2, 4, 8, 16, 32, 128, 512 and 2,048
            and at the end: into loggers that take images, and as ``sloppy_picture.png`` in the folder of the run. It
            needs matplotlib (the extra ``plot``).
        detail: Which scalars loggers get: "main", those that show something that a person acts on, or "all". The
            records and ``trainer.callback_metrics`` always hold all.
        summary: What is printed at the end of the fit. "full": five answers, conditions and details, and where the
            values are. "short": the same without conditions and details. false: nothing. The level of the logger
            "lightning_sloppy" decides as well: WARNING prints nothing, DEBUG everything.
        hparams: Log the final numbers with the hyperparameters, so that runs can be sorted in TensorBoard.
        report: Write ``report.html`` into the folder of the run at the end of the fit; see docs/report.md. Without a
            logger that has a folder, nothing is written.

    Raises:
        ConfigurationError: For arguments out of range or of another type.

    Example:
        >>> monitor = SloppyMonitor(bound=None, hessian=HessianSpectrum(k=5))
        >>> [type(part).__name__ for part in monitor.parts]
        ['JacobianSpectrum', 'InputSpectrum', 'HessianSpectrum', 'FisherSpectrum']
    """

    def __init__(
        self,
        *,
        jacobian: JacobianSpectrum | bool | None = True,
        input: InputSpectrum | bool | None = True,
        hessian: HessianSpectrum | bool | None = True,
        fisher: FisherSpectrum | bool | None = True,
        bound: PACBayesBound | bool | None = True,
        certificate: FinalCertificate | bool | None = None,
        early_stopping: EffectiveDimensionEarlyStopping | bool | None = None,
        clean: Clean | None = None,
        extra: Sequence[MeasuringCallback] | None = (),
        epsilon: float | None = None,
        loss_fn: LossArgument | None = None,
        measure_on: MeasureOn = "fixed_samples",
        batch_size: BatchSize | None = None,
        mode: Mode = "eval",
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = 0.1,
        grace_seconds: float = 60.0,
        schedule: Schedule | None = None,
        seed: int = 0,
        strict: bool = False,
        picture: bool = True,
        detail: Detail = "main",
        summary: Closing = "full",
        hparams: bool = True,
        report: bool = True,
    ) -> None:
        super().__init__()
        self.closing, self.hparams = checked_closing(summary), hparams
        check_schedule(schedule)
        times = _schedule(schedule, every_n_epochs, every_n_steps, max_overhead, grace_seconds)
        given = {
            "jacobian": jacobian,
            "input": input,
            "hessian": hessian,
            "fisher": fisher,
            "bound": bound,
            "certificate": certificate,
            "early_stopping": early_stopping,
        }
        self._parts = {name: part for name, value in given.items() if (part := _part(name, value)) is not None}
        self._add(extra)
        if bound is True and not self._has_spectrum_for_bound():
            del self._parts["bound"]  # a PACBayesBound that was passed explicitly raises at setup instead
        checked_argument(loss_fn)
        check_measure_on(measure_on)
        checked_batch_size(batch_size)
        check_mode(mode)
        check_epsilon(epsilon)
        settings = {
            "schedule": times,
            "loss_fn": loss_fn,
            "clean": checked_clean(clean),
            "measure_on": measure_on,
            "batch_size": batch_size,
            "mode": mode,
            "epsilon": epsilon,
            "seed": seed,
            "strict": strict,
            "detail": checked_detail(detail),
        }
        self.picture = picture
        for part in self.parts:
            part.closing, part.hparams = self.closing, self.hparams
            part.picture, part.report = picture, report
            if isinstance(part, MeasuringCallback):
                part.adopt(settings)

    def _has_spectrum_for_bound(self) -> bool:
        spectra = (HessianSpectrum, FisherSpectrum)
        return any(isinstance(part, spectra) and part.parameters is None for part in self.parts)

    def _add(self, extra: Sequence[MeasuringCallback] | None) -> None:
        """Add the instruments of ``extra``."""
        if isinstance(extra, SloppyCallback):
            raise ConfigurationError(f"SloppyMonitor got extra={type(extra).__name__}(...); pass a list: extra=[...].")
        for instrument in extra or ():
            if not isinstance(instrument, MeasuringCallback):
                raise ConfigurationError(
                    f"SloppyMonitor got {instrument!r} in extra=; pass instruments, such as "
                    "FisherSpectrum(kind='exact')."
                )
            if any(isinstance(part, MeasuringCallback) and part.name == instrument.name for part in self.parts):
                raise ConfigurationError(
                    f"SloppyMonitor got an instrument named {instrument.name!r} in extra=, but another of its parts "
                    "has that name; give it a different name=."
                )
            # The name of a part such as fisher=FisherSpectrum(kind="exact") differs from its argument.
            free = instrument.name not in self._parts
            self._parts[instrument.name if free else f"{instrument.name}_extra"] = instrument

    @property
    def parts(self) -> list[SloppyCallback]:
        """The callbacks of the monitor, in the order in which they run; early stopping comes last."""
        stopping = [part for name, part in self._parts.items() if name == "early_stopping"]
        return [part for name, part in self._parts.items() if name != "early_stopping"] + stopping

    @property
    def measurements(self) -> dict[str, list[Measurement]]:
        """The measurements of each part ("jacobian", "input", "hessian", ..., names of extra ones), in order."""
        return {name: part.measurements for name, part in self._parts.items() if isinstance(part, MeasuringCallback)}

    @property
    def latest(self) -> dict[str, Measurement | None]:
        """The latest measurement of each part that did not fail."""
        return {name: part.latest for name, part in self._parts.items() if isinstance(part, MeasuringCallback)}

    def _shown(self) -> Shown:
        known = {
            name: part.run_so_far().in_brief() if isinstance(part, MeasuringCallback) and part.has_measured else "-"
            for name, part in self._parts.items()
        }
        rows = [(f"{name}:", said) for name, said in known.items() if said != "-"]
        rows += [("not measured:" if rows else "parts:", ", ".join(n for n, said in known.items() if said == "-"))]
        return Shown(type(self).__name__, "", [row for row in rows if row[1]], "; ")

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts that have one."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of every part. A part that is new in this run starts without one."""
        for name, state in state_dict.items():
            if name in self._parts:
                self._parts[name].load_state_dict(state)


def _schedule(
    given: Schedule | None,
    every_n_epochs: int | None,
    every_n_steps: int | None,
    max_overhead: float | None,
    grace_seconds: float,
) -> Schedule:
    """The schedule from either way of passing it."""
    if given is None:
        return Schedule(every_n_epochs, every_n_steps, (), None, max_overhead, grace_seconds)
    if (every_n_epochs, every_n_steps, max_overhead, grace_seconds) != (None, None, 0.1, 60.0):
        raise ConfigurationError(
            "SloppyMonitor got both schedule= and one of every_n_epochs, every_n_steps, max_overhead and "
            "grace_seconds; put them into the Schedule."
        )
    return given


def _part(name: str, value: object) -> SloppyCallback | None:
    """The callback of one argument."""
    kind = SLOTS[name]
    if value is None or value is False:
        return None
    if value is True:
        return kind()
    if not isinstance(value, kind):
        raise ConfigurationError(
            f"SloppyMonitor got {name}={value!r}; pass {name}=lightning_sloppy.{kind.__name__}(...), True for its "
            "defaults, or None to disable it."
        )
    return value


def _forwarded(hook: str) -> Callable[..., None]:
    """A hook of the monitor that calls the same hook of each part."""

    def forward(self: SloppyMonitor, *args: Any, **kwargs: Any) -> None:
        for part in self.parts:
            getattr(part, hook)(*args, **kwargs)

    forward.__name__ = hook
    forward.__qualname__ = f"SloppyMonitor.{hook}"
    forward.__doc__ = "Pass on to the parts."
    return forward


for _hook in ("setup", "teardown", *(name for name in dir(Callback) if name.startswith("on_"))):
    setattr(SloppyMonitor, _hook, _forwarded(_hook))
