"""Where a posterior begins to be learnt, and which one is kept."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import torch

from lightning_sloppy.certificate import Certificate
from lightning_sloppy.certifying import certified_networks
from lightning_sloppy.certifying.certificate_task import CertificateTask, initial_posteriors
from lightning_sloppy.posteriors import LearningPlan, isotropic
from lightning_sloppy.posteriors.learning import Learnt

DIM, N = 50, 200
TRAINED = torch.full((DIM,), 1.5)


class Needle:
    """A network that is right very near its trained weights alone."""

    def mistakes(self, weights, indices):
        return round((0.02 if float((weights - TRAINED).norm()) < 1.0 else 0.9) * len(indices))


def task():
    template = Certificate("", "", math.nan, True, N, 0.05)
    return CertificateTask(torch.zeros(DIM), Needle(), N, 0.05, 1, LearningPlan(seconds=10), 0, template)


def test_the_prior_itself_is_no_start_though_its_bound_is_the_best():
    first, second = initial_posteriors(task(), TRAINED)
    assert float(second.mean.norm()) == 0.0, "without curvature a shrunk mean is that of the prior"
    assert float(first.mean.norm()) >= 0.25 * float(TRAINED.norm())


def test_what_promises_the_lower_bound_is_kept(monkeypatch):
    starts = initial_posteriors(task(), TRAINED)
    for better in (0, 1):
        seconds, told = [], []

        def learnt(context, start, part, on_step, better=better, seconds=seconds):
            number = [id(one) for one in starts].index(id(start))
            seconds.append(part.plan.seconds)
            on_step(1.0)
            return Learnt(isotropic(start.mean, 1.0 + number), 7, 1.0, "", (0.9, 0.3 if number == better else 0.4))

        monkeypatch.setattr(certified_networks, "_learnt", learnt)
        best = certified_networks._best_learnt(SimpleNamespace(), starts, task(), told.append)
        assert float(best.posterior.deviations[0]) == 1.0 + better
        assert (best.steps, best.seconds) == (14, 2.0)
        assert seconds == [8.0, 2.0]
        assert told == [0.8, 1.0]
    assert dataclasses.replace(best, steps=7).estimates[-1] == 0.3


def test_every_part_of_every_evaluation_of_every_seed_has_a_random_stream_of_its_own():
    """What chooses, what learns, and what another evaluation or seed draws never meet."""
    numbers = {}
    for seed in range(3):
        for evaluation in range(1, 5):
            one = dataclasses.replace(task(), seed=seed, evaluation=evaluation)
            for part in range(3):
                numbers[seed, evaluation, part] = float(torch.rand((), generator=one.stream(part)))
                again = float(torch.rand((), generator=one.stream(part)))
                assert again == numbers[seed, evaluation, part]
    assert len(set(numbers.values())) == 36
