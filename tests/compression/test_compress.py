"""compress: exact in float64 against references by hand, and the module given is not touched."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_sloppy import ConfigurationError, compress, restructured
from lightning_sloppy.compression.effects import effects
from lightning_sloppy.compression.low_rank import directions_from_inputs, directions_from_outputs
from lightning_sloppy.compression.matrix_layers import find_layers
from lightning_sloppy.compression.sharing import Shares
from lightning_sloppy.compression.sizes import stored_numbers
from lightning_sloppy.compression.statistics import see
from lightning_sloppy.compression.structure import pair_of
from lightning_sloppy.inputs.moments import InputMoments, Moments


def moments(rows: torch.Tensor) -> Moments:
    centred = rows - rows.mean(0)
    return Moments(len(rows), rows.mean(0), centred.T @ centred)


def correlated(count: int, width: int, rank: int | None = None, *, mean: float = 3.0) -> torch.Tensor:
    rank = rank or width
    scale = torch.logspace(0, -2, rank, dtype=torch.float64)
    return (torch.randn(count, rank, dtype=torch.float64) * scale) @ torch.randn(
        rank, width, dtype=torch.float64
    ) + mean


def perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, stride=2, padding_mode="reflect"),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, dilation=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).double()


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 7), (7, 12), (9, 9)])
def test_the_map_of_each_rank_is_that_of_brute_force(inputs, outputs):
    """Reduced-rank regression by its closed form: the least squares fit of the outputs, then their best projection."""
    layer = nn.Linear(inputs, outputs).double()
    rows = correlated(200, inputs)
    found = directions_from_inputs(layer, moments(rows))
    targets = layer(rows).detach()
    centred = targets - targets.mean(0)
    _, singular, right = torch.linalg.svd(centred, full_matrices=False)
    for rank in range(1, found.vectors.shape[1] + 1):
        best = centred @ right[:rank].T @ right[:rank] + targets.mean(0)
        given = pair_of(layer, rank, found)(rows).detach()
        assert torch.allclose(given, best, atol=1e-9)
        lost = float((given - targets).square().sum() / centred.square().sum())
        assert math.isclose(1 - lost, float(found.kept[rank - 1]), abs_tol=1e-10)
        assert math.isclose(lost, float(singular[rank:].square().sum() / singular.square().sum()), abs_tol=1e-10)


def test_inputs_and_outputs_give_the_same_directions():
    layer = nn.Linear(6, 10).double()
    rows = correlated(300, 6)
    a = directions_from_inputs(layer, moments(rows))
    b = directions_from_outputs(layer, moments(layer(rows).detach()))
    assert torch.allclose(a.variances, b.variances, rtol=1e-8, atol=1e-12)
    for rank in (1, 3, 6):
        assert torch.allclose(pair_of(layer, rank, a)(rows), pair_of(layer, rank, b)(rows), atol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 5),
        nn.Linear(5, 8, bias=False),
        nn.Conv1d(3, 6, 5, stride=2, padding=2, padding_mode="circular"),
        nn.Conv2d(3, 5, (3, 2), padding="same", dilation=2),
        nn.Conv2d(2, 7, 1, bias=False),
        nn.Conv3d(2, 4, 2, padding=1),
        nn.ConvTranspose1d(4, 5, 3, stride=2, output_padding=1),
        nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1),
        nn.ConvTranspose3d(2, 3, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_full_rank_changes_nothing(layer):
    layer = layer.double()
    dims = layer.weight.ndim - 2
    inputs = torch.randn(
        40, layer.weight.shape[1 if dims <= 0 or "Trans" not in type(layer).__name__ else 0], *[6] * dims
    )
    layer.requires_grad_(False)
    outputs = layer(inputs.double())
    rows = outputs.movedim(1, -1).reshape(-1, outputs.shape[1])
    found = directions_from_outputs(layer, moments(rows))
    rank = found.vectors.shape[1]
    pair = pair_of(layer, rank, found)
    assert torch.allclose(pair(inputs.double()), outputs, atol=1e-10)
    smaller = pair_of(layer, max(1, rank // 2), found)(inputs.double()).detach()
    lost = (smaller - outputs).square().sum() / (rows - rows.mean(0)).square().sum()
    assert math.isclose(1 - float(lost), float(found.kept[max(1, rank // 2) - 1]), rel_tol=1e-9)


def test_layers_of_known_low_rank_are_found():
    module = perceptron(20, 30, 25)
    with torch.no_grad():
        module[0].weight.copy_(torch.randn(30, 3).double() @ torch.randn(3, 20).double())
    rows = correlated(400, 20)
    done = compress(module, [rows[:150], rows[150:]], keep=1 - 1e-12)
    assert done.structure == {"0": 3}  # the second layer sees a curved image of three directions
    assert torch.allclose(done.module(rows), module(rows), atol=1e-5)


def test_inputs_in_few_dimensions_are_found():
    module = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20)).double()
    rows = correlated(400, 20, rank=4)
    done = compress(module, [rows], keep=1 - 1e-9)
    assert done.structure == {"0": 4, "1": 4}
    assert torch.allclose(done.module(rows), module(rows), atol=1e-6)
    assert done.table["0"].effective_rank == pytest.approx(_participation(rows), rel=1e-9)


def _participation(rows: torch.Tensor) -> float:
    values = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0))
    return float(values.sum() ** 2 / values.square().sum())


def test_kept_variance_is_that_measured_by_hand_in_a_convnet():
    module = convnet().eval().requires_grad_(False)
    inputs = torch.randn(30, 3, 12, 12).double() + 1
    done = compress(module, list(inputs.split(7)), keep=0.9)
    assert "3" in done.structure
    before = module[:3](inputs)  # what the fourth layer sees in the module given
    wanted = module[3](before)
    spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    lost = (done.module[3](before) - wanted).square().sum() / spread
    assert done.table["3"].variance_kept == pytest.approx(1 - float(lost), rel=1e-9)
    assert done.table["3"].variance_kept >= 0.9
    smaller = compress(module, list(inputs.split(7)), keep=done.table["3"].variance_kept + 1e-9)
    assert smaller.structure["3"] == done.structure["3"] + 1
    assert done.table["3"].effective_rank == pytest.approx(
        _participation(before.movedim(1, -1).reshape(-1, 24)), rel=1e-9
    )


def test_sizes_are_those_counted_by_hand():
    module = perceptron(40, 30, 30, 4)
    rows = correlated(200, 40)
    for fraction in (0.15, 0.3, 0.5, 0.8):
        done = compress(module, [rows], size=fraction)
        shapes = {"0": (40, 30), "2": (30, 30), "4": (30, 4)}
        total = 0
        for name, (inputs, outputs) in shapes.items():
            rank = done.structure.get(name)
            total += outputs + (inputs * outputs if rank is None else rank * (inputs + outputs))
        assert done.table.size_after == total == sum(p.numel() for p in done.module.parameters())
        assert done.table.size_before == 40 * 30 + 30 + 30 * 30 + 30 + 30 * 4 + 4
        assert total <= fraction * done.table.size_before
        assert total > 0.9 * fraction * done.table.size_before  # the budget is used
        assert [record.parameters_after for record in done.table] == [
            sum(p.numel() for p in done.module.get_submodule(name).parameters()) for name in shapes
        ]


def test_buffers_and_shared_tensors_are_counted_as_stored():
    layer = nn.Linear(3, 3)
    module = nn.Sequential(layer, nn.BatchNorm1d(3), layer, nn.Linear(3, 3))
    module[3].weight = layer.weight
    assert stored_numbers(module) == 9 + 3 + 6 + 7 + 3


@pytest.mark.parametrize("by_effect", [False, True])
def test_the_budget_is_shared_out_best(by_effect):
    """Against all combinations of the ranks of two layers, by shares of variance lost and by effects on the outputs."""
    module = perceptron(9, 8, 8)
    rows = correlated(300, 9)
    found = [(each.layer, each.directions()) for each in see(module, find_layers(module), [rows])]
    measured = effects(module, found, [rows]) if by_effect else None
    shares = Shares(found, measured)

    def choices(layer, directions):
        yield layer.parameters, 0.0
        costs = measured[layer.name] if by_effect else (1 - directions.kept).tolist()
        for rank in range(1, layer.largest_rank + 1):
            yield layer.size_at(rank), costs[rank - 1]

    for budget in range(60, 150, 7):
        chosen = shares.within(budget)
        assert sum(choice.size for choice in chosen.values()) <= budget
        lost = sum(choice.effect for choice in chosen.values())
        both = itertools.product(*[choices(*each) for each in found])
        best = min(a + b for (size, a), (other, b) in both if size + other <= budget)
        assert best - 1e-9 <= lost <= 1.05 * best + 1e-9


def test_max_drop_takes_the_smallest_size_that_it_found():
    module = perceptron(30, 40, 40, 3)
    rows = correlated(300, 30)
    wanted = module(rows).detach()
    seen = []

    def evaluate(candidate: nn.Module) -> float:
        seen.append(stored_numbers(candidate))
        return -float((candidate(rows) - wanted).detach().square().mean().sqrt())

    done = compress(module, [rows], max_drop=0.01, evaluate=evaluate)
    assert done.evaluations == len(seen) <= 12
    assert done.metric_before == 0
    assert -0.01 <= done.metric_after < 0
    good = [point for point in done.curve if point.metric >= -0.01]
    assert done.table.size_after == min(point.size for point in good) == stored_numbers(done.module)
    bad = [point.size for point in done.curve if point.metric < -0.01]
    assert max(bad) > done.table.size_after / 1.1
    assert evaluate(done.module) == pytest.approx(done.metric_after, abs=1e-12)


def test_max_drop_that_nothing_meets_changes_nothing():
    module = perceptron(10, 12, 3)
    rows = correlated(50, 10)
    full = stored_numbers(module)
    done = compress(module, [rows], max_drop=0.0, evaluate=lambda each: float(stored_numbers(each) == full))
    assert not done.structure
    assert done.table.fraction == 1
    assert "nothing was replaced" in done.notes[0]
    assert torch.equal(done.module(rows), module(rows))
    lost = compress(module, [rows], max_drop=0.1, evaluate=lambda each: -float(stored_numbers(each)))
    assert "larger is better" in lost.notes[0]  # as of a loss that was given for a score


def test_the_module_given_is_untouched_in_every_respect():
    module = convnet().train()
    module[3].eval()
    calls = []
    module[2].register_forward_hook(lambda *_: calls.append(1))
    module[7].weight.grad = torch.ones_like(module[7].weight)
    module[3].weight.requires_grad_(False)
    before = copy.deepcopy(module)
    hooks = {name: len(each._forward_hooks) for name, each in module.named_modules()}
    inputs = torch.randn(8, 3, 9, 9).double()
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002

    def evaluate(each: nn.Module) -> float:
        with torch.no_grad():
            for parameter in each.train().parameters():
                parameter.add_(torch.randn_like(parameter))  # as a careless function of the user might
        return random.random() + np.random.rand()  # noqa: NPY002

    done = compress(module, [inputs], size=0.6, evaluate=evaluate)
    assert torch.equal(streams[0], torch.get_rng_state())
    assert streams[2] == random.getstate()
    assert (streams[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    for (name, a), b in zip(module.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [m.training for m in module.modules()] == [m.training for m in before.modules()]
    assert {name: len(each._forward_hooks) for name, each in module.named_modules()} == hooks
    assert [type(m) for m in module.modules()] == [type(m) for m in before.modules()]
    assert torch.equal(module[7].weight.grad, torch.ones_like(module[7].weight))
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in before.parameters()]
    assert [type(m).__mro__ for m in done.module.modules()][:1] == [type(module).__mro__]
    assert done.module.training
    assert not done.module[3].training
    assert not any(p.requires_grad for p in done.module[3].parameters())
    assert done.module[0].weight.requires_grad
    assert all(p.grad is None for p in done.module.parameters())


def test_it_is_made_of_torch_and_loads_bitwise():
    module = convnet().eval().requires_grad_(False)
    inputs = torch.randn(6, 3, 12, 12).double()
    done = compress(module, [inputs], size=0.5)
    wanted = done.module(inputs)
    fresh = restructured(convnet(), done.structure)
    fresh.load_state_dict(done.module.state_dict())
    assert torch.equal(fresh.eval()(inputs), wanted)
    assert torch.equal(copy.deepcopy(done.module)(inputs), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(done.module))(inputs), wanted)
    held = io.BytesIO()
    torch.save(done.module.state_dict(), held)
    assert not {type(m).__module__ for m in done.module.modules()} - {
        f"torch.nn.modules.{part}"
        for part in ("container", "conv", "linear", "batchnorm", "activation", "pooling", "flatten")
    }


def test_the_module_itself_may_be_the_layer():
    layer = nn.Linear(20, 20).double()
    rows = correlated(100, 20, rank=3)
    done = compress(layer, [rows], keep=1 - 1e-9)
    assert isinstance(done.module, nn.Sequential)
    assert done.structure == {"": 3}
    assert torch.allclose(done.module(rows), layer(rows), atol=1e-6)
    assert isinstance(restructured(nn.Linear(20, 20), done.structure), nn.Sequential)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one"),
        ({"keep": 0.9, "size": 0.5}, "keep=0.9 and size=0.5"),
        ({"keep": 0.0}, "above 0"),
        ({"keep": 1.1}, "at most 1"),
        ({"size": math.nan}, "out of range"),
        ({"max_drop": 0.1}, "needs evaluate"),
        ({"max_drop": -0.1, "evaluate": len}, "at least 0"),
        ({"size": 0.5, "evaluate": 3}, "must be a function"),
        ({"max_drop": 0.1, "evaluate": lambda _: math.nan}, "evaluate returned nan for the module given"),
        ({"max_drop": 0.1, "evaluate": lambda _: None}, "returned a NoneType"),
        ({"size": 0.01}, "pass at least 0"),
    ],
)
def test_bad_arguments_are_one_sentence(options, said):
    with pytest.raises(ConfigurationError, match=said) as raised:
        compress(perceptron(10, 10, 10), [correlated(20, 10)], **options)
    assert "\n" not in str(raised.value)


def test_bad_batches_and_modules_are_one_sentence():
    module = perceptron(10, 10, 10)
    rows = correlated(20, 10)
    for batches, said in [
        ([], "empty"),
        (rows, "list of batches"),
        (iter([rows]), "more than once"),
        ([rows[:, :4]], "failed on a batch"),
        ([rows.where(rows > 3, torch.nan)], "Layer '0' has inputs or outputs that are not finite"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            compress(module, batches, keep=0.9)
    with pytest.raises(ConfigurationError, match="no layer that can be compressed: it has no linear"):
        compress(nn.Tanh(), [rows], keep=0.9)
    with pytest.raises(ConfigurationError, match=r"no layer that can be compressed .*no rank makes it smaller"):
        compress(nn.Linear(10, 1).double(), [rows], keep=0.9)
    with pytest.raises(ConfigurationError, match="lazy layer '0' has no weights yet"):
        compress(nn.Sequential(nn.LazyLinear(3)), [rows], keep=0.9)
    with torch.no_grad():
        module[2].weight[0, 0] = torch.inf
    with pytest.raises(ConfigurationError, match="Layer '2'"):
        compress(module, [rows], keep=0.9)


def test_batches_of_every_kind_give_the_same():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron(12, 20, 6)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.inner(features)

    module, rows = Named(), correlated(60, 12, rank=4)
    kinds = [
        list(rows.split(20)),
        [(part, torch.zeros(20)) for part in rows.split(20)],
        [[part] for part in rows.split(20)],
        [{"features": part, "labels": torch.zeros(20)} for part in rows.split(20)],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, rows), batch_size=20),
        [rows.float()],
    ]
    outputs = [compress(module, batches, keep=0.99).module(rows) for batches in kinds]
    assert all(torch.allclose(each, outputs[0], atol=1e-5) for each in outputs)


def test_few_rows_are_noted():
    module = perceptron(20, 30, 25)
    few = compress(module, [correlated(30, 20)], size=0.5)
    assert "'0' 30 for up to 20 directions" in few.notes[0] or "'2' 30 for up to 25 directions" in few.notes[0]
    assert not compress(module, [correlated(50, 20)], size=0.5).notes


def test_what_is_printed():
    module = perceptron(20, 30, 25)
    done = compress(module, [correlated(100, 20)], size=0.5)
    assert len(repr(done).splitlines()) <= 5
    assert "ranks: 0 " in repr(done)
    assert "1,405 -> " in repr(done)
    text = str(done.table)
    assert text.splitlines()[1].split()[:2] == ["0", "Linear"]
    assert text.splitlines()[-1].startswith("all")
    frame = done.table.to_frame()
    assert list(frame["name"]) == ["0", "2"]
    assert frame["parameters_after"].sum() == done.table.size_after
    assert done.table["0"].reason == ""
    assert len(done.table) == 2
    drawn = done.plot().axes[0]
    assert "output variance" in drawn.get_ylabel()
    judged = compress(module, [correlated(100, 20)], size=0.5, evaluate=lambda each: 1.0)
    assert "metric" in judged.plot().axes[0].get_ylabel()
    assert len(judged.curve) == 2


def test_the_python_of_the_docs_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "compress.md").read_text()
    namespace: dict[str, object] = {"__name__": "docs"}
    for text in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(compile(text, "docs/compress.md", "exec"), namespace)
    done = namespace["done"]
    assert done.metric_after >= 0.9
    assert done.table.fraction < 0.5
    assert torch.equal(namespace["fresh"](namespace["held_out"]), namespace["small"](namespace["held_out"]))
    assert "all " in capsys.readouterr().out


@pytest.mark.slow
def test_a_new_process_without_lightning_loads_the_weights_bitwise(tmp_path):
    module = perceptron(20, 30, 25)
    inputs = correlated(50, 20)
    done = compress(module, [inputs], size=0.5)
    torch.save(
        (done.module.state_dict(), dict(done.structure), inputs, done.module(inputs).detach()), tmp_path / "all.pt"
    )
    code = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lightning_sloppy import restructured
weights, structure, inputs, wanted = torch.load("all.pt")
fresh = restructured(nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 25)).double(), structure)
fresh.load_state_dict(weights)
assert torch.equal(fresh(inputs), wanted)
assert "lightning" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_reason_of_a_layer_left_alone_is_that_of_the_target():
    module = perceptron(20, 30, 25)
    rows = correlated(200, 20)
    kept = {record.reason for record in compress(module, [rows], keep=1.0).table}
    assert kept == {"no rank that makes it smaller keeps this share"}
    sized = compress(module, [rows], size=0.9).table
    assert {record.reason for record in sized} <= {"", "the size is reached by the other layers"}
    assert sum(record.rank is None for record in sized) == 1
    full = compress(module, [rows], max_drop=0.0, evaluate=lambda each: float(stored_numbers(each) == 1405)).table
    assert {record.reason for record in full} == {"nothing was replaced"}


def test_the_generator_of_a_shuffled_loader_is_as_before() -> None:
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(64, 16), torch.zeros(64))
    loader = DataLoader(data, batch_size=16, shuffle=True, generator=generator)
    before = generator.get_state()
    compress(nn.Linear(16, 8), loader, keep=0.5)
    assert torch.equal(generator.get_state(), before)


def test_progress_is_told_of_every_part_of_the_work() -> None:
    module = perceptron(30, 40, 40, 3)
    rows = correlated(300, 30)
    wanted = module(rows).detach()
    told: list[tuple[str, int, int]] = []

    def evaluate(each: nn.Module) -> float:
        assert told[-1][0] == "evaluating sizes"  # nothing else is shown while it runs
        return -float((each(rows) - wanted).detach().square().mean().sqrt())

    done = compress(
        module, list(rows.split(20)), max_drop=0.01, evaluate=evaluate, progress=lambda *what: told.append(what)
    )
    stages = [stage for stage, _ in itertools.groupby(told, key=lambda what: what[0])]
    assert stages == [
        "evaluating sizes", "reading batches", "directions of layers", "effects of ranks", "evaluating sizes",
    ]  # fmt: skip
    counts = {name: [what[1:] for what in told if what[0] == name] for name in stages}
    assert counts["reading batches"] == [(done, 15) for done in range(15)]
    assert counts["directions of layers"] == [(0, 3), (1, 3), (2, 3)]
    # 64 samples are in four batches; 3 outputs have two ranks at which two layers are smaller, the others six
    cuts = 4 * (6 + 6 + 2)
    assert counts["effects of ranks"] == [(done, cuts) for done in range(cuts)]
    assert counts["evaluating sizes"] == [(done, 12) for done in range(done.evaluations)]
    told.clear()
    compress(module, DataLoader(Endless(rows), batch_size=20), size=0.5, progress=lambda *what: told.append(what))
    assert ("reading batches", 14, 0) in told  # how many there are is not known
    assert told[-1] == ("effects of ranks", cuts - 1, cuts)


class Endless(IterableDataset):
    """Rows without a length."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_mistakes_are_told_before_the_work() -> None:
    module, rows = perceptron(10, 12, 8), correlated(30, 10)
    stages: list[str] = []
    for options, last in [
        ({"size": 0.01}, "reading batches"),
        ({"max_drop": 0.1, "evaluate": lambda _: math.nan}, "evaluating sizes"),
        ({"size": 0.5, "evaluate": lambda _: torch.zeros(2)}, "evaluating sizes"),
    ]:
        stages.clear()
        with pytest.raises(ConfigurationError):
            compress(module, [rows], progress=lambda stage, *_: stages.append(stage), **options)
        assert set(stages) == {last}


def test_an_error_of_evaluate_is_the_users_own() -> None:
    """Also a ConfigurationError, and in any of its calls."""
    module, rows, mine = perceptron(10, 12, 8), correlated(60, 10), ConfigurationError("The labels are missing.")

    def evaluate(each: nn.Module) -> float:
        if stored_numbers(each) < stored_numbers(module):
            raise mine
        return 1.0

    for target in ({"max_drop": 0.1}, {"size": 0.7}, {"keep": 0.9}):
        with pytest.raises(ConfigurationError) as raised:
            compress(module, [rows], evaluate=evaluate, **target)
        assert raised.value is mine


class Counting(TorchDispatchMode):
    """Counts the numbers that the host reads of tensors: on a device it waits for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_host_reads_no_number_for_each_layer_and_batch() -> None:
    """The flags of a batch are read as one tensor, which is no read of a number."""
    module, rows = perceptron(*[20] * 8), correlated(300, 20)
    with Counting() as counting:
        seen = see(module, find_layers(module), [rows] * 5)
    assert [each.calls for each in seen] == [5] * 7
    assert counting.reads < 7


def test_the_statistics_are_those_of_the_inputs_and_outputs_batch_by_batch() -> None:
    """Bit for bit the moments of what goes in and out, collected by hand."""
    module, images = convnet().eval().requires_grad_(False), torch.randn(30, 3, 12, 12).double() + 1
    layers = find_layers(module)
    wanted = {name: InputMoments() for name in ("0 in", "0 out", "7 in")}
    for batch in images.split(7):
        hidden = module[:7](batch)
        wanted["0 in"].update(batch.movedim(1, -1).reshape(-1, 3))
        wanted["0 out"].update(module[0](batch).movedim(1, -1).reshape(-1, 24))
        wanted["7 in"].update(hidden)
    seen = {each.layer.name: each for each in see(module, layers, list(images.split(7)))}
    assert torch.equal(seen["0"].inputs.packed, wanted["0 in"].packed)
    assert torch.equal(seen["0"].outputs.packed, wanted["0 out"].packed)
    assert torch.equal(seen["7"].inputs.packed, wanted["7 in"].packed)


def test_of_numbers_that_are_not_finite_the_first_layer_is_named() -> None:
    """By the order of the calls, also where the forward fails of them, and if only a later batch has them."""

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.last(self.first(x))
            if not torch.isfinite(y).all():
                raise ArithmeticError("no number")
            return y

    rows = torch.randn(20, 6).double()
    with pytest.raises(ConfigurationError, match="Layer 'first' has inputs or outputs that are not finite"):
        compress(Backwards(), [rows, rows * math.inf], keep=0.9)
