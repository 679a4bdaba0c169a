"""Batches without targets, pairs that are inputs both, and lists with a sample in each entry."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from support.tiny import trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sloppy import HessianSpectrum, InputSpectrum, JacobianSpectrum, jacobian_spectrum

WIDTH = 5


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class TwoTowers(Net):
    """Both parts of the pair are inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(3, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.net(left) * self.other(right)

    def training_step(self, batch: Any) -> Tensor:
        return self(*batch).square().mean()


def test_a_pair_goes_whole_to_a_forward_that_needs_both(tmp_path: Any) -> None:
    """Two towers, or a decoder that is given its targets: the Jacobian is that of plain autograd."""
    torch.manual_seed(0)
    module = TwoTowers().double()
    pair = torch.randn(12, WIDTH, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]
    derivatives = torch.autograd.functional.jacobian(
        lambda *values: torch.func.functional_call(module, dict(zip(names, values, strict=True)), pair),
        tuple(module.parameters()),
    )
    rows = torch.cat([part.reshape(36, -1) for part in derivatives], dim=1)
    expected = torch.linalg.eigvalsh(rows.T @ rows / 12).flip(0)
    found = jacobian_spectrum(module, [pair], normalize=False)
    torch.testing.assert_close(found.eigenvalues[:10], expected[:10])

    jacobian, inputs = JacobianSpectrum(num_samples=12, normalize=False, strict=True), InputSpectrum()
    data = DataLoader(TensorDataset(*pair), 4)
    with pytest.warns(UserWarning, match="the inputs are a list with 2 tensors"):
        trainer(tmp_path, callbacks=[jacobian, inputs], max_epochs=1).fit(module, data)
    torch.testing.assert_close(jacobian.measurements[0].spectrum.eigenvalues[:10], expected[:10])


class Alone(Net):
    """A data set without targets: every batch is a list of one tensor."""

    def training_step(self, batch: Any) -> Tensor:
        return self(batch[0]).square().mean()


def test_inputs_without_targets_have_a_spectrum(tmp_path: Any) -> None:
    rows = torch.randn(40, WIDTH)
    inputs = InputSpectrum(strict=True)
    data = DataLoader(TensorDataset(rows), 8)
    trainer(tmp_path, callbacks=[inputs], max_epochs=1).fit(Alone(), data)
    expected = torch.linalg.eigvalsh(torch.corrcoef(rows.double().T)).flip(0)
    torch.testing.assert_close(inputs.latest.spectrum.eigenvalues, expected, rtol=1e-5, atol=1e-6)


class Pictures(Dataset):  # type: ignore[type-arg]
    """Images, and a dict of boxes for each, as detectors are trained on."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        rng = torch.Generator().manual_seed(index)
        boxes = torch.rand(1 + index % 3, 2, generator=rng)
        return torch.randn(3, 4, 4, generator=rng), {"boxes": boxes, "kinds": torch.full((len(boxes),), index % 2)}


class Detector(LightningModule):
    """Losses in train mode, boxes in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(48, 2)

    def forward(self, images: Any, targets: Any = None) -> Any:
        boxes = [self.net(image.flatten()) for image in images]
        if not self.training:
            return [{"boxes": box[None]} for box in boxes]
        errors = [(box - found["boxes"]).square().mean() for box, found in zip(boxes, targets, strict=True)]
        return {"loss_boxes": torch.stack(errors).mean()}

    def training_step(self, batch: Any) -> Tensor:
        return sum(self(*batch).values())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def as_tuples(samples: Any) -> Any:
    return tuple(zip(*samples, strict=True))


def as_lists(samples: Any) -> Any:
    return [list(part) for part in zip(*samples, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("collate", [as_tuples, as_lists])
def test_lists_of_images_hold_a_sample_in_each_entry(tmp_path: Any, collate: Any) -> None:
    """Ten images in batches of four, four and two: the mean over all of them, by plain autograd in float64."""
    torch.manual_seed(0)
    module = Detector()
    hessian = HessianSpectrum(k=2, num_samples=10, mode="train", strict=True)
    flat = torch.cat([image.flatten()[None] for image, _ in map(Pictures().__getitem__, range(10))]).double()
    ones = torch.ones(10, 1, dtype=torch.float64)
    inputs = torch.cat([flat, ones], dim=1)
    # The loss is quadratic: each of two outputs has the Hessian X^T X / N over the 49 weights that lead to it.
    expected = torch.linalg.eigvalsh(inputs.T @ inputs / 10).flip(0)
    data = DataLoader(Pictures(), 4, collate_fn=collate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(module, data)
    found = hessian.measurements[0]
    assert found.num_samples == 10
    assert float(found.spectrum.largest) == pytest.approx(float(expected[0]), rel=1e-4)


def test_a_step_that_works_in_train_mode_alone_names_the_mode(tmp_path: Any) -> None:
    hessian = HessianSpectrum(k=2, num_samples=10)
    data = DataLoader(Pictures(), 4, collate_fn=as_tuples)
    with pytest.warns(UserWarning, match="works in train mode, but raises AttributeError.*pass mode='train'"):
        trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(Detector(), data)


class Broken(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, :2])


def test_an_error_names_the_line_of_the_user(tmp_path: Any) -> None:
    """Not the one of torch or of this package that noticed it."""
    jacobian = JacobianSpectrum(num_samples=8)
    line = inspect.getsourcelines(Broken.forward)[1] + 1

    class Fits(Broken):
        def training_step(self, batch: Any) -> Tensor:
            return self.net(batch[0]).square().mean()

    data = DataLoader(TensorDataset(torch.randn(8, WIDTH), torch.zeros(8)), 4)
    with pytest.warns(UserWarning, match=rf"\(test_pairs_and_lists.py:{line}\)"):
        trainer(tmp_path, callbacks=[jacobian], max_epochs=1).fit(Fits(), data)
