"""A compressed module goes to ONNX and gives the same outputs there. The packages are no part of the test extra."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_sloppy import compress

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
def test_a_compressed_module_gives_the_same_outputs_in_onnx(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 12, 2, stride=2), nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=2), nn.Flatten(), nn.Linear(12 * 100, 10),
    ).eval()  # fmt: skip
    inputs = torch.randn(30, 3, 8, 8)
    small = compress(module, [inputs], size=0.5)
    assert {"0", "3", "7"} & set(small.structure)
    file = tmp_path / "small.onnx"
    torch.onnx.export(small.module, (inputs,), file, dynamo=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    wanted = small.module(inputs).detach()
    assert torch.allclose(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(module(inputs), wanted, rtol=1e-4, atol=1e-5)  # it is the smaller one that was exported
