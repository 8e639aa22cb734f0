"""Verification metrics against counting pairs one by one, sorting the distances, and hand-worked cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metricli.core.catalogue import METRICS
from metricli.core.results import PairHistogram
from metricli.core.verification import roc_auc_bound, verification_metrics

Pairs = list[list[float]]


def histogram(edges: list[float], genuine: Pairs, impostor: Pairs) -> PairHistogram:
    """Counts by the definition, one pair after the other."""

    def counts(groups: Pairs) -> torch.Tensor:
        table = torch.zeros(len(groups), len(edges) - 1, dtype=torch.int64)
        for group, distances in enumerate(groups):
            for distance in distances:
                inside = [b for b in range(len(edges) - 1) if edges[b] <= distance < edges[b + 1]]
                table[group, inside[0] if inside else -1] += 1
        return table

    return PairHistogram(torch.tensor(edges, dtype=torch.float64), counts(genuine), counts(impostor))


def naive(edges: list[float], genuine: list[float], impostor: list[float], name: str) -> tuple[float, float]:
    """A value and its threshold, trying every edge."""
    if not genuine or not impostor:
        return math.nan, math.nan
    key, _, share = name.partition("@")

    def rates(edge: float) -> tuple[float, float]:
        below = math.inf if edge == edges[-1] else edge
        fmr = sum(d < below for d in impostor) / len(impostor)
        return fmr, sum(d >= below for d in genuine) / len(genuine)

    if key in ("fnmr", "tar"):
        threshold = max(edge for edge in edges if rates(edge)[0] <= float(share))
        return abs((key == "tar") - rates(threshold)[1]), threshold
    assert key == "eer"
    place = next(i for i, edge in enumerate(edges) if rates(edge)[0] >= rates(edge)[1])
    (fmr0, fnmr0), (fmr1, fnmr1) = rates(edges[place - 1]), rates(edges[place])
    part = (fnmr0 - fmr0) / ((fnmr0 - fmr0) + (fmr1 - fnmr1))
    return fmr0 + part * (fmr1 - fmr0), edges[place - 1] + part * (edges[place] - edges[place - 1])


ASKED = {"fnmr": [0.01, 0.29, 0.5], "tar": [0.1, 0.9], "eer": True, "roc_auc": True}
WITH_THRESHOLD = ["fnmr@0.01", "fnmr@0.29", "fnmr@0.5", "tar@0.1", "tar@0.9", "eer"]


def test_these_are_all_the_verification_metrics_there_are():
    assert [key for key, metric in METRICS.items() if metric.family == "verification"] == list(ASKED)


distances = st.lists(st.integers(0, 8), max_size=12).map(lambda found: [each / 2 for each in found])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(distances, distances), min_size=1, max_size=3),
    st.sampled_from([[0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.75, 3.0, 4.0], [0.0, 4.0], [-1.0, 0.0, 4.0]]),
)
def test_metrics_are_the_counts_at_every_edge(groups, edges):
    genuine, impostor = [list(side) for side in zip(*groups, strict=True)]
    found = verification_metrics(histogram(edges, genuine, impostor), **ASKED)
    assert list(found.values) == [*WITH_THRESHOLD, "roc_auc"]
    assert list(found.thresholds) == WITH_THRESHOLD
    for group, (near, far) in enumerate(groups):
        for name in WITH_THRESHOLD:
            pair = found.values[name][group].item(), found.thresholds[name][group].item()
            assert pair == pytest.approx(naive(edges, near, far, name), nan_ok=True), name
        bins = [[sum(edge <= d for edge in edges[1:-1]) for d in side] for side in (near, far)]
        wins = [(g < i) + (g == i) / 2 for g in bins[0] for i in bins[1]]
        expected = sum(wins) / len(wins) if wins else math.nan
        assert found.values["roc_auc"][group].item() == pytest.approx(expected, nan_ok=True)


def test_with_fine_bins_they_are_those_of_the_sorted_distances():
    generator = torch.Generator().manual_seed(0)
    genuine = torch.rand(400, generator=generator, dtype=torch.float64) * 1.2
    impostor = torch.rand(900, generator=generator, dtype=torch.float64) * 1.5 + 0.5
    edges = torch.linspace(0, 2, 2**14 + 1, dtype=torch.float64)
    counts = [torch.histogram(side, edges).hist.long()[None] for side in (genuine, impostor)]
    pairs = PairHistogram(edges, *counts)
    found = verification_metrics(pairs, fnmr=[0.001, 0.01, 0.1], tar=[0.01], eer=True, roc_auc=True)
    width = 2 / 2**14
    for share in (0.01, 0.1):
        allowed = int(share * 900)
        threshold = impostor.sort().values[allowed].item()  # below it lie just as many as are allowed
        assert found.thresholds[f"fnmr@{share}"].item() == pytest.approx(threshold, abs=width)
        assert found.values[f"fnmr@{share}"].item() == pytest.approx(
            (genuine >= threshold).double().mean().item(), abs=0.003
        )
    nearest = impostor.min().item()  # 0.001 is less than one of 900: no impostor may match
    assert nearest - width <= found.thresholds["fnmr@0.001"].item() <= nearest
    assert found.values["tar@0.01"].item() == 1 - found.values["fnmr@0.01"].item()
    at = found.thresholds["eer"].item()
    assert (impostor < at).double().mean().item() == pytest.approx(found.values["eer"].item(), abs=0.003)
    assert (genuine >= at).double().mean().item() == pytest.approx(found.values["eer"].item(), abs=0.003)
    truth = (genuine[:, None] < impostor).double().mean().item()
    bound = roc_auc_bound(pairs).item()
    assert 0 < bound < 1e-4
    assert found.values["roc_auc"].item() == pytest.approx(truth, abs=bound)


def test_pairs_of_one_bin_tell_nothing_and_the_bound_says_so():
    pairs = histogram([0, 1], [[0.1, 0.2]], [[0.8, 0.9]])
    assert verification_metrics(pairs, roc_auc=True).values["roc_auc"].tolist() == [0.5]
    assert roc_auc_bound(pairs).tolist() == [0.5]
    apart = histogram([0, 0.5, 1], [[0.1, 0.2], []], [[0.8, 0.9], [0.7]])
    assert verification_metrics(apart, roc_auc=True).values["roc_auc"][0] == 1
    assert roc_auc_bound(apart).tolist() == pytest.approx([0, math.nan], nan_ok=True)


def test_separable_pairs_have_no_error():
    found = verification_metrics(
        histogram([0, 1, 2, 3, 4], [[0.5]], [[3.5]]), fnmr=[0.01], tar=[0.01], eer=True, roc_auc=True
    )
    assert {name: value.item() for name, value in found.values.items()} == {
        "fnmr@0.01": 0, "tar@0.01": 1, "eer": 0, "roc_auc": 1,
    }  # fmt: skip
    # as far as no impostor matches; the errors are equal from 1 to 3
    assert {n: t.item() for n, t in found.thresholds.items()} == {"fnmr@0.01": 3, "tar@0.01": 3, "eer": 1}


def test_a_share_that_is_just_met_is_met():
    # 29 of 100 impostors are near; 0.29 * 100 is less than 29 in floating point
    pairs = histogram([0, 1, 2, 3], [[1.5]], [[0.5] * 29 + [1.5] * 71])
    found = verification_metrics(pairs, fnmr=[0.28, 0.29])
    assert [t.item() for t in found.thresholds.values()] == [0, 1]


def test_the_rate_at_the_threshold_is_what_was_asked_for_or_less():
    far = [1.5, 1.5, 1.5, 2.5]
    found = verification_metrics(histogram([0, 1, 2, 3], [[0.5]], [far]), fnmr=[0.5, 0.8])
    assert found.rates["fnmr@0.5"].tolist() == [0]  # three of four lie in one bin
    assert found.rates["fnmr@0.8"].tolist() == [0.75]


def test_other_families_are_passed_over_and_wrong_words_refused():
    pairs = histogram([0, 1], [[0.5]], [[0.5]])
    assert list(verification_metrics(pairs, cmc=[1], pcf=[0.5], fnmr=[], eer=True).values) == ["eer"]
    with pytest.raises(TypeError, match=r"^'frr' is no metric; there are cmc, "):
        verification_metrics(pairs, frr=[0.1])
    for share in (0, 1, -0.1, 3):
        with pytest.raises(ValueError, match=f"^tar needs shares between 0 and 1, got {share}$"):
            verification_metrics(pairs, tar=[0.5, share])
