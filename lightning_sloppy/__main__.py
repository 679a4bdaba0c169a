"""``python -m lightning_sloppy``: the same as the ``lightning-sloppy`` command."""

from __future__ import annotations

from lightning_sloppy.cli import main

if __name__ == "__main__":
    main()
