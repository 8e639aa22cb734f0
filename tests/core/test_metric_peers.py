"""Metrics against those of open-metric-learning, pytorch-metric-learning, torchmetrics and scipy."""

import math
import warnings
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from metricli.core.exclusion import Exclusion
from metricli.core.health import hubness, pcf
from metricli.core.metrics import required_k, retrieval_metrics
from metricli.core.results import PairHistogram, SearchResult
from metricli.core.retrieval import count_relevant, search
from metricli.core.verification import roc_auc_bound, verification_metrics

KS = [1, 2, 3, 5, 10, 30]


def imported(name: str) -> ModuleType:
    with warnings.catch_warnings():  # theirs are not ours to answer for
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


@pytest.fixture(scope="module")
def oml() -> ModuleType:
    return imported("oml.functional.metrics")


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    return imported("pytorch_metric_learning.utils.accuracy_calculator")


@pytest.fixture(scope="module")
def torchmetrics() -> ModuleType:
    imported("torchmetrics.functional.retrieval")
    imported("torchmetrics.functional.classification")
    return imported("torchmetrics.functional")


class Case(NamedTuple):
    result: SearchResult
    labels: Tensor
    others: Tensor
    num_relevant: Tensor


def case(seed: int, cut: bool = False) -> Case:
    """40 queries in a gallery of 30, no distances equal, each with a match; `cut`: a random start of each."""
    generator = torch.Generator().manual_seed(seed)
    labels, others = (torch.randint(0, 6, (n,), generator=generator) for n in (40, 30))
    others[:6] = torch.arange(6)
    distances, indices = torch.rand(40, 30, generator=generator).sort(dim=1)
    if cut:
        away = torch.arange(30) >= torch.randint(0, 31, (40, 1), generator=generator)
        indices, distances = indices.masked_fill(away, -1), distances.masked_fill(away, math.inf)
    return Case(SearchResult(indices, distances, cut=cut), labels, others, count_relevant(labels, others))


@pytest.mark.parametrize("cut", [False, True])
def test_retrieval_metrics_are_those_of_oml(oml, cut):
    result, labels, others, n = case(0, cut)
    theirs = oml.calc_retrieval_metrics(
        retrieved_ids=[row[row >= 0] for row in result.indices],
        gt_ids=[(others == label).nonzero()[:, 0] for label in labels],
        cmc_top_k=KS,
        precision_top_k=KS,
        map_top_k=KS,
        reduce=False,
        verbose=False,
    )
    names = {"cmc": "cmc", "precision": "precision_capped", "map": "map_hits"}
    ours = retrieval_metrics(result, labels, others, n, **{name: KS for name in names.values()})
    for their_name, name in names.items():
        for k in KS:
            assert ours[f"{name}@{k}"].tolist() == pytest.approx(theirs[their_name][k].tolist(), rel=1e-6)


def test_ranking_metrics_are_those_of_torchmetrics(torchmetrics):
    result, labels, others, n = case(1)
    names = {
        "cmc": torchmetrics.retrieval.retrieval_hit_rate,
        "precision": torchmetrics.retrieval.retrieval_precision,
        "recall": torchmetrics.retrieval.retrieval_recall,
        "map_hits": torchmetrics.retrieval.retrieval_average_precision,
        "ndcg": torchmetrics.retrieval.retrieval_normalized_dcg,
    }
    whole = {
        "map@30": torchmetrics.retrieval.retrieval_average_precision,
        "r_precision": torchmetrics.retrieval.retrieval_r_precision,
        "mrr": torchmetrics.retrieval.retrieval_reciprocal_rank,
    }
    ours = retrieval_metrics(
        result, labels, others, n, **dict.fromkeys(names, KS), map=[30], r_precision=True, mrr=True
    )
    relevant = others[result.indices] == labels[:, None]
    nearness = torch.linspace(1, 0.1, 30)
    for name, function in whole.items():
        theirs = [function(nearness, row).item() for row in relevant]
        assert ours[name].tolist() == pytest.approx(theirs, rel=1e-5), name
    for name, function in names.items():
        for k in KS:
            theirs = [function(nearness, row, top_k=k).item() for row in relevant]
            assert ours[f"{name}@{k}"].tolist() == pytest.approx(theirs, rel=1e-5), (name, k)


@pytest.mark.parametrize("alone", [False, True])
def test_means_are_those_of_pytorch_metric_learning(accuracy, alone):
    """Self-retrieval, labels of one item among them: both leave such queries out of the means."""
    generator = torch.Generator().manual_seed(2)
    x, labels = torch.randn(60, 4, generator=generator), torch.arange(60) % 11
    if alone:
        labels[:3] = torch.tensor([50, 51, 52])
    names = {
        "cmc@1": "precision_at_1",
        "map@r": "mean_average_precision_at_r",
        "map@60": "mean_average_precision",
        "r_precision": "r_precision",
        "mrr": "mean_reciprocal_rank",
    }
    calculator = accuracy.AccuracyCalculator(include=tuple(names.values()), device=torch.device("cpu"))
    theirs = calculator.get_accuracy(x, labels)
    ids = torch.arange(60)
    rule = Exclusion(ids, ids)
    n = count_relevant(labels, labels, rule)
    assert (n == 0).sum() == 3 * alone
    asked = {"cmc": [1], "map_r": True, "map": [60], "r_precision": True, "mrr": True}
    result = search(x, x, k=required_k(n, **asked), distance="euclidean", exclude=rule)
    ours = {
        name: v.nanmean().item() for name, v in retrieval_metrics(result, labels, labels, n, **asked).items()
    }
    assert ours == pytest.approx({name: theirs[their_name] for name, their_name in names.items()}, rel=1e-6)


def test_pcf_is_that_of_oml(oml):
    generator = torch.Generator().manual_seed(3)
    shares = [0.1, 0.3, 0.5, 0.9, 0.99]
    for rows, scales in ((50, torch.arange(1, 13)), (7, torch.ones(12)), (200, torch.logspace(-2, 1, 12))):
        x = torch.randn(rows, 12, generator=generator) * scales + 3
        assert pcf(x, shares) == pytest.approx(oml.calc_pcf(x, shares).tolist())


def pairs_of(genuine: Tensor, impostor: Tensor, bins: int) -> PairHistogram:
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    return PairHistogram(edges, *(torch.histogram(d, edges).hist.long()[None] for d in (genuine, impostor)))


def distances(seed: int) -> tuple[Tensor, Tensor]:
    """Genuine (301,) and impostor (1001,) distances in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    genuine, impostor = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (301, 1001))
    return genuine * 0.7, impostor * 0.6 + 0.4


def test_fnmr_is_that_of_oml(oml):
    """OML's threshold is a quantile: with 1001 impostors, at a multiple of 0.001, one of the distances."""
    genuine, impostor = distances(4)
    shares = [0.01, 0.1, 0.5]
    theirs = oml.calc_fnmr_at_fmr(genuine.numpy(), impostor.numpy(), shares)
    ours = verification_metrics(pairs_of(genuine, impostor, 2**16), fnmr=shares)
    assert [value.item() for value in ours.values.values()] == pytest.approx(theirs.tolist())


def test_roc_auc_and_eer_are_those_of_torchmetrics(torchmetrics):
    genuine, impostor = distances(5)
    nearness = 1 - torch.cat([genuine, impostor])
    target = torch.tensor([1] * 301 + [0] * 1001)
    pairs = pairs_of(genuine, impostor, 2**12)
    ours = verification_metrics(pairs, roc_auc=True, eer=True).values
    theirs = torchmetrics.classification.binary_auroc(nearness, target).item()
    assert ours["roc_auc"].item() == pytest.approx(theirs, abs=roc_auc_bound(pairs).item() + 1e-6)
    theirs = torchmetrics.classification.binary_eer(
        nearness, target
    ).item()  # at the nearest pair, not between
    assert ours["eer"].item() == pytest.approx(theirs, abs=1 / 301)


def test_hubness_is_the_skewness_of_scipy():
    stats = imported("scipy.stats")
    result, *_ = case(6)
    times = torch.bincount(result.indices[:, :5].flatten(), minlength=30)
    assert hubness(result.indices, 30, 5) == pytest.approx(stats.skew(times.numpy()))
