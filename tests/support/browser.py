"""Chromium without a window: the page after its scripts ran, how wide it is, and what is printed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)"
)

SECONDS = 180


def chromium(address: str, *options: str, patience_ms: int = 0) -> str:
    """Open a page; the standard output, which holds the page for ``--dump-dom``.

    Args:
        address: What to open.
        *options: Of Chromium.
        patience_ms: Milliseconds of the page's own time for its scripts.
    """
    waits = [f"--virtual-time-budget={patience_ms}"] if patience_ms else []
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *waits, *options]
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=SECONDS, check=True)
    return done.stdout


def width_of_content(page: Path, width: int, folder: Path) -> int:
    """How wide the content is in a window of this width: more than it if something sticks out.

    A script around the page measures it, because reports allow none.
    """
    frame = folder / f"frame_{width}.html"
    content = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    frame.write_text(
        f'<body style="margin:0"><iframe id="f" style="width:{width}px;height:900px;border:0"></iframe><script>'
        "const f = document.getElementById('f');"
        "f.onload = () => { document.title = f.contentDocument.documentElement.scrollWidth; };"
        f"f.srcdoc = {content};</script>",
        encoding="utf-8",
    )
    dumped = chromium(frame.as_uri(), "--dump-dom", patience_ms=2_000)
    return int(dumped.split("<title>", 1)[1].split("</title>", 1)[0])
