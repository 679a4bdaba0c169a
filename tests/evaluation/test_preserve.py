from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall

from lightning_sloppy.evaluation.preserve import parameters_restored, preserved, random_streams


@contextmanager
def interrupted(inside: AbstractContextManager[None]) -> Iterator[None]:
    """Run the body inside, and leave with an exception that goes no further."""
    with suppress(ZeroDivisionError), inside:
        yield
        raise ZeroDivisionError


def draws() -> tuple[float, ...]:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def draw_much() -> None:
    torch.manual_seed(77)
    np.random.rand(5)  # noqa: NPY002
    random.seed(3)


@pytest.mark.parametrize("broken", [False, True])
def test_random_streams_go_on_where_they_were(broken: bool) -> None:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    expected = draws()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
    with interrupted(random_streams()) if broken else random_streams():
        draw_much()
    assert draws() == expected


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(3).eval()
        self.metric = MeanMetric()
        self.cat = CatMetric()
        self.accuracies = MetricCollection([MulticlassAccuracy(3), MulticlassRecall(3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.net(x))

    def step(self, x: Tensor, y: Tensor) -> None:
        outputs = self(x)
        self.metric(outputs.sum())
        self.cat.update(outputs.detach())
        self.accuracies(outputs, y)

    def readings(self) -> list[float]:
        values = [self.metric.compute(), self.cat.compute().sum(), *self.accuracies.compute().values()]
        return [float(value) for value in values]


def data(seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=rng), torch.randint(0, 3, (6,), generator=rng)


def mangle(module: Network) -> None:
    module.step(*data(9))
    for name, buffer in module.named_buffers():
        if "metric" not in name:
            buffer.copy_(buffer + 1)
    module.train(not module.training)
    module.metric.reset()
    draw_much()


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_training_goes_on_as_if_nothing_had_happened(mode: str, broken: bool) -> None:
    results = []
    for measured in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        module = Network()
        module.step(*data(1))
        for turn in range(3):
            if measured:
                with interrupted(preserved(module, mode)) if broken else preserved(module, mode):
                    mangle(module)
            module.step(*data(2 + turn))
        results.append((module, module.readings(), draws()))
    (plain, readings, stream), (measured_module, measured_readings, measured_stream) = results
    assert measured_readings == readings
    assert measured_stream == stream
    for name, value in plain.state_dict().items():
        assert torch.equal(measured_module.state_dict()[name], value), name


@pytest.mark.parametrize("broken", [False, True])
def test_every_flag_comes_back_on_its_own(broken: bool) -> None:
    module = Network().train()
    module.frozen.eval()
    before = [child.training for child in module.modules()]
    with interrupted(preserved(module)) if broken else preserved(module):
        assert not any(child.training for child in module.modules())
    assert [child.training for child in module.modules()] == before
    with preserved(module, "train"):
        assert [child.training for child in module.modules()] == before


def test_a_metric_that_caches_a_value_with_its_graph_is_no_obstacle() -> None:
    """``self.metric(loss)`` with the loss of the training step, not detached: everybody does it."""
    module = Network()
    loss = module.net(data(0)[0]).sum()
    module.metric(loss)
    with preserved(module):
        module.metric(torch.tensor(1e6))
    assert float(module.metric.compute()) == pytest.approx(float(loss.detach()))


def test_autograd_is_on_inside_and_the_old_mode_comes_back() -> None:
    module = Network()
    with torch.inference_mode():
        with preserved(module):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        with preserved(module):
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()


def test_autocast_is_off_inside() -> None:
    module = Network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.net[0](torch.ones(2, 4)).dtype == torch.bfloat16
        with preserved(module):
            assert module.net[0](torch.ones(2, 4)).dtype == torch.float32
        assert module.net[0](torch.ones(2, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_precision_flags_come_back_readable(precision: str) -> None:
    """Torch refuses to read the older flags once they contradict the newer ones: nobody else must meet that."""
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision(precision)
        with interrupted(preserved(Network())):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 == cudnn
        assert torch.backends.cuda.matmul.allow_tf32 == (precision != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch 2.9 brought these flags")
def test_the_newer_precision_flags_come_back_too() -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision, conv.fp32_precision = "tf32", "ieee"
        with interrupted(preserved(Network())):
            assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
        assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "ieee")
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def test_flags_of_precision_stay_where_the_surroundings_are_asked_for() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with preserved(Network(), "train", precise=False), torch.autocast("cpu", torch.bfloat16):
            assert torch.get_float32_matmul_precision() == "high"
            with preserved(Network(), "train", precise=False):
                assert torch.is_autocast_enabled("cpu")
            with preserved(Network()):
                assert not torch.is_autocast_enabled("cpu")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("change", ["none", "other", "in place", "data", "frozen"])
def test_parameters_and_their_gradients_are_the_same_objects_with_the_same_numbers(change: str) -> None:
    module = nn.Linear(3, 2)
    module(torch.ones(4, 3)).sum().backward()
    held = [(p, p.detach().clone(), p.data.data_ptr(), p.grad, p.grad.clone()) for p in module.parameters()]
    with suppress(ValueError), parameters_restored(module):
        for p in module.parameters():
            if change == "none":
                p.grad = None
            elif change == "other":
                p.grad = torch.zeros_like(p)
            elif change == "in place":
                p.grad.add_(1)
                p.data.mul_(2)
            elif change == "data":
                p.data = torch.zeros_like(p)
            else:
                p.requires_grad_(False)
        raise ValueError
    for p, numbers, place, gradient, gradient_numbers in held:
        assert torch.equal(p, numbers)
        assert p.data.data_ptr() == place
        assert p.grad is gradient
        assert torch.equal(gradient, gradient_numbers)
        assert p.requires_grad
