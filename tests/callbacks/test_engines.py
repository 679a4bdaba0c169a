"""What the Trainer and torch do to a module: compiled, checkpointed, without a double backward, changed in place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.tiny import CLASSES, FEATURES, blobs, trainer
from support.zoo import Trained
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sloppy import FisherSpectrum, HessianSpectrum, SloppyMonitor, hessian_spectrum

COUNT = 24


class Net(Trained):
    """Any network with cross-entropy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


class Reentrant(nn.Module):
    """Runs its first layer again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(checkpoint(self.first, inputs.requires_grad_(), use_reentrant=True).tanh())


def words(outputs: Tensor, targets: Tensor) -> Tensor:
    steps = torch.full((len(outputs),), outputs.shape[1])
    lengths = torch.full((len(outputs),), targets.shape[1])
    return F.ctc_loss(outputs.log_softmax(2).movedim(1, 0), targets, steps, lengths)


class Letters(Net):
    """Connectionist temporal classification of short words."""

    loss = staticmethod(words)


def compiled_part() -> nn.Module:
    net = plain()
    net[0] = torch.compile(net[0], backend="eager")
    return Net(net)


def sequences() -> Dataset:
    rng = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(COUNT, 6, 4, generator=rng), torch.randint(1, 5, (COUNT, 2), generator=rng))


def bags() -> Dataset:
    rng = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randint(0, 7, (COUNT, 4), generator=rng), torch.randint(0, 3, (COUNT,), generator=rng))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Dataset], str]] = {
    # name: module, data, how its products are made
    "compiled": (lambda: torch.compile(Net(plain()), backend="eager"), lambda: blobs(COUNT), "kept_graph"),
    "compiled part": (compiled_part, lambda: blobs(COUNT), "kept_graph"),
    "re-entrant checkpointing": (lambda: Net(Reentrant()), lambda: blobs(COUNT), "kept_graph"),
    "first layer in place": (
        lambda: Net(nn.Sequential(nn.ReLU(inplace=True), *plain())),
        lambda: blobs(COUNT),
        "kept_graph",
    ),
    "embedding bag": (
        lambda: Net(nn.Sequential(nn.EmbeddingBag(7, 4, mode="mean"), nn.Tanh(), nn.Linear(4, 3))),
        bags,
        "central_differences",
    ),
    "ctc": (lambda: Letters(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))), sequences, "central"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*reentrant.*")
def test_each_is_measured_and_trains_as_without(tmp_path, name):
    build, data, method = CASES[name]
    objective = words if name == "ctc" else None
    states = []
    hessian = HessianSpectrum(k=2, num_samples=16, loss_fn=objective, strict=True)
    fisher = FisherSpectrum(num_samples=16, loss_fn=objective, strict=True)
    for callbacks in ([], [hessian, fisher]):
        torch.manual_seed(0)
        module = build()
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(module, DataLoader(data(), 8))
        states.append({key: value.clone() for key, value in module.state_dict().items()})
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    for callback in (hessian, fisher):
        assert len(callback.measurements) == 3
        assert all(m.status.ok for m in callback.measurements)
    assert method in hessian.latest.cost.method
    assert fisher.latest.spectrum.largest > 0


@pytest.mark.slow
def test_a_compiled_module_has_the_spectrum_of_its_own_self(tmp_path):
    torch.manual_seed(0)
    module = Net(plain())
    hessian = HessianSpectrum(k=3, num_samples=COUNT, strict=True)
    trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(
        torch.compile(module, backend="eager"), DataLoader(blobs(COUNT), 8)
    )
    expected = hessian_spectrum(module, DataLoader(blobs(COUNT), 8), F.cross_entropy, k=3)
    torch.testing.assert_close(hessian.latest.spectrum.eigenvalues, expected.eigenvalues, rtol=1e-4, atol=1e-5)


class Inner(nn.Module):
    """Torch compiles no ``nn.Sequential`` as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def compiled_in_place(net: nn.Module, backend: Callable[..., object]) -> None:
    net.compile(backend=backend)


def compiled_method(net: nn.Module, backend: Callable[..., object]) -> None:
    net.forward = torch.compile(net.forward, backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [compiled_in_place, compiled_method])
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_measuring_compiles_nothing(tmp_path, compiled):
    """Graphs for weights that stand in would use up recompile_limit, and the training would go on uncompiled."""
    seen: list[list[bool]] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            ran.append(True)
            return graph.forward(*arguments)

        built.append(True)
        return run

    for callbacks in ([], [SloppyMonitor(grace_seconds=1e9, strict=True)]):
        torch._dynamo.reset()
        torch.manual_seed(0)
        built: list[bool] = []
        ran: list[bool] = []
        module = Net(Inner())
        compiled(module.net, backend)
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(module, DataLoader(blobs(COUNT), 8))
        seen += [built, ran]
    assert len(seen[1]) == 6
    assert seen[:2] == seen[2:]
