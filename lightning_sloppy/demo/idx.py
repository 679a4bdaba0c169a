"""Folders of IDX files, the format in which MNIST and its relatives are published."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_sloppy.demo.data import InMemoryDataModule
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.idx_files import read_idx


def find_idx(folder: Path, name: str) -> Path | None:
    """The file ``name`` or ``name.gz`` in the folder, or where torchvision lays it below the folder.

    Args:
        folder: Where to look: here, in ``raw`` and in ``MNIST/raw``.
        name: File name without ``.gz``, for instance "train-images-idx3-ubyte".
    """
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        for candidate in (place / name, place / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None


class IDXDataModule(InMemoryDataModule):
    """Images and labels from the four IDX files of MNIST, Fashion-MNIST, KMNIST and the like.

    Inputs are float32 of shape (1, height, width), pixels divided by the constant 255; targets int64. The
    files are ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, packed with gzip (``.gz``) or not, in the folder
    itself, in ``raw`` or in ``MNIST/raw``. The ``t10k`` files are the test part.

    Args:
        folder: Folder that holds the files.
        batch_size: Samples in a batch.
        val_fraction: Share of the training files held out for validation, by a seeded permutation; 1/12
            leaves 55,000 of MNIST's 60,000 samples for training.
        seed: Seed of the split.
        binary: Group the classes into two: the lower half (0 to 4 of ten) against the upper half.
        num_workers: Worker processes of the loaders.

    Raises:
        ConfigurationError: In ``prepare_data``, if a file is missing; in ``setup``, if one cannot be used.
    """

    def __init__(
        self,
        folder: str = "data/MNIST/raw",
        batch_size: int = 128,
        *,
        val_fraction: float = 1 / 12,
        seed: int = 0,
        binary: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers=num_workers)
        self.folder = folder
        self.val_fraction = val_fraction
        self.seed = seed
        self.binary = binary

    def prepare_data(self) -> None:
        """Look whether all four files are there, before anything else is done."""
        for part in ("train", "t10k"):
            self._files(part)

    def setup(self, stage: str) -> None:
        """Read the files once: training and validation part, then the test part."""
        if self.train_set is not None:
            return
        inputs, labels = self._read("train")
        classes = int(labels.max()) + 1
        test_inputs, test_labels = self._read("t10k")
        self._split(inputs, self._targets(labels, classes), self.val_fraction, self.seed)
        self.test_set = TensorDataset(test_inputs, self._targets(test_labels, classes))

    def _files(self, part: str) -> tuple[Path, Path]:
        folder = Path(self.folder).expanduser()
        names = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
        found = [find_idx(folder, name) for name in names]
        missing = [name for name, path in zip(names, found, strict=True) if path is None]
        if missing:
            raise ConfigurationError(
                f"{' and '.join(missing)} (or the same with .gz) not found in {folder}, nor in its raw or MNIST/raw:"
                " put the four IDX files of MNIST there, or name another folder (--data.folder on the command line)."
            )
        return found[0], found[1]  # type: ignore[return-value]  # None would have been missing

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        images_path, labels_path = self._files(part)
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels) or len(labels) == 0:
            raise ConfigurationError(
                f"{images_path} has the shape {tuple(images.shape)} and {labels_path} {tuple(labels.shape)}: images"
                " (n, height, width) and as many labels (n,) are needed; check that the files belong together."
            )
        return images.unsqueeze(1).float().div_(255), labels.long()

    def _targets(self, labels: Tensor, classes: int) -> Tensor:
        return (labels >= (classes + 1) // 2).long() if self.binary else labels
