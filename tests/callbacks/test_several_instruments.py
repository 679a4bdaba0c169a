"""Several instruments in one Trainer: two of one kind, and inside the monitor."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from support.norms import Norms
from support.tiny import SAFELY, Classifier, blobs, loader, trainer
from torch import nn

from lightning_sloppy import (
    ConfigurationError,
    EffectiveDimensionEarlyStopping,
    FisherSpectrum,
    HessianSpectrum,
    JacobianSpectrum,
    PACBayesBound,
    Schedule,
    SloppyMonitor,
    fisher_spectrum,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


# Two of one kind.


def test_two_fisher_spectra_have_a_name_and_a_state_each(tmp_path):
    torch.manual_seed(0)
    empirical, exact = FisherSpectrum(kind="empirical"), FisherSpectrum(kind="exact")
    logger = TensorBoardLogger(tmp_path)
    host = trainer(tmp_path, callbacks=[empirical, exact], max_epochs=1, logger=logger)
    module = Classifier()
    host.fit(module, loader())
    assert (empirical.name, exact.name) == ("fisher", "fisher_exact")
    assert (empirical.latest.group, exact.latest.group) == ("fisher", "fisher_exact")
    assert (empirical.latest.spectrum.matrix, exact.latest.spectrum.matrix) == ("fisher_empirical", "fisher_exact")
    batches = [(blobs().tensors[0], blobs().tensors[1])]
    for callback, kind in ((empirical, "empirical"), (exact, "exact")):
        direct = fisher_spectrum(module, batches, nn.functional.cross_entropy, kind=kind)
        assert callback.latest.spectrum.largest == pytest.approx(direct.largest, rel=1e-5)
        tag = f"sloppy_{callback.name}/largest"
        assert float(host.callback_metrics[tag]) == pytest.approx(direct.largest, rel=1e-5)
    path = tmp_path / "both.ckpt"
    host.save_checkpoint(path)
    states = torch.load(path, weights_only=True)["callbacks"]
    assert {"FisherSpectrum", "FisherSpectrum{'kind': 'exact'}"} <= set(states)
    assert states["FisherSpectrum{'kind': 'exact'}"]["settings"]["kind"] == "exact"
    again = trainer(tmp_path, callbacks=[FisherSpectrum(kind="exact"), FisherSpectrum()], max_epochs=2)
    again.fit(Classifier(), loader(), ckpt_path=path, **SAFELY)  # a warning about other settings would be an error here


def test_a_name_keeps_the_capital_letters_of_a_pattern_as_small_ones():
    names = [HessianSpectrum(parameters="Encoder.0.*").name, JacobianSpectrum(outputs="lastHidden").name]
    assert names == ["hessian_encoder_0", "jacobian_lasthidden"]


@pytest.mark.slow
def test_a_block_of_the_parameters_beside_the_whole(tmp_path):
    torch.manual_seed(0)
    whole, head = HessianSpectrum(k=3, strict=True), HessianSpectrum(k=3, parameters="net.4.*", strict=True)
    bound = PACBayesBound(strict=True)
    module = Classifier()
    host = trainer(tmp_path, callbacks=[head, whole, bound], max_epochs=1)
    host.fit(module, loader())
    assert (whole.name, head.name) == ("hessian", "hessian_net_4")
    assert head.latest.spectrum.dim == sum(p.numel() for p in module.net[4].parameters())
    inputs, targets = blobs().tensors
    weight, bias = module.net[4].weight.detach().double(), module.net[4].bias.detach().double()
    hidden = module.eval().net[:4](inputs).detach().double()

    def loss(flat):
        return nn.functional.cross_entropy(
            hidden @ flat[: weight.numel()].view_as(weight).T + flat[weight.numel() :], targets
        )

    dense = torch.autograd.functional.hessian(loss, torch.cat([weight.flatten(), bias]))
    values = torch.linalg.eigvalsh(dense)
    torch.testing.assert_close(head.latest.spectrum.eigenvalues[:3], values.flip(0)[:3], rtol=1e-4, atol=1e-6)
    # Dimension and displacement are those of the block; the scale is that of the run.
    z = head.latest.estimates["z"].value
    assert z == whole.latest.estimates["z"].value
    assert head.latest.estimates["effective_dimension_at_prior"].value == pytest.approx(
        float((values.clamp(min=0) / (values.clamp(min=0) + z)).sum()), rel=1e-3
    )
    assert 0 <= head.latest.estimates["displacement_fraction"].value <= 1
    # The bound follows the whole spectrum, whatever the order.
    assert bound.latest.certificate.valid
    assert bound.measurements[-1].estimates["stiff_directions"].value <= 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: [FisherSpectrum(), FisherSpectrum(num_samples=8)], "sloppy_fisher/.*a different name="),
        (lambda: [Norms(name="fisher"), FisherSpectrum()], "Norms and FisherSpectrum would write the same curves"),
        (lambda: [HessianSpectrum(parameters="tail.*")], "tail"),
        (lambda: [HessianSpectrum(parameters="net.4.*"), PACBayesBound()], "of all parameters"),
        (
            lambda: [
                FisherSpectrum(kind="exact"),
                EffectiveDimensionEarlyStopping("sloppy_fisher/effective_dimension"),
            ],
            "monitor='sloppy_fisher_exact/effective_dimension'",
        ),
    ],
)
def test_names_that_collide_or_match_nothing_are_refused_at_setup(tmp_path, make, said):
    callbacks = make()
    if len({callback.state_key for callback in callbacks}) < len(callbacks):
        pytest.skip("Lightning refuses these itself") if not said.startswith("sloppy") else None
        with pytest.raises(RuntimeError, match="more than one stateful callback"):
            trainer(tmp_path, callbacks=callbacks)
        return
    with pytest.raises(ConfigurationError, match=said):
        trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(Classifier(), loader())


def test_a_name_is_overridden(tmp_path):
    a, b = FisherSpectrum(num_samples=8, name="small"), FisherSpectrum(num_samples=16, name="large")
    host = trainer(
        tmp_path, callbacks=[a, b, EffectiveDimensionEarlyStopping(monitor="sloppy_large/effective_dimension_at_prior")]
    )
    host.fit(Classifier(), loader())
    assert {"sloppy_small/trace", "sloppy_large/trace"} <= set(host.callback_metrics)
    assert (a.latest.num_samples, b.latest.num_samples) == (8, 16)
    for wrong in ("Large", "a/b", "cost"):
        with pytest.raises(ConfigurationError, match=r"is not valid in a tag|cannot be named"):
            trainer(tmp_path, callbacks=[FisherSpectrum(name=wrong)]).fit(Classifier(), loader())


# Inside the monitor.


def test_the_monitor_passes_on_what_a_part_was_not_given():
    own = Schedule(every_n_steps=3)
    norms, fisher = Norms(seed=7), FisherSpectrum(schedule=own, epsilon=2.0)
    monitor = SloppyMonitor(
        hessian=HessianSpectrum(k=2), fisher=fisher, extra=[norms], epsilon=5.0, seed=1, every_n_epochs=2, strict=True
    )
    _, _, hessian, _, bound, _ = monitor.parts
    assert (hessian.epsilon, hessian.seed, hessian.schedule.every_n_epochs, hessian.strict) == (5.0, 1, 2, True)
    assert (fisher.epsilon, fisher.schedule, fisher.seed) == (2.0, own, 1)
    assert (norms.seed, norms.schedule.every_n_epochs) == (7, 2)
    assert (bound.seed, bound.strict) == (1, True)


def test_extra_instruments_are_measured_kept_and_resumed(tmp_path):
    def monitor() -> SloppyMonitor:
        extra = [Norms(num_samples=16), FisherSpectrum(kind="exact", num_samples=16)]
        fisher = FisherSpectrum(num_samples=16)
        return SloppyMonitor(jacobian=None, hessian=None, fisher=fisher, bound=None, extra=extra, strict=True)

    watcher = monitor()
    host = trainer(tmp_path, callbacks=[watcher], max_epochs=1)
    host.fit(Classifier(), loader())
    assert set(watcher.measurements) == set(watcher.latest) == {"input", "fisher", "norms", "fisher_exact"}
    assert watcher.latest["norms"].estimates["length"].value > 0
    path = tmp_path / "extra.ckpt"
    host.save_checkpoint(path)
    again = monitor()
    trainer(tmp_path, callbacks=[again], max_epochs=2).fit(Classifier(), loader(), ckpt_path=path, **SAFELY)
    assert again.latest["norms"].step == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extra": [3]}, "got 3 in extra="),
        ({"extra": Norms()}, r"pass a list: extra=\[...\]"),
        ({"measure_on": "fixed"}, "choose one of fixed_samples, current_batch"),
        ({"epsilon": -1.0}, "pass a positive prior precision"),
        ({"loss_fn": "cross_entropy"}, "torch.nn.functional.cross_entropy"),
        ({"schedule": {"every_n_steps": 1}}, "pass lightning_sloppy.Schedule"),
        ({"extra": [FisherSpectrum()]}, "an instrument named 'fisher' in extra="),
        ({"hessian": FisherSpectrum()}, r"pass hessian=lightning_sloppy.HessianSpectrum\(...\), True"),
        ({"schedule": Schedule(), "every_n_steps": 2}, "put them into the Schedule"),
    ],
)
def test_what_the_monitor_cannot_take(options, said):
    with pytest.raises(ConfigurationError, match=said):
        SloppyMonitor(**options)


def test_every_hook_of_lightning_reaches_the_parts():
    called = []

    class Calling(Norms):
        def __getattribute__(self, name):
            if name.startswith("on_") or name in ("setup", "teardown"):
                called.append(name)
                return lambda *args, **kwargs: None
            return super().__getattribute__(name)

    monitor = SloppyMonitor(jacobian=None, input=None, hessian=None, fisher=None, extra=[Calling()])
    hooks = [name for name in dir(monitor) if name.startswith("on_")]
    assert len(hooks) > 30
    for hook in (*hooks, "setup", "teardown"):
        getattr(monitor, hook)()
    assert called == [*hooks, "setup", "teardown"]


def test_extra_instruments_may_have_the_name_of_an_argument():
    monitor = SloppyMonitor(fisher=FisherSpectrum(kind="exact"), extra=[FisherSpectrum(), Norms()])
    names = [part.name for part in monitor.parts]
    assert names == ["jacobian", "input", "hessian", "fisher_exact", "bound", "fisher", "norms"]
    assert set(monitor.latest) == {"jacobian", "input", "hessian", "fisher", "bound", "fisher_extra", "norms"}


@pytest.mark.parametrize(
    ("options", "follows"),
    [
        ({}, True),
        ({"hessian": None}, True),
        ({"hessian": None, "fisher": None}, False),
        ({"hessian": HessianSpectrum(parameters="net.2.*"), "fisher": None}, False),
        ({"hessian": None, "fisher": None, "extra": [HessianSpectrum()]}, True),
    ],
)
def test_the_default_bound_needs_a_spectrum_of_all_parameters(options, follows):
    assert any(isinstance(part, PACBayesBound) for part in SloppyMonitor(**options).parts) is follows


def test_a_part_takes_the_settings_of_the_monitor_that_it_is_in():
    fisher = FisherSpectrum()
    SloppyMonitor(fisher=fisher, epsilon=2.0, seed=5, loss_fn=nn.functional.cross_entropy)
    assert (fisher.epsilon, fisher.seed, fisher.loss_fn) == (2.0, 5, nn.functional.cross_entropy)
    SloppyMonitor(fisher=fisher)
    assert (fisher.epsilon, fisher.seed, fisher.loss_fn) == (None, 0, None)
