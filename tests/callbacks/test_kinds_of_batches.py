"""Batches as people give them to a Trainer, against the dense Hessian of the mean loss over all samples."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from support.tiny import CLASSES, FEATURES, blobs, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_sloppy import FisherSpectrum, HessianSpectrum, InputSpectrum, JacobianSpectrum, Schedule

COUNT = 20
ROWS = blobs(COUNT).tensors


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def largest(module: LightningModule, loss: Tensor) -> float:
    parameters = [p for p in module.parameters() if p.requires_grad]
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [
        torch.cat([r.reshape(-1) for r in torch.autograd.grad(entry, parameters, retain_graph=True)]) for entry in flat
    ]
    return float(torch.linalg.eigvalsh(torch.stack(rows)).max())


def watched(tmp_path: Any, module: LightningModule, batches: Any, *parts: Any) -> None:
    trainer(tmp_path, callbacks=list(parts), max_epochs=1).fit(module, batches)


def parts(**options: Any) -> list[Any]:
    given = {"schedule": Schedule(max_overhead=None), "num_samples": COUNT, **options}
    return [HessianSpectrum(k=3, **given), FisherSpectrum(**given), JacobianSpectrum(schedule=given["schedule"])]


def items() -> list[dict[str, Tensor]]:
    x, y = ROWS
    return [{"x": x[i].double(), "mask": torch.ones(FEATURES).double(), "labels": y[i]} for i in range(COUNT)]


class AllKeywords(Net):
    def forward(self, **inputs: Tensor) -> Tensor:
        return self.net(inputs["x"] * inputs["mask"])


class SomeKeywords(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.net(x if mask is None else x * mask)


class OneKeyword(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class WholeDict(Net):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["x"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AllKeywords, SomeKeywords, OneKeyword, WholeDict])
def test_dicts_go_by_the_names_that_forward_knows(tmp_path: Any, kind: type[Net]) -> None:
    class Stepping(kind):  # type: ignore[valid-type,misc]
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.net(batch["x"]), batch["labels"])

    module = Stepping()
    found = parts(loss_fn=lambda outputs, batch: F.cross_entropy(outputs, batch["labels"]), strict=True)
    watched(tmp_path, module, DataLoader(items(), batch_size=8), *found)
    assert [part.latest.num_samples for part in found] == [COUNT] * 3
    right = largest(module, F.cross_entropy(module.net(ROWS[0].double()), ROWS[1]))
    assert found[0].latest.spectrum.largest == pytest.approx(right, rel=1e-6)


class Outputs(OrderedDict):  # type: ignore[type-arg]
    """As the outputs of Hugging Face: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class LikeHuggingFace(Net):
    def forward(self, x: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Outputs:
        logits = self.net(x if mask is None else x * mask)
        found = Outputs(logits=logits)
        if labels is not None:
            found["loss"] = F.cross_entropy(logits, labels)
        return found

    def training_step(self, batch: Any) -> Tensor:
        return self(**batch).loss


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss_fn",
    [
        None,
        lambda outputs, batch: F.cross_entropy(outputs.logits, batch["labels"]),
        lambda outputs, _: outputs.loss,  # the rows of the Fisher matrix are those of the logits all the same
    ],
)
def test_outputs_with_loss_and_logits_work_as_they_stand(tmp_path: Any, loss_fn: Any) -> None:
    module = LikeHuggingFace()
    found = parts(loss_fn=loss_fn, strict=True)
    watched(tmp_path, module, DataLoader(items(), batch_size=8), *found)
    right = largest(module, F.cross_entropy(module.net(ROWS[0].double()), ROWS[1]))
    assert found[0].latest.spectrum.largest == pytest.approx(right, rel=1e-6)
    assert found[1].latest.estimates["effective_dimension"].value > 1


class Triples(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(x * mask)

    def training_step(self, batch: Any) -> Tensor:
        x, mask, labels = batch
        return F.cross_entropy(self(x, mask), labels)


def test_a_triple_is_split_where_forward_ends_and_the_step_gets_it_whole(tmp_path: Any) -> None:
    module, found = Triples(), parts(strict=True)
    triples = [(each["x"], each["mask"], each["labels"]) for each in items()]
    watched(tmp_path, module, DataLoader(triples, batch_size=8), *found)
    right = largest(module, F.cross_entropy(module.net(ROWS[0].double()), ROWS[1]))
    assert found[0].latest.spectrum.largest == pytest.approx(right, rel=1e-6)
    assert found[1].latest is not None


class Recurrent(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.RNN(4, 2).double(), nn.Linear(2, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.layer(inputs)[1][0])

    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


SEQUENCES = [
    (torch.randn(5, 4, generator=torch.Generator().manual_seed(i)).double(), torch.tensor(i % 3)) for i in range(COUNT)
]


def time_first(rows: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([row for row, _ in rows], dim=1), torch.stack([label for _, label in rows])


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(SEQUENCES)


@pytest.mark.slow
@pytest.mark.parametrize("said", [None, lambda batch: batch[0].shape[1]])
@pytest.mark.parametrize("data", [SEQUENCES, Stream()])
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:Nobody knows.*")
def test_time_first_in_a_trainer(tmp_path: Any, data: Any, said: Any) -> None:
    """By index and as a stream, with an uneven last batch."""
    module, found = Recurrent(), parts(strict=True, batch_size=said)
    watched(tmp_path, module, DataLoader(data, batch_size=8, collate_fn=time_first), *found)
    inputs, targets = time_first(SEQUENCES)
    assert [part.latest.num_samples for part in found] == [COUNT] * 3
    right = largest(module, F.cross_entropy(module(inputs), targets))
    assert found[0].latest.spectrum.largest == pytest.approx(right, rel=1e-6)


def test_inputs_with_time_first_are_rows_of_samples(tmp_path: Any) -> None:
    found = InputSpectrum(kind="covariance", strict=True)
    watched(tmp_path, Recurrent(), DataLoader(SEQUENCES, batch_size=8, collate_fn=time_first), found)
    rows = torch.stack([row.flatten() for row, _ in SEQUENCES])
    right = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0)).flip(0)
    assert found.latest.num_samples == COUNT
    torch.testing.assert_close(found.latest.spectrum.eigenvalues[:10], right[:10], rtol=1e-4, atol=1e-5)


class Bag:
    """A batch object, as graph libraries give them."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, *args: Any, **options: Any) -> Bag:
        return Bag(self.x.to(*args, **options), self.y.to(*args, **options))


class OnBags(Net):
    def forward(self, bag: Bag) -> Tensor:
        return self.net(bag.x)

    def training_step(self, bag: Bag) -> Tensor:
        return F.cross_entropy(self(bag), bag.y)


@pytest.mark.slow
@pytest.mark.parametrize("loss_fn", [None, lambda outputs, bag: F.cross_entropy(outputs, bag.y)])
def test_batch_objects(tmp_path: Any, loss_fn: Any) -> None:
    module, found = OnBags(), parts(loss_fn=loss_fn)
    rows = [(each["x"], each["labels"]) for each in items()]
    batches = DataLoader(rows, batch_size=8, collate_fn=lambda part: Bag(*map(torch.stack, zip(*part, strict=True))))
    watched(tmp_path, module, batches, *found)
    right = largest(module, F.cross_entropy(module.net(ROWS[0].double()), ROWS[1]))
    assert found[0].latest.num_samples == COUNT
    assert found[0].latest.spectrum.largest == pytest.approx(right, rel=1e-6)
    assert found[1].latest.num_samples == COUNT


def test_a_loss_that_cannot_be_evaluated_loses_nothing(tmp_path: Any) -> None:
    """Without loss_fn= the Hessian is that of the step; with one that does not fit it still is, and that is said."""
    module = OneKeyword()
    module.training_step = lambda batch: F.cross_entropy(module.net(batch["x"]), batch["labels"])  # type: ignore
    found = HessianSpectrum(k=3, num_samples=COUNT, loss_fn=lambda outputs, batch: F.cross_entropy(outputs, batch[1]))
    with pytest.warns(UserWarning, match=r"loss_fn= cannot be evaluated \(KeyError.*Hessian is that of training_step"):
        watched(tmp_path, module, DataLoader(items(), batch_size=8), found)
    right = largest(module, F.cross_entropy(module.net(ROWS[0].double()), ROWS[1]))
    assert found.latest.spectrum.largest == pytest.approx(right, rel=1e-6)


class TwoFaced(OneKeyword):
    """Scores and auxiliary scores in train mode, scores alone in eval mode, as Inception."""

    def forward(self, x: Tensor) -> Any:
        scores = self.net(x)
        return (scores, scores * 2) if self.training else scores

    def training_step(self, batch: Any) -> Tensor:
        scores, more = self(batch["x"])
        return F.cross_entropy(scores, batch["labels"]) + F.cross_entropy(more, batch["labels"])


@pytest.mark.filterwarnings("ignore:The hessian measurement failed.*")
def test_another_mode_is_named_as_the_reason(tmp_path: Any) -> None:
    found = HessianSpectrum(k=3, num_samples=COUNT, loss_fn=lambda outputs, b: F.cross_entropy(outputs[1], b["labels"]))
    with pytest.warns(UserWarning, match="gives tuple with 2 tensors in train mode but Tensor with 1 tensors in eval"):
        watched(tmp_path, TwoFaced(), DataLoader(items(), batch_size=8), found)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.filterwarnings("ignore:The loss adds up its samples.*")
def test_a_loss_that_adds_up_is_measured_as_its_mean_and_named(tmp_path: Any, own: bool) -> None:
    """The scale z is for means; both as the module's own loss and as loss_fn=."""
    module = OneKeyword()
    summing = nn.CrossEntropyLoss(reduction="sum")
    if own:
        module.criterion = lambda outputs, batch: summing(outputs, batch["labels"])
    module.training_step = lambda batch: summing(module.net(batch["x"]), batch["labels"])  # type: ignore
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.001)
    given = None if own else lambda outputs, batch: summing(outputs, batch["labels"])
    found = parts(loss_fn=given, strict=True)
    watched(tmp_path, module, DataLoader(items(), batch_size=8), *found)
    right = largest(module, F.cross_entropy(module.net(ROWS[0].double()), ROWS[1]))
    assert found[0].latest.spectrum.largest == pytest.approx(right, rel=1e-6)
    assert any("the sum are N times as large" in note for note in found[0].latest.notes)


@pytest.mark.slow
def test_train_mode_measures_what_is_trained(tmp_path: Any) -> None:
    """With what forward returns there, and the same random stream in every forward."""
    module = TwoFaced()
    module.drop = nn.Dropout(0.5)
    found = [
        HessianSpectrum(k=3, num_samples=COUNT, mode="train", strict=True, name=name, loss_fn=loss_fn)
        for name, loss_fn in (
            ("given", lambda outputs, b: sum(F.cross_entropy(each, b["labels"]) for each in outputs)),
            ("step", None),
        )
    ]
    jacobian = JacobianSpectrum(mode="train", strict=True)
    with pytest.warns(UserWarning, match="the Hessian is that of training_step"):
        watched(tmp_path, module, DataLoader(items(), batch_size=8), *found, jacobian)
    scores = module.net(ROWS[0].double())
    right = largest(module, F.cross_entropy(scores, ROWS[1]) + F.cross_entropy(2 * scores, ROWS[1]))
    for part in found:
        assert part.latest.mode == "train"
        assert part.latest.spectrum.largest == pytest.approx(right, rel=1e-6)
    assert jacobian.latest.estimates["num_outputs"].value == 2 * CLASSES


@pytest.mark.slow
def test_train_mode_is_deterministic_under_dropout(tmp_path: Any) -> None:
    class Dropping(OneKeyword):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(F.dropout(x, 0.5, self.training))

    module = Dropping()
    module.training_step = lambda batch: F.cross_entropy(module(batch["x"]), batch["labels"])  # type: ignore
    given = {"num_samples": COUNT, "strict": True, "loss_fn": lambda outputs, b: F.cross_entropy(outputs, b["labels"])}
    train = HessianSpectrum(k=3, mode="train", **given)
    evaluated = HessianSpectrum(k=3, name="evaluated", **given)
    watched(tmp_path, module, DataLoader(items(), batch_size=8), train, evaluated)
    assert "unsteady" not in train.latest.spectrum.detail
    assert train.latest.spectrum.largest != pytest.approx(evaluated.latest.spectrum.largest, rel=1e-3)
    right = largest(module, F.cross_entropy(module.net(ROWS[0].double()), ROWS[1]))
    assert evaluated.latest.spectrum.largest == pytest.approx(right, rel=1e-6)


@pytest.mark.slow
def test_chosen_outputs_have_rows_of_their_own(tmp_path: Any) -> None:
    """A function of the outputs may give them in another order, or with time first."""

    class Several(Recurrent):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            states, last = self.layer(inputs)
            return self.head(last[0]), states

        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self(batch[0])[0], batch[1])

    module = Several()
    found = [
        JacobianSpectrum(outputs=lambda outputs: outputs[1], strict=True, name="states"),
        JacobianSpectrum(outputs=lambda outputs: outputs[::-1], strict=True, name="both"),
    ]
    watched(tmp_path, module, DataLoader(SEQUENCES, batch_size=8, collate_fn=time_first), *found)
    scores, states = module(time_first(SEQUENCES)[0])
    states = states.transpose(0, 1).flatten(1)
    for part, values in ((found[0], states), (found[1], torch.cat([states, scores], 1))):
        rows = [
            torch.cat(
                [
                    p.flatten()
                    for p in torch.autograd.grad(
                        value, list(module.parameters()), retain_graph=True, materialize_grads=True
                    )
                ]
            )
            for value in values.flatten()
        ]
        jacobians = torch.stack(rows).reshape(COUNT, -1, len(rows[0]))
        jacobians = (jacobians / jacobians.square().sum((1, 2), keepdim=True).sqrt()).flatten(0, 1)
        right = torch.linalg.eigvalsh(jacobians.T @ jacobians / COUNT).flip(0)
        assert part.latest.num_samples == COUNT
        eigenvalues = part.latest.spectrum.eigenvalues[: len(right)]
        torch.testing.assert_close(eigenvalues, right[: len(eigenvalues)], rtol=1e-6, atol=1e-9)
