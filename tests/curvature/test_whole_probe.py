"""The matrix is that of the mean over the whole probe: whatever the batch sizes, the tokens and the containers."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_sloppy import fisher_spectrum, hessian_spectrum
from lightning_sloppy.errors import ConfigurationError

TOKENS, CLASSES, IGNORED = 5, 4, 2


class Tagger(nn.Module):
    """Class scores for each token, (n, CLASSES, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 3)
        self.mix = nn.Linear(3, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.mix(self.embedding(tokens)))
        return self.head(hidden + hidden.mean(1, keepdim=True)).movedim(-1, 1)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build().double().eval()


def sequences(*shapes: tuple[int, int], ignored: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    batches = []
    for shape in shapes:
        tokens = torch.randint(0, TOKENS, shape, generator=rng)
        targets = torch.randint(0, CLASSES, shape, generator=rng)
        targets[torch.rand(shape, generator=rng) < 0.3] = ignored
        targets[0] = ignored  # a sample without any valid token
        batches.append((tokens, targets))
    return batches


def dense(module: nn.Module, loss: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
    parameters = dict(module.named_parameters())
    shapes = [p.shape for p in parameters.values()]

    def of(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        return loss({n: part.view(s) for n, part, s in zip(parameters, parts, shapes, strict=True)})

    start = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    return torch.autograd.functional.hessian(of, start)


def whole_loss(
    module: nn.Module, batches: list[tuple[Tensor, Tensor]], loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[dict[str, Tensor]], Tensor]:
    """One mean over all tokens of all batches."""

    def of(parameters: dict[str, Tensor]) -> Tensor:
        scores = [functional_call(module, parameters, (x,)).movedim(1, -1).reshape(-1, CLASSES) for x, _ in batches]
        return loss_fn(torch.cat(scores), torch.cat([y.reshape(-1) for _, y in batches]))

    return of


LOSSES = {
    "default ignore_index": (F.cross_entropy, -100),
    "module": (nn.CrossEntropyLoss(ignore_index=IGNORED), IGNORED),
    "partial": (partial(F.cross_entropy, ignore_index=IGNORED), IGNORED),
    "class weights": (nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0, 0.5]).double()), -100),
    "smoothed": (
        nn.CrossEntropyLoss(
            weight=torch.tensor([0.2, 1.0, 3.0, 0.5]).double(), ignore_index=IGNORED, label_smoothing=0.2
        ),
        IGNORED,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_sequences_are_weighted_by_their_valid_tokens(name: str) -> None:
    loss_fn, ignored = LOSSES[name]
    module = seeded(Tagger)
    batches = sequences((3, 5), (5, 10), (2, 3), ignored=ignored)
    expected = dense(module, whole_loss(module, batches, loss_fn))
    assert len(expected) < 256
    values = torch.linalg.eigvalsh(expected).flip(0)
    found = hessian_spectrum(module, batches, loss_fn, k=len(values))
    torch.testing.assert_close(found.eigenvalues, values, rtol=1e-8, atol=1e-11)
    for method in ("recomputed", "central_differences"):
        again = hessian_spectrum(module, batches, loss_fn, k=len(values), method=method)
        torch.testing.assert_close(again.eigenvalues, values, rtol=1e-5, atol=1e-7)
    by_samples = sum(dense(module, whole_loss(module, [batch], loss_fn)) * len(batch[1]) / 10 for batch in batches)
    assert (torch.linalg.eigvalsh(by_samples).flip(0) - values).abs().max() > 1e-3 * values.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_valid_targets_counts_for_nothing(name: str) -> None:
    loss_fn, ignored = LOSSES[name]
    module = seeded(Tagger)
    batches = sequences((3, 5), ignored=ignored)
    if ignored == -100 and name == "class weights":
        batches = [(x, y.clamp_min(0)) for x, y in batches]
    empty = (batches[0][0], torch.full_like(batches[0][1], ignored))
    alone = hessian_spectrum(module, batches, loss_fn, k=5).eigenvalues
    torch.testing.assert_close(hessian_spectrum(module, [empty, *batches], loss_fn, k=5).eigenvalues, alone)
    for kind in ("empirical", "exact"):
        alone = fisher_spectrum(module, batches, loss_fn, kind).eigenvalues
        both = fisher_spectrum(module, [empty, *batches], loss_fn, kind).eigenvalues
        torch.testing.assert_close(both[: len(alone)], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_the_exact_fisher_of_a_linear_tagger_is_its_hessian(name: str) -> None:
    loss_fn, ignored = LOSSES[name]

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Embedding(TOKENS, CLASSES)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.scores(tokens).movedim(-1, 1)

    module = seeded(Linear)
    batches = sequences((3, 4), (4, 4), ignored=ignored)
    hessian = torch.linalg.eigvalsh(dense(module, whole_loss(module, batches, loss_fn))).flip(0)
    exact = fisher_spectrum(module, batches, loss_fn, "exact")
    torch.testing.assert_close(exact.eigenvalues[: len(hessian)], hessian, rtol=1e-8, atol=1e-12)
    products = fisher_spectrum(module, batches, loss_fn, "exact", method="products", k=20)
    torch.testing.assert_close(products.eigenvalues, hessian, rtol=1e-8, atol=1e-12)
    drawn = fisher_spectrum(module, batches, loss_fn, "sampled", labels=3000)
    assert drawn.trace is not None
    assert exact.trace is not None
    assert abs(drawn.trace.value / exact.trace.value - 1) < 0.05
    torch.testing.assert_close(drawn.eigenvalues[:5], hessian[:5], rtol=0.1, atol=0)


def test_the_empirical_fisher_weighs_samples_by_their_tokens() -> None:
    module = seeded(Tagger)
    batches = sequences((3, 5), (4, 2), ignored=-100)
    parameters = list(module.parameters())
    total = torch.zeros(sum(p.numel() for p in parameters), sum(p.numel() for p in parameters), dtype=torch.float64)
    tokens = sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        for i in range(len(x)):
            own = int((y[i] != -100).sum())
            if own:
                grads = torch.autograd.grad(F.cross_entropy(module(x[i : i + 1]), y[i : i + 1]), parameters)
                row = torch.cat([g.reshape(-1) for g in grads])
                total += own / tokens * torch.outer(row, row)
    values = torch.linalg.eigvalsh(total).flip(0)
    for method in ("gram", "products"):
        found = fisher_spectrum(module, batches, F.cross_entropy, method=method).eigenvalues
        torch.testing.assert_close(found[:5], values[:5], rtol=1e-8, atol=1e-12)


def test_weights_of_a_loss_of_ones_own() -> None:
    module = seeded(Tagger)
    batches = [(x[1:], y[1:]) for x, y in sequences((5, 7), (5, 10), ignored=-100)[::-1]]

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    values = torch.linalg.eigvalsh(dense(module, whole_loss(module, batches, F.cross_entropy))).flip(0)
    told = hessian_spectrum(module, batches, own, k=3, sample_weights=lambda y: (y != -100).sum(1))
    torch.testing.assert_close(told.eigenvalues.abs().max(), values.abs().max())
    assert "weights" not in told.detail
    found = hessian_spectrum(module, batches, own, k=3)
    torch.testing.assert_close(found.eigenvalues.abs().max(), values.abs().max())
    assert "weights" not in found.detail

    def hidden(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=torch.arange(1, outputs.shape[1] + 1).to(outputs))

    untold = hessian_spectrum(module, batches, hidden, k=3)
    assert "pass sample_weights=" in str(untold.detail["weights"])
    with pytest.raises(ConfigurationError, match="one non-negative weight"):
        hessian_spectrum(module, batches, own, sample_weights=lambda y: torch.ones(2))


@dataclass
class Example:
    features: Tensor
    targets: Tensor
    name: str = "kept"


class Output(dict[str, Any]):
    """A dict with more in it than the loss uses."""


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Output:
        hidden = self.net(features)
        return Output(scores=hidden * (1 if mask is None else mask), hidden=hidden.detach(), total=hidden.sum())


class Whole(Keywords):
    def forward(self, batch: Any) -> Any:  # type: ignore[override]
        features = batch.features if isinstance(batch, Example) else batch["features"]
        hidden = self.net(features)
        return hidden, features


@pytest.mark.slow
def test_containers_of_all_kinds_give_the_same_matrices() -> None:
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(7, 4, generator=rng).double(), torch.randint(0, 3, (7,), generator=rng)
    pairs = [(x[:3], y[:3]), (x[3:], y[3:])]
    plain, keywords, whole = seeded(lambda: nn.Linear(4, 3)), seeded(Keywords), seeded(Whole)
    with torch.no_grad():
        for module in (keywords, whole):
            module.net.weight.copy_(plain.weight)
            module.net.bias.copy_(plain.bias)
    variants: list[tuple[nn.Module, list[Any], Callable[[Any, Any], Tensor]]] = [
        (keywords, [({"features": a}, b) for a, b in pairs], lambda out, b: F.cross_entropy(out["scores"], b)),
        (
            keywords,
            [({"features": a, "mask": torch.ones_like(b).unsqueeze(1)}, b) for a, b in pairs],
            lambda out, b: F.cross_entropy(out["scores"], b),
        ),
        (whole, [{"features": a, "targets": b} for a, b in pairs], lambda o, d: F.cross_entropy(o[0], d["targets"])),
        (whole, [UserDict(features=a, targets=b) for a, b in pairs], lambda o, d: F.cross_entropy(o[0], d["targets"])),
        (whole, [Example(a, b) for a, b in pairs], lambda o, d: F.cross_entropy(o[0], d.targets)),
    ]
    hessian = hessian_spectrum(plain, pairs, F.cross_entropy, k=15).eigenvalues
    for module, batches, loss in variants[1:]:
        torch.testing.assert_close(hessian_spectrum(module, batches, loss, k=15).eigenvalues, hessian)
        for kind in ("empirical", "exact"):
            expected = fisher_spectrum(plain, pairs, F.cross_entropy, kind).eigenvalues
            for method in ("gram", "products"):
                found = fisher_spectrum(module, batches, loss, kind, method=method, k=len(expected)).eigenvalues
                torch.testing.assert_close(found[: len(expected)], expected[: len(found)], rtol=1e-8, atol=1e-12)


def test_outputs_without_a_row_for_each_sample_are_named() -> None:
    module = seeded(Keywords)
    batches = [({"features": torch.ones(3, 4).double(), "mask": torch.ones(3, 1).double()}, torch.zeros(3))]
    with pytest.raises(ConfigurationError, match="row for each of the 3 samples"):
        fisher_spectrum(module, batches, lambda out, _: out["total"] ** 2)


def test_a_mean_over_labels_is_found_behind_a_head_of_zeros() -> None:
    """Every sample has the same loss there, so any weights fit at these parameters."""
    torch.manual_seed(0)
    head = nn.Linear(4, 5).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)

    def masked(outputs: Tensor, targets: Tensor) -> Tensor:
        valid = targets != -1
        terms = nn.functional.cross_entropy(outputs.movedim(-1, 1), targets.clamp_min(0), reduction="none")
        return (terms * valid).sum() / valid.sum()

    inputs, targets = torch.randn(8, 6, 4).double(), torch.randint(0, 5, (8, 6))
    targets[:4, 1:] = -1  # one valid label in each sample of the first batch, six in each of the second
    found = hessian_spectrum(head, [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])], masked, k=25)
    names = [name for name, _ in head.named_parameters()]
    flat = torch.cat([p.detach().flatten() for p in head.parameters()])

    def mean(weights: Tensor) -> Tensor:
        parts = dict(zip(names, (weights[:20].view(5, 4), weights[20:]), strict=True))
        return masked(torch.func.functional_call(head, parts, (inputs,)), targets)

    right = torch.linalg.eigvalsh(torch.autograd.functional.hessian(mean, flat)).flip(0)
    torch.testing.assert_close(found.eigenvalues, right, rtol=1e-8, atol=1e-10)


def test_targets_of_two_kinds_are_measured() -> None:
    """A tensor in one batch, a packed sequence in the next: no weights are read from such targets."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        return F.mse_loss(outputs, targets if isinstance(targets, Tensor) else targets.data)

    inputs, targets = torch.randn(2, 4, 3).double(), torch.randn(2, 4, 2).double()
    packed = nn.utils.rnn.pack_sequence(list(targets[1].unsqueeze(1)))
    found = hessian_spectrum(module, [(inputs[0], targets[0]), (inputs[1], packed)], loss, k=8)
    plain = hessian_spectrum(module, list(zip(inputs, targets, strict=True)), F.mse_loss, k=8)
    torch.testing.assert_close(found.eigenvalues, plain.eigenvalues)
    assert found.num_samples == 8
