"""Embeddings with sparse gradients, and parameters that are renamed or computed from others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.dense import dense_fisher_of, dense_hessian_of, differenced_hessian_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_sloppy import fisher_spectrum, hessian_spectrum, jacobian_spectrum
from lightning_sloppy.curvature.hessian import mean_gradient
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.preserve import preserved


class Words(nn.Module):
    """Looks words up by a layer, or by the function."""

    def __init__(self, kind: str, *, sparse: bool) -> None:
        super().__init__()
        self.kind, self.sparse = kind, sparse
        bag = kind == "bag"
        self.table = nn.EmbeddingBag(9, 3, mode="sum", sparse=sparse) if bag else nn.Embedding(9, 3, sparse=sparse)
        self.head = nn.Linear(3, 3)

    def forward(self, words: Tensor) -> Tensor:
        if self.kind == "bag":
            found = self.table(words)
        elif self.kind == "function":
            found = F.embedding(words, self.table.weight, sparse=self.sparse).sum(1)
        else:
            found = self.table(words).sum(1)
        return self.head(torch.tanh(found))


def made(kind: str, *, sparse: bool) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        words, targets = torch.randint(0, 8, (20, 4)), torch.randint(0, 3, (20,))
        return Words(kind, sparse=sparse).double(), words, targets


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "recomputed", "central_differences"])
@pytest.mark.parametrize("kind", ["layer", "bag", "function"])
def test_sparse_gradients_are_those_of_the_dense_layer(kind: str, method: str) -> None:
    module, x, y = made(kind, sparse=True)
    dense, _, _ = made("layer", sparse=False)
    dense.load_state_dict(module.state_dict())
    batches = [(x[:12], y[:12]), (x[12:], y[12:])]
    expected = dense_hessian_of(dense, lambda: F.cross_entropy(dense(x), y))
    if not (kind == "bag" and method == "recomputed"):  # no double backward, sparse or not
        found = hessian_spectrum(module, batches, F.cross_entropy, k=39, method=method)
        torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(expected).flip(0), rtol=1e-6, atol=1e-7)
    losses = [lambda i=i: F.cross_entropy(dense(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    fisher = fisher_spectrum(module, batches, F.cross_entropy)
    values = torch.linalg.eigvalsh(dense_fisher_of(dense, losses)).flip(0)
    torch.testing.assert_close(fisher.eigenvalues, values[:20], rtol=1e-8, atol=1e-12)
    jacobian = [jacobian_spectrum(each, batches).eigenvalues for each in (module, dense)]
    torch.testing.assert_close(*jacobian, rtol=1e-8, atol=1e-12)
    assert module.table.sparse
    assert module.sparse


def test_gradients_of_the_mean_loss_are_dense_too() -> None:
    found = []
    for sparse in (True, False):
        module, x, y = made("function", sparse=sparse)
        objective = Objective(module, F.cross_entropy)
        with preserved(module):
            found.append(mean_gradient(objective, ParameterLayout.of(module), [(x, y)]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "pruned": lambda module: prune.l1_unstructured(module[0], "weight", amount=0.5),
    "weight norm": lambda module: parametrizations.weight_norm(module[0]),
    "hooked weight norm": lambda module: nn.utils.weight_norm(module[2]),
    "orthogonal": lambda module: parametrizations.orthogonal(module[0]),
    "spectral norm": lambda module: parametrizations.spectral_norm(module[2]),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated.*")
def test_weights_that_are_computed_from_others(change: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    layout, start = ParameterLayout.of(module), ParameterLayout.of(module).vector(module)
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    CHANGES[change](module)
    module.eval()
    # Not by two backwards: those of torch are wrong through its fused weight norm.
    expected = differenced_hessian_of(module, lambda: F.cross_entropy(module(x), y))
    for method in ("kept_graph", "recomputed", "central_differences"):
        found = hessian_spectrum(module, [(x, y)], F.cross_entropy, k=len(expected), method=method)
        torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(expected).flip(0), rtol=1e-6, atol=1e-6)
    objective = Objective(module, F.cross_entropy)
    for use in (
        lambda: layout.vector(module),
        lambda: layout.leaves(module, torch.float64),
        lambda: objective.outputs(layout.table(start), x),
    ):
        with pytest.raises(ConfigurationError, match="any more: its parameters have changed since the fit began"):
            use()
