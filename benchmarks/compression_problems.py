"""What compression.py compresses: four networks with their data, training, and the metric that is reported."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Data = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Causal attention whose four maps are linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of (n, T, width), the same shape."""
        parts = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then two linear layers, both added to the residual stream after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Residual sums."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Scores for the next character, (n, characters, T). By default 354,401 parameters."""

    def __init__(self, width: int = 96, heads: int = 4, depth: int = 3, length: int = 64, characters: int = 65) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.layers = nn.Sequential(*[Layer(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores."""
        hidden = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(self.norm(self.layers(hidden))).movedim(-1, 1)


@dataclass(frozen=True)
class Parts:
    """Training, validation and test samples. Nothing is chosen on the last."""

    train: Data
    val: Data
    test: Data


@dataclass(frozen=True)
class Problem:
    """A network and its training.

    Attributes:
        make: Builds the network.
        load: The parts, from the data folder and a seed.
        epochs: Of training; fine-tuning takes two.
        rate: Largest learning rate of AdamW in training; fine-tuning uses 0.3 of it.
        decay: Weight decay in training.
        batch: Batch size.
        text: Whether the metric is bits per character instead of the error in per cent.
        tuned: Sizes at which the fine-tuned networks are compared.
        seen: Training samples from which every method takes the moments of the layers' inputs.
        probed: Training samples on which ASVD measures the loss.
    """

    make: Callable[[], nn.Module]
    load: Callable[[Path | None, int], Parts]
    epochs: int
    rate: float = 1e-3
    decay: float = 0.0
    batch: int = 128
    text: bool = False
    tuned: tuple[float, ...] = (0.25, 0.1)
    seen: int = 10_000
    probed: int = 2_000


def mnist(root: Path | None, seed: int, count: int = 60_000) -> Parts:
    """50,000 images to train, 10,000 to choose by, and the official 10,000 to test."""
    x, y = common.mnist(root, count, "cpu")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    train, val = order[: 5 * count // 6], order[5 * count // 6 :]
    x_test, y_test = common.mnist(root, count // 6, "cpu", "t10k") if root else (x[val], y[val])
    return Parts((x[train], y[train]), (x[val], y[val]), (x_test, y_test))


def cifar(root: Path | None, seed: int) -> Parts:
    """One batch of 10,000 images: 7,000, 1,500 and 1,500."""
    x, y = common.cifar(root, 10_000, "cpu")
    parts = torch.randperm(10_000, generator=torch.Generator().manual_seed(seed)).split([7_000, 1_500, 1_500])
    return Parts(*[(x[part], y[part]) for part in parts])


def shakespeare(root: Path | None, seed: int, length: int = 64, count: int = 6_000) -> Parts:
    """Windows of text and of the next characters: drawn from the first 90 %, then 5 % and 5 % in order.

    Without a folder, a chain of twelve characters, three of which can follow each.
    """
    if root is None:
        rng, codes = torch.Generator().manual_seed(0), [0]
        follows = [torch.randperm(12, generator=rng)[:3].tolist() for _ in range(12)]
        for draw in torch.randint(0, 3, (20_000,), generator=rng).tolist():
            codes.append(follows[codes[-1]][draw])
        tokens = torch.tensor(codes)
    else:
        text = (root / "tinyshakespeare" / "input.txt").read_text()
        known = {letter: index for index, letter in enumerate(sorted(set(text)))}
        tokens = torch.tensor([known[letter] for letter in text])
    first, second = int(0.9 * len(tokens)), int(0.95 * len(tokens))
    starts = torch.randint(0, first - length - 1, (count,), generator=torch.Generator().manual_seed(seed))
    train = tokens[starts[:, None] + torch.arange(length + 1)]
    held = [
        part[: len(part) // (length + 1) * (length + 1)].view(-1, length + 1)
        for part in (tokens[first:second], tokens[second:])
    ]
    return Parts(*[(rows[:, :-1], rows[:, 1:]) for rows in (train, *held)])


PROBLEMS = {
    "784-600-600-10": Problem(common.mlp, mnist, epochs=6),
    "LeNet": Problem(common.lenet, mnist, epochs=6, rate=2e-3),
    "ResNet-20": Problem(
        common.resnet, cifar, epochs=14, rate=5e-3, decay=0.05, batch=64, tuned=(0.25,), seen=500, probed=100
    ),
    "GPT": Problem(
        GPT, shakespeare, epochs=8, rate=3e-3, decay=0.01, batch=32, text=True, tuned=(0.25,), seen=500, probed=100
    ),
}


def trained(problem: Problem, parts: Parts, seed: int) -> nn.Module:
    """A network from scratch."""
    torch.manual_seed(seed)
    module = problem.make()
    _fit(module, parts.train, problem, problem.epochs, problem.rate, problem.decay)
    return module


def fine_tune(module: nn.Module, problem: Problem, parts: Parts, seed: int) -> None:
    """Two epochs, in place; the same for every way to compress."""
    torch.manual_seed(seed)
    _fit(module, parts.train, problem, 2, 0.3 * problem.rate, 0.0)


def _fit(module: nn.Module, data: Data, problem: Problem, epochs: int, rate: float, decay: float) -> None:
    """AdamW along a one-cycle schedule, then eval mode."""
    x, y = data
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=decay)
    steps = epochs * math.ceil(len(y) / problem.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    module.train()
    for _ in range(epochs):
        for part in torch.randperm(len(y)).split(problem.batch):
            inputs = _moved(x[part]) if x.dim() == 4 else x[part]
            optimizer.zero_grad()
            F.cross_entropy(module(inputs), y[part]).backward()
            optimizer.step()
            schedule.step()
    module.eval()


def _moved(images: Tensor) -> Tensor:
    """A batch mirrored one by one at random, and moved together by up to three pixels."""
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    down, right = torch.randint(0, 7, (2,)).tolist()
    side = images.shape[2]
    images = F.pad(images, (3, 3, 3, 3))[:, :, down : down + side, right : right + side]
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def metric(module: nn.Module, data: Data, *, text: bool) -> float:
    """Error in per cent, or bits per character: smaller is better."""
    total = 0.0
    for x, y in zip(data[0].split(500), data[1].split(500), strict=True):
        scores = module(x)
        if text:
            total += float(F.cross_entropy(scores, y, reduction="sum")) / math.log(2) / data[1].numel()
        else:
            total += 100 * float((scores.argmax(1) != y).sum()) / len(data[1])
    return total


@torch.no_grad()
def loss(module: nn.Module, data: Data) -> float:
    """Mean cross-entropy."""
    parts = zip(data[0].split(500), data[1].split(500), strict=True)
    return sum(float(F.cross_entropy(module(x), y, reduction="sum")) for x, y in parts) / data[1].numel()
