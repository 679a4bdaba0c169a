"""A bound with everything it rests on: the record, its words, its file."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_sloppy.errors import ConfigurationError

_FORMAT = 1
_WHO = {
    "pair_of_draws": "the error of picking one of the two networks drawn around the model at random",
    "single_draw": "the error of the one network drawn around the model",
    "fixed_network": "the error of the model itself",
}
_KINDS = {
    "pac_bayes_pair": "PAC-Bayes-kl for two opposite draws from a Gaussian around the model",
    "pac_bayes_draw": "PAC-Bayes-kl for one draw from a Gaussian around the model",
    "hold_out": "Clopper-Pearson on examples that were never used",
}


class Reason(str):
    """Why there is no bound, a sentence, with the name of what was found.

    Args:
        sentence: What was found, and what to do.
        flag: The name, for programs: one of the rows of ``docs/certificates.md``.

    >>> Reason("The weights hold NaN.", flag="not_finite").flag
    'not_finite'
    """

    flag: str

    def __new__(cls, sentence: str, *, flag: str = "other") -> Reason:
        """A string that knows its name."""
        made = super().__new__(cls, sentence)
        made.flag = flag
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, str]]:
        """For copies and pickles."""
        return (str(self),), {"flag": self.flag}


@dataclass(frozen=True)
class Certificate:
    """A bound on a true error with everything it rests on.

    Attributes:
        kind: "pac_bayes_pair" (opposite pair of drawn networks), "pac_bayes_draw" (one drawn network) or "hold_out".
        certified_predictor: Who is certified: "pair_of_draws", "single_draw" or "fixed_network".
        value: The bound; 1.0 when vacuous; NaN when ``valid`` is False.
        valid: Whether every blocking condition holds.
        reasons: Why there is no bound: sentences (:class:`Reason`), empty when valid.
        conditions: The statements under which the bound holds, among them the user's own.
        remarks: Facts about this evaluation worth knowing, which are no conditions.
        n: Training samples the bound divides by (hold-out samples for "hold_out").
        n_prior: Samples that the prior was built from, none of them among the n as far as can be seen.
        examples: What the n are: "training", or "certifying" for samples that were kept from the training.
        loss: What is bounded.
        empirical_risk: Error rate of the certified predictor on the samples looked at.
        risk_upper: The same after paying for the subsample.
        risk_samples: Samples looked at for the empirical risk.
        log_ratio: ln dQ/dP of the drawn weights to the mixture prior, nats, mean over the draws.
        kl_displacement: ``epsilon/2 ||mu - w0||^2``, nats.
        kl_covariance: The rest of KL(Q||P_epsilon), nats.
        log_xi: ln xi(n).
        delta: Total failure probability of all that the run calls a bound.
        delta_pac: Part spent on the PAC-Bayes event at this evaluation.
        delta_risk: Part spent on the subsampled risk at this evaluation.
        evaluation: Number t of this evaluation in the schedule 6/(pi^2 t^2).
        epsilon: Prior precision of the grid nearest to the posterior's.
        tau: Weight of the curvature in the posterior precision, ``tau lambda + epsilon``; NaN when it was optimised.
        mean_scale: The posterior mean is ``w0 + mean_scale (w - w0)``; NaN when it was optimised.
        rank: Number of directions with a precision of their own.
        effective_dimension: ``sum tau lambda / (tau lambda + epsilon)`` of a posterior from a spectrum.
        stiff_directions: ``p(n, epsilon)``: its directions with ``tau lambda >= epsilon``.
        posterior: Its family: "low_rank", "diagonal", "layers", ...
        weakest: The term that costs most: the name of what would lower the bound most, were it nothing.
        prior: The user's statement about the prior.
        prior_hash: SHA-256 of the prior's mean, and of its scales and bases where it has them, as float32 bytes.
        start_error: Error rate of the weights at the start of the training, on up to 2,000 of the n.
        guess_error: Error rate, on the n, of calling every sample the most frequent class; NaN when nobody knows.
        live_value: The latest bound of the same run's PACBayesBound, in whose place this one was made; NaN for none.
        sample_hash: SHA-256 of what the n samples are; empty where they were not read for it.
        seed: Of the draws.
        networks: Files of the drawn networks, where they were saved.
        network_hashes: SHA-256 of their weights as float32, in the order of the prior's.
        software: Versions behind it.
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

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing; so does one that there is not."""
        return not self.value < 1.0

    def statement(self) -> str:
        """What is guaranteed, in one sentence.

        >>> print(Certificate("hold_out", "fixed_network", 0.03, True, 1000, 0.05, ("",), ("Nobody peeked.",))
        ...     .statement())
        With probability at least 95 % over the draw of the 1,000 hold-out examples, the error of the model itself is \
at most 0.0300, provided that: Nobody peeked.
        """
        if not self.valid:
            return " ".join(["There is no bound.", *self.reasons])
        draw = {"hold_out": "hold-out examples"}.get(self.kind, f"{self.examples} examples and of the weights")
        who = _WHO.get(self.certified_predictor, self.certified_predictor)
        provided = [*self.conditions, *([f"The user's statement: {self.prior}"] if self.prior else [])]
        return (
            f"With probability at least {100 * (1 - self.delta):g} % over the draw of the {self.n:,} {draw}, {who} is "
            f"at most {self.value:.4f}" + (f", provided that: {' '.join(provided)}" if provided else ".")
        )

    def explain(self) -> str:
        """Statement, origin of each part, and what would make the bound smaller, in words over several lines."""
        lines = [self.statement()]
        if not self.valid:
            return "\n".join(lines)
        if self.vacuous:
            lines.append("A bound of 1 says nothing: every network makes at most that many mistakes.")
        lines.append(f"Inequality: {_KINDS.get(self.kind, self.kind)}.")
        of = {"pair_of_draws": "of the two networks", "single_draw": "of the network"}.get(
            self.certified_predictor, "of the model"
        )
        lines.append(f"Seen: an error {of} of {self.empirical_risk:.4f} on {self.risk_samples:,} examples.")
        if self.risk_upper > self.empirical_risk and self.kind != "hold_out":
            lines.append(f"That is at most {self.risk_upper:.4f} on all {self.n:,}, for only some were looked at.")
        if math.isfinite(self.log_ratio):
            lines.append(
                f"Complexity: {self.log_ratio:,.1f} nats for these draws; of the mean of all draws {_nats(self)}. "
                f"To it come ln(xi(n)/delta) = {self.log_xi - math.log(self.delta_pac):.1f} nats; all of it is divided "
                f"by n = {self.n:,}."
            )
        if self.n_prior:
            lines.append(f"The prior was built from {self.n_prior:,} other examples, which are not among the n.")
        warnings = self._warnings()
        if self.weakest and not warnings:
            lines.append(_ADVICE.get(self.weakest, f"What costs most: {self.weakest}."))
        lines += warnings
        return "\n".join([*lines, *self.remarks])

    def _warnings(self) -> list[str]:
        """What makes the number useless."""
        said = []
        if self.value >= self.guess_error:
            said.append(
                f"This bound says nothing: calling every sample the most frequent class errs on {self.guess_error:.4f} "
                "of them. Give the learning more time (learning.seconds), hold the weights back while training "
                "(DistanceToInit), keep examples for certifying (PriorSplit), or use the hold-out bound."
            )
        if self.value > self.live_value and self.kind == "pac_bayes_pair":
            said.append(
                f"The live bound of the run, {self.live_value:.4f}, was lower: the posterior was not learnt to its "
                "end. Give the learning more time (learning.seconds), or a higher rate."
            )
        return said

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; numbers that are none become null."""
        plain = dataclasses.asdict(self)
        plain["reasons"] = [{"flag": f, "sentence": str(r)} for f, r in zip(self.flags, self.reasons, strict=True)]
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}
        return {"format": _FORMAT, "statement": self.statement(), **plain}

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, with its statement in words.

        Args:
            path: The file; its folder is made.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Raises:
            ConfigurationError: If it is no certificate.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found["format"] != _FORMAT:
                raise ValueError(f"its format is {found['format']!r} and not {_FORMAT!r}")
            # Files of earlier versions have none of those.
            found = {"start_error": None, "guess_error": None, "live_value": None, **found}
            values = {field.name: found[field.name] for field in dataclasses.fields(cls)}
            values["reasons"] = tuple(Reason(r["sentence"], flag=r["flag"]) for r in values["reasons"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} cannot be read as a certificate ({type(error).__name__}: {error}); give a file that "
                "Certificate.save wrote."
            ) from error
        for name in ("conditions", "remarks", "networks", "network_hashes"):
            values[name] = tuple(values[name])
        numbers = [field.name for field in dataclasses.fields(cls) if field.type == "float"]
        whole: dict[str, Any] = {k: math.nan if v is None and k in numbers else v for k, v in values.items()}
        return cls(**whole)


_ADVICE = {
    "risk": "What costs most: the error of networks drawn so far from the model. Train the model to a wider minimum, "
    "or optimise the posterior, and longer (FinalCertificate).",
    "displacement": "What costs most: the distance from where training began. Hold the weights back (DistanceToInit), "
    "or begin nearer, with a prior learnt on more examples that are then left out (PriorSplit).",
    "covariance": "What costs most: how precisely the weights must be known. Fewer directions that matter (a smaller "
    "model, more regularisation) or an optimised posterior make it less.",
    "sample": "What costs most: ln(xi(n)/delta). Only more examples make it less.",
    "subsample": "What costs most: that only some examples were looked at. Raise risk_samples.",
}


def _nats(certificate: Certificate) -> str:
    return (
        f"{certificate.kl_displacement:,.1f} for the distance from the prior's mean and "
        f"{certificate.kl_covariance:,.1f} for the precision of the weights"
    )
