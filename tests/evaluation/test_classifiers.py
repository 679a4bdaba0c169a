"""Which losses say that outputs are scores of classes, and which do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_sloppy import fisher_spectrum
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.classifiers import classifier_of
from lightning_sloppy.evaluation.number_losses import for_one_number
from lightning_sloppy.evaluation.weights import known_loss

WEIGHT = torch.tensor([1.0, 5.0, 0.2])


class Focal(nn.Module):
    def __init__(self, alpha=None):
        super().__init__()
        self.alpha = alpha

    def forward(self, outputs, targets):
        log = F.log_softmax(outputs, 1).gather(1, targets[:, None])[:, 0]
        loss = -((1 - log.exp()) ** 2) * log
        return (loss if self.alpha is None else loss * self.alpha[targets]).mean()


class Angular(nn.Module):
    """The classes are directions that the criterion learns; what it is given are embeddings."""

    def __init__(self, classes, width, *, learnt=True):
        super().__init__()
        centres = torch.randn(classes, width)
        self.centres = nn.Parameter(centres) if learnt else centres

    def forward(self, outputs, targets):
        return F.cross_entropy(8 * F.normalize(outputs) @ F.normalize(self.centres).T, targets)


def of_hot(loss):
    return lambda outputs, targets: loss(outputs, F.one_hot(targets, outputs.shape[1]).float())


SCORES = {
    "module": nn.CrossEntropyLoss(),
    "weights": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
    "function": F.cross_entropy,
    "likelihood": nn.NLLLoss(),
    "partial": partial(F.cross_entropy, label_smoothing=0.1),
    "margin": nn.MultiMarginLoss(),
    "own function": lambda outputs, targets: F.cross_entropy(outputs, targets),
    "own smoothing": lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=0.2),
    "own weights": lambda outputs, targets: F.cross_entropy(outputs, targets, weight=WEIGHT),
    "own margin": lambda outputs, targets: F.multi_margin_loss(outputs, targets),
    "temperature": lambda outputs, targets: F.cross_entropy(outputs / 3, targets),
    "penalty": lambda outputs, targets: F.cross_entropy(outputs, targets) + 3.0,
    "focal": Focal(),
    "weighted focal": Focal(WEIGHT),
    "squared": of_hot(F.mse_loss),
    "one against all": of_hot(F.binary_cross_entropy_with_logits),
}


@pytest.mark.parametrize("name", SCORES)
def test_losses_of_class_scores(name):
    outputs, targets = torch.randn(8, 3), torch.randint(0, 3, (8,))
    found = classifier_of(SCORES[name], outputs, targets)
    assert found.words == "the class of the largest score"
    assert torch.equal(found.mistakes(outputs, targets), outputs.argmax(1) != targets)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("seed", range(8))
def test_losses_of_other_outputs(classes, seed):
    torch.manual_seed(seed)
    outputs, targets = torch.randn(8, classes), torch.randint(0, classes, (8,))
    mixing = torch.randn(classes, classes)
    others = [
        Angular(classes, classes),
        Angular(classes, classes, learnt=False),
        Angular(classes, classes, learnt=False).forward,
        lambda outputs, targets: F.cross_entropy(outputs @ mixing.T, targets),
        lambda outputs, targets: F.cross_entropy(-outputs, targets),
        lambda outputs, targets: F.cross_entropy(outputs.roll(1, 1), targets),
        lambda outputs, targets: outputs.square().mean(),
        nn.MSELoss(),
        None,
    ]
    assert [classifier_of(loss, outputs, targets) for loss in others] == len(others) * [None]


def test_tensors_of_other_shapes_are_no_scores():
    loss, outputs, targets = nn.CrossEntropyLoss(), torch.randn(8, 3), torch.randint(0, 3, (8,))
    assert classifier_of(loss, outputs, torch.rand(8, 3)) is None
    assert classifier_of(loss, torch.randn(8, 3, 5), torch.randint(0, 3, (8, 5))) is None
    assert classifier_of(loss, {"logits": outputs}, targets) is None
    assert classifier_of(loss, outputs.long(), targets) is None


BINARY = {
    "module": nn.BCEWithLogitsLoss(),
    "weight": nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)),
    "function": F.binary_cross_entropy_with_logits,
    "own": lambda o, t: F.binary_cross_entropy_with_logits(o.reshape(-1), t.reshape(-1).float()),
    "own weight": lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=torch.tensor(4.0)),
    "softplus": lambda o, t: F.softplus(-(2 * t - 1) * o).mean(),
}
NO_LOGIT = {
    "squared": nn.MSELoss(),
    "own squared": lambda o, t: F.mse_loss(o, t),
    "absolute": nn.L1Loss(),
    "huber": lambda o, t: F.smooth_l1_loss(o, t),
    "shifted": lambda o, t: F.binary_cross_entropy_with_logits(o + 1, t),
    "turned": lambda o, t: F.binary_cross_entropy_with_logits(-o, t),
}


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("name", [*BINARY, *NO_LOGIT])
def test_one_logit(name, column):
    outputs, targets = torch.randn(8), torch.tensor([0.0, 1.0] * 4)
    if column:
        outputs, targets = outputs[:, None], targets[:, None]
    found = classifier_of({**BINARY, **NO_LOGIT}[name], outputs, targets)
    if name in NO_LOGIT:
        assert found is None
        return
    assert found.words == "the sign of the logit"
    assert torch.equal(found.mistakes(outputs, targets), ((outputs > 0).float() != targets).reshape(8))
    assert bool(found.mistakes(torch.full_like(outputs, torch.nan), targets).all())
    # Half a target is no label.
    assert bool(found.mistakes(outputs, targets * 0 + 0.5).all())
    assert classifier_of(BINARY[name], outputs, targets * 0.5) is None


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_one_logit_in_another_shape_is_the_same_loss_to_every_matrix(reduction):
    torch.manual_seed(0)
    module, x, y = nn.Linear(3, 1).double(), torch.randn(8, 3).double(), torch.tensor([0, 1] * 4)
    loss = for_one_number(nn.BCEWithLogitsLoss(reduction=reduction), module(x), y)
    assert known_loss(loss).reduction == reduction
    value = F.binary_cross_entropy_with_logits(module(x)[:, 0], y.double(), reduction=reduction)
    assert torch.equal(loss(module(x), y), value)
    batches = [(x[:1], y[:1]), (x[1:], y[1:])]  # no batch of one can show that it adds up
    chance = module(x).detach().sigmoid()[:, 0]
    rows = torch.cat([x, torch.ones(8, 1).double()], 1)
    right = torch.linalg.eigvalsh(rows.T @ ((chance * (1 - chance))[:, None] * rows) / 8).flip(0)
    exact = fisher_spectrum(module, batches, loss, "exact", reduction="mean")
    torch.testing.assert_close(exact.eigenvalues[:4], right, rtol=1e-6, atol=1e-9)
    sampled = fisher_spectrum(module, batches, loss, "sampled", labels=400, reduction="mean")
    assert sampled.trace.value == pytest.approx(float(right.sum()), rel=0.1)


def test_a_probability_is_judged_by_one_half():
    outputs, targets = torch.tensor([0.2, 0.4, 0.6, 0.9]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    found = classifier_of(nn.BCELoss(), outputs, targets)
    assert found.mistakes(outputs, targets).tolist() == [False, True, True, False]


def test_the_users_own_rule():
    outputs, targets = torch.randn(8, 3), torch.randint(0, 3, (8,))
    wrong = outputs.argmin(1) != targets
    labels = classifier_of(None, outputs, targets, lambda outputs: outputs.argmin(1))
    errors = classifier_of(None, outputs, targets, lambda outputs, targets: outputs.argmin(1) != targets)
    assert torch.equal(labels.mistakes(outputs, targets), wrong)
    assert torch.equal(errors.mistakes(outputs, targets), wrong)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("argmax", "must be a function"),
        (lambda outputs: outputs, "must give a label for each"),
        (lambda outputs, targets: outputs.argmax(1), "must give booleans"),
        (lambda outputs: outputs.argmax(1)[:4], "must give a label for each"),
    ],
)
def test_a_rule_that_gives_something_else(rule, words):
    with pytest.raises(ConfigurationError, match=words):
        classifier_of(None, torch.randn(8, 3), torch.randint(0, 3, (8,)), rule)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_scores_that_are_no_numbers_are_mistakes_whatever_argmax_makes_of_them(bad, place):
    outputs = torch.tensor([[3.0, 1.0, 0.0]]).repeat(3, 1)
    outputs[1, place] = bad
    targets = outputs.argmax(1)  # of the second sample what argmax says is right
    found = classifier_of(F.cross_entropy, torch.randn(3, 3), targets)
    assert found.mistakes(outputs, targets).tolist() == [False, True, False]


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCELoss()])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_logit_that_is_no_number_is_a_mistake_for_both_labels(loss, label):
    found = classifier_of(loss, torch.rand(4), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert found.mistakes(torch.tensor([torch.nan]), torch.tensor([label])).tolist() == [True]


def test_a_loss_without_a_hash_is_taken_as_it_is():
    @dataclass
    class Own:
        scale: float = 2.0

        def __call__(self, outputs, targets):
            return self.scale * F.mse_loss(outputs.squeeze(1), targets)

    own = Own()
    assert for_one_number(own, torch.zeros(4, 1), torch.zeros(4)) is own
