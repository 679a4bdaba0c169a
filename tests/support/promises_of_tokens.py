"""Batches of tokens with masks, as tokenisers give them, through modules as Hugging Face writes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.promised import Promise
from support.promises import SIZES, cut

TOKENS, LENGTHS, WORDS = 5, (4, 3, 4, 2, 1, 4, 2), 6


class ModelOutput(OrderedDict):
    """Keys, attributes and numbers."""

    def __getattr__(self, name: str) -> Any:
        if name in self.keys():
            return self[name]
        raise AttributeError(name)

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]


@dataclass
class Answer:
    loss: Tensor
    logits: Tensor


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(WORDS, 3), nn.Linear(3, 3), nn.Linear(3, TOKENS)

    def hidden(self, words: Tensor, mask: Tensor) -> Tensor:
        table = self.table(words)
        return torch.tanh(self.mix((table * mask.unsqueeze(-1).to(table.dtype)).cumsum(1)))

    def scores(self, words: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.hidden(words, mask))

    def pooled(self, words: Tensor, mask: Tensor) -> Tensor:
        hidden = self.hidden(words, mask)
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


class LossInside(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> ModelOutput:
        scores = self.scores(input_ids, attention_mask)
        return ModelOutput(loss=F.cross_entropy(scores.view(-1, TOKENS), labels.view(-1)), logits=scores)


class Causal(Encoder):
    """Each token predicts the next one."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> ModelOutput:
        scores = self.scores(input_ids, attention_mask)
        loss = F.cross_entropy(scores[:, :-1].reshape(-1, TOKENS), labels[:, 1:].reshape(-1))
        return ModelOutput(loss=loss, logits=scores)


class PaddedCausal(Encoder):
    """The same with padded labels, any keywords, and an answer that is no mapping."""

    def forward(self, **batch: Tensor) -> Answer:
        scores = self.scores(batch["input_ids"], batch["attention_mask"])
        labels = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
        return Answer(F.cross_entropy(scores.view(-1, TOKENS), labels.reshape(-1)), scores)


class ScoresByName(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> ModelOutput:
        return ModelOutput(logits=self.scores(input_ids, attention_mask))


class ScoresOfDict(Encoder):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.scores(batch["input_ids"], batch["attention_mask"])


class ScoresOfTwo(Encoder):
    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        return self.scores(words, mask)


class ClassInside(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> tuple[Tensor, Tensor]:
        scores = self.pooled(input_ids, attention_mask)
        return F.cross_entropy(scores, labels), scores


class ClassOfTwo(Encoder):
    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        return self.pooled(words, mask)


class ClassOfDict(Encoder):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.pooled(x["input_ids"], x["attention_mask"])


def samples() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words, mask, a label for each word, and one for each sample."""
    words, labels = torch.randint(0, WORDS, (7, 4)), torch.randint(0, TOKENS, (7, 4))
    mask = (torch.arange(4) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    labels[mask == 0] = -100
    return words, mask, labels, torch.randint(0, TOKENS, (7,))


def named(words: Tensor, mask: Tensor, labels: Tensor, classes: Tensor) -> list[Any]:
    del classes
    return [
        dict(zip(("input_ids", "attention_mask", "labels"), b, strict=True)) for b in cut([words, mask, labels], SIZES)
    ]


def named_classes(words: Tensor, mask: Tensor, labels: Tensor, classes: Tensor) -> list[Any]:
    return named(words, mask, classes, labels)


def triples(words: Tensor, mask: Tensor, labels: Tensor, classes: Tensor) -> list[Any]:
    del classes
    return cut([words, mask, labels], SIZES)


def nested(words: Tensor, mask: Tensor, labels: Tensor, classes: Tensor) -> list[Any]:
    return [((w, m), y) for w, m, y in triples(words, mask, labels, classes)]


def with_mask_again(words: Tensor, mask: Tensor, labels: Tensor, classes: Tensor) -> list[Any]:
    del classes
    return cut([words, mask, labels, mask], SIZES)


def with_classes(words: Tensor, mask: Tensor, labels: Tensor, classes: Tensor) -> list[Any]:
    return cut([words, mask, labels, classes], SIZES)


def of_tokens(
    build: type[Encoder], batches: Callable[..., list[Any]], loss_fn: Callable[[Any, Any], Tensor], shifted: int = 0
) -> Promise:
    words, mask, labels, classes = samples()

    def loss(module: nn.Module, row: Tensor, sample: Any) -> Tensor:
        del module
        scores = row.view(1, 4, TOKENS)[:, : 4 - shifted].transpose(1, 2)
        return F.cross_entropy(scores, sample[2][:, shifted:])

    return Promise(
        build().double(),
        batches(words, mask, labels, classes),
        loss_fn,
        [(words[i : i + 1], mask[i : i + 1], labels[i : i + 1]) for i in range(7)],
        lambda module, sample: module.scores(*sample[:2]).reshape(-1),
        loss,
        weights=(labels[:, shifted:] != -100).sum(1).tolist(),
    )


def of_classes(
    build: type[Encoder], batches: Callable[..., list[Any]], loss_fn: Callable[[Any, Any], Tensor]
) -> Promise:
    words, mask, labels, classes = samples()
    return Promise(
        build().double(),
        batches(words, mask, labels, classes),
        loss_fn,
        [(words[i : i + 1], mask[i : i + 1], classes[i : i + 1]) for i in range(7)],
        lambda module, sample: module.pooled(*sample[:2]).reshape(-1),
        lambda module, row, sample: F.cross_entropy(row[None], sample[2]),
    )


def flat(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten())


def masked(scores: Tensor, targets: Any) -> Tensor:
    """A mean by hand."""
    losses = F.cross_entropy(scores.transpose(1, 2), targets[0].clamp(min=0), reduction="none")
    return (losses * targets[1]).sum() / targets[1].sum()


def selected(scores: Tensor, targets: Any) -> Tensor:
    return F.cross_entropy(scores[targets[1].bool()], targets[0][targets[1].bool()])


def next_words(scores: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(scores[:, :-1].transpose(1, 2), batch["labels"][:, 1:])


PROMISES: dict[str, Callable[[], Promise]] = {
    "loss inside": lambda: of_tokens(LossInside, named, lambda out, batch: out.loss),
    "causal": lambda: of_tokens(Causal, named, lambda out, batch: out["loss"], shifted=1),
    "padded causal": lambda: of_tokens(PaddedCausal, named, lambda out, batch: out.loss, shifted=1),
    "scores by name": lambda: of_tokens(ScoresByName, named, lambda out, batch: flat(out.logits, batch["labels"])),
    "scores of a dict": lambda: of_tokens(ScoresOfDict, named, next_words, shifted=1),
    "((x, mask), y)": lambda: of_tokens(ScoresOfTwo, nested, flat),
    "(x, mask, y)": lambda: of_tokens(ScoresOfTwo, triples, flat),
    "(x, mask, y, extra)": lambda: of_tokens(ScoresOfTwo, with_classes, lambda f, targets: flat(f, targets[0])),
    "masked mean": lambda: of_tokens(ScoresOfTwo, with_mask_again, masked),
    "selected by a mask": lambda: of_tokens(ScoresOfTwo, with_mask_again, selected),
    "class inside": lambda: of_classes(ClassInside, named_classes, lambda out, batch: out[0]),
    "class of two": lambda: of_classes(ClassOfTwo, lambda w, m, y, c: cut([w, m, c], SIZES), F.cross_entropy),
    "class of a dict": lambda: of_classes(
        ClassOfDict, named_classes, lambda scores, batch: F.cross_entropy(scores, batch["labels"])
    ),
}
