"""From a measurement to what people look at: tags, writers, histograms, layout, progress and the closing summary."""

from lightning_sloppy.reporting.card import Card, card
from lightning_sloppy.reporting.progress import Progress
from lightning_sloppy.reporting.summary import summarise
from lightning_sloppy.reporting.tables import filled
from lightning_sloppy.reporting.tags import expected_tags, scalars, tag
from lightning_sloppy.reporting.writers import publish

__all__ = [
    "Card",
    "Progress",
    "card",
    "expected_tags",
    "filled",
    "publish",
    "scalars",
    "summarise",
    "tag",
]
