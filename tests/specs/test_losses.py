"""Lists of losses, memory banks, and the classes of pytorch-metric-learning, as a spec says them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from metricli.errors import SpecError
from metricli.specs.load import load_spec, plugins_of
from metricli.specs.train import TrainSpec
from tests.specs.conftest import FACTS, yaml_of

TWO = "[{weight: 0.5, loss: {name: triplet, margin: 0.1}}, {loss: arcface}]"
SCHEMA = Draft202012Validator(TrainSpec.model_json_schema())


def test_a_list_of_losses_with_weights(load: Any) -> None:
    spec = load(yaml_of(loss=TWO)).spec
    assert [(weight, loss.name) for weight, loss in spec.losses] == [(0.5, "triplet"), (1.0, "arcface")]
    assert spec.losses[0][1].margin == 0.1
    paths = [path for path, _ in plugins_of(spec) if path.startswith("loss")]
    assert paths == ["loss.0.loss", "loss.0.loss.miner", "loss.1.loss"]
    dumped = spec.model_dump(mode="json")
    assert load_spec(yaml.safe_load(yaml.safe_dump(dumped)), TrainSpec).spec == spec
    assert SCHEMA.is_valid(dumped)


def test_a_single_loss_has_weight_one(load: Any) -> None:
    spec = load(yaml_of()).spec
    assert spec.losses == [(1.0, spec.loss)]


def test_overrides_reach_into_the_list(load: Any) -> None:
    words = ["loss.0.weight=3", "loss.1.loss.margin=0.3", "loss.0.loss.miner=all_triplets"]
    spec = load(yaml_of(loss=TWO), *words).spec
    assert [weight for weight, _ in spec.losses] == [3, 1]
    assert spec.losses[1][1].margin == 0.3
    assert spec.losses[0][1].miner.name == "all_triplets"
    assert load(yaml_of(loss=TWO), "loss=arcface").spec.loss.name == "arcface"


WRONG = {
    "empty": ("[]", "loss", "a list of losses needs one at least, such as [{weight: 1.0, loss: triplet}]"),
    "weight 0": ("[{weight: 0, loss: triplet}]", "loss.0.weight", "must be greater than 0, got 0"),
    "weight below 0": (
        "[{loss: triplet}, {weight: -0.5, loss: triplet}]",
        "loss.1.weight",
        "must be greater than 0, got -0.5",
    ),
    "infinite": ("[{weight: .inf, loss: triplet}]", "loss.0.weight", "must be a finite number, got inf"),
    "no number": ("[{weight: much, loss: triplet}]", "loss.0.weight", "expected a number, got 'much'"),
    "unknown key": (
        "[{wieght: 2, loss: triplet}]",
        "loss.0.wieght",
        "unknown key, did you mean 'weight'?",
    ),
    "no loss": ("[{weight: 2}]", "loss.0.loss", "required, but missing"),
    "shorthand": (
        "[triplet]",
        "loss.0",
        "expected a mapping with 'loss', got 'triplet'; write {loss: triplet}",
    ),
    "a bare loss": (
        "[{name: triplet, margin: 0.2}]",
        "loss.0",
        "a loss of a list stands below 'loss', beside its weight; "
        "write {weight: 1.0, loss: {name: triplet, ...}}",
    ),
    "a list in a list": ("[[triplet]]", "loss.0", "expected a mapping such as {loss: ...}, got ['triplet']"),
    "a list without its brackets": (
        "{weight: 2.0, loss: triplet}",
        "loss",
        "a loss has a 'name'; several stand in a list: [{weight: 1.0, loss: {name: ...}}]",
    ),
    "memory by its size alone": (
        "{name: triplet, memory: 64}",
        "loss.memory",
        "expected a mapping such as {size: ...}, got 64",
    ),
    "a key of its loss": (
        "[{loss: triplet}, {loss: {name: triplet, margn: 1}}]",
        "loss.1.loss.margn",
        "unknown key, did you mean 'margin'?",
    ),
    "memory of a loss that takes no reference": (
        "{name: arcface, memory: {size: 64}}",
        "loss.memory",
        "unknown key",
    ),
    "a bank of nothing": (
        "{name: triplet, memory: {size: 0}}",
        "loss.memory.size",
        "must be at least 1, got 0",
    ),
    "a memory without size": ("{name: triplet, memory: {}}", "loss.memory.size", "required, but missing"),
}


@pytest.mark.parametrize(("loss", "path", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_in_one_line(refusal: Any, loss: str, path: str, message: str) -> None:
    said = refusal(yaml_of(loss=loss)).splitlines()
    assert len(said) == 2
    line, where, what = said[1].strip().split("  ", 2)
    assert (line, where) == ("line 4", path)
    assert what.strip().startswith(message)
    assert ".inf" in loss or not SCHEMA.is_valid(yaml.safe_load(yaml_of(loss=loss)))


def test_every_loss_of_a_list_is_checked(refusal: Any) -> None:
    given = "[{loss: arcface}, {loss: {name: triplet, margin: 2.5, memory: {size: 31}}}]"
    assert refusal(yaml_of(loss=given)).splitlines()[1:] == [
        "  line 4  loss.1.loss.memory.size  a bank of 31 cannot hold one batch of 32 images; "
        "several batches are usual",
        "  line 4  loss.1.loss.margin       distances are at most 2 here, so no triplet can keep a margin "
        "of 2.5; near 0.2 is usual",
    ]
    sampler = "{name: balanced, n_labels: 1, n_instances: 4}"
    assert "a batch of 1 label holds no negatives" in refusal(yaml_of(loss=TWO, sampler=sampler))


MEMORY = "{name: triplet, memory: {size: %d, start_after: %d}}"


def test_a_memory_that_fits_is_no_problem(warnings_of: Any) -> None:
    assert warnings_of(yaml_of(loss=MEMORY % (64, 39)), facts=FACTS) == []
    assert warnings_of(yaml_of(loss=MEMORY % (10**6, 10**6))) == []


def test_a_memory_against_the_table(refusal: Any, warnings_of: Any) -> None:
    """FACTS has 60 train rows of 12 labels: 2 batches of 8 labels an epoch, 40 steps in 20 epochs."""
    (warning,) = warnings_of(yaml_of(loss=MEMORY % (600, 0)), facts=FACTS)
    assert (warning.path, warning.severity, warning.line) == ("loss.memory.size", "warning", 4)
    assert warning.message == (
        "a bank of 600 holds each of the 60 train images about 10 times, most of them long out of date; "
        "lower it"
    )
    said = refusal(yaml_of(loss=MEMORY % (64, 40)), facts=FACTS).splitlines()[1]
    assert (
        said == "  line 4  loss.memory.start_after  the run has 40 steps, so the bank is never used; lower it"
    )
    longer = "{name: balanced, n_labels: 8, n_instances: 4, batches: 3}"
    assert warnings_of(yaml_of(loss=MEMORY % (64, 40), sampler=longer), facts=FACTS) == []


def pml(words: str) -> str:
    return "{name: pml, " + words + "}"


NTXENT = "loss: NTXentLoss"
PML_WRONG = {
    "loss": (
        pml("loss: MultiSimilartyLoss"),
        "loss.loss",
        "no class 'MultiSimilartyLoss' in pytorch_metric_learning.losses, "
        "did you mean 'MultiSimilarityLoss'? known: AngularLoss, ",
    ),
    "path": (
        pml("loss: os.system"),
        "loss.loss",
        "no class 'os.system' in pytorch_metric_learning.losses; known: AngularLoss, ",
    ),
    "miner": (
        pml(NTXENT + ", miner: {name: BatchHrdMiner}"),
        "loss.miner.name",
        "no class 'BatchHrdMiner' in pytorch_metric_learning.miners, did you mean 'BatchHardMiner'? ",
    ),
    "distance": (
        pml(NTXENT + ", distance: {name: Cosine}"),
        "loss.distance.name",
        "no class 'Cosine' in pytorch_metric_learning.distances",
    ),
    "reducer": (
        pml(NTXENT + ", reducer: {name: MeanReducr}"),
        "loss.reducer.name",
        "no class 'MeanReducr' in pytorch_metric_learning.reducers, did you mean 'MeanReducer'? ",
    ),
    "args": (pml(NTXENT + ", args: {temprature: 1}"), "loss.args", "NTXentLoss refuses its arguments: "),
    "args of a part": (
        pml(NTXENT + ", distance: {name: LpDistance, args: {q: 1}}"),
        "loss.distance.args",
        "LpDistance refuses its arguments: ",
    ),
    "args of the miner": (
        pml(NTXENT + ", miner: {name: PairMarginMiner, args: {q: 1}}"),
        "loss.miner.args",
        "PairMarginMiner refuses its arguments: ",
    ),
    "missing args": (pml("loss: RankedListLoss"), "loss.args", "RankedListLoss refuses its arguments: "),
    "a distance that the loss refuses": (
        pml("loss: AngularLoss, distance: {name: CosineSimilarity}"),
        "loss.args",
        "AngularLoss refuses its arguments: ",
    ),
    "args of a wrong type, which only a batch brings out": (
        pml("loss: TripletMarginLoss, args: {margin: wide}"),
        "loss.args",
        "TripletMarginLoss of pytorch-metric-learning fails on a batch: TypeError: ",
    ),
    "such of the miner": (
        pml("loss: TripletMarginLoss, miner: {name: TripletMarginMiner, args: {margin: wide}}"),
        "loss.miner.args",
        "TripletMarginMiner of pytorch-metric-learning fails on a batch: TypeError: ",
    ),
    "such of the reducer": (
        pml("loss: TripletMarginLoss, reducer: {name: ThresholdReducer, args: {low: wide}}"),
        "loss",
        "TripletMarginLoss of pytorch-metric-learning fails on a batch: TypeError: ",
    ),
    "sizes": (
        pml("loss: ArcFaceLoss, args: {num_classes: 10}"),
        "loss.args.num_classes",
        "is known from the table and the extractor; remove it",
    ),
    "the miner door": (
        "{name: triplet, miner: {name: pml, miner: TripletMarginMinr}}",
        "loss.miner.miner",
        "no class 'TripletMarginMinr' in pytorch_metric_learning.miners, did you mean 'TripletMarginMiner'? ",
    ),
    "the miner door's args": (
        "{name: triplet, miner: {name: pml, miner: TripletMarginMiner, args: {margn: 1}}}",
        "loss.miner.args",
        "TripletMarginMiner refuses its arguments: ",
    ),
    "the miner door's args of a wrong type": (
        "{name: triplet, miner: {name: pml, miner: TripletMarginMiner, args: {margin: wide}}}",
        "loss.miner.args",
        "TripletMarginMiner of pytorch-metric-learning fails on a batch: TypeError: ",
    ),
}


@pytest.mark.parametrize(("loss", "path", "message"), PML_WRONG.values(), ids=PML_WRONG.keys())
def test_what_is_wrong_with_a_class_of_the_package(refusal: Any, loss: str, path: str, message: str) -> None:
    said = refusal(yaml_of(loss=loss)).splitlines()
    assert len(said) == 2
    line, where, what = said[1].strip().split("  ", 2)
    assert (line, where) == ("line 4", path)
    assert what.strip().startswith(message)


def test_a_loss_of_the_package_needs_positives_unless_it_has_a_head(refusal: Any, warnings_of: Any) -> None:
    plain = {"sampler": "null", "training": "{batch_size: 8}"}
    head = pml("loss: ArcFaceLoss, args: {margin: 20}, reducer: {name: SumReducer}")
    assert warnings_of(yaml_of(loss=head, **plain)) == []
    said = refusal(yaml_of(loss=pml(NTXENT), **plain))
    assert "loss  the loss 'pml' compares images of one label, and plain shuffling rarely" in said


def test_a_miner_of_the_package_has_a_distance_of_another_kind(warnings_of: Any) -> None:
    miner = "{name: pml, miner: BatchHardMiner, distance: {name: LpDistance}}"
    extractor = "{name: timm, model: resnet18, normalize: false}"
    block = "{distance: euclidean}"
    given = yaml_of(loss=f"{{name: triplet, miner: {miner}}}", extractor=extractor, validation=block)
    assert warnings_of(given) == []


def test_without_the_package(refusal: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metricli.plugins.pml.find_spec", lambda name: None)
    needs = "needs the package pytorch-metric-learning: pip install 'metricli[pml]'"
    assert refusal(yaml_of(loss=pml(NTXENT))).splitlines()[1] == f"  line 4  loss  {needs}"
    miner = "{name: triplet, miner: {name: pml, miner: BatchHardMiner}}"
    assert refusal(yaml_of(loss=miner)).splitlines()[1] == f"  line 4  loss.miner  {needs}"
    assert load(yaml_of(loss=pml(NTXENT))).spec.loss.loss == "NTXentLoss"


def test_wrong_is_a_spec_error(load: Any) -> None:
    with pytest.raises(SpecError):
        load(yaml_of(loss="[]"))
