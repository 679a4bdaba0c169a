"""Whether a monitored value has chosen the checkpoint that a fit goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

PROGRESS = (None, "epoch", "step", "global_step")
"""What is monitored where the latest checkpoints are kept, whatever they are worth."""


def chosen_by(trainer: Trainer, checkpoint: Mapping[str, Any]) -> str:
    """The monitored value for which a ModelCheckpoint kept the file that is loaded; empty where none did.

    The state of a ModelCheckpoint in the file says which files were the best when it was written. Where all files are
    kept (``save_top_k=-1``), only the best of them counts; one under another name than it was written by is not known.

    Args:
        trainer: The Trainer, which loads the file.
        checkpoint: What is in it.
    """
    # ``save_last="link"`` makes last.ckpt a link to a file that may have been chosen.
    loaded = {Path(str(trainer.ckpt_path)).name, Path(str(trainer.ckpt_path)).resolve().name}
    keeping_all = {callback.state_key for callback in trainer.checkpoint_callbacks if _keeps_all(callback)}
    for key, state in checkpoint.get("callbacks", {}).items():
        if not isinstance(state, Mapping) or state.get("monitor") in PROGRESS:
            continue
        kept = [state.get("best_model_path"), *(() if key in keeping_all else state.get("best_k_models", ()))]
        if loaded & {Path(str(path)).name for path in kept if path}:
            return str(state["monitor"])
    return ""


def _keeps_all(callback: Any) -> bool:
    return getattr(callback, "save_top_k", None) == -1
