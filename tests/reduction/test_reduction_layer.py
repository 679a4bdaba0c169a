"""The reduction as the first layer of a network: the same numbers, saved and loaded with the weights."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import trainer
from torch import nn

from lightning_sloppy import ConfigurationError, ReductionLayer, SpectralReducer
from lightning_sloppy.reduction.column_reduction import column_reduction

ROOT = Path(__file__).parents[2]
SETTINGS = [{}, {"project": 3}, {"project": "n90", "standardize": False, "threshold": None}]


def rows(count: int = 80, gaps: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((count, 5)) * [1, 2, 3, 1e3, 0.1] + [0, 1e3, -5, 1e6, 1]
    values = np.column_stack([values, 2 * values[:, 1], np.full(count, 7.0), np.full(count, np.nan)])
    values[:, :6][rng.random((count, 6)) < gaps] = np.nan
    return values


@pytest.mark.parametrize("settings", SETTINGS)
def test_float64_gives_the_numbers_of_transform(settings) -> None:
    reducer = SpectralReducer(**settings).fit(rows())
    layer = reducer.as_module()
    expected = reducer.transform(rows())
    found = layer(torch.from_numpy(rows()))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-9)
    assert layer.in_features == 8
    assert layer.out_features == expected.shape[1]
    assert layer.names == tuple(f"x{i}" for i in range(8))
    assert not list(layer.parameters())
    assert "out_features" in repr(layer)


@pytest.mark.parametrize("settings", SETTINGS)
def test_float32_gives_the_numbers_of_transform(settings) -> None:
    values = rows().astype(np.float32)
    reducer = SpectralReducer(**settings).fit(rows())
    found = reducer.as_module()(torch.from_numpy(values))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, reducer.transform(values), rtol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(reducer.as_module()(torch.from_numpy(values)), found, equal_nan=True)
    changed = reducer.as_module().float()(torch.from_numpy(values))
    np.testing.assert_allclose(changed, found, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_of_the_network_leaves_the_buffers(half) -> None:
    values = torch.from_numpy(rows()).float()
    layer = SpectralReducer(project=3).fit(rows()).as_module()
    net = nn.Sequential(deepcopy(layer), nn.Linear(3, 2)).to(half)
    assert net[1].weight.dtype == half
    assert torch.equal(net[0](values), layer(values))
    assert net[0](values.to(torch.bfloat16)).dtype == torch.bfloat16
    assert net.float()[0].means.dtype == torch.float32


def test_names_of_any_text_travel() -> None:
    names = ["two\nlines", "", "\u6e29\u5ea6", "plain", "\udc80"]
    assert ReductionLayer.of(column_reduction(names, rows()[:, :5])).names == tuple(names)


def test_any_leading_shape_and_whole_numbers() -> None:
    reducer = SpectralReducer(project=2).fit(rows())
    layer = reducer.as_module()
    whole = torch.from_numpy(np.nan_to_num(rows()).round()).long()
    np.testing.assert_allclose(layer(whole), reducer.transform(whole.double().numpy()), rtol=1e-4, atol=1e-4)
    stacked = torch.from_numpy(rows()).reshape(4, 20, 8)
    torch.testing.assert_close(layer(stacked).reshape(80, 2), layer(stacked.reshape(80, 8)))
    torch.testing.assert_close(layer(stacked[0, 0]), layer(stacked)[0, 0])


def test_gradients_of_missing_values_are_zero() -> None:
    layer = SpectralReducer(project=2).fit(rows()).as_module()
    x = torch.from_numpy(rows()).requires_grad_()
    layer(x).square().sum().backward()
    assert not x.grad.isnan().any()
    assert (x.grad[x.isnan()] == 0).all()


@pytest.mark.parametrize("shape", [(4, 7), (4, 9), (9,), ()])
def test_other_widths_are_refused(shape) -> None:
    layer = SpectralReducer().fit(rows()).as_module()
    with pytest.raises(ConfigurationError, match=r"Rows of 8 columns are needed, .* shape \(\.\.\., 8\)\.$"):
        layer(torch.ones(shape))


def test_an_empty_layer_takes_the_sizes_of_its_state_and_another_one_does_not() -> None:
    layer = SpectralReducer(project=3).fit(rows()).as_module()
    x = torch.from_numpy(rows())
    empty = nn.Sequential(ReductionLayer(), nn.Linear(3, 1).double())
    with pytest.raises(ConfigurationError, match="without a state"):
        empty(x)
    state = nn.Sequential(layer, nn.Linear(3, 1).double()).state_dict()
    empty.load_state_dict(state)
    torch.testing.assert_close(empty[0](x), layer(x), rtol=0, atol=0)
    assert empty[0].names == layer.names
    other = SpectralReducer(project=2).fit(rows()).as_module()
    with pytest.raises(RuntimeError, match=r"size mismatch for directions"):
        other.load_state_dict(layer.state_dict())
    same = SpectralReducer(project=3, standardize=False).fit(rows()).as_module()
    same.load_state_dict(layer.state_dict())
    torch.testing.assert_close(same(x), layer(x), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"Missing key.*directions"):
        ReductionLayer().load_state_dict({k: v for k, v in layer.state_dict().items() if k != "directions"})
    single = ReductionLayer()
    single.load_state_dict(deepcopy(layer).float().state_dict())
    assert single.means.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS[:2])
def test_it_is_exported(settings) -> None:
    layer = SpectralReducer(**settings).fit(rows()).as_module()
    x = torch.from_numpy(rows()).float()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (x[:5],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), layer(x), rtol=0, atol=0, equal_nan=True)


NET = """
import torch
from lightning.pytorch import LightningModule
from lightning_sloppy import ReductionLayer


class Net(LightningModule):
    def __init__(self, inputs, reduction=None):
        super().__init__()
        self.save_hyperparameters("inputs")
        self.reduction = reduction or ReductionLayer()
        self.head = torch.nn.Linear(inputs, 2)

    def forward(self, x):
        return self.head(self.reduction(x))

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)
"""


@pytest.mark.slow
def test_a_checkpoint_alone_gives_the_network_back_in_a_new_process(tmp_path, monkeypatch) -> None:
    """Without scikit-learn, too, whose absence an instance of the reducer names; the name itself can be had."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    from net import Net

    x = torch.from_numpy(rows()).float()
    layer = SpectralReducer(project=3).fit(rows()).as_module()
    net = Net(layer.out_features, layer)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(net, torch.utils.data.DataLoader(data, 16))
    fit.save_checkpoint(tmp_path / "net.ckpt")
    torch.save(x, tmp_path / "x.pt")
    code = f"""
import sys, torch
sys.modules["sklearn"] = None
sys.path.insert(0, {str(tmp_path)!r})
from net import Net
net = Net.load_from_checkpoint({str(tmp_path / "net.ckpt")!r}, map_location="cpu")
torch.save((net(torch.load({str(tmp_path / "x.pt")!r})), net.reduction.names), {str(tmp_path / "y.pt")!r})
from lightning_sloppy import MissingExtraError, SpectralReducer
try:
    SpectralReducer()
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, names = torch.load(tmp_path / "y.pt")
    assert torch.equal(found, net(x))
    assert names == layer.names
    said = "SpectralReducer needs scikit-learn, which is not installed: pip install 'lightning-sloppy[data]'."
    assert said in done.stdout
