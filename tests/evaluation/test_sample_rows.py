"""Where the samples of a batch are, against dense derivatives of the mean over all samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_sloppy import ConfigurationError, fisher_spectrum, hessian_spectrum, jacobian_spectrum
from lightning_sloppy.curvature.jacobian import jacobian_objective
from lightning_sloppy.evaluation.batches import as_pair, cut, picked, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.sample_rows import located

CUTS = ((0, 8), (8, 16), (16, 20))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def classes(*shape: int) -> Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(5))


def columns(module: nn.Module, values: Tensor, *, graph: bool = False) -> Tensor:
    """The gradient of each value, one a row."""
    parameters = list(module.parameters())
    rows = []
    for value in values:
        parts = torch.autograd.grad(value, parameters, retain_graph=True, create_graph=graph, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def hessian(module: nn.Module, loss: Tensor) -> Tensor:
    gradient = columns(module, loss.reshape(1), graph=True)[0]
    return torch.linalg.eigvalsh(columns(module, gradient)).flip(0)


def gram(module: nn.Module, values: Tensor) -> Tensor:
    """Eigenvalues of the mean outer product of the gradients of these values."""
    rows = columns(module, values)
    return torch.linalg.eigvalsh(rows @ rows.T / len(rows)).flip(0)


def assert_same(found: Tensor, right: Tensor) -> None:
    most = min(len(found), len(right))
    torch.testing.assert_close(found[:most], right[:most], rtol=1e-6, atol=1e-9)


class Recurrent(nn.Module):
    """Time first, as the recurrent layers of torch take it."""

    def __init__(self, each: bool = False, flat: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.RNN(4, 2, dtype=torch.float64), nn.Linear(2, 3, dtype=torch.float64)
        self.each, self.flat = each, flat

    def forward(self, inputs: Any) -> Tensor:
        states, last = self.layer(inputs)
        scores = self.head(states if self.each else last[0])
        return scores.flatten(0, 1) if self.flat else scores


def of_tokens(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten())


@pytest.mark.parametrize("steps", [5, 8])
def test_time_first_and_a_target_for_each_sequence(steps: int) -> None:
    """Also where a batch has as many steps as sequences."""
    module, inputs, targets = Recurrent(), drawn(steps, 20, 4), classes(20)
    inputs[:, 16:] *= 3
    batches = [(inputs[:, a:b], targets[a:b]) for a, b in CUTS]
    found = hessian_spectrum(module, batches, F.cross_entropy, k=100)
    assert found.num_samples == 20
    assert_same(found.eigenvalues, hessian(module, F.cross_entropy(module(inputs), targets)))
    found = fisher_spectrum(module, batches, F.cross_entropy)
    assert_same(found.eigenvalues, gram(module, F.cross_entropy(module(inputs), targets, reduction="none")))
    single = fisher_spectrum(module, batches[:1], F.cross_entropy)
    assert single.num_samples == 8
    assert_same(single.eigenvalues, gram(module, F.cross_entropy(module(inputs[:, :8]), targets[:8], reduction="none")))


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True])
def test_time_first_everywhere(flat: bool) -> None:
    """Every tensor has the steps in front, and the outputs may have steps and sequences as one dimension."""
    module, inputs, targets = Recurrent(each=True, flat=flat), drawn(5, 20, 4), classes(5, 20)
    inputs[:, 16:] *= 3
    batches = [(inputs[:, a:b], targets[:, a:b]) for a, b in CUTS]
    found = hessian_spectrum(module, batches, of_tokens, k=100)
    assert found.num_samples == 20
    assert "weights" not in found.detail
    assert_same(found.eigenvalues, hessian(module, of_tokens(module(inputs), targets)))
    each = [of_tokens(module(inputs[:, i : i + 1]), targets[:, i : i + 1]) for i in range(20)]
    right = gram(module, torch.stack(each))
    assert_same(fisher_spectrum(module, batches, of_tokens).eigenvalues, right)
    products = fisher_spectrum(module, batches, of_tokens, method="products", k=5)
    assert_same(products.eigenvalues, right)
    found = jacobian_spectrum(module, batches, normalize=False)
    assert found.num_samples == 20
    assert_same(found.eigenvalues, gram(module, module(inputs).flatten()) * 15)


def test_outputs_and_targets_that_count_tokens() -> None:
    """Flat targets: the loss is a mean over tokens, which are then the samples."""
    module, inputs, targets = Recurrent(each=True, flat=True), drawn(5, 20, 4), classes(5, 20)
    batches = [(inputs[:, a:b], targets[:, a:b].flatten()) for a, b in CUTS]
    found = hessian_spectrum(module, batches, F.cross_entropy, k=100)
    assert found.num_samples == 100
    assert_same(found.eigenvalues, hessian(module, F.cross_entropy(module(inputs), targets.flatten())))
    found = fisher_spectrum(module, batches, F.cross_entropy)
    losses = torch.cat([F.cross_entropy(module(i), t, reduction="none") for i, t in batches])
    assert_same(found.eigenvalues, gram(module, losses))


class Operator(nn.Module):
    """A grid that is common to all samples, and a function for each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.branch = nn.Linear(2, 3, dtype=torch.float64), nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, pair: Any) -> Tensor:
        grid, functions = pair
        return torch.tanh(self.branch(functions)) @ torch.tanh(self.trunk(grid)).T


class ByName(Operator):
    def forward(self, pair: Any) -> Tensor:
        return super().forward((pair["grid"], pair["functions"]))


class Apart(Operator):
    def forward(self, grid: Tensor, functions: Tensor) -> Tensor:
        return super().forward((grid, functions))


def of_dict(outputs: Tensor, batch: Any) -> Tensor:
    return F.mse_loss(outputs, batch["values"])


@pytest.mark.parametrize(
    ("module", "pack", "loss"),
    [
        (Operator(), lambda g, f, v: ((g, f), v), F.mse_loss),
        (Apart(), lambda g, f, v: ((g, f), v), F.mse_loss),
        (Apart(), lambda g, f, v: (g, f, v), F.mse_loss),
        (ByName(), lambda g, f, v: {"grid": g, "functions": f, "values": v}, of_dict),
        (Apart(), lambda g, f, v: {"grid": g, "functions": f, "values": v}, of_dict),
    ],
)
def test_a_grid_that_samples_have_in_common(module: nn.Module, pack: Callable[..., Any], loss: Any) -> None:
    grid, functions, values = drawn(8, 2), drawn(20, 6), drawn(20, 8)
    functions[16:] *= 4
    batches = [pack(grid, functions[a:b], values[a:b]) for a, b in CUTS]
    found = hessian_spectrum(module, batches, loss, k=100)
    assert found.num_samples == 20
    whole = Operator.forward(module, (grid, functions))  # type: ignore[arg-type]
    assert_same(found.eigenvalues, hessian(module, F.mse_loss(whole, values)))
    found = fisher_spectrum(module, batches, loss)
    assert_same(found.eigenvalues, gram(module, (whole - values).square().mean(1)))


@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences(enforce_sorted: bool) -> None:
    lengths = sorted((2 + i % 4 for i in range(20)), reverse=True) if enforce_sorted else [2 + i % 4 for i in range(20)]
    sequences, targets, module = [drawn(length, 4) for length in lengths], classes(20), Recurrent()
    batches = [(pack_sequence(sequences[a:b], enforce_sorted), targets[a:b]) for a, b in CUTS]
    found = hessian_spectrum(module, batches, F.cross_entropy, k=100)
    assert found.num_samples == 20
    whole = module(pack_sequence(sequences, enforce_sorted))
    assert_same(found.eigenvalues, hessian(module, F.cross_entropy(whole, targets)))
    found = fisher_spectrum(module, batches, F.cross_entropy)
    assert_same(found.eigenvalues, gram(module, F.cross_entropy(whole, targets, reduction="none")))


class OnRagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(inputs.to_padded_tensor(0.0)).sum(1))


def test_ragged_tensors() -> None:
    sequences, targets, module = [drawn(2 + i % 4, 4) for i in range(20)], classes(20), OnRagged()
    batches = [(torch.nested.nested_tensor(sequences[a:b], layout=torch.jagged), targets[a:b]) for a, b in CUTS]
    found = hessian_spectrum(module, batches, F.cross_entropy, k=100)
    assert found.num_samples == 20
    whole = module.head(torch.stack([torch.tanh(each).sum(0) for each in sequences]))
    assert_same(found.eigenvalues, hessian(module, F.cross_entropy(whole, targets)))
    found = fisher_spectrum(module, batches, F.cross_entropy)
    assert_same(found.eigenvalues, gram(module, F.cross_entropy(whole, targets, reduction="none")))


class Graphs:
    """Several graphs as one, as graph libraries give them."""

    def __init__(self, x: Tensor, edge_index: Tensor, batch: Tensor, y: Tensor) -> None:
        self.x, self.edge_index, self.batch, self.y = x, edge_index, batch, y

    def to(self, *args: Any, **options: Any) -> Graphs:
        return Graphs(*(each.to(*args, **options) for each in vars(self).values()))


class OnGraphs(nn.Module):
    def __init__(self, nodes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 3, dtype=torch.float64), nn.Linear(3, 3, dtype=torch.float64)
        self.nodes = nodes

    def forward(self, graphs: Graphs) -> Tensor:
        states = torch.tanh(self.first(graphs.x))
        states = states.index_add(0, graphs.edge_index[1], states[graphs.edge_index[0]])
        if self.nodes:
            return self.head(states)
        count = int(graphs.batch.max()) + 1
        return self.head(states.new_zeros(count, 3).index_add(0, graphs.batch, states))


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_batch_objects_with_graphs(nodes: bool, pairs: bool) -> None:
    """The loss says what a sample is, a graph or a node: no tensor but the targets has a row for each graph."""
    rng = torch.Generator().manual_seed(1)
    graphs = []
    for count in (6, 6, 3):
        sizes = torch.randint(2, 6, (count,), generator=rng)
        total, owner = int(sizes.sum()), torch.repeat_interleave(sizes)
        edges = torch.randint(0, total, (2, 3 * total), generator=rng)
        graphs.append(Graphs(drawn(total, 4), edges, owner, classes(total if nodes else count)))
    module = OnGraphs(nodes)
    losses = torch.cat([F.cross_entropy(module(each), each.y, reduction="none") for each in graphs])
    batches: list[Any] = [(each, each.y) for each in graphs] if pairs else graphs

    def loss(outputs: Tensor, given: Any) -> Tensor:
        return F.cross_entropy(outputs, given if pairs else given.y)

    found = hessian_spectrum(module, batches, loss, k=100)
    assert found.num_samples == len(losses)
    assert_same(found.eigenvalues, hessian(module, losses.mean()))
    assert_same(fisher_spectrum(module, batches, loss).eigenvalues, gram(module, losses))
    assert jacobian_spectrum(module, batches).num_samples == len(losses)


class Looked(nn.Module):
    """One number for a batch: nothing tells how many samples it holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, batch: Any) -> Tensor:
        return self.head(batch["table"][batch["which"]]).square().mean()


def itself(outputs: Tensor, _: Any) -> Tensor:
    return outputs


def test_a_count_that_nobody_knows_is_asked_for() -> None:
    module, table, which = Looked(), drawn(7, 3), classes(5, 4)
    batches = [{"table": table, "which": which}, {"table": table, "which": which[:2]}]
    with pytest.raises(ConfigurationError, match=r"\(7, 3\), \(5, 4\).*pass batch_size="):
        hessian_spectrum(module, batches, itself)
    found = hessian_spectrum(module, batches, itself, batch_size=lambda batch: len(batch["which"]))
    assert found.num_samples == 7
    assert_same(found.eigenvalues, hessian(module, (5 * module(batches[0]) + 2 * module(batches[1])) / 7))


def test_a_batch_whose_samples_have_no_dimension_is_searched_once() -> None:
    module, table, which = Looked(), drawn(7, 3), classes(5, 4)
    asked: list[Any] = []

    def forward(batch: Any) -> Any:
        asked.append(batch)
        return module(batch[0])

    first = located([as_pair({"table": table, "which": which}, counted=5)], forward)
    seen = len(asked)
    assert seen > 0
    assert located(first, forward) == first
    assert len(asked) == seen


@pytest.mark.parametrize("wrong", [16, lambda batch: 1.5, lambda batch: None, lambda batch: -1])
def test_what_is_no_count_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="batch_size"):
        jacobian_spectrum(nn.Linear(4, 3), [torch.ones(4, 4)], batch_size=wrong)


def test_a_batch_that_is_located_is_cut_where_its_samples_are() -> None:
    (batch,) = located([as_pair((drawn(5, 8, 4), classes(8)))])
    assert sample_count(batch) == 8
    for part in (picked(batch, torch.tensor([2, 3])), cut(batch, slice(2, 4))):
        assert torch.equal(part[0], batch[0][:, 2:4])
        assert torch.equal(part[1], batch[1][2:4])
        assert sample_count(part) == 2


class States(Recurrent):
    def forward(self, inputs: Any) -> Any:
        states, last = self.layer(inputs)
        return self.head(last[0]), states


def test_chosen_outputs_have_rows_of_their_own() -> None:
    """What was seen of the outputs of the module says nothing of a function of them."""
    batch = as_pair((drawn(5, 8, 4), classes(8)))
    (seen,) = Objective(States(), None).located([batch])
    assert seen.rows is not None
    assert seen.rows.outputs == {0: 0, 1: 1}
    (chosen,) = jacobian_objective(States(), lambda outputs: outputs[::-1]).located([seen])
    assert chosen.rows is not None
    assert chosen.rows.outputs == {0: 1, 1: 0}


def test_a_head_of_zeros_hides_no_samples() -> None:
    """All outputs are equal behind it, so that every reading of the dimensions would seem right."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNN(2, 3), nn.Linear(3, 1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0])

    torch.manual_seed(0)
    module, x, y = Steps().double(), torch.randn(5, 6, 2).double(), torch.randn(5, 6, 1).double()
    said = fisher_spectrum(module, [(x, y)], nn.MSELoss(), batch_size=lambda batch: batch[0].shape[1])
    found = fisher_spectrum(module, [(x, y)], nn.MSELoss())
    assert found.num_samples == said.num_samples == 6
    torch.testing.assert_close(found.eigenvalues, said.eigenvalues)


def test_flattened_targets_weigh_a_batch_by_its_valid_tokens() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNN(2, 3), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0]).flatten(0, 1)

    torch.manual_seed(0)
    module, loss_fn = Steps().double(), nn.CrossEntropyLoss()
    x, y = torch.randn(2, 5, 4, 2).double(), torch.randint(4, (2, 20))
    y[0, 3:] = -100
    given = [(x[0], y[0]), (x[1], y[1])]
    found = hessian_spectrum(module, given, loss_fn, k=3, batch_size=lambda batch: batch[0].shape[1])
    whole = torch.cat([x[0], x[1]], dim=1), torch.cat([y[0].view(5, 4), y[1].view(5, 4)], dim=1).flatten()
    right = hessian_spectrum(module, [whole], loss_fn, k=3, batch_size=lambda batch: batch[0].shape[1])
    torch.testing.assert_close(found.eigenvalues, right.eigenvalues)
