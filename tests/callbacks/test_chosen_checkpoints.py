"""Weights that validation samples have chosen: no hold-out bound from these samples, nor in what goes on from there."""

from __future__ import annotations

import shutil

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from support.tiny import SAFELY, Classifier, blobs, loader, trainer

from lightning_sloppy import HessianSpectrum, PACBayesBound

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed.*"),
]


def run(tmp_path, *, epochs, checkpoint=None, model=None, ckpt_path=None, bound=None, before=()):
    bound = bound or PACBayesBound(strict=True)
    parts = [*before, HessianSpectrum(k=2, num_samples=64), bound, *([] if checkpoint is None else [checkpoint])]
    host = trainer(tmp_path, callbacks=parts, max_epochs=epochs, enable_checkpointing=checkpoint is not None)
    given = {} if ckpt_path is None else {"ckpt_path": ckpt_path, **SAFELY}
    host.fit(model or Classifier(), loader(blobs(200)), loader(blobs(60, seed=8), shuffle=False), **given)
    return bound, host


def kept(tmp_path, monitor="val_loss", **options):
    return ModelCheckpoint(tmp_path / "kept", monitor=monitor, filename="{epoch}", **options)


def first(tmp_path, checkpoint):
    torch.manual_seed(0)
    bound, host = run(tmp_path, epochs=2, checkpoint=checkpoint)
    assert "hold_out" in bound.latest.estimates
    return host


def refused(bound):
    assert all(m.certificate.valid for m in bound.measurements)
    assert not any("hold_out" in m.estimates for m in bound.measurements)
    return bound.measurements[-1].notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("by_name", [True, False])
def test_the_best_checkpoint_is_refused_and_so_is_what_goes_on_from_there(tmp_path, by_name):
    checkpoint = kept(tmp_path, save_last=True)
    host = first(tmp_path, checkpoint)
    assert checkpoint.best_model_path
    if by_name:
        host.fit_loop.max_epochs = 3
        given = loader(blobs(200)), loader(blobs(60, seed=8), shuffle=False)
        host.fit(host.lightning_module, *given, ckpt_path="best", **SAFELY)
        bound = next(c for c in host.callbacks if isinstance(c, PACBayesBound))
    else:
        bound, host = run(tmp_path, epochs=3, checkpoint=kept(tmp_path), ckpt_path=checkpoint.best_model_path)
    assert "that was selected by val_loss, so the weights may depend on the validation" in refused(bound)
    host.save_checkpoint(tmp_path / "later.ckpt")
    bound, _ = run(tmp_path, epochs=4, ckpt_path=tmp_path / "later.ckpt")
    assert "that was selected by val_loss" in refused(bound)


@pytest.mark.slow
def test_the_last_checkpoint_and_those_kept_by_the_epoch_are_not(tmp_path):
    checkpoint = kept(tmp_path, save_last=True)
    first(tmp_path, checkpoint)
    bound, _ = run(tmp_path, epochs=3, checkpoint=kept(tmp_path), ckpt_path=checkpoint.last_model_path)
    assert "hold_out" in bound.latest.estimates
    shutil.rmtree(tmp_path / "kept")
    latest = kept(tmp_path, monitor="step", mode="max")
    first(tmp_path, latest)
    bound, _ = run(tmp_path, epochs=3, ckpt_path=latest.best_model_path)
    assert "hold_out" in bound.latest.estimates


@pytest.mark.slow
@pytest.mark.parametrize(("top", "there"), [(2, False), (-1, True)])
def test_one_of_the_best_is_refused_unless_all_are_kept(tmp_path, top, there):
    checkpoint = kept(tmp_path, save_top_k=top)
    first(tmp_path, checkpoint)
    (other,) = [path for path in checkpoint.best_k_models if path != checkpoint.best_model_path]
    held = torch.load(other, weights_only=True)["callbacks"]
    state = next(state for key, state in held.items() if key.startswith("ModelCheckpoint"))
    state["best_model_path"] = checkpoint.best_model_path
    whole = torch.load(other, weights_only=True)
    whole["callbacks"] = held
    torch.save(whole, other)
    bound, _ = run(tmp_path, epochs=3, checkpoint=kept(tmp_path, save_top_k=top), ckpt_path=other)
    assert ("hold_out" in bound.latest.estimates) == there


@pytest.mark.slow
@pytest.mark.parametrize("restored", [True, False])
def test_weights_that_are_written_between_two_fits_are_noticed(tmp_path, restored):
    checkpoint = kept(tmp_path)
    host = first(tmp_path, checkpoint)
    model, bound = host.lightning_module, next(c for c in host.callbacks if isinstance(c, PACBayesBound))
    if restored:
        with torch.no_grad():
            model.net[0].weight.mul_(0.9)
    run(tmp_path, epochs=1, model=model, bound=bound)
    if restored:
        assert "weights were changed between two fits" in refused(bound)
    else:
        assert "hold_out" in bound.latest.estimates


class RestoresAtTheEnd(Callback):
    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.net[0].weight.mul_(0.9)


@pytest.mark.slow
def test_a_callback_that_restores_weights_behind_the_last_measurement(tmp_path):
    bound = PACBayesBound(strict=True)
    parts = [HessianSpectrum(k=2, num_samples=64), bound, RestoresAtTheEnd()]
    host, model = trainer(tmp_path, callbacks=parts, max_epochs=1), Classifier()
    host.fit(model, loader(blobs(200)), loader(blobs(60, seed=8), shuffle=False))
    assert "hold_out" in bound.latest.estimates, "measured before"
    run(tmp_path, epochs=1, model=model, bound=bound)
    assert "weights were changed between two fits" in refused(bound)


@pytest.mark.slow
def test_weights_written_in_a_validation_are_remembered_in_the_checkpoint(tmp_path):
    class Restores(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                with torch.no_grad():
                    pl_module.net[0].weight.mul_(0.9)

    _, host = run(tmp_path, epochs=1, before=[Restores()])
    host.save_checkpoint(tmp_path / "run.ckpt")
    bound, _ = run(tmp_path, epochs=2, ckpt_path=tmp_path / "run.ckpt")
    assert "weights were changed during a validation" in refused(bound)
