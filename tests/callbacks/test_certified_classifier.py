"""What is certified is the model's own classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.certified import QUICK, fit, flags
from support.tiny import CLASSES, FEATURES, Classifier, blobs, loader, trainer
from torch import nn
from torch.utils.data import TensorDataset

from lightning_sloppy import FinalCertificate, HessianSpectrum, PACBayesBound

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


class Angular(nn.Module):
    """Turns embeddings into classes by directions of its own."""

    def __init__(self, width):
        super().__init__()
        rng = torch.Generator().manual_seed(3)
        self.centres = nn.Parameter(torch.randn(CLASSES, width, generator=rng))

    def scores(self, embedding):
        return 8 * F.normalize(embedding) @ F.normalize(self.centres.detach()).T

    def forward(self, embedding, targets):
        return F.cross_entropy(self.scores(embedding), targets)


class Embedding(Classifier):
    """Its outputs are no scores, though there are as many as classes."""

    def __init__(self):
        super().__init__()
        del self.loss_fn
        self.criterion = Angular(CLASSES)

    def training_step(self, batch, batch_idx):
        return self.criterion(self(batch[0]), batch[1])

    def predict(self, outputs):
        return self.criterion.scores(outputs).argmax(1)


@pytest.mark.slow
def test_scores_of_an_embedding_are_not_certified(tmp_path):
    with pytest.warns(UserWarning, match="does not show that the outputs are such scores; pass predict="):
        final = fit(tmp_path, model=Embedding())
    assert flags(final) == ("loss_not_bounded",)
    live = PACBayesBound(strict=True)
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=2, num_samples=64), live], max_epochs=1)
    with pytest.warns(UserWarning, match="does not show that the outputs are such scores"):
        host.fit(Embedding(), loader(blobs(200)))
    assert live.measurements[-1].certificate.flags == ("loss_not_bounded",)


@pytest.mark.slow
def test_the_users_rule_is_certified(tmp_path):
    torch.manual_seed(0)
    model = Embedding()
    folder = tmp_path / "mine"
    pair = fit(tmp_path, model=model, predict=model.predict, folder=str(folder)).certificates[0]
    assert pair.valid
    inputs, targets = blobs(600).tensors
    rates, largest = [], []
    for name in pair.networks:
        model.load_state_dict(torch.load(folder / name, weights_only=True)["state_dict"])
        outputs = model.eval()(inputs)
        rates.append(float((model.predict(outputs) != targets).double().mean()))
        largest.append(float((outputs.argmax(1) != targets).double().mean()))
    assert pair.empirical_risk == pytest.approx(sum(rates) / 2)
    assert abs(sum(largest) - sum(rates)) > 0.1, "the two rules must differ for this test to tell anything"


class OneLogit(Classifier):
    def __init__(self, how):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 1))
        del self.loss_fn
        if how == "attribute":
            self.criterion = nn.BCEWithLogitsLoss()
        self.how = how

    def training_step(self, batch, batch_idx):
        if self.how == "attribute":
            return self.criterion(self(batch[0]).squeeze(1), batch[1])
        return F.binary_cross_entropy_with_logits(self(batch[0]).squeeze(1), batch[1].float())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "dtype"), [("attribute", torch.float32), ("step", torch.float32), ("step", torch.long)]
)
def test_one_logit_is_a_classifier(tmp_path, how, dtype):
    torch.manual_seed(0)
    inputs, classes = blobs(600).tensors
    data = TensorDataset(inputs, (classes == 0).to(dtype))
    folder, live = tmp_path / "mine", PACBayesBound(strict=True)
    final = fit(
        tmp_path,
        model=OneLogit(how),
        data=data,
        before=[HessianSpectrum(k=2, num_samples=64), live],
        folder=str(folder),
    )
    assert live.measurements[-1].certificate.valid
    pair = final.certificates[0]
    rates = []
    for name in pair.networks:
        network = OneLogit(how)
        network.load_state_dict(torch.load(folder / name, weights_only=True)["state_dict"])
        rates.append(float(((network.eval()(inputs)[:, 0] > 0) != (classes == 0)).double().mean()))
    assert pair.empirical_risk == pytest.approx(sum(rates) / 2)
    assert pair.value < 0.45


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:On one batch")
def test_a_rule_serves_where_only_the_step_is_known(tmp_path):
    class Penalised(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 0.1 * self.net[0].weight.square().sum()

    live = PACBayesBound(strict=True, predict=lambda outputs: outputs.argmax(1))
    final = FinalCertificate(learning=QUICK, predict=lambda outputs: outputs.argmax(1))
    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=2, num_samples=64), live, final], max_epochs=1)
    host.fit(Penalised(), loader(blobs(200)))
    assert live.measurements[-1].certificate.valid
    assert flags(final) == ("loss_not_bounded",)
    (reason,) = final.measurements[-1].certificate.reasons
    assert reason.startswith("Learning a posterior needs a loss of outputs and targets")


class Statistics(Classifier):
    """Batch statistics also in eval mode."""

    def __init__(self):
        super().__init__()
        self.net[1] = nn.BatchNorm1d(8, track_running_stats=False)


class Attending(Classifier):
    """Each sample looks at the others of its batch."""

    def forward(self, inputs):
        return self.net(inputs + torch.softmax(inputs @ inputs.T, 1) @ inputs)


class Hidden(Statistics):
    """The same behind a head of zeros, where no outputs show it yet."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The loss of a batch.*is not the mean over its samples")
@pytest.mark.parametrize("kind", [Statistics, Hidden, Attending])
def test_a_network_of_whole_batches_is_no_classifier_of_samples(tmp_path, kind):
    live = PACBayesBound(strict=True)
    with pytest.warns(UserWarning, match="depend on the other samples in its batch"):
        final = fit(tmp_path, model=kind(), before=[HessianSpectrum(k=2, num_samples=64), live], epochs=1)
    assert flags(final) == ("batch_coupled_prediction",)
    assert {event.certificate.flags for event in live.measurements} == {("batch_coupled_prediction",)}


class Adapted(Classifier):
    """A frozen layer in half precision below a trained head in float32."""

    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False).bfloat16()

    def forward(self, inputs):
        first = self.net[0]
        return self.net[1:](first(inputs.to(first.weight.dtype)).float())


@pytest.mark.slow
def test_frozen_weights_may_be_in_half_precision(tmp_path):
    torch.manual_seed(0)
    folder, live = tmp_path / "mine", PACBayesBound(strict=True)
    before = [HessianSpectrum(k=2, num_samples=64), live]
    pair = fit(tmp_path, model=Adapted(), before=before, folder=str(folder)).certificates[0]
    assert live.latest.certificate.valid
    assert pair.valid
    assert "Frozen weights in bfloat16 are converted to float32" in pair.statement()
    inputs, targets = blobs(600).tensors
    rates = []
    for name in pair.networks:
        network = Adapted()
        network.load_state_dict(torch.load(folder / name, weights_only=True)["state_dict"])
        network.float().eval()
        rates.append(float((network(inputs).argmax(1) != targets).double().mean()))
    assert pair.empirical_risk == pytest.approx(sum(rates) / 2)


def test_trained_weights_may_not(tmp_path):
    model = Adapted()
    model.net[0].requires_grad_(True)
    with pytest.warns(UserWarning, match="rounding of the weights removes the noise"):
        final = fit(tmp_path, model=model, epochs=1)
    assert flags(final) == ("low_precision",)
