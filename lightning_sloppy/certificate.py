"""A bound with everything that it depends on: the record, its statement, its file."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sloppy.display import Displayed, Shown, at_most, number, shortened
from lightning_sloppy.errors import ConfigurationError, Note

if TYPE_CHECKING:
    from typing_extensions import Self

_FORMAT = 1
_WHO = {
    "pair_of_draws": "the error of a classifier that picks one of the two networks drawn around the model at random",
    "single_draw": "the error of the one network drawn around the model",
    "fixed_network": "the error of the model itself",
}
_KINDS = {
    "pac_bayes_pair": "PAC-Bayes-kl for an antithetic pair drawn from a Gaussian around the model",
    "pac_bayes_draw": "PAC-Bayes-kl for one draw from a Gaussian around the model",
    "hold_out": "Clopper-Pearson on examples that were not used before",
}


_SHORT = {
    "augmentation_in_certification": "samples are read with random transforms",
    "batch_coupled_prediction": "a prediction depends on the other samples of its batch",
    "buffers_depend_on_sample": "buffers or frozen parameters depend on the training samples",
    "loss_not_bounded": "the outputs are not known to be class scores",
    "low_precision": "the weights have 16 bits",
    "no_sample": "the samples cannot be read by index",
    "not_finite": "there are numbers that are not finite",
    "other_architecture": "the parameters are not those of the prior",
    "other_samples": "the samples without transforms are not those of the training",
    "parameters_changed": "the parameters are not those of the prior",
    "prior_depends_on_sample": "the prior may depend on the samples",
}
"""Reasons in few words, by their flag, for where the sentence was given before."""


class Reason(Note):
    """A sentence that says why there is no bound, with a name for the reason.

    Args:
        sentence: What was found, and what to do.
        flag: Name of the reason, for programs: one of the rows of ``docs/certificates.md``.
        cause: Name of the cause, if it is one that other callbacks of a fit can meet too.

    >>> Reason("The weights hold NaN.", flag="not_finite").flag
    'not_finite'
    """

    flag: str

    def __new__(cls, sentence: str, *, flag: str = "other", cause: str = "", short: str = "") -> Self:
        """Create a string with a flag."""
        made = super().__new__(cls, sentence, cause=cause, short=short or ("" if cause else _SHORT.get(flag, "")))
        made.flag = flag
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, str]]:
        """Arguments for copies and pickles."""
        (sentence,), named = super().__getnewargs_ex__()
        return (sentence,), {**named, "flag": self.flag}


def key_of(reason: str) -> str:
    """Name under which a reason is warned about once: its cause, or its first words."""
    return (reason.cause if isinstance(reason, Note) else "") or reason[:40]


@dataclass(frozen=True, repr=False)
class Certificate(Displayed):
    """A bound on a true error with everything that it depends on.

    Attributes:
        kind: "pac_bayes_pair" (antithetic pair of drawn networks), "pac_bayes_draw" (one drawn network) or "hold_out".
        certified_predictor: What is certified: "pair_of_draws", "single_draw" or "fixed_network".
        value: The bound; 1.0 if vacuous; NaN if ``valid`` is False.
        valid: Whether there is a bound, because nothing that would forbid one was found.
        reasons: Why there is no bound: sentences (:class:`Reason`), empty if valid.
        conditions: The conditions under which the bound holds, including the user's statements.
        remarks: Facts about this evaluation that are not conditions.
        n: Number of training samples that the bound divides by (hold-out samples for "hold_out").
        n_prior: Number of samples from which the prior was built. The checks found none of them among the n.
        examples: Kind of the n samples: "training", or "certifying" for samples that were kept out of the training.
        loss: The loss that is bounded.
        empirical_risk: Error rate of the certified predictor on the evaluated samples.
        risk_upper: Upper limit of the error rate on all n samples, if only a subsample was evaluated.
        risk_samples: Number of samples evaluated for the empirical risk.
        log_ratio: ln dQ/dP of the drawn weights with respect to the mixture prior, nats, mean over the draws.
        kl_displacement: ``epsilon/2 ||mu - w0||^2``, nats.
        kl_covariance: The remaining part of KL(Q||P_epsilon), nats.
        log_xi: ln xi(n).
        delta: Failure probability of all bounds of the run together.
        delta_pac: Part used for the PAC-Bayes event at this evaluation.
        delta_risk: Part used for the subsampled risk at this evaluation.
        evaluation: Number t of this evaluation in the schedule 6/(pi^2 t^2).
        epsilon: Prior precision from the grid that fits the posterior best.
        tau: Weight of the curvature in the posterior precision, ``tau lambda + epsilon``; NaN if it was optimised.
        mean_scale: The posterior mean is ``w0 + mean_scale (w - w0)``; NaN if it was optimised.
        rank: Number of directions with a separate precision.
        effective_dimension: ``sum tau lambda / (tau lambda + epsilon)`` of a posterior from a spectrum.
        stiff_directions: ``p(n, epsilon)``: its directions with ``tau lambda >= epsilon``.
        posterior: Family of the posterior: "low_rank", "diagonal", "layers", ...
        weakest: Name of the largest term: the bound would decrease most without it.
        prior: The user's statement about the prior.
        prior_hash: SHA-256 of the prior's mean, and of its scales and bases if it has any, as float32 bytes.
        start_error: Error rate of the initial weights, on up to 2,000 of the n samples.
        guess_error: Error rate, on the n samples, of always predicting the most frequent class; NaN if unknown.
        live_value: The latest bound of the same run's PACBayesBound, which this one replaces; NaN if there is none.
        sample_hash: SHA-256 of the n samples; empty if they were not read for it.
        seed: Seed of the draws.
        networks: Files of the drawn networks, if they were saved.
        network_hashes: SHA-256 of the weights of each network as float32, with the entries in the order of the prior.
        software: Versions of the software.
    """

    kind: str
    certified_predictor: str
    value: float
    valid: bool
    n: int
    delta: float
    reasons: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    n_prior: int = 0
    examples: str = "training"
    loss: str = "0-1 error"
    empirical_risk: float = float("nan")
    risk_upper: float = float("nan")
    risk_samples: int = 0
    log_ratio: float = float("nan")
    kl_displacement: float = float("nan")
    kl_covariance: float = float("nan")
    log_xi: float = float("nan")
    delta_pac: float = 0.0
    delta_risk: float = 0.0
    evaluation: int = 0
    epsilon: float = float("nan")
    tau: float = float("nan")
    mean_scale: float = float("nan")
    rank: int = 0
    effective_dimension: float = float("nan")
    stiff_directions: int = 0
    posterior: str = ""
    weakest: str = ""
    prior: str = ""
    prior_hash: str = ""
    start_error: float = float("nan")
    guess_error: float = float("nan")
    live_value: float = float("nan")
    sample_hash: str = ""
    seed: int | None = None
    networks: tuple[str, ...] = ()
    network_hashes: tuple[str, ...] = ()
    software: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the reasons."""
        return tuple(getattr(reason, "flag", "other") for reason in self.reasons)

    def in_brief(self) -> str:
        """The bound, or the names of the reasons why there is none.

        >>> Certificate("hold_out", "fixed_network", 0.03, True, 1000, 0.05).in_brief()
        '0.0300'
        """
        if not self.valid:
            return f"none ({', '.join(self.flags)})"
        return at_most(self.value) + (" (guarantees nothing)" if self.vacuous else "")

    def _shown(self) -> Shown:
        rows = [("bound", self.in_brief())]
        if not self.valid:
            rows += [("reason", shortened(reason)) for reason in self.reasons[:1]]
            return Shown("Certificate", self.kind, rows)
        rows += [
            ("probability", f"{100 * (1 - self.delta):g} %"),
            ("of the", _WHO.get(self.certified_predictor, self.certified_predictor).removeprefix("the ")),
            ("observed error", f"{self.empirical_risk:.4f} on {self.risk_samples:,} samples"),
            ("n", f"{self.n:,}"),
            *([("complexity", f"{number(self.log_ratio)} nats")] if math.isfinite(self.log_ratio) else []),
            *([("guessing", f"{self.guess_error:.4f}")] if math.isfinite(self.guess_error) else []),
        ]
        return Shown("Certificate", self.kind, rows)

    @property
    def vacuous(self) -> bool:
        """Whether the bound guarantees nothing, or there is no bound."""
        return not self.value < 1.0

    def statement(self) -> str:
        """The guarantee, in one sentence.

        >>> print(Certificate("hold_out", "fixed_network", 0.03, True, 1000, 0.05, ("",), ("The examples are new.",))
        ...     .statement())
        With probability at least 95 % over the draw of the 1,000 hold-out examples, the error of the model itself is \
at most 0.0300, provided that: The examples are new.
        """
        if not self.valid:
            return " ".join(["There is no bound.", *self.reasons])
        draw = {"hold_out": "hold-out examples"}.get(self.kind, f"{self.examples} examples and of the weights")
        who = _WHO.get(self.certified_predictor, self.certified_predictor)
        provided = [*self.conditions, *([f"The user's statement: {self.prior}"] if self.prior else [])]
        return (
            f"With probability at least {100 * (1 - self.delta):g} % over the draw of the {self.n:,} {draw}, {who} is "
            f"at most {at_most(self.value)}" + (f", provided that: {' '.join(provided)}" if provided else ".")
        )

    def explain(self) -> str:
        """Statement, value of each part, and how to make the bound smaller, as text with several lines."""
        lines = [self.statement()]
        if not self.valid:
            return "\n".join(lines)
        if self.vacuous:
            lines.append("A bound of 1 guarantees nothing: no error rate is larger than 1.")
        lines.append(f"Inequality: {_KINDS.get(self.kind, self.kind)}.")
        of = {"pair_of_draws": "of the two networks", "single_draw": "of the network"}.get(
            self.certified_predictor, "of the model"
        )
        lines.append(f"Observed error {of}: {self.empirical_risk:.4f} on {self.risk_samples:,} examples.")
        if self.risk_upper > self.empirical_risk and self.kind != "hold_out":
            lines.append(f"Upper limit of that error on all {self.n:,} examples: {at_most(self.risk_upper)}.")
        if math.isfinite(self.log_ratio):
            lines.append(
                f"Complexity: {self.log_ratio:,.1f} nats for these draws. Its mean over all draws consists of "
                f"{_nats(self)}. The bound adds ln(xi(n)/delta) = {self.log_xi - math.log(self.delta_pac):.1f} nats "
                f"and divides the sum by n = {self.n:,}."
            )
        if self.n_prior:
            lines.append(
                f"The prior was built from {self.n_prior:,} other examples, which are not among the {self.n:,}."
            )
        warnings = self._warnings()
        if self.weakest and not warnings:
            lines.append(_ADVICE.get(self.weakest, f"Largest term: {self.weakest}."))
        lines += warnings
        return "\n".join([*lines, *self.remarks])

    def _warnings(self) -> list[str]:
        """Why the bound is not useful, if so."""
        said = []
        if self.value >= self.guess_error:
            said.append(
                "This bound is not informative: always predicting the most frequent class has an error of "
                f"{self.guess_error:.4f}. Give the learning more time (learning.seconds), keep the weights near the "
                "initial ones while training (DistanceToInit), keep examples for certifying (PriorSplit), or use the "
                "hold-out bound."
            )
        if self.value > self.live_value and self.kind == "pac_bayes_pair":
            said.append(
                f"The live bound of the run, {at_most(self.live_value)}, was lower, so the learning of the posterior "
                "did not converge. Give the learning more time (learning.seconds), or a higher rate."
            )
        return said

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become null."""
        plain = dataclasses.asdict(self)
        plain["reasons"] = [{"flag": f, "sentence": str(r)} for f, r in zip(self.flags, self.reasons, strict=True)]
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}
        return {"format": _FORMAT, "statement": self.statement(), **plain}

    def save(self, path: str | Path) -> Path:
        """Write the certificate as JSON, with its statement.

        Args:
            path: The file. Its folder is created.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a file written by :meth:`save`.

        Args:
            path: The file.

        Raises:
            ConfigurationError: If it is not a certificate.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found["format"] != _FORMAT:
                raise ValueError(f"its format is {found['format']!r} and not {_FORMAT!r}")
            # Files of earlier versions do not contain these.
            found = {"start_error": None, "guess_error": None, "live_value": None, **found}
            values = {field.name: found[field.name] for field in dataclasses.fields(cls)}
            values["reasons"] = tuple(Reason(r["sentence"], flag=r["flag"]) for r in values["reasons"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} cannot be read as a certificate ({type(error).__name__}: {error}); pass a file written by "
                "Certificate.save."
            ) from error
        for name in ("conditions", "remarks", "networks", "network_hashes"):
            values[name] = tuple(values[name])
        numbers = [field.name for field in dataclasses.fields(cls) if field.type == "float"]
        whole: dict[str, Any] = {k: math.nan if v is None and k in numbers else v for k, v in values.items()}
        return cls(**whole)


_ADVICE = {
    "risk": "Largest term: the error of the drawn networks, because the noise on the weights is large. Train the model "
    "to a wider minimum, or optimise the posterior for a longer time (FinalCertificate).",
    "displacement": "Largest term: the distance from the initial weights. Keep the weights near them while training "
    "(DistanceToInit), or use a prior that is learnt on other examples (PriorSplit).",
    "covariance": "Largest term: the precision of the posterior. To reduce it, use a smaller model, more "
    "regularisation, or an optimised posterior.",
    "sample": "Largest term: ln(xi(n)/delta). Only more examples reduce it.",
    "subsample": "Largest term: the evaluation on a subsample of the examples. Increase risk_samples.",
}


def _nats(certificate: Certificate) -> str:
    return (
        f"{certificate.kl_displacement:,.1f} for the distance from the prior's mean and "
        f"{certificate.kl_covariance:,.1f} for the precision of the weights"
    )
