"""Guessing the loss, and never logging anything of a wrong guess."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.tiny import FEATURES, Classifier, blobs, loader, trainer
from support.zoo import Trained
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import ConfigurationError, FisherSpectrum, HessianSpectrum, Status, hessian_spectrum
from lightning_sloppy.evaluation.loss_checks import default_loss
from lightning_sloppy.probing.loss_choice import choose_loss, compared_beside

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def batch(count=16):
    return blobs(count).tensors


class Plain(Classifier):
    """No loss attribute at all."""

    def __init__(self):
        super().__init__()
        del self.loss_fn

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Penalised(Classifier):
    """Minimises more than its loss_fn."""

    def training_step(self, batch, batch_idx):
        penalty = sum(p.square().sum() for p in self.parameters())
        return super().training_step(batch, batch_idx) + 0.1 * penalty


def test_the_modules_own_loss_is_found_and_compared_in_train_mode():
    model = Classifier(dropout=0.5)
    choice = choose_loss(model, batch(), None)
    assert choice.source == "the module's loss_fn"
    assert not choice.note
    assert not choice.checked
    assert compared_beside(model, batch(), choice).checked


def test_cross_entropy_is_guessed_for_integer_targets():
    assert choose_loss(Plain(), batch(), None).source == "cross-entropy"


@pytest.mark.parametrize(
    ("outputs", "targets", "loss"),
    [
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), nn.functional.cross_entropy),
        (torch.zeros(4, 3, 5), torch.zeros(4, 5, dtype=torch.long), nn.functional.cross_entropy),
        (torch.zeros(4, 2), torch.zeros(4, 2), nn.functional.mse_loss),
        (torch.zeros(4, 1), torch.zeros(4), None),
        (torch.zeros(4, 3), {"label": 1}, None),
    ],
)
def test_default_loss(outputs, targets, loss):
    assert default_loss(outputs, targets) is loss


def test_a_mismatch_means_the_hessian_of_training_step(tmp_path):
    torch.manual_seed(0)
    model = Penalised().double()
    double = tuple(t.double() if t.is_floating_point() else t for t in batch())
    choice = compared_beside(model, double, choose_loss(model, double, None))
    assert choice.source == "training_step"
    assert "training_step" in choice.note

    hessian = HessianSpectrum(k=3, num_samples=16)
    fisher = FisherSpectrum(num_samples=16)
    host = trainer(tmp_path, callbacks=[hessian, fisher], max_epochs=1)
    with pytest.warns(UserWarning, match="pass loss_fn="):
        host.fit(Penalised(), loader())
    assert {m.status for m in fisher.measurements} == {Status.FAILED}
    assert "effective_dimension" not in hessian.latest.estimates
    assert not any(tag.startswith("sloppy_fisher/") for tag in host.callback_metrics)


def test_the_hessian_of_training_step_contains_the_penalty():
    torch.manual_seed(0)
    model = Penalised().double()
    inputs, targets = (t.double() if t.is_floating_point() else t for t in batch())
    from lightning_sloppy.analysis import Solve, hessian_of
    from lightning_sloppy.linalg.vectors import generator
    from lightning_sloppy.probing.guard import measuring

    choice = choose_loss(model, (inputs, targets), "training_step")
    with measuring(model):
        mine = hessian_of(choice.objective, [(inputs, targets)], solve=Solve(k=200), rng=generator(0)).eigenvalues
    plain = hessian_spectrum(model, [(inputs, targets)], model.loss_fn, k=200).eigenvalues
    assert torch.allclose(mine, plain + 0.2)


def test_a_given_objective_is_taken_as_it_is():
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    choice = choose_loss(Penalised(), batch(), loss)
    assert choice.source == "loss_fn="
    assert choice.objective.loss_fn is loss


@pytest.mark.parametrize(
    ("module", "override", "words"),
    [
        (Classifier(), nn.CrossEntropyLoss(reduction="none"), "reduction='mean'"),
        (Classifier(), lambda outputs, targets: outputs.sum() * float("inf"), "not finite"),
    ],
)
def test_bad_losses_are_named(module, override, words):
    with pytest.raises(ConfigurationError, match=words):
        choose_loss(module, batch(), override)


def test_manual_optimisation_asks_for_the_objective():
    model = Classifier()
    model.automatic_optimization = False
    with pytest.raises(ConfigurationError, match="pass loss_fn="):
        choose_loss(model, batch(), None)
    assert choose_loss(model, batch(), nn.functional.cross_entropy).source == "loss_fn="


def test_the_check_leaves_no_trace(tmp_path):
    model = Classifier(batch_norm=True, dropout=0.4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    compared_beside(model, batch(), choose_loss(model, batch(), None))
    assert torch.equal(stream, torch.get_rng_state())
    assert model.seen == []
    assert model.accuracy._update_count == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_lone_batch_smaller_than_the_probe_is_enough(tmp_path):
    fisher = FisherSpectrum(num_samples=1000, strict=True)
    trainer(tmp_path, callbacks=[fisher], max_epochs=1).fit(Classifier(), DataLoader(blobs(10), 4))
    assert fisher.latest.num_samples == 10


def test_a_loss_that_sums_its_samples_is_measured_as_a_mean():
    choice = choose_loss(Classifier(), batch(), nn.CrossEntropyLoss(reduction="sum"))
    assert choice.objective.reduction == "sum"
    assert "All numbers are those of the mean" in choice.note
    assert choose_loss(Classifier(), batch(), nn.CrossEntropyLoss()).objective.reduction == "mean"


def test_the_only_loss_child_is_found_whatever_its_name():
    class Named(Classifier):
        def __init__(self):
            super().__init__()
            del self.loss_fn
            self.crit = nn.CrossEntropyLoss(label_smoothing=0.1)

        def training_step(self, batch, batch_idx):
            return self.crit(self(batch[0]), batch[1])

    assert choose_loss(Named(), batch(), None).source == "the module's CrossEntropyLoss"


class OneNumber(Trained):
    """A column of outputs for a row of targets, as most regressions have them."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, inputs):
        return self.net(inputs)


class Squared(OneNumber):
    def training_step(self, batch):
        return F.mse_loss(self(batch[0]).squeeze(-1), batch[1])


class Absolute(OneNumber):
    def training_step(self, batch):
        return F.l1_loss(self(batch[0]), batch[1][:, None])


class Huber(OneNumber):
    def training_step(self, batch):
        return F.huber_loss(self(batch[0])[:, 0], batch[1])


class OwnLoss(OneNumber):
    def __init__(self):
        super().__init__()
        self.criterion = nn.SmoothL1Loss(beta=0.3)

    def training_step(self, batch):
        return self.criterion(self(batch[0]).flatten(), batch[1])


def regression():
    inputs, labels = blobs(24).tensors
    return inputs, labels.float() + inputs[:, 1] / 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Squared, Absolute, Huber, OwnLoss])
@pytest.mark.filterwarnings("error:.*loss is that of training_step.*")
def test_a_column_of_outputs_is_compared_with_a_row_of_targets(tmp_path, kind):
    """The step squeezes it. The top of the Hessian is that of the step, by plain autograd in float64."""
    torch.manual_seed(0)
    module = kind()
    before = copy.deepcopy(module).double()
    hessian = HessianSpectrum(k=2, num_samples=24, strict=True)
    fisher = FisherSpectrum(num_samples=24, strict=True)
    data = DataLoader(TensorDataset(*regression()), 8)
    trainer(tmp_path, callbacks=[hessian, fisher], max_epochs=1).fit(module, data)
    assert not [
        note for m in (*hessian.measurements, *fisher.measurements) for note in m.notes if "training_step" in note
    ]
    inputs, targets = regression()
    names = [name for name, _ in before.named_parameters()]
    shapes = [p.shape for p in before.parameters()]

    def loss(flat):
        table, start = {}, 0
        for name, shape in zip(names, shapes, strict=True):
            table[name] = flat[start : start + shape.numel()].view(shape)
            start += shape.numel()
        return torch.func.functional_call(Step(before), {f"module.{n}": t for n, t in table.items()}, (batches,))

    batches = (inputs.double(), targets.double())
    flat = torch.cat([p.detach().reshape(-1) for p in before.parameters()])
    matrix = torch.autograd.functional.hessian(loss, flat)
    values = torch.linalg.eigvalsh(matrix)
    largest = values[values.abs().argmax()]
    assert float(hessian.measurements[0].spectrum.eigenvalues.abs().max()) == pytest.approx(
        abs(float(largest)), rel=1e-4
    )


class Step(nn.Module):
    """Calls the step of a module, whose parameters ``functional_call`` replaces."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module.training_step(batch)


class Spread(OneNumber):
    """Forgets to squeeze: torch compares every output with every target."""

    def training_step(self, batch):
        return (self(batch[0]) - batch[1]).square().mean()


def test_a_step_that_spreads_rows_over_columns_is_measured_as_it_is(tmp_path):
    hessian = HessianSpectrum(k=1, num_samples=24, strict=True)
    data = DataLoader(TensorDataset(*regression()), 8)
    with pytest.warns(UserWarning, match="mean squared error gives .* but training_step"):
        trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(Spread(), data)
    assert "the Hessian is that of training_step" in " ".join(hessian.latest.notes)


class Several(Classifier):
    """Holds losses under chosen names; it trains on cross-entropy."""

    def __init__(self, **losses):
        super().__init__()
        del self.loss_fn
        for name, loss in losses.items():
            setattr(self, name, loss)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


SMOOTH, PLAIN = nn.CrossEntropyLoss(label_smoothing=0.2), nn.CrossEntropyLoss()


@pytest.mark.parametrize(
    ("losses", "source", "loss"),
    [
        ({"loss_fn": PLAIN, "criterion": SMOOTH}, "the module's loss_fn", PLAIN),
        ({"criterion": SMOOTH, "other": PLAIN}, "the module's criterion", SMOOTH),
        ({"other": SMOOTH}, "the module's CrossEntropyLoss", SMOOTH),
        ({"one": SMOOTH, "two": PLAIN}, "cross-entropy", nn.functional.cross_entropy),
        ({}, "cross-entropy", nn.functional.cross_entropy),
    ],
)
def test_the_loss_is_looked_for_in_one_order(losses, source, loss):
    """``loss_fn``, ``criterion``, the only loss of torch, what is usual; of several losses none is the only one."""
    choice = choose_loss(Several(**losses), batch(), None)
    assert choice.source == source
    assert choice.objective.loss_fn is loss


class Tokens(Trained):
    """Scores (N, T, C) of the next token, as a GPT gives them, and a step that flattens them."""

    def __init__(self, shift=False):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
        self.shift = shift

    def forward(self, tokens):
        return self.net(tokens)

    def training_step(self, batch, batch_idx):
        logits, labels = self(batch[0]), batch[1]
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return F.cross_entropy(logits.reshape(-1, 7), labels.reshape(-1))


@pytest.mark.parametrize("shift", [False, True], ids=["shifted by the data set", "shifted by the step"])
def test_the_loss_of_a_token_model_is_guessed_and_confirmed(tmp_path, shift):
    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (24, 9))
    pair = (tokens, tokens) if shift else (tokens[:, :-1], tokens[:, 1:])
    model = Tokens(shift)
    fisher = FisherSpectrum(num_samples=24, strict=True)
    trainer(tmp_path, callbacks=[fisher], max_epochs=1).fit(model, DataLoader(TensorDataset(*pair), 8))
    assert fisher.latest.status is Status.EXACT
    choice = choose_loss(model, pair, None)
    assert choice.source == "cross-entropy"
    with torch.no_grad():
        expected = model.training_step(pair, 0).item()
        assert choice.objective.loss_fn(model(pair[0]), pair[1]).item() == pytest.approx(expected)


def test_a_wrong_guess_of_a_token_loss_is_replaced_by_the_step(tmp_path):
    torch.manual_seed(0)
    labels = torch.randint(0, 7, (24, 8))
    hessian = HessianSpectrum(k=1, num_samples=24, strict=True)
    data = DataLoader(TensorDataset(torch.randint(0, 7, (24, 8)), labels), 8)
    with pytest.warns(UserWarning, match="cross-entropy gives .* but training_step returned"):
        trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(Tokens(shift=True), data)
    assert "the Hessian is that of training_step" in " ".join(hessian.latest.notes)
