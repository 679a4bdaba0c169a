"""An HTML page as a reader gets it: its text, its tables, and every address that a browser would ask for."""

from __future__ import annotations

import re
from html.parser import HTMLParser

ALONE = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
ADDRESSES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction", "background", "ping"}


class Page(HTMLParser):
    """A page; an element that is not closed, or closed twice, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.rows: list[list[str]] = []
        self.values: list[list[float]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ALONE:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.values.append([])
        if tag == "data" and self.rows and "tr" in self.open:
            self.values[-1].append(float(dict(attrs)["value"]))
        if tag == "br" and self.rows and "tr" in self.open:
            self.rows[-1][-1] += " "
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        """All that is shown, with single spaces; a folded part too."""
        parts = (part for where, part in self.texts if not {"style", "script", "title"} & set(where))
        return " ".join(" ".join(parts).split())

    def of(self, tag: str) -> list[str]:
        """The texts of all elements of a kind, without those of elements inside."""
        return [" ".join(part.split()) for where, part in self.texts if where and where[-1] == tag and part.strip()]

    def cells(self, first: str) -> list[str]:
        """The row whose first cell is this."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        return next(row for row in rows if row and row[0] == first)

    def values_of(self, tag: str) -> list[float]:
        """The numbers in full of the row that shows a tag, in order."""
        return next(values for row, values in zip(self.rows, self.values, strict=True) if row and row[0].endswith(tag))

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.seen}

    def requests(self) -> list[str]:
        """Addresses in attributes and styles that are not inside the page."""
        found = [
            str(value)
            for _, attributes in self.seen
            for name, value in attributes.items()
            if name in ADDRESSES and value
        ]
        styles = [str(attributes.get("style") or "") for _, attributes in self.seen]
        styles += [part for where, part in self.texts if "style" in where]
        for style in styles:
            found += re.findall(r"url\(\s*['\"]?([^'\")]+)", style) + re.findall(r"@import\s+['\"]?([^'\";]+)", style)
        return [address for address in found if not address.startswith(("data:", "#"))]
