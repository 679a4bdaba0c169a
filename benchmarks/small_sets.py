"""Data sets for the benchmarks that train small networks: bundled digits, and files as their publishers give them."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import numpy as np


def load(name: str, root: Path | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Inputs, targets, and "classes" or "numbers".

    Args:
        name: "digits", "mnist", "cifar" (pixels pooled to 16 x 16), "steel" or "ai4i" (the torque from the rest).
        root: Folder that holds mnist, cifar10, steel-plates and ai4i2020; None: digits only.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        return found.data / 16, found.target, "classes"
    if root is None:
        raise SystemExit(f"{name} needs --data FOLDER.")
    if name == "mnist":
        return *idx_images(root / "mnist"), "classes"
    if name == "cifar":
        with lzma.open(root / "cifar10" / "data_batch_1.bin.xz") as file:
            raw = np.frombuffer(file.read(), np.uint8).reshape(-1, 3_073)
        pooled = raw[:, 1:].reshape(-1, 3, 16, 2, 16, 2).mean((3, 5))
        return pooled.reshape(len(raw), -1) / 255, raw[:, 0], "classes"
    if name == "steel":
        with zipfile.ZipFile(root / "steel-plates" / "steel+plates+faults.zip") as archive:
            table = np.loadtxt(io.BytesIO(archive.read("Faults.NNA")))
        return standardised(table[:, :27]), table[:, 27:].argmax(1), "classes"
    with zipfile.ZipFile(root / "ai4i2020" / "ai4i+2020+predictive+maintenance+dataset.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("ai4i2020.csv").decode("utf-8-sig"))))
    names = [name for name in rows[0] if "[" in name]
    numbers = np.array([[float(row[name]) for name in names] for row in rows])
    target = names.index(next(name for name in names if name.startswith("Torque")))
    return standardised(np.delete(numbers, target, 1)), standardised(numbers[:, [target]]), "numbers"


def standardised(values: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and deviation 1."""
    return (values - values.mean(0)) / (values.std(0) + 1e-12)


def idx_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training images between 0 and 1, (60000, 784), and their classes, of MNIST and sets of the same files."""
    images, labels = (_idx(folder / f"train-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    return images.reshape(len(images), -1) / 255, labels


def _idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
