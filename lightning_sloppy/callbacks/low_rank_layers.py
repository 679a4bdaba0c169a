"""The network of a compressed checkpoint in a Trainer: its smaller layers are there before weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_sloppy.callbacks.base import Callback
from lightning_sloppy.callbacks.checkpoints import STRUCTURE, load_weights, make_structure, opened_checkpoint
from lightning_sloppy.compression.structure import structure_in
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing.origin import notice_training

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.hooks import RemovableHandle


class LowRank(Callback):
    """Make the smaller layers of a compressed checkpoint in the module, before its weights are loaded.

    ``lightning-sloppy compress`` writes such a checkpoint. To fine-tune it, give it here, and no ``ckpt_path``: the
    training starts from its weights, with a new optimiser. With ``LowRank()`` checkpoints of that training, and
    compressed ones, can be resumed, validated and tested through ``ckpt_path``. The verbs of ``lightning-sloppy`` add
    the callback themselves if the file in ``ckpt_path`` is compressed.

    Args:
        checkpoint: The compressed checkpoint to start from. null: the one in ``ckpt_path``.
        weights_only: Read plain values only. Pass false for a file that you trust and that contains more.

    Raises:
        ConfigurationError: Before the first step, if there is no compressed checkpoint, it is of another model, or a
            fit would resume one that has no state of an optimiser.

    Example:
        >>> LowRank("small.ckpt").checkpoint
        'small.ckpt'
    """

    def __init__(self, checkpoint: str | None = None, *, weights_only: bool = True) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.weights_only = weights_only
        self._structure: dict[str, int] = {}
        self._waiting: RemovableHandle | None = None

    @property
    def state_key(self) -> str:
        """Key of the structure in a checkpoint."""
        return STRUCTURE

    def state_dict(self) -> dict[str, Any]:
        """The rank of each replaced layer."""
        return {"structure": dict(self._structure)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start from ``checkpoint``, and be ready for what the Trainer loads afterwards.

        A module that starts from it once goes on with its own weights in a second fit or test.
        """
        made = self._structure and all(isinstance(_part(pl_module, name), nn.Sequential) for name in self._structure)
        if self.checkpoint is not None and not made:
            state = opened_checkpoint(self.checkpoint, self.weights_only)
            found = structure_in(pl_module, state["state_dict"])
            load_weights(pl_module, state, self.checkpoint)
            self._take(pl_module, dict(found))
        # Which file the Trainer resumes is not known here; its weights come to the module before the optimiser is made.
        self._waiting = pl_module.register_load_state_dict_pre_hook(self._before_loading)  # type: ignore[no-untyped-call]

    def _before_loading(self, module: nn.Module, weights: dict[str, Any], *_: Any) -> None:
        """Make the layers that the weights have. The module loads its own first, and then its layers."""
        self._take(module, dict(make_structure(module, weights)))

    def _take(self, module: Any, structure: dict[str, int]) -> None:
        if structure:
            self._structure = structure
            notice_training(module)  # its start is no prior: it depends on the samples

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a checkpoint that ``compress`` has written."""
        if trainer.state.fn == "fit" and not checkpoint.get("optimizer_states"):
            raise ConfigurationError(
                "The checkpoint in ckpt_path has no state of an optimiser to resume; to fine-tune a compressed one "
                "pass LowRank(checkpoint=...) and no ckpt_path."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a compressed network."""
        self._loaded()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a compressed network."""
        self._loaded()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a compressed network."""
        self._loaded()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a compressed network."""
        self._loaded()

    def _loaded(self) -> None:
        if self._waiting is not None:
            self._waiting.remove()  # the module is as it was, but for its layers
            self._waiting = None
        if not self._structure:
            raise ConfigurationError(
                "LowRank needs a compressed checkpoint, but none was loaded; pass LowRank(checkpoint=...) to start "
                "from one, or one in ckpt_path."
            )


def _part(module: nn.Module, name: str) -> nn.Module | None:
    return dict(module.named_modules()).get(name)
