"""Frozen weights in half precision below trained ones in float32: certified as they are, before and after a reload."""

from __future__ import annotations

import pytest
import torch
from support.certified import QUICK, Data, certifying_trainer, flags
from support.tiny import CLASSES, FEATURES, Classifier, blobs, loader, trainer
from torch import Tensor, nn

from lightning_sloppy import FinalCertificate, HessianSpectrum, PACBayesBound

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


class Adapted(Classifier):
    """A frozen layer in half precision, low-rank adapters beside it and a head, both in float32."""

    def __init__(self, half: torch.dtype, *, trained: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Linear(FEATURES, 8).to(half).requires_grad_(trained)
        self.down, self.up = nn.Linear(FEATURES, 2, bias=False), nn.Linear(2, 8, bias=False)
        nn.init.zeros_(self.up.weight)
        self.net = nn.Sequential(nn.ReLU(), nn.Linear(8, CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        own = inputs.to(self.backbone.weight.dtype)
        return self.net(self.backbone(own).to(inputs) + self.up(self.down(inputs)))


def error_of(path, half: torch.dtype) -> float:
    network = Adapted(half)
    network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert network.backbone.weight.dtype == half
    network.backbone.float()
    inputs, targets = blobs(300).tensors
    return float((network.eval()(inputs).argmax(1) != targets).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_frozen_half_is_certified_and_so_is_its_checkpoint(tmp_path, half):
    torch.manual_seed(0)
    live, final = PACBayesBound(strict=True), FinalCertificate(learning=QUICK, folder=str(tmp_path / "a"), strict=True)
    model = Adapted(half)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=2, num_samples=64), live, final], max_epochs=2)
    host.fit(model, loader(blobs(300)))
    host.save_checkpoint(tmp_path / "last.ckpt")
    later = certifying_trainer(tmp_path)
    options = {"ckpt_path": str(tmp_path / "last.ckpt"), "learning": QUICK, "folder": str(tmp_path / "b")}
    again = later.certify(Adapted(half), Data(blobs(300)), **options)
    assert all(m.certificate.valid for m in live.measurements)
    assert again.certificates[0].prior_hash == final.certificates[0].prior_hash
    for folder, found in (("a", final.certificates), ("b", again.certificates)):
        errors = [error_of(tmp_path / folder / name, half) for name in found[0].networks]
        assert found[0].empirical_risk == pytest.approx(sum(errors) / 2)
        assert found[1].empirical_risk == pytest.approx(errors[0])
    for certificate in (live.latest.certificate, *final.certificates, *again.certificates):
        assert certificate.value < 1 - 1 / CLASSES
        assert f"Frozen weights in {str(half).removeprefix('torch.')} are converted" in certificate.statement()


@pytest.mark.slow
def test_the_same_weights_trained_are_refused(tmp_path):
    live, final = PACBayesBound(strict=True), FinalCertificate(learning=QUICK, strict=True)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=2, num_samples=64), live, final], max_epochs=1)
    with pytest.warns(UserWarning, match="In bfloat16, rounding of the weights removes the noise"):
        host.fit(Adapted(torch.bfloat16, trained=True), loader(blobs(100)))
    assert flags(final) == ("low_precision",)
    assert live.measurements[-1].certificate.flags == ("low_precision",)
