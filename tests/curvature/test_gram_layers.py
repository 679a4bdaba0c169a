"""Every way in which layers use parameters, against one backward for each sample and cotangent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.explicit import assert_same, cotangents, explicit_rows, gram
from support.habits import Recurrent
from support.layers import LAYERS, LENGTH, Apply, built, layer
from torch import Tensor, nn

from lightning_sloppy.curvature.gram import inner_products as orders
from lightning_sloppy.curvature.gram import matrix as gram_module
from lightning_sloppy.curvature.gram.check import Recording
from lightning_sloppy.curvature.gram.matrix import pull_back_vectors
from lightning_sloppy.curvature.gram.sums import GramSums
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.objective import Objective


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_matrix_is_that_of_explicit_gradients(name: str) -> None:
    module, inputs, paths = built(name)
    pulled = cotangents(module, inputs)
    found = gram(module, inputs, pulled, by_layer=True)
    rows = explicit_rows(module, inputs, pulled)
    assert found.matrix.dtype == torch.float64
    assert_same(found.matrix, rows)
    assert list(found.paths) == list(rows)
    assert " ".join(found.paths.values()) == paths
    for owner, matrix in found.layers.items():
        assert_same(matrix, {key: part for key, part in rows.items() if key.rpartition(".")[0] == owner})


ORDERED = (
    "linear on a sequence",
    "linear, called twice on different lengths",
    "linear, weights tied",
    "conv 2d",
    "conv in groups",
    "conv by channels",
    "conv, called twice",
    "embedding with padding",
    "embedding, called twice",
    "embedding tied to the last layer",
)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 100])
@pytest.mark.parametrize("order", ["pairs", "rows"])
@pytest.mark.parametrize("name", ORDERED)
def test_both_orders_whole_and_in_parts(
    name: str, order: str, budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred numbers are less than the gradients of all samples, and less than all pairs of positions of two."""
    module, inputs, _ = built(name)
    pulled = cotangents(module, inputs)
    rows = explicit_rows(module, inputs, pulled)
    monkeypatch.setattr(orders, "cheaper", lambda *_: order)
    monkeypatch.setattr("lightning_sloppy.curvature.gram.layers.kept_apart", lambda *_: True)
    monkeypatch.setattr(orders, {"pairs": "add_by_rows", "rows": "add_by_pairs"}[order], None)
    sizes: list[int] = []
    if budget is not None:
        monkeypatch.setattr(gram_module, "GRADIENT_BYTES", 8 * budget)
        watch_sizes(monkeypatch, sizes, {name for name, p in module.named_parameters() if p.ndim > 1})
    assert_same(gram(module, inputs, pulled).matrix, rows)
    assert budget is None or 0 < max(sizes) <= budget


def watch_sizes(monkeypatch: pytest.MonkeyPatch, sizes: list[int], names: set[str]) -> None:
    """Note the numbers of what is multiplied, and of what products are added from."""
    add_rows, inner = GramSums.add_rows, orders._inner

    def watched_rows(self: GramSums, gradients: dict[str, Tensor]) -> None:
        sizes.extend(rows.numel() for name, rows in gradients.items() if name in names)
        add_rows(self, gradients)

    def watched_inner(*args: Any) -> Tensor:
        products = inner(*args)
        sizes.append(products.numel())
        return products

    monkeypatch.setattr(GramSums, "add_rows", watched_rows)
    monkeypatch.setattr(orders, "_inner", watched_inner)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "conv in groups", "gru"])
def test_one_parameter_in_each_pass_and_few_entries_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters that layers cannot serve are cut, too: those of "transformer" by vmap, of "gru" by the loop."""
    if name == "gru":
        torch.manual_seed(0)
        module: nn.Module = Recurrent(nn.GRU).double().eval()
        inputs = [torch.randn(size, 3, 2, dtype=torch.float64) for size in (3, 4)]
    else:
        module, inputs, _ = built(name)
    pulled = cotangents(module, inputs)
    whole = gram(module, inputs, pulled, by_layer=True)
    forwards: list[int] = []
    sizes: list[int] = []
    initialise = Recording.__init__
    monkeypatch.setattr(Recording, "__init__", lambda *args: (forwards.append(1), initialise(*args))[1])
    monkeypatch.setattr("lightning_sloppy.curvature.gram.layers.KEPT_BYTES", 1)
    monkeypatch.setattr(gram_module, "GRADIENT_BYTES", 8 * 30)
    served = {key for key, path in whole.paths.items() if path not in ("vmap", "loop")}
    watch_sizes(monkeypatch, sizes, set(whole.paths) - served)
    parts = gram(module, inputs, pulled, by_layer=True)
    torch.testing.assert_close(parts.matrix, whole.matrix, atol=1e-12, rtol=1e-12)
    assert parts.paths == whole.paths
    for key, matrix in whole.layers.items():
        torch.testing.assert_close(parts.layers[key], matrix, atol=1e-12, rtol=1e-12)
    assert len(forwards) == 2 + 2 * len(served)
    assert name != "gru" or max(sizes) <= 30
    assert_same(parts.matrix, explicit_rows(module, inputs, pulled))


@pytest.mark.parametrize("name", ["transformer", "conv, called twice"])
def test_eigenvectors_are_those_of_the_dense_matrix(name: str) -> None:
    module, inputs, _ = built(name)
    pulled = cotangents(module, inputs)
    rows = torch.cat(list(explicit_rows(module, inputs, pulled).values()), dim=1)
    values, inner = torch.linalg.eigh(gram(module, inputs, pulled).matrix)
    values, inner = values[-5:], inner[:, -5:]
    objective = Objective(module, F.mse_loss)
    vectors = pull_back_vectors(
        objective,
        ParameterLayout.of(module),
        pulled,
        [(batch, batch) for batch in inputs],
        inner / values.sqrt(),
    )
    assert vectors.shape == (rows.shape[1], 5)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(5).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(rows.T @ (rows @ vectors), vectors * values, atol=1e-10, rtol=1e-10)


def test_float32_is_as_good_as_its_products() -> None:
    module, inputs, _ = built("conv, called twice")
    pulled = cotangents(module, inputs)
    rows = torch.cat(list(explicit_rows(module, inputs, pulled).values()), dim=1)
    single = gram(module.float(), [x.float() for x in inputs], [c.float() for c in pulled])
    assert single.matrix.dtype == torch.float64
    error = float((single.matrix - rows @ rows.T).abs().max() / (rows @ rows.T).abs().max())
    assert 1e-12 < error < 1e-6


def test_one_line_says_which_path_each_layer_took(caplog: pytest.LogCaptureFixture) -> None:
    module = Apply(
        lambda self, x: torch.einsum("nd,de->ne", self.head(self.conv(x).flatten(1)), self.matrix),
        conv=nn.Conv1d(2, 2, 2),
        head=nn.Linear(6, 2),
        matrix=nn.Parameter(torch.ones(2, 2)),
    )
    with caplog.at_level("INFO", logger="lightning_sloppy"):
        gram(module, [torch.randn(3, 2, LENGTH)], [torch.randn(1, 3, 2)])
    (record,) = caplog.records
    assert record.message == ("Gram matrix of per-sample gradients: vmap for matrix; conv for conv; linear for head")


def test_layers_alone_are_written_in_place_behind() -> None:
    """An activation that writes into the output of a layer does not change what was recorded."""
    module = layer(nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 3), nn.ReLU(inplace=True)))
    module = module.double()
    inputs = [torch.randn(size, 4, dtype=torch.float64) for size in (2, 3)]
    pulled = cotangents(module, inputs)
    found = gram(module, inputs, pulled)
    assert set(found.paths.values()) == {"linear"}
    assert_same(found.matrix, explicit_rows(module, inputs, pulled))
