"""What one batch shows about a loss that differs from the loss of the step, and nothing beyond it."""

from __future__ import annotations

import lightning.pytorch as lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sloppy.evaluation.inner_loss import LossOfLogits
from lightning_sloppy.probing.loss_difference import INPUTS, Seen, explained, inputs_differ, likely_causes
from lightning_sloppy.probing.outside import constants_of

STRENGTH = 0.0037


def sized(module, strength):
    return strength * sum(p.abs().sum() for p in module.parameters())


class Module(lightning.LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))
        self.register_buffer("rare", torch.tensor([0.5, 1.0, 1.5, 4.0]))
        self.amount = 0.07

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch):
        loss = F.cross_entropy(
            self(batch[0]), batch[1], label_smoothing=0.13, weight=torch.tensor([1.0, 2.0, 2.0, 3.0])
        )
        return loss + sized(self, STRENGTH)


def seen(module, count=32, seed=1):
    rng = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(count, 5, generator=rng), torch.randint(0, 4, (count,), generator=rng)
    return Seen(module(inputs).detach(), targets)


def cross_entropy(found, **options):
    return float(F.cross_entropy(found.outputs, found.targets, **options))


def words(module, found, theirs, loss_fn=F.cross_entropy, mine=None):
    mine = float(loss_fn(found.outputs, found.targets)) if mine is None else mine
    difference = explained(module, loss_fn, found, mine, theirs)
    return None if difference is None else (difference.words, difference.remedy)


def test_constants_of_the_code_and_of_the_module():
    found = constants_of(Module())
    assert {0.13, STRENGTH, 0.07} <= set(found.numbers)
    assert not {0.0, 1.0} & set(found.numbers)
    assert (1.0, 2.0, 2.0, 3.0) in found.tuples
    assert torch.equal(found.tensors["self.rare"], torch.tensor([0.5, 1.0, 1.5, 4.0]))


@pytest.mark.parametrize("amount", [0.01, 0.05, 0.1, 0.07, 0.13])
def test_label_smoothing_of_a_usual_amount_or_one_in_the_code(amount):
    module = Module()
    found = seen(module)
    said, code = words(module, found, cross_entropy(found, label_smoothing=amount))
    assert said == f"Label smoothing of {amount:g} gives the same value."
    loss_fn = eval(code)
    assert float(loss_fn(found.outputs, found.targets)) == pytest.approx(cross_entropy(found, label_smoothing=amount))


def test_label_smoothing_that_is_neither_is_not_guessed():
    module = Module()
    found = seen(module)
    assert words(module, found, cross_entropy(found, label_smoothing=0.0317)) is None


def test_class_weights_of_the_module_and_of_the_code():
    module = Module()
    found = seen(module)
    said, code = words(module, found, cross_entropy(found, weight=module.rare))
    assert (said, code) == (
        "Cross-entropy with the class weights in self.rare gives the same value.",
        "torch.nn.CrossEntropyLoss(weight=model.rare)",
    )
    given = torch.tensor([1.0, 2.0, 2.0, 3.0])
    said, code = words(module, found, cross_entropy(found, weight=given))
    assert "class weights 1, 2, 2, 3" in said
    assert float(eval(code)(found.outputs, found.targets)) == pytest.approx(cross_entropy(found, weight=given))
    both = cross_entropy(found, weight=given, label_smoothing=0.13)
    said, code = words(module, found, both)
    assert said == "Label smoothing of 0.13 and the class weights 1, 2, 2, 3 gives the same value."
    assert float(eval(code)(found.outputs, found.targets)) == pytest.approx(both)


def test_ignored_targets_stay_ignored():
    module = Module()
    found = seen(module)
    found.targets[:5] = 3
    loss_fn = nn.CrossEntropyLoss(ignore_index=3)
    right = cross_entropy(found, ignore_index=3, label_smoothing=0.1)
    _, code = words(module, found, right, loss_fn)
    assert float(eval(code)(found.outputs, found.targets)) == pytest.approx(right)


def test_tokens_with_smoothing():
    module = Module()
    outputs = torch.randn(6, 9, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(0, 4, (6, 9), generator=torch.Generator().manual_seed(4))
    loss_fn = LossOfLogits(F.cross_entropy, 0, 0, tokens=True)
    theirs = float(F.cross_entropy(outputs.movedim(-1, 1), labels, label_smoothing=0.2))
    found = Seen({"logits": outputs}, {"labels": labels})
    assert words(module, found, theirs, loss_fn) == ("Label smoothing of 0.2 gives the same value.", "")


@pytest.mark.parametrize(
    ("penalty", "said"),
    [
        (lambda m: 1e-2 * sum(p.square().sum() for p in m.parameters()), "0.01 times the sum of the squares of all w"),
        (lambda m: 5e-3 * sum(p.square().sum() for p in m.parameters()), "0.005 times the sum of the squares of all w"),
        (
            lambda m: 0.02 * sum(p.square().sum() for p in m.parameters() if p.ndim > 1),
            "0.02 times the sum of the squares of all weights without biases",
        ),
        (lambda m: sized(m, STRENGTH), "0.0037 times the sum of the magnitudes of all weights,"),
        (lambda m: 0.01 * sum(p.norm() for p in m.parameters()), "0.01 times the sum of the norms of the tensors"),
    ],
)
def test_penalties(penalty, said):
    module = Module()
    found = seen(module)
    sentence, code = words(module, found, cross_entropy(found) + float(penalty(module).detach()))
    assert said in sentence
    assert sentence.endswith("a penalty on the weights.")
    assert code == "", "the remedy is the guess itself"


def test_a_penalty_too_small_to_tell_its_strength_is_not_named():
    module = Module()
    found = seen(module)
    theirs = cross_entropy(found) + 1e-5 * float(sum(p.detach().square().sum() for p in module.parameters()))
    assert words(module, found, theirs) is None


def test_a_sum_and_a_factor():
    module = Module()
    found = seen(module)
    said, _ = words(module, found, cross_entropy(found, reduction="sum"))
    assert said == "It is 32 times as large, and the batch has 32 samples: a sum over them."
    said, code = words(module, found, 0.5 * cross_entropy(found))
    assert said == "It is 0.5 times as large."
    assert "0.5 * torch.nn.functional.cross_entropy(outputs, targets)" in code


def test_differences_of_another_kind_are_not_explained():
    """Chance fits one of several hundred: here 2,000 losses that have no such cause."""
    module = Module()
    found = seen(module)
    mine, rng = cross_entropy(found), torch.Generator().manual_seed(0)
    others = mine * torch.exp(torch.randn(2000, generator=rng, dtype=torch.float64))
    named = [other for other in others.tolist() if words(module, found, other) is not None]
    assert len(named) <= 8, named


def test_regression_has_no_labels_to_smooth():
    assert "label smoothing" not in likely_causes(F.mse_loss)
    assert likely_causes(F.cross_entropy).endswith("penalty on the weights, label smoothing, augmentation, mixup.")


def test_inputs_are_compared():
    rng = torch.Generator().manual_seed(0)
    batch = torch.rand(12, 3, 4, generator=rng)
    other = torch.randperm(12, generator=rng)
    mask = torch.rand(3, 4, generator=rng) < 0.5
    pasted = torch.where(mask, batch, batch[other])
    noisy = batch + 0.1 * torch.randn(12, 3, 4, generator=rng)
    assert inputs_differ(batch, batch.clone(), drew=True) == ""
    assert inputs_differ(batch, batch.reshape(12, 12).double(), drew=True) == ""
    assert inputs_differ(batch, 0.7 * batch + 0.3 * batch[other], drew=True) == "mixed"
    assert inputs_differ(batch, 0.7 * batch + 0.3 * batch.flip(0), drew=True) == "mixed"
    assert inputs_differ(batch, pasted, drew=True) == "pasted"
    assert inputs_differ(batch, noisy, drew=True) == "augmented"
    assert inputs_differ(batch, batch.flip(2), drew=True) == "augmented"
    assert inputs_differ(batch, (batch - 0.5) / 0.3, drew=False) == "changed"
    assert inputs_differ(batch, torch.rand(12, 5), drew=True) == "", "another tensor"
    assert inputs_differ({"x": batch}, noisy, drew=True) == ""
    assert inputs_differ(torch.arange(12), torch.arange(12) + 1, drew=True) == "", "tokens"


def test_inputs_that_were_changed_explain_more_than_a_number():
    module = Module()
    found = seen(module)
    found.inputs = "mixed"
    assert words(module, found, cross_entropy(found, label_smoothing=0.1)) == (INPUTS["mixed"].words, "")
