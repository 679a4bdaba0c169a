"""What each group of curves means, and what to do when one of them rises, falls or stays flat. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """How to read one group of curves.

    Attributes:
        question: The question that it answers.
        meaning: What its headline is.
        rises: What it means if the headline rises, and what to do. Empty for what is measured once.
        falls: The same if it falls.
        flat: The same if it stays flat.
        single: What the number of something measured once means, and what to do.
    """

    question: str
    meaning: str
    rises: str = ""
    falls: str = ""
    flat: str = ""
    single: str = ""

    @property
    def courses(self) -> list[tuple[str, str]]:
        """How the headline may go, with what that means; empty for what is measured once."""
        known = {"rises": self.rises, "falls": self.falls, "stays flat": self.flat}
        return [(course, meaning) for course, meaning in known.items() if meaning]


GUIDE = {
    "input": Advice(
        "How many directions do the data have?",
        "Participation ratio of the correlation matrix of the inputs, measured once before the first step.",
        single="If it is near the number of features, no feature repeats another one: removing features loses "
        "information. If it is far below, many repeat each other: look for copies with `lightning-sloppy inspect`, and "
        "leave them out with a SpectralReducer.",
    ),
    "jacobian": Advice(
        "How many directions of the parameters matter?",
        "Effective dimension of the outputs' Jacobian on the probe samples, the number to quote.",
        "After its first fall it grows slowly as the network memorises samples. If it reaches 1.5 times its minimum, "
        "look at the validation loss, and stop or regularise if that rises.",
        "In the first epochs: the network finds the directions that matter. Continue.",
        "It has settled: the network no longer changes what it uses. If the validation loss is flat as well, stop.",
    ),
    "hessian": Advice(
        "How curved is the loss, and is the learning rate near its limit?",
        "Largest eigenvalue and trace of the Hessian; effective dimension of its Gauss-Newton part.",
        "A rising largest eigenvalue means a sharper minimum. For plain gradient descent, the limit of "
        "`sharpness` (learning rate times largest eigenvalue) is 2: lower the learning rate if the loss oscillates.",
        "A falling trace means a flatter region. Nothing to do.",
        "The curvature has settled. If the loss still falls, a larger learning rate may be possible.",
    ),
    "fisher": Advice(
        "How many directions do the gradients of the samples have?",
        "Effective dimension and trace of the Fisher matrix on the probe samples.",
        "A jump of the largest eigenvalue comes from a few samples with very large gradients: inspect them.",
        "The trace falls to zero as the samples are fitted, and the dimension falls if few samples dominate.",
        "The samples pull at the weights as before. Nothing to do.",
    ),
    "bound": Advice(
        "What is guaranteed about the true error?",
        "PAC-Bayes bound for two networks drawn around the model, hold-out bound for the model itself, and the error "
        "of guessing. Each holds with the stated probability; a bound above guessing is of no use.",
        "Training moves the weights away from the initial ones faster than it reduces the error. Stop earlier, or keep "
        "the weights near the start (DistanceToInit).",
        "The guarantee improves. Continue.",
        "At 1 it guarantees nothing yet. Below 1, more training does not improve it: use more data, or a "
        "FinalCertificate with a PriorSplit.",
    ),
    "certificate": Advice(
        "What is guaranteed at the end of the fit?",
        "Bound for two networks drawn from a posterior that was optimised for it. They are saved with it.",
        single="Compare it with the error of guessing and with the hold-out bound. A smaller value comes from more "
        "data, weights near the prior (DistanceToInit), or a prior learnt on other samples (PriorSplit).",
    ),
    "validation": Advice(
        "On which samples is the network wrong?",
        "Error of validation samples, and its difference between those far from and near to the training inputs.",
        "If the difference between highest and lowest bin grows while the error falls, the network learns the usual "
        "samples only. The summary names the worst bin and the columns that stand out in it: look at them first.",
        "The network gets better, or as good on unusual samples as on usual ones. Nothing to do.",
        "If its interval holds 0, no difference can be seen; more validation samples make the interval shorter.",
    ),
    "cost": Advice(
        "What does measuring cost?",
        "`overhead`: seconds of measuring so far, divided by the seconds of training without measuring.",
        "Measuring is too dear. Measure less often, or lower `num_samples`, `probes` or `k`.",
        "The first measurements are being paid off. Nothing to do.",
        "The limit `max_overhead` is at work, or the schedule is even. Nothing to do.",
    ),
}
"""Advice by kind of instrument."""
