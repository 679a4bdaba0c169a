"""Networks as people train them, small: each with its data and what it needs to be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

COUNT = 24


class Trained(LightningModule):
    """Adam, and a step that applies ``loss`` to the outputs of ``forward``."""

    loss: Callable[[Any, Any], Tensor] = staticmethod(F.cross_entropy)

    def training_step(self, batch: Any) -> Tensor:
        return type(self).loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 0.01)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(x)), inplace=True)
        return F.relu(x + self.norms[1](self.second(inner)))


class ResNet(Trained):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), Block(6), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def next_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class Causal(nn.Module):
    """Fused attention over what came before, then a small network, both beside the way through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = [part.unflatten(2, (2, -1)).transpose(1, 2) for part in self.mix(self.norms[0](x)).chunk(3, dim=2)]
        seen = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.net(self.norms[1](x))


class GPT(Trained):
    """Characters to characters, the table of the first layer used again in the last."""

    loss = staticmethod(next_tokens)

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(128, 8), nn.Parameter(torch.zeros(10, 8))
        self.block, self.norm = Causal(8), nn.LayerNorm(8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.block(self.table(tokens) + self.places)) @ self.table.weight.T


class LSTM(Trained):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class AutoEncoder(Trained):
    loss = staticmethod(F.mse_loss)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def fooled(scores: Tensor, targets: Tensor) -> Tensor:
    """What the judge of real data minimises on them."""
    return F.binary_cross_entropy_with_logits(scores.squeeze(1), torch.ones_like(targets))


class GAN(LightningModule):
    """Two optimisers, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 8))
        self.judge = nn.Sequential(nn.Linear(8, 6), nn.LeakyReLU(0.1), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.judge(x)

    def training_step(self, batch: Any) -> None:
        first, second = self.optimizers()
        made, targets = self.maker(torch.randn(len(batch[0]), 2, device=batch[0].device)), batch[1]
        first.zero_grad()
        self.manual_backward(fooled(self.judge(made), targets))
        first.step()
        second.zero_grad()
        fake = F.softplus(self.judge(made.detach())).mean()
        self.manual_backward(fooled(self.judge(batch[0]), targets) + fake)
        second.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), 0.01) for part in (self.maker, self.judge)]


class Named(Dataset):
    """Samples as dicts, as tokenisers give them."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(index)
        tokens = torch.randint(0, 20, (6,), generator=rng)
        return {"input_ids": tokens, "attention_mask": torch.ones(6), "labels": tokens.sum() % 3}


@dataclass
class Answer:
    loss: Tensor
    logits: Tensor


class ByDict(LightningModule):
    """Takes its batch by keyword and gives loss and scores in one object."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Answer:
        mask = attention_mask.unsqueeze(2)
        scores = self.head((self.table(input_ids) * mask).sum(1) / mask.sum(1))
        return Answer(F.cross_entropy(scores, labels), scores)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


class Adapted(nn.Module):
    """A frozen linear map with a trained one of rank two beside it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs) / 4), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class LoRA(Trained):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(Adapted(8, 12), nn.ReLU(), Adapted(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class MultiLabel(Trained):
    loss = staticmethod(F.binary_cross_entropy_with_logits)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))
        self.loss_fn = nn.BCEWithLogitsLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Segmenter(Trained):
    """A class for every pixel, some of them unknown."""

    loss = staticmethod(nn.CrossEntropyLoss(ignore_index=255))

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 1))
        self.loss_fn = nn.CrossEntropyLoss(ignore_index=255)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def pixels() -> TensorDataset:
    classes = torch.randint(0, 3, (COUNT, 5, 5))
    classes[torch.rand(classes.shape) < 0.3] = 255
    return TensorDataset(torch.randn(COUNT, 1, 5, 5), classes)


def labels() -> TensorDataset:
    return TensorDataset(torch.randn(COUNT, 8), (torch.rand(COUNT, 5) < 0.5).float())


def letters(path: Path) -> TensorDataset:
    """Ten characters of a text, and the ones behind them."""
    text = path.read_bytes()
    text *= 11 * COUNT // len(text) + 1
    codes = torch.tensor([min(byte, 127) for byte in text[: 11 * COUNT]]).view(COUNT, 11)
    return TensorDataset(codes[:, :-1], codes[:, 1:])


def classes(*shape: int) -> TensorDataset:
    return TensorDataset(torch.randn(COUNT, *shape), torch.randint(0, 4, (COUNT,)))


TEXT = Path(__file__).parents[2] / "README.md"

ZOO: dict[str, tuple[Callable[[], LightningModule], Callable[[], Dataset], Any]] = {
    # name: module, data, objective
    "resnet": (ResNet, lambda: classes(3, 8, 8), None),
    "gpt": (GPT, lambda: letters(TEXT), next_tokens),
    "lstm": (LSTM, lambda: classes(5, 3), None),
    "autoencoder": (AutoEncoder, lambda: TensorDataset(*[torch.randn(COUNT, 8)] * 2), None),
    "gan": (GAN, lambda: TensorDataset(torch.randn(COUNT, 8), torch.ones(COUNT)), fooled),
    "dict batches": (ByDict, Named, None),
    "lora": (LoRA, lambda: classes(8), None),
    "multi-label": (
        MultiLabel,
        lambda: TensorDataset(torch.randn(COUNT, 8), (torch.rand(COUNT, 5) < 0.5).float()),
        None,
    ),
    "segmentation": (Segmenter, pixels, None),
}


def made(name: str) -> tuple[LightningModule, DataLoader, Any]:
    """A fresh module of the zoo, always the same one, with its loader and objective."""
    build, data, objective = ZOO[name]
    torch.manual_seed(0)
    return build(), DataLoader(data(), 8), objective
