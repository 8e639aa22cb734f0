"""The doors of losses over pairs lead to their components with every setting, and say what is doubtful."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metricli.components import losses, miners
from metricli.errors import SpecError
from metricli.specs.load import check_spec, load_spec
from metricli.specs.train import TrainSpec

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "circle": ("CircleLoss", {"m": 0.25, "gamma": 128.0}),
    "contrastive": (
        "ContrastiveLoss",
        {"pos_margin": 0.1, "neg_margin": 0.7, "distance": "cosine", "reduction": "mean_active"},
    ),
    "lifted_structure": ("LiftedStructureLoss", {"margin": 0.6, "form": "generalized", "distance": "cosine"}),
    "multi_similarity": (
        "MultiSimilarityLoss",
        {"alpha": 3.0, "beta": 40.0, "base": 0.4, "mine": False, "epsilon": 0.2},
    ),
    "n_pairs": ("NPairsLoss", {"l2_penalty": 0.01}),
    "nt_xent": ("NTXentLoss", {"temperature": 0.3}),
    "supcon": ("SupConLoss", {"temperature": 0.3}),
}


def spec_of(loss: Any, **blocks: Any) -> Any:
    data = {
        "data": {"table": "df.csv"},
        "extractor": {"name": "timm", "model": "resnet18", "normalize": True},
        "sampler": {"name": "balanced", "n_labels": 8, "n_instances": 4},
        "loss": loss,
        **blocks,
    }
    return load_spec(data, TrainSpec)


def found(loss: Any, **blocks: Any) -> list[tuple[str, str, str]]:
    """(severity, path, message) of each problem."""
    try:
        problems = check_spec(spec_of(loss, **blocks), None)
    except SpecError as error:
        problems = list(error.problems)
    return [(problem.severity, problem.path, problem.message) for problem in problems]


FREE = {"extractor": {"name": "timm", "model": "resnet18", "normalize": False}}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_reach_the_component(name):
    component, settings = SETTINGS[name]
    door = spec_of({"name": name, **settings}).spec.loss
    built = door.build(dim=8, num_labels=4, label_to_category=None)
    assert type(built) is getattr(losses, component)
    assert {key: getattr(built, key) for key in settings} == settings
    assert settings.keys() == type(door).model_fields.keys() - {"name", "miner", "memory"}
    assert all(str(value) in repr(built) for value in settings.values())
    assert len(type(door).__doc__.split("\n\n")) == 2


def test_contrastive_has_a_miner_if_asked():
    door = spec_of({"name": "contrastive", "miner": "hard_triplets"}).spec.loss
    built = door.build(dim=8, num_labels=4, label_to_category=None)
    assert type(built.miner) is miners.HardTriplets
    assert spec_of("contrastive").spec.loss.build(dim=8, num_labels=4, label_to_category=None).miner is None
    assert type(built(torch.eye(4), torch.tensor([0, 0, 1, 1]))) is torch.Tensor


@pytest.mark.parametrize("name", SETTINGS)
def test_defaults_are_those_of_the_component_and_raise_no_doubt(name):
    door = spec_of(name).spec.loss
    built = door.build(dim=8, num_labels=4, label_to_category=None)
    assert repr(built) == repr(getattr(losses, SETTINGS[name][0])())
    assert found(name, **(FREE if name == "n_pairs" else {})) == []


@pytest.mark.parametrize("name", SETTINGS)
def test_images_of_one_label_are_needed(name):
    expected = (
        "error",
        "loss",
        f"the loss {name!r} compares images of one label, so sampler.n_instances must be at least 2",
    )
    assert expected in found(name, sampler={"name": "balanced", "n_labels": 8, "n_instances": 1})


COLD = "is so low that the nearest negative counts alone, a wrong label first; 0.05 to 0.5 is usual"
WARM = (
    "keeps a softmax of cosines, which span -1 to 1, so flat that all negatives count alike; "
    "0.05 to 0.5 is usual"
)
DOUBTS = {
    "equal margins": (
        {"name": "contrastive", "pos_margin": 0.5, "neg_margin": 0.5},
        "error",
        "loss.neg_margin",
        "negatives must be farther than positives: neg_margin 0.5 must be above pos_margin 0.5",
    ),
    "margin out of reach": (
        {"name": "contrastive", "neg_margin": 2},
        "error",
        "loss.neg_margin",
        "distances are at most 2 here, so no negative pair can keep a margin of 2; 0.7 to 1 is usual",
    ),
    "cosine margin out of reach": (
        {"name": "contrastive", "neg_margin": 2.5, "distance": "cosine"},
        "error",
        "loss.neg_margin",
        "distances are at most 2 here, so no negative pair can keep a margin of 2.5; 0.5 to 1 is usual",
    ),
    "wide margin": (
        {"name": "contrastive", "neg_margin": 1.5},
        "warning",
        "loss.neg_margin",
        "unrelated embeddings are about 1.41 apart, so with 1.5 negatives never rest; 0.7 to 1 is usual",
    ),
    "wide cosine margin": (
        {"name": "contrastive", "neg_margin": 1.2, "distance": "cosine"},
        "warning",
        "loss.neg_margin",
        "unrelated embeddings are about 1 apart, so with 1.2 negatives never rest; 0.5 to 1 is usual",
    ),
    "nt_xent warm": ({"name": "nt_xent", "temperature": 2}, "warning", "loss.temperature", f"2 {WARM}"),
    "nt_xent cold": (
        {"name": "nt_xent", "temperature": 1e-3},
        "warning",
        "loss.temperature",
        f"0.001 {COLD}",
    ),
    "supcon warm": ({"name": "supcon", "temperature": 2}, "warning", "loss.temperature", f"2 {WARM}"),
    "supcon cold": ({"name": "supcon", "temperature": 1e-3}, "warning", "loss.temperature", f"0.001 {COLD}"),
    "n_pairs normalised": (
        "n_pairs",
        "warning",
        "loss",
        "inner products of normalised embeddings are at most 1, so that the softmax stays flat; "
        "set extractor.normalize: false, or take loss: nt_xent, which has a temperature",
    ),
    "base no cosine": (
        {"name": "multi_similarity", "base": 1},
        "error",
        "loss.base",
        "1 is no cosine that a pair could lie on both sides of; 0.5 is usual",
    ),
    "swapped": (
        {"name": "multi_similarity", "alpha": 50, "beta": 2},
        "warning",
        "loss.alpha",
        "50 is not below beta 2, so that the farthest positive counts more than the nearest negative; "
        "alpha 2 and beta 50 are usual",
    ),
    "epsilon": (
        {"name": "multi_similarity", "epsilon": -0.1},
        "warning",
        "loss.epsilon",
        "-0.1 leaves out pairs that are ranked wrongly; 0.1 is usual",
    ),
    "no order": (
        {"name": "circle", "m": 0.6},
        "warning",
        "loss.m",
        "at 0.6 positives may rest at a cosine of 0.4 and negatives at 0.6, in no order; "
        "0.25 to 0.4 is usual",
    ),
    "flat circle": (
        {"name": "circle", "gamma": 2},
        "warning",
        "loss.gamma",
        "2 is so low that easy and hard pairs count alike; 32 to 256 is usual",
    ),
    "hard circle": (
        {"name": "circle", "gamma": 4096},
        "warning",
        "loss.gamma",
        "4096 is so high that one pair of an anchor counts alone; 32 to 256 is usual",
    ),
    "lifted out of reach": (
        {"name": "lifted_structure", "margin": 2},
        "warning",
        "loss.margin",
        "distances are at most 2 here, so no positive pair can be before its negatives by 2; 1 is usual",
    ),
}


@pytest.mark.parametrize(("loss", "severity", "path", "message"), DOUBTS.values(), ids=DOUBTS.keys())
def test_doubts(loss, severity, path, message):
    assert found(loss) == [(severity, path, message)]


def test_n_pairs_penalty_of_normalised_embeddings():
    message = "the embeddings are normalised, so their length is always 1; remove it"
    assert found({"name": "n_pairs", "l2_penalty": 0.1})[0] == ("error", "loss.l2_penalty", message)
    assert found({"name": "n_pairs", "l2_penalty": 0.1}, **FREE) == []


OTHER_DISTANCE = (
    "the loss learns {} distances and validation.distance is {}, which rank embeddings that are not "
    "normalised differently; set validation.distance: {}"
)


@pytest.mark.parametrize(
    ("loss", "path", "learnt"),
    [
        ("contrastive", "loss.distance", "euclidean"),
        ({"name": "contrastive", "distance": "cosine"}, "loss.distance", "cosine"),
        ("lifted_structure", "loss.distance", "euclidean"),
        ("nt_xent", "loss", "cosine"),
        ("supcon", "loss", "cosine"),
        ("multi_similarity", "loss", "cosine"),
        ("circle", "loss", "cosine"),
    ],
)
def test_judged_by_another_distance(loss, path, learnt):
    judged = "cosine" if learnt == "euclidean" else "euclidean"
    expected = [("warning", path, OTHER_DISTANCE.format(learnt, judged, learnt))]
    assert found(loss, **FREE, validation={"distance": judged}) == expected
    assert found(loss, **FREE, validation={"distance": learnt}) == []


def test_n_pairs_judged_by_another_distance():
    message = (
        "the loss learns inner products, and validation.distance is euclidean, "
        "which ranks embeddings of different lengths otherwise; set validation.distance: cosine"
    )
    assert found("n_pairs", **FREE, validation={"distance": "euclidean"}) == [("warning", "loss", message)]


def test_wide_margins_of_free_embeddings_are_no_matter():
    euclidean = {"validation": {"distance": "euclidean"}, **FREE}
    assert found({"name": "contrastive", "neg_margin": 9}, **euclidean) == []
    assert found({"name": "lifted_structure", "margin": 9}, **euclidean) == []


def test_contrastive_mines_by_another_distance():
    loss = {"name": "contrastive", "distance": "cosine", "miner": "hard_triplets"}
    message = (
        "mines by euclidean distance and the loss is cosine, which rank embeddings that are not normalised "
        "differently; set it to 'cosine'"
    )
    assert found(loss, **FREE) == [("error", "loss.miner.distance", message)]
    assert found(loss) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "contrastive", "pos_margin": -1.0}, "pos_margin  must be at least 0, got -1.0"),
        ({"name": "contrastive", "neg_margin": 0}, "neg_margin  must be greater than 0, got 0"),
        ({"name": "nt_xent", "temperature": 0}, "temperature  must be greater than 0, got 0"),
        ({"name": "supcon", "temperature": 0}, "temperature  must be greater than 0, got 0"),
        ({"name": "n_pairs", "l2_penalty": -1.0}, "l2_penalty  must be at least 0, got -1.0"),
        ({"name": "multi_similarity", "alpha": 0}, "alpha  must be greater than 0, got 0"),
        ({"name": "multi_similarity", "beta": 0}, "beta  must be greater than 0, got 0"),
        ({"name": "circle", "m": 1}, "m  must be less than 1, got 1"),
        ({"name": "circle", "gamma": 0}, "gamma  must be greater than 0, got 0"),
        ({"name": "lifted_structure", "margin": 0}, "margin  must be greater than 0, got 0"),
        ({"name": "lifted_structure", "form": "smooth"}, "form  must be 'pairwise' or 'generalized'"),
    ],
)
def test_limits(settings, message):
    with pytest.raises(SpecError) as caught:
        spec_of(settings)
    assert f"loss.{message}" in str(caught.value)


def test_a_miner_of_means_is_refused_by_a_loss_over_pairs():
    loss = {"name": "contrastive", "miner": "hard_cluster"}
    message = "chooses means of images; this loss is over pairs of images"
    assert found(loss) == [("error", "loss.miner", message)]
    batch, labels = torch.eye(8)[:4], torch.tensor([0, 0, 1, 1])
    module = losses.ContrastiveLoss(miner=miners.HardCluster())
    with pytest.raises(ValueError, match="pairs or triplets of images, and the miner chose means"):
        module(batch, labels)
