"""The metric: counts by hand, conventions of torchmetrics, two processes, and one sentence for every mistake."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_sloppy import ConfigurationError, SpectralErrors
from lightning_sloppy.metrics.error_report import columns_responsible
from lightning_sloppy.metrics.principal_directions import squared_distance, tail_share

D, C, K = 6, 3, 4


def data(n: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs with a spectrum, labels of which one is rare, and scores that are wrong more often far from the mean."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(9))
    inputs = torch.randn(n, D, generator=rng) @ (mixing * torch.logspace(0, -2, D)[:, None])
    labels = (torch.rand(n, generator=rng) > 0.5).long() + (torch.rand(n, generator=rng) > 0.9).long()
    scores = torch.nn.functional.one_hot(labels, C) + 0.5 * torch.randn(n, C, generator=rng)
    return inputs, labels, scores + inputs.norm(dim=1, keepdim=True) * 0.1 * torch.randn(n, C, generator=rng)


def made(**options) -> SpectralErrors:
    return SpectralErrors.from_inputs(data(500, seed=4)[0], num_classes=C, bins=K, **options)


def filled() -> SpectralErrors:
    metric = made()
    inputs, labels, scores = data()
    metric.update(scores, labels, inputs)
    return metric


def test_errors_of_bins_and_classes_are_those_counted_by_hand():
    inputs, labels, scores = data()
    metric, report = filled(), filled().report()
    found = metric.bins.directions
    energies = found.energies(found.standardised(inputs))
    values = (tail_share(energies, found.leading), squared_distance(energies, found.variances))
    wrong = scores.argmax(1) != labels
    for each, value, edges in zip(report.by, values, metric.bins.edges, strict=True):
        limits = [-math.inf, *edges.tolist(), math.inf]
        for rate, even, (low, high) in zip(each.bins, each.balanced, pairwise(limits), strict=True):
            inside = (value > low) & (value <= high)
            assert rate.count == int(inside.sum()) > 0
            assert rate.value == float(wrong[inside].double().mean())
            by_class = [
                wrong[inside & (labels == c)].double().mean() for c in range(C) if (inside & (labels == c)).any()
            ]
            assert even.value == pytest.approx(float(torch.stack(by_class).mean()), rel=1e-12)
        assert each.difference.value == each.bins[-1].value - each.bins[0].value
    assert report.overall.value == float(wrong.double().mean())
    assert [rate.count for rate in report.classes] == torch.bincount(labels, minlength=C).tolist()
    assert report.balanced.value == pytest.approx(1 - balanced_accuracy_score(labels, scores.argmax(1)), rel=1e-12)
    worst = max((rate.value, each.measure, place) for each in report.by for place, rate in enumerate(each.bins, 1))
    assert (report.worst.rate.value, report.worst.measure, report.worst.place) == worst
    single = report.of(worst[1]).bins[worst[2] - 1]
    assert report.worst.rate.low < single.low < single.high < report.worst.rate.high
    numbers = metric.compute()
    assert float(numbers["accuracy"]) == 1 - report.overall.value
    assert float(numbers["tail_highest"]) == report.of("tail").bins[-1].value
    assert "balanced_error 0." in repr(report)


def test_columns_that_stand_out_in_a_bin_are_named_by_the_excess():
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(600, 20, generator=rng, dtype=torch.float64)
    place = (torch.arange(600) % 6 == 0).long()
    values[place == 1, 3] *= 3
    values[place == 1, 11] *= 2
    squares = values.square()
    powers = torch.stack([squares, squares.square()], dim=1)
    sums = torch.stack([powers[place == 0].sum(0), powers[place == 1].sum(0), torch.zeros_like(powers[0])])
    counts = torch.tensor([500, 100, 0])
    found = columns_responsible(sums, counts, 1)
    assert [each.column for each in found] == [3, 11]
    assert found[0].inside == pytest.approx(float(squares[place == 1, 3].mean()))
    assert found[0].outside == pytest.approx(float(squares[place == 0, 3].mean()))
    assert columns_responsible(sums, counts, 0) == ()
    assert columns_responsible(sums, torch.tensor([595, 5, 0]), 1) == ()


def test_a_single_extreme_sample_counts_as_one_at_five_deviations():
    inputs, labels, scores = data(4000)
    inputs[0, 3] = 1e4
    metric = made()
    metric.update(scores, labels, inputs)
    place = int(metric.bins.placed(inputs[:1])[0][1])
    sums, counts = metric.tallies.columns[1], metric.tallies.counts[1].sum(1)
    found = columns_responsible(sums, counts, place)
    assert all(each.inside < 25 for each in found)
    squares = metric.bins.directions.standardised(inputs).square().clamp_max(25)
    inside = metric.bins.placed(inputs)[0][1] == place
    assert float(sums[place, 0, 3]) == pytest.approx(float(squares[inside, 3].sum()))


def test_the_whitened_error_of_a_known_gaussian_is_exact():
    """1 for predicting the mean, c for errors with c times the covariance, and the squared error per variance."""
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, D, generator=rng, dtype=torch.float64)
    targets = torch.randn(200, 3, generator=rng, dtype=torch.float64) @ torch.randn(3, 3, generator=rng).double()
    targets = targets * torch.tensor([1.0, 50.0, 1e-3]) + 10
    for factor in (1.0, 0.25):
        metric = SpectralErrors.from_inputs(inputs, targets, bins=K)
        metric.update(targets - factor**0.5 * (targets - targets.mean(0)), targets, inputs)
        report = metric.report()
        assert [rate.value for rate in report.whitened] == pytest.approx([factor] * 3, rel=1e-10)
        assert report.overall.value == pytest.approx(factor, rel=1e-10)
        assert float(metric.compute()["whitened_error_last"]) == pytest.approx(factor, rel=1e-10)
    single = SpectralErrors.from_inputs(inputs, bins=K)
    single.update(torch.zeros(200), targets[:, 0], inputs)
    assert float(single.compute()["loss"]) == pytest.approx(float(targets[:, 0].square().mean()), rel=1e-12)
    assert "error" not in single.compute()


def test_losses_of_samples_can_be_given():
    inputs = data()[0]
    losses = torch.rand(400, generator=torch.Generator().manual_seed(0))
    metric = SpectralErrors.from_inputs(data(500, seed=4)[0], bins=K)
    metric.update(None, None, inputs, losses=losses)
    places, _ = metric.bins.placed(inputs)
    for each, place in zip(metric.report().by, places, strict=True):
        for number, rate in enumerate(each.bins):
            assert rate.value == pytest.approx(float(losses[place == number].double().mean()), rel=1e-12)


def test_batches_and_their_order_do_not_matter():
    inputs, labels, scores = data()
    whole, parts = filled(), made()
    order = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    for part in torch.split(order, 33):
        parts.update(scores[part], labels[part], inputs[part])
    assert torch.equal(whole.counts, parts.counts)
    assert torch.equal(whole.mistakes, parts.mistakes)
    np.testing.assert_allclose(whole.columns, parts.columns, rtol=1e-10)
    assert whole.report().worst.columns == parts.report().worst.columns or whole.report().worst.columns
    for name, value in whole.compute().items():
        assert torch.equal(value, parts.compute()[name]), name
    empty = made()
    empty.update(scores[:0], labels[:0], inputs[:0])
    assert math.isnan(empty.report().overall.value)
    assert empty.report().worst is None


def test_it_keeps_the_conventions_of_torchmetrics():
    inputs, labels, scores = data()
    whole = filled().compute()
    collection = MetricCollection({"sloppy": made(), "plain": MulticlassAccuracy(C, average="micro")}, prefix="val_")
    for part in torch.split(torch.arange(400), 150):
        collection.update(scores[part], labels[part], inputs=inputs[part])
    found = collection.compute()
    assert float(found["val_plain"]) == pytest.approx(1 - float(found["val_error"]))
    metric = made()
    first = metric(scores[:150], labels[:150], inputs[:150])  # of the batch; the sums go on
    assert float(first["num_samples"]) == 150
    metric(scores[150:], labels[150:], inputs[150:])
    twins = [metric, pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()]
    for twin in twins:
        assert all(torch.equal(twin.compute()[name], value) for name, value in whole.items())
    metric.reset()
    assert int(metric.counts.sum()) == 0
    assert torch.equal(metric.settings, made().settings)


def test_the_names_of_the_numbers_do_not_depend_on_the_samples():
    inputs = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 2
    for make, extra in ((lambda: SpectralErrors.from_inputs(inputs, num_classes=2), "worst_class"),
                        (lambda: SpectralErrors.from_inputs(inputs, inputs), "whitened_error_last")):  # fmt: skip
        few, many = make(), make()
        target = labels if extra == "worst_class" else inputs
        few.update(target[:3], target[:3], inputs[:3])
        many.update(target, target, inputs)
        assert few.compute().keys() == many.compute().keys() >= {"worst_bin", "worst_bin_low", extra}
        assert [math.isnan(each.compute()["worst_bin"]) for each in (few, many)] == [True, False]


def test_metrics_in_a_collection_keep_their_own_states():
    """A collection takes metrics with equal states after the first batch for copies of one another."""
    inputs, labels, _ = data(40)
    train, scores = data(500, seed=4)[0], torch.linspace(0, 1, 40)
    made_with = [(train, 0.5), (train, 0.9), (train * 3, 0.5)]
    metrics = [SpectralErrors.from_inputs(rows, num_classes=2, threshold=limit) for rows, limit in made_with]
    together = MetricCollection({str(number): metric.clone() for number, metric in enumerate(metrics)})
    for part in (torch.arange(0), torch.arange(5), torch.arange(5, 40)):
        for each in (together, *metrics):
            each.update(scores[part], labels[part].clamp(max=1), inputs=inputs[part])
    together.compute()
    for number, metric in enumerate(metrics):
        assert torch.equal(together[str(number)].mistakes, metric.mistakes)
        assert torch.equal(together[str(number)].counts, metric.counts)
    assert not torch.equal(metrics[0].mistakes, metrics[1].mistakes)


def test_a_checkpoint_holds_the_bins_and_half_precision_does_not_reach_them(tmp_path):
    metric = filled()
    module = torch.nn.ModuleDict({"errors": metric, "net": torch.nn.Linear(2, 2)}).half()
    assert metric.bins.edges.dtype == torch.float64
    torch.save(module.state_dict(), tmp_path / "state.pt")
    twin = SpectralErrors.from_inputs(data(500, seed=77)[0], num_classes=C, bins=K)
    other = torch.nn.ModuleDict({"errors": twin, "net": torch.nn.Linear(2, 2)})
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    inputs, labels, scores = data()
    twin.update(scores, labels, inputs)
    assert torch.equal(twin.counts, metric.counts)
    with pytest.raises(ConfigurationError, match="4 bins of 6 columns, but the metric has 5 bins of 6 columns"):
        SpectralErrors.from_inputs(data(500)[0], num_classes=C).set_extra_state(metric.get_extra_state())


def test_samples_without_a_place_count_in_the_whole_and_have_a_rate_of_their_own():
    inputs, labels, scores = data(100)
    inputs[:5, 2], inputs[5, 0] = torch.nan, torch.inf
    scores[0] = torch.nan  # a mistake, even if argmax returned the label
    labels[0] = 0
    metric = made()
    metric.update(scores, labels, inputs)
    report = metric.report()
    assert report.unplaced.count == 6
    assert report.overall.count == 100
    for each in report.by:
        assert sum(rate.count for rate in each.bins) == 94
    wrong = (scores.argmax(1) != labels) | scores.isnan().any(1)
    assert report.overall.value == float(wrong.double().mean())
    assert report.unplaced.value == float(wrong[:6].double().mean()) > 0
    assert bool(metric.columns.isfinite().all())


@pytest.mark.parametrize(
    ("preds", "threshold"),
    [(torch.tensor([0.2, 0.7, 0.6, math.nan]), 0.5), (torch.tensor([[-1.0], [2.0], [0.1], [math.nan]]), 0.0)],
)
def test_one_number_for_each_sample_is_compared_with_the_threshold(preds, threshold):
    metric = SpectralErrors.from_inputs(data(500)[0], num_classes=2, threshold=threshold)
    metric.update(preds, torch.tensor([0.0, 1.0, 0.0, 0.0]), data(4)[0])
    assert metric.report().overall.value == 0.5
    assert int(metric.mistakes[0].sum()) == 2


INPUTS, LABELS, SCORES = data(8)
ONE = torch.rand(8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((SCORES, LABELS, INPUTS[:, :4]), "training inputs of 6 columns, but these have 4"),
        ((SCORES, LABELS[:5], INPUTS), "8 inputs were passed with targets of shape"),
        ((SCORES[:, :2], LABELS, INPUTS), "hold 2 scores for each sample, but num_classes=3"),
        ((SCORES[:4], LABELS, INPUTS), r"Predictions of shape \(4, 3\) do not fit 8 targets"),
        ((SCORES, LABELS + 2, INPUTS), "Labels from 0 to 2 were announced"),
        ((SCORES, LABELS - 1, INPUTS), "the targets hold -1 to"),
        ((SCORES, LABELS + 0.5, INPUTS), "must be whole numbers"),
        ((SCORES, torch.eye(8)[:, :3], INPUTS), "one label for each sample, but the targets have shape"),
        ((ONE, LABELS, INPUTS), "decides between two classes, but num_classes=3"),
        ((SCORES[..., None], LABELS, INPUTS), "neither labels"),
        ((SCORES.round().long(), LABELS, INPUTS), r"labels must have shape \(N,\)"),
        ((SCORES, LABELS, LABELS), "token ids or flags"),
        ((SCORES, None, INPUTS), "Neither predictions with targets nor losses"),
        ((None, None, INPUTS, ONE), "make one without num_classes"),
    ],
)
def test_every_mistake_is_one_sentence(arguments, said):
    metric = made()
    with pytest.raises(ConfigurationError, match=said) as caught:
        metric.update(*arguments)
    assert str(caught.value).count(". ") == 0
    assert int(metric.counts.sum()) == 0


def test_mistakes_of_two_classes_of_regressions_and_of_making_it():
    train = data(500)[0]
    two = SpectralErrors.from_inputs(train, num_classes=2)
    with pytest.raises(ConfigurationError, match="may be a probability or a logit"):
        two.update(ONE, LABELS.clamp(max=1), INPUTS)
    two.threshold = 0.5
    with pytest.raises(ConfigurationError, match="for logits pass threshold="):
        two.update(ONE * 8, LABELS.clamp(max=1), INPUTS)
    numbers = SpectralErrors.from_inputs(train, torch.randn(500, 2))
    for wrong, said in ((ONE, "give them the same shape"), (torch.randn(8, 3), "give them the same shape")):
        with pytest.raises(ConfigurationError, match=said):
            numbers.update(wrong, torch.randn(8, 2), INPUTS)
    with pytest.raises(ConfigurationError, match="targets of 2 columns, but these have 3"):
        numbers.update(torch.randn(8, 3), torch.randn(8, 3), INPUTS)
    with pytest.raises(ConfigurationError, match="reduction='none'"):
        numbers.update(None, None, INPUTS, losses=torch.tensor(1.0))
    with pytest.raises(ConfigurationError, match="for a classification pass num_classes"):
        numbers.update(LABELS, LABELS, INPUTS)
    for options, said in (
        ({"num_classes": 1}, "pass at least 2"),
        ({"targets": torch.randn(500), "num_classes": 2}, "leave out one of them"),
        ({"targets": torch.randn(400)}, "500 inputs were passed with 400 targets"),
        ({"targets": torch.ones(500)}, "training targets are constant"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            SpectralErrors.from_inputs(train, **options)
    with pytest.raises(ConfigurationError, match="at least 50 training rows"):
        SpectralErrors.from_inputs(train[:20], num_classes=2)
    with pytest.raises(ConfigurationError, match="NaN or infinite"):
        SpectralErrors.from_inputs(torch.full((60, 2), torch.nan), num_classes=2)


def test_it_is_made_from_batches_as_from_one_tensor():
    inputs, labels, _ = data(500, seed=4)
    batches = [(inputs[part], labels[part]) for part in torch.split(torch.arange(500), 64)]
    found = SpectralErrors.from_inputs(iter(batches), num_classes=C, bins=K)
    np.testing.assert_allclose(found.bins.edges, made().bins.edges, rtol=1e-6)


def test_ranks_are_joined_as_their_samples_are():
    """Two processes are in tests/callbacks/test_validation_errors.py."""
    inputs, labels, scores = data()
    parts = [made(), made()]
    for metric, own in zip(parts, (slice(0, 130), slice(130, 400)), strict=True):
        metric.update(scores[own], labels[own], inputs[own])
    names = list(parts[0]._defaults)
    states = [{name: getattr(metric, name).clone() for name in names} for metric in parts]
    given = iter(names)
    parts[0].sync(
        dist_sync_fn=lambda state, group=None: [each[name] for name in [next(given)] for each in states],
        distributed_available=lambda: True,
    )
    assert torch.equal(parts[0].counts, filled().counts)
    assert torch.equal(parts[0].settings, filled().settings)
    parts[0].unsync()
    assert int(parts[0].counts[0].sum()) == 130
