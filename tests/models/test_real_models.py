"""Networks as people train them: all instruments on, weights unchanged, curvature that of a plain autograd Hessian."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from support.tiny import trainer
from support.zoo import ZOO, made
from torch.func import functional_call

from lightning_sloppy import FisherSpectrum, HessianSpectrum, SloppyMonitor

WITHOUT_OUTPUTS = {"dict batches"}
"""Their loss is inside forward, so that only the Hessian of the training step is known."""


def fitted(tmp_path, name: str, *callbacks, **options):
    module, data, _ = made(name)
    host = trainer(tmp_path, callbacks=list(callbacks), max_epochs=2, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.fit(module, data)
    return module, data


def monitor(name: str, **options):
    return SloppyMonitor(
        input=None,
        hessian=HessianSpectrum(k=3, num_samples=24),
        fisher=None if name in WITHOUT_OUTPUTS else FisherSpectrum(num_samples=24),
        loss_fn=ZOO[name][2],
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_everything_is_measured_and_nothing_changes(tmp_path, name):
    plain, _ = fitted(tmp_path, name)
    watcher = monitor(name, strict=True)
    watched, _ = fitted(tmp_path, name, watcher)
    for (key, mine), theirs in zip(watched.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), key
    for part in watcher.measurements.keys() - {"bound"}:
        assert [m.status.ok for m in watcher.measurements[part]] == [True] * 3, part
    hessian = watcher.latest["hessian"].spectrum
    assert float(hessian.residuals.max()) <= 2e-3 * abs(hessian.largest)
    if name not in WITHOUT_OUTPUTS:
        assert watcher.latest["fisher"].estimates["effective_dimension"].value > 0


def mean_loss(name: str, module, data, table):
    """The mean over the whole probe, by plain calls; batches of one size but for segmentation, which counts pixels."""
    total, weight = 0.0, 0.0
    for batch in data:
        if name == "dict batches":
            loss, count = functional_call(module, table, (), dict(batch)).loss, len(batch["labels"])
        else:
            outputs = functional_call(module, table, (batch[0],))
            loss = (ZOO[name][2] or type(module).loss)(outputs, batch[1])
            count = int((batch[1] != 255).sum()) if name == "segmentation" else len(batch[0])
        total, weight = total + loss * count, weight + count
    return total / weight


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_largest_eigenvalue_is_that_of_plain_autograd(tmp_path, name):
    """Power iteration on products by double backward, with no line of this package."""
    watcher = monitor(name, strict=True)
    module, data = fitted(tmp_path, name, watcher)
    module.eval()
    table = {n: p.detach().requires_grad_() for n, p in module.named_parameters() if p.requires_grad}
    leaves = list(table.values())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        first = torch.autograd.grad(
            mean_loss(name, module, data, table), leaves, create_graph=True, allow_unused=True, materialize_grads=True
        )
        flat = torch.cat([part.reshape(-1) for part in first])
        vector, value = torch.ones_like(flat), 0.0
        # The square has the largest magnitude on top, whatever its sign.
        for _ in range(400):
            vector = F.normalize(vector.detach(), dim=0)
            parts = torch.autograd.grad(
                flat, leaves, vector, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            product = torch.cat([part.reshape(-1) for part in parts])
            value, vector = float(vector @ product), product
    spectrum = watcher.latest["hessian"].spectrum
    found = spectrum.eigenvalues[spectrum.eigenvalues.abs().argmax()]
    assert float(found) == pytest.approx(value, rel=5e-3)


# An LSTM under bf16-mixed cannot even be trained on every CPU.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, precision) for name in ("resnet", "gpt", "segmentation") for precision in ("bf16-mixed", "64-true")]
    + [("lstm", "64-true")],
)
def test_other_precisions(tmp_path, name, precision):
    watcher = monitor(name, strict=True, bound=None)
    fitted(tmp_path, name, watcher, precision=precision)
    assert watcher.latest["hessian"].status.ok
    assert watcher.latest["fisher"].status.ok
