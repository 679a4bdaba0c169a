"""What the report of a run and the page of a table share: templates, style, pictures in the page, and writing it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sloppy.display import at_most
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.reporting.canvas import png
from lightning_sloppy.reporting.phrases import number
from lightning_sloppy.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"

GENERATOR = '<meta name="generator" content="lightning_sloppy '
"""Stands at the top of each page."""

DOTS_PER_INCH = 130
"""Of a picture in a page: sharp on a phone and in print, and below 200 kB."""


@dataclass(frozen=True)
class PagePicture:
    """A picture inside a page.

    Attributes:
        source: The whole picture as a ``data:`` address, so that nothing has to be loaded.
        description: What it shows, for readers who cannot see it.
        width, height: In pixels of the page.
        caption: What to see in it.
        wide: Whether its text is too small when the picture is as narrow as a phone. It is then scrolled.
    """

    source: str
    description: str
    width: int
    height: int
    caption: str = ""
    wide: bool = False


def as_page_picture(figure: Figure, description: str, *, caption: str = "", wide: bool = False) -> PagePicture:
    """A figure of matplotlib as a picture inside a page.

    Args:
        figure: The figure.
        description: What it shows, for readers who cannot see it.
        caption: What to see in it.
        wide: See :class:`PagePicture`.
    """
    width, height = figure.get_size_inches()
    code = base64.b64encode(png(figure, dpi=DOTS_PER_INCH)).decode("ascii")
    return PagePicture(
        f"data:image/png;base64,{code}", description, round(96 * width), round(96 * height), caption, wide
    )


def rendered(template: str, **content: Any) -> str:
    """A page as text. All strings of the content are escaped.

    Args:
        template: Name of a file in ``templates/``.
        **content: What the template shows.
    """
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return _environment().get_template(template).render(style=_safe(style), version=__version__, **content)


def write_page(text: str, path: str | Path) -> Path:
    """Write a page completely or not at all.

    Args:
        text: The page.
        path: The file, in a folder that exists.

    Returns:
        The path.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def require_page(path: Path) -> None:
    """Check that a file does not exist, or is a page of this package, so that it may be replaced.

    Raises:
        ConfigurationError: It is another file.
    """
    try:
        with path.open("rb") as file:
            ours = GENERATOR.encode() in file.read(2_000)
    except OSError:
        return  # there is none, or writing it says what is wrong
    if not ours:
        raise ConfigurationError(f"{path} exists and is no page of this package; choose another name with --out.")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "digits": number, "at_most": at_most}
    environment.filters |= {"breakable": _breakable, "marked": _marked}
    return environment


def short(value: float) -> str:
    """Two digits, for errors and percentages.

    >>> short(0.012345), short(95.0), short(1234.5)
    ('0.012', '95', '1,234')
    """
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _breakable(name: str) -> Any:
    """A tag that may be broken into lines after each part of its name."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.findall(r"[^/_]*[/_]?", name) if part)


def _marked(text: str) -> Any:
    """A text with names between backticks, as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
