import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_sloppy.demo import IDXDataModule
from lightning_sloppy.demo.data import split_indices
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.idx_files import read_idx

GENERATOR = np.random.default_rng(0)
TRAIN = (GENERATOR.integers(0, 256, (24, 5, 4), dtype=np.uint8), np.arange(24, dtype=np.uint8) % 10)
TEST = (GENERATOR.integers(0, 256, (6, 5, 4), dtype=np.uint8), np.arange(6, dtype=np.uint8))


def pack(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(folder: Path, *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in {"train": TRAIN, "t10k": TEST}.items():
        for name, values in {f"{part}-images-idx3-ubyte": images, f"{part}-labels-idx1-ubyte": labels}.items():
            content = pack(values)
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4)])
def test_read_idx_restores_shape_and_values(tmp_path, shape):
    values = GENERATOR.integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "values").write_bytes(pack(values))
    assert torch.equal(read_idx(tmp_path / "values"), torch.from_numpy(values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (gzip.compress(pack(TRAIN[1]), mtime=0), "begins with 1f 8b 08 00"),
        (struct.pack(">HBBI", 0, 13, 1, 1) + bytes(4), "begins with 00 00 0d 01"),
        (pack(TRAIN[0])[:-1], r"declares 480 values in the shape \(24, 5, 4\), but contains 479"),
        (pack(TRAIN[0])[:9], "incomplete"),
    ],
)
def test_read_idx_refuses_what_is_no_complete_file_of_bytes(tmp_path, content, message):
    (tmp_path / "values").write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        read_idx(tmp_path / "values")


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(pack(TRAIN[0]), mtime=0)[:-9]])
def test_read_idx_refuses_a_broken_archive(tmp_path, content):
    (tmp_path / "values.gz").write_bytes(content)
    with pytest.raises(ConfigurationError, match="download the file again"):
        read_idx(tmp_path / "values.gz")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "raw", "MNIST/raw"])
def test_finds_the_files_where_torchvision_lays_them(tmp_path, place, packed):
    write(tmp_path / place, packed=packed)
    data = IDXDataModule(str(tmp_path), val_fraction=0.25)
    data.prepare_data()
    data.setup("fit")
    for part, indices in zip((data.train_set, data.val_set), split_indices(24, 0.25, seed=0), strict=True):
        inputs, labels = part.tensors
        expected = torch.from_numpy(TRAIN[0]).float()[indices].unsqueeze(1) / 255
        torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-7)
        assert torch.equal(labels, torch.from_numpy(TRAIN[1]).long()[indices])


def test_the_t10k_files_are_the_test_part(tmp_path):
    data = IDXDataModule(str(write(tmp_path)), batch_size=100)
    data.setup("test")
    inputs, labels = next(iter(data.test_dataloader()))
    assert inputs.shape == (6, 1, 5, 4)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_binary_groups_the_lower_half_of_the_classes_against_the_upper(tmp_path):
    data = IDXDataModule(str(write(tmp_path)), val_fraction=0.25, binary=True)
    data.setup("fit")
    train = split_indices(24, 0.25, seed=0)[0]
    assert data.train_set.tensors[1].tolist() == [int(label >= 5) for label in TRAIN[1][train]]
    assert data.test_set.tensors[1].tolist() == [0, 0, 0, 0, 0, 1]


def test_default_fraction_leaves_eleven_twelfths_for_training(tmp_path):
    data = IDXDataModule(str(write(tmp_path)))
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (22, 2)


def test_missing_files_are_named_before_anything_is_read(tmp_path):
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigurationError, match=r"^t10k-labels-idx1-ubyte \(or the same with .gz\) not found in .*"):
        IDXDataModule(str(tmp_path)).prepare_data()


def test_an_empty_folder_names_the_option(tmp_path):
    with pytest.raises(ConfigurationError, match=r"--data\.folder"):
        IDXDataModule(str(tmp_path)).prepare_data()


def test_images_and_labels_of_different_number_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(pack(TRAIN[1][:-1]))
    with pytest.raises(ConfigurationError, match="check that the files belong together"):
        IDXDataModule(str(tmp_path)).setup("fit")


def test_of_an_odd_number_of_classes_the_middle_one_is_in_the_lower_half(tmp_path):
    folder = write(tmp_path)
    labels = np.arange(24, dtype=np.uint8) % 5
    (folder / "train-labels-idx1-ubyte").write_bytes(pack(labels))
    data = IDXDataModule(str(folder), val_fraction=0.25, binary=True)
    data.setup("fit")
    train, val = split_indices(24, 0.25, seed=data.seed)
    right = torch.tensor([0, 0, 0, 1, 1])
    assert torch.equal(data.train_set.tensors[1], right[train % 5])
    assert torch.equal(data.val_set.tensors[1], right[val % 5])
