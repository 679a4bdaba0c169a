"""Modules, losses and batches of all kinds, each with what its samples are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_sequence

from support.promised import Promise

SIZES = (3, 4)
FEATURES, CLASSES = 4, 3


def net(*last: nn.Module, inputs: int = FEATURES, outputs: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs), *last)


def data(count: int = sum(SIZES)) -> tuple[Tensor, Tensor]:
    return torch.randn(count, FEATURES, dtype=torch.float64), torch.randint(0, CLASSES, (count,))


def cut(tensors: Sequence[Any], sizes: Sequence[int], axes: Sequence[int] = ()) -> list[Any]:
    """Batches of these sizes."""
    axes = axes or [0] * len(tensors)
    pieces = [tensor.split(list(sizes), axis) for tensor, axis in zip(tensors, axes, strict=True)]
    return [tuple(batch) for batch in zip(*pieces, strict=True)]


def pairs(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    loss_fn: Callable[[Any, Any], Tensor] = F.cross_entropy,
    sizes: Sequence[int] = SIZES,
    *,
    one: Callable[[Tensor, Tensor], Tensor] | None = None,
    **options: Any,
) -> Promise:
    """A row for each sample; ``one`` is the loss of one sample where ``loss_fn`` is none of a batch of one."""
    module = module.double().eval()
    like = module(x[:1].clone()).shape[1:]
    alone = one or loss_fn
    return Promise(
        module,
        cut([x, y], sizes),
        loss_fn,
        [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))],
        lambda m, s: m(s[0].clone()).reshape(-1),
        lambda m, row, s: alone(row.reshape(1, *like), s[1]),
        **options,
    )


# -- batches -----------------------------------------------------------------------------------------------------------


class TimeMajor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.RNN(2, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][-1])


def time_major() -> Promise:
    x, y = torch.randn(5, 7, 2, dtype=torch.float64), torch.randint(0, CLASSES, (7,))
    return Promise(
        TimeMajor().double(),
        cut([x, y], SIZES, [1, 0]),
        F.cross_entropy,
        [(x[:, i : i + 1], y[i : i + 1]) for i in range(7)],
        lambda m, s: m(s[0]).reshape(-1),
        lambda m, row, s: F.cross_entropy(row[None], s[1]),
    )


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x: Any) -> Tensor:
        return self.head(self.cells(x)[1][-1])


def packed() -> Promise:
    lengths = [2, 5, 3, 4, 1, 5, 2]
    parts = [torch.randn(length, 2, dtype=torch.float64) for length in lengths]
    y = torch.randint(0, CLASSES, (7,))
    batches = [(pack_sequence(parts[a:b], enforce_sorted=False), y[a:b]) for a, b in ((0, 3), (3, 7))]
    return Promise(
        Packed().double(),
        batches,
        F.cross_entropy,
        [(pack_sequence([parts[i]]), y[i : i + 1]) for i in range(7)],
        lambda m, s: m(s[0]).reshape(-1),
        lambda m, row, s: F.cross_entropy(row[None], s[1]),
    )


def single_samples() -> Promise:
    x, y = data(3)
    return pairs(net(), x, y, sizes=(1, 1, 1))


def one_sample() -> Promise:
    x, y = data(1)
    return pairs(net(), x, y, sizes=(1,))


def very_uneven() -> Promise:
    x, y = data(9)
    return pairs(net(), x, y, sizes=(6, 2, 1))


# -- losses ------------------------------------------------------------------------------------------------------------


def class_weights() -> Promise:
    x, y = data()
    weights = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    return pairs(net(), x, y, nn.CrossEntropyLoss(weight=weights), weights=weights[y].tolist())


def class_weights_in_a_function() -> Promise:
    """Of the user's own: the mean is over weights that nobody can see."""
    weights = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    return replace(class_weights(), loss_fn=lambda f, y: F.cross_entropy(f, y, weight=weights))


def smoothed() -> Promise:
    x, y = data()
    return pairs(net(), x, y, nn.CrossEntropyLoss(label_smoothing=0.1))


def summed() -> Promise:
    x, y = data()
    return pairs(net(), x, y, nn.CrossEntropyLoss(reduction="sum"), options={"reduction": "mean"})


def summed_by_hand() -> Promise:
    x, y = data()
    return pairs(net(), x, y, lambda f, y: (f - F.one_hot(y, 3)).square().sum(), options={"reduction": "mean"})


def ignored_tokens(loss_fn: Callable[[Any, Any], Tensor] | None = None) -> Promise:
    """Logits (N, V, T), with uneven numbers of valid tokens."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(6, 3), nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.table(x))).transpose(1, 2)

    x, y = torch.randint(0, 6, (7, 4)), torch.randint(0, CLASSES, (7, 4))
    y[4:, 2:] = -100
    y[6] = -100
    valid = (y != -100).sum(1)
    return pairs(Tokens(), x, y, loss_fn or nn.CrossEntropyLoss(), one=F.cross_entropy, weights=valid.tolist())


def own_token_mean(f: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(f, y)


def padded_batches() -> Promise:
    """Words that predict themselves, padded with zeros: as many in all samples of a batch, fewer in the other."""
    words = torch.randint(1, 6, (7, 4))
    words[3:, 2:] = 0

    def flat(f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f.flatten(0, 1), y.flatten(), ignore_index=0)

    module = nn.Sequential(nn.Embedding(6, 3), nn.Tanh(), nn.Linear(3, 6))
    return pairs(module, words, words.clone(), flat, weights=[4] * 3 + [2] * 4)


def lengths_by_batch() -> Promise:
    """A mean over positions, of which each batch has its own number."""
    inputs = [torch.randn(n, steps, FEATURES, dtype=torch.float64) for n, steps in ((3, 2), (4, 5))]
    labels = [torch.randint(0, CLASSES, x.shape[:2]) for x in inputs]
    samples = [(x[i : i + 1], y[i : i + 1]) for x, y in zip(inputs, labels, strict=True) for i in range(len(x))]

    def positions(f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f.transpose(1, 2), y)

    return Promise(
        net().double(),
        list(zip(inputs, labels, strict=True)),
        positions,
        samples,
        lambda m, s: m(s[0]).reshape(-1),
        lambda m, row, s: positions(row.reshape(1, -1, CLASSES), s[1]),
        weights=[2] * 3 + [5] * 4,
    )


def missing_targets() -> Promise:
    """Some numbers of some samples are not known, and count for nothing."""
    x, _ = data()
    y = torch.randn(7, CLASSES, dtype=torch.float64)
    y[4:, 1] = torch.nan

    def known(f: Tensor, y: Tensor) -> Tensor:
        return (f[~y.isnan()] - y[~y.isnan()]).square().mean()

    return pairs(net(), x, y, known, weights=(~y.isnan()).sum(1).tolist())


def weights_in_the_targets() -> Promise:
    """Each sample brings its weight; the loss is the plain mean of the weighed terms."""
    x, y = data()
    w = torch.rand(7, dtype=torch.float64) + 0.1
    module = net().double()

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        return (F.cross_entropy(outputs, targets[0], reduction="none") * targets[1]).mean()

    return Promise(
        module,
        [(x[a:b], (y[a:b], w[a:b])) for a, b in ((0, 3), (3, 7))],
        loss,
        [(x[i : i + 1], (y[i : i + 1], w[i : i + 1])) for i in range(7)],
        lambda m, s: m(s[0]).reshape(-1),
        lambda m, row, s: loss(row[None], s[1]),
    )


def weighted_mean_in_the_targets() -> Promise:
    """Each sample brings its weight, and the loss divides by their sum."""
    made = weights_in_the_targets()

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        return (F.cross_entropy(outputs, targets[0], reduction="none") * targets[1]).sum() / targets[1].sum()

    return replace(
        made,
        loss_fn=loss,
        loss=lambda m, row, s: loss(row[None], s[1]),
        weights=[float(s[1][1]) for s in made.samples],
    )


def one_logit() -> Promise:
    x, y = data()
    return pairs(net(nn.Flatten(0), outputs=1), x, (y > 0).double(), F.binary_cross_entropy_with_logits)


def positive_weight() -> Promise:
    x, _ = data()
    y = torch.randint(0, 2, (7, CLASSES)).double()
    return pairs(net(), x, y, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 2, 3], dtype=torch.float64)))


def penalised() -> Promise:
    x, y = data()
    module = net().double()

    def squares(m: nn.Module) -> Tensor:
        return 0.1 * torch.stack([p.square().sum() for p in m.parameters()]).sum()

    return pairs(
        module,
        x,
        y,
        lambda f, y: F.cross_entropy(f, y) + squares(module),
        one=F.cross_entropy,
        beside=squares,
        reserved={"exact": "beside_outputs", "empirical": "beside_outputs", "sampled": "beside_outputs"},
    )


class WithCriterion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.log = net(), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def criterion(self, f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f * self.log.exp(), y)


def learnt_criterion() -> Promise:
    x, y = data()
    module = WithCriterion().double()
    reserved = {"exact": "beside_outputs", "sampled": "beside_outputs", "jacobian": "unused"}
    return pairs(module, x, y, module.criterion, reserved=reserved)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(FEATURES, 3), nn.Linear(3, CLASSES), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"scores": self.first(hidden), "value": self.second(hidden)}


def several_outputs() -> Promise:
    x, y = data()
    z = torch.randn(7, 1, dtype=torch.float64)

    def loss(found: dict[str, Tensor], targets: Any) -> Tensor:
        return F.cross_entropy(found["scores"], targets[0]) + F.mse_loss(found["value"], targets[1])

    return Promise(
        TwoHeads().double(),
        [(x[a:b], (y[a:b], z[a:b])) for a, b in ((0, 3), (3, 7))],
        loss,
        [(x[i : i + 1], (y[i : i + 1], z[i : i + 1])) for i in range(7)],
        lambda m, s: torch.cat([part.reshape(-1) for part in m(s[0]).values()]),
        lambda m, row, s: loss({"scores": row[None, :3], "value": row[None, 3:]}, s[1]),
    )


class Field(nn.Module):
    """A function and its derivative in the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(inputs=1, outputs=1)

    def forward(self, t: Tensor) -> Tensor:
        t = t.requires_grad_(True)
        u = self.net(t)
        return torch.cat([u, torch.autograd.grad(u.sum(), t, create_graph=True)[0]], dim=1)


def physics() -> Promise:
    t = torch.linspace(0, 3, 7, dtype=torch.float64)[:, None]
    return pairs(Field(), t, torch.cat([torch.sin(t), torch.cos(t)], 1), F.mse_loss)


# -- modules -----------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(x).sum(1)))


def tied() -> Promise:
    return pairs(Tied(), torch.randint(0, 5, (7, 2)), torch.randint(0, 5, (7,)))


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.waves, self.head = nn.Parameter(torch.randn(3, FEATURES, dtype=torch.cdouble) / 2), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.to(self.waves.dtype) @ self.waves.T).abs())


def complex_weights() -> Promise:
    x, y = data()
    module = Waves()
    module.head.double()
    made = pairs(net(), x, y)
    return replace(made, module=module)


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3, sparse=True), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(x).sum(1)))


def sparse() -> Promise:
    made = pairs(Sparse(), torch.randint(0, 5, (7, 2)), torch.randint(0, CLASSES, (7,)))
    dense = copy.deepcopy(made.module)
    dense.table.sparse = False
    return replace(made, reference=dense)


def batch_norm() -> Promise:
    x, y = data()
    norm = nn.BatchNorm1d(4)
    norm(torch.randn(9, 4) * 2 + 1)
    return pairs(nn.Sequential(nn.Linear(FEATURES, 4), norm, nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, CLASSES)), x, y)


def frozen() -> Promise:
    x, y = data()
    module = net()
    module[0].requires_grad_(False)
    return pairs(module, x, y)


class Shared(nn.Module):
    """One parameter under two names, one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)
        self.again, self.bias = self.one, self.one.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.one(x)))) + self.bias)


def shared() -> Promise:
    return pairs(Shared(), *data())


def pruned() -> Promise:
    module = net()
    prune.l1_unstructured(module[0], "weight", amount=0.5)
    return pairs(module, *data())


def weight_normed() -> Promise:
    module = net()
    parametrizations.weight_norm(module[0])
    return pairs(module, *data(), differenced=True)


def old_weight_normed() -> Promise:
    module = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module[2] = nn.utils.weight_norm(module[2])
    return pairs(module, *data(), differenced=True)


def orthogonal() -> Promise:
    module = net()
    parametrizations.orthogonal(module[0])
    return pairs(module, *data())


def spectral() -> Promise:
    module = net()
    parametrizations.spectral_norm(module[0])
    return pairs(module, *data())


def compiled() -> Promise:
    made = pairs(net(), *data())
    wrapped = torch.compile(made.module, backend="eager")
    return Promise(
        wrapped, made.batches, made.loss_fn, made.samples, lambda m, s: made.outputs(made.module, s), made.loss
    )


def in_place() -> Promise:
    return pairs(
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(FEATURES, 4), nn.SiLU(inplace=True), nn.Linear(4, 3)), *data()
    )


def convolution() -> Promise:
    layers = [nn.Conv2d(1, 2, 3), nn.GroupNorm(2, 2), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, CLASSES)]
    return pairs(nn.Sequential(*layers), torch.randn(7, 1, 6, 6, dtype=torch.float64), torch.randint(0, CLASSES, (7,)))


KINDS = (
    time_major,
    packed,
    single_samples,
    one_sample,
    very_uneven,
    class_weights,
    class_weights_in_a_function,
    smoothed,
    summed,
    summed_by_hand,
    padded_batches,
    lengths_by_batch,
    missing_targets,
    weights_in_the_targets,
    weighted_mean_in_the_targets,
    one_logit,
    positive_weight,
    penalised,
    learnt_criterion,
    several_outputs,
    physics,
    tied,
    complex_weights,
    sparse,
    batch_norm,
    frozen,
    shared,
    pruned,
    weight_normed,
    old_weight_normed,
    orthogonal,
    spectral,
    compiled,
    in_place,
    convolution,
)
PROMISES: dict[str, Callable[[], Promise]] = {
    **{each.__name__: each for each in KINDS},
    "ignored_tokens": ignored_tokens,
    "own_token_mean": partial(ignored_tokens, own_token_mean),
}
