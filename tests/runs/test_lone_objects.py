"""Plugin objects whose classes no package registers: they train, and the run says what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from torch import nn

from metricli import TrainSpec, Triplet, load_extractor, predict, train, validate
from metricli.components.losses import TripletLoss
from metricli.components.miners import AllTriplets
from metricli.errors import SpecError, UsageError
from metricli.plugins.extractors import Timm
from metricli.specs.kinds import LossSpec


class Mine(LossSpec):
    """A triplet loss by another name."""

    name: Literal["mine"] = "mine"
    margin: float = 0.2

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        return TripletLoss(margin=self.margin, miner=AllTriplets())


class MyTimm(Timm):
    """A model by another name."""

    name: Literal["my_timm"] = "my_timm"  # type: ignore[assignment]


class Narrow(Triplet):
    """A class of ours with the name of another."""

    margin: float = 0.05


HERE = __name__
ALONE = "no installed package has it, so no spec file can load it, spec.resolved.yaml included"


@pytest.fixture
def spec(tiny: dict[str, Any]) -> TrainSpec:
    tiny["training"]["epochs"] = 1
    return TrainSpec.model_validate(tiny)


def said(path: str, kind: str, name: str, home: str, why: str = ALONE) -> str:
    return f"{path}: the {kind} {name!r} ({HERE}:{home}) is an object of this program: {why}"


def test_a_loss_trains_is_written_and_the_run_says_who_can_load_it(spec: TrainSpec, tmp_path: Path) -> None:
    known = train(spec, run_dir=tmp_path / "known")
    assert known.warnings == []
    report = train(spec.model_copy(update={"loss": Mine(margin=0.2)}), run_dir=tmp_path / "run")
    assert report.metrics == known.metrics  # it is the same loss
    warning = said("loss", "loss", "mine", "Mine")
    assert report.warnings == [warning]
    assert f"warning: {warning}\n" in (tmp_path / "run" / "log.txt").read_text()
    written = yaml.safe_load((tmp_path / "run" / "spec.resolved.yaml").read_text())
    assert written["loss"] == {"name": "mine", "margin": 0.2}
    with pytest.raises(SpecError, match="no loss named 'mine'"):
        train(tmp_path / "run" / "spec.resolved.yaml")
    judged = validate(ckpt=report.best_ckpt)  # which needs no loss
    assert (judged.metrics, judged.warnings) == (report.metrics, [])
    assert predict(ckpt=report.best_ckpt, out=tmp_path / "features.npy").rows == 204


def test_a_run_with_one_goes_on(spec: TrainSpec, tmp_path: Path) -> None:
    spec = spec.model_copy(update={"loss": Mine()})
    train(spec, run_dir=tmp_path / "run")
    longer = spec.model_copy(update={"training": spec.training.model_copy(update={"epochs": 2})})
    report = train(longer, resume=tmp_path / "run", allow_change=["training.epochs"])
    assert (report.epochs, report.steps) == (2, 4)


def test_a_class_with_the_name_of_another_is_told_apart(spec: TrainSpec, tmp_path: Path) -> None:
    report = train(spec.model_copy(update={"loss": Narrow(miner=AllOf())}), run_dir=tmp_path / "run")
    other = "a spec file means another loss by that name"
    assert report.warnings == [said("loss", "loss", "triplet", "Narrow", other)]


def AllOf() -> Any:  # noqa: N802
    from metricli import AllTriplets

    return AllTriplets()


def test_an_extractor_needs_its_object_again(spec: TrainSpec, tmp_path: Path) -> None:
    spec = spec.model_copy(update={"extractor": MyTimm(model="test_resnet", dim=16)})
    report = train(spec, run_dir=tmp_path / "run")
    assert report.warnings == [said("extractor", "extractor", "my_timm", "MyTimm")]
    for verb in (lambda: validate(ckpt=report.best_ckpt), lambda: load_extractor(report.best_ckpt)):
        with pytest.raises(SpecError) as caught:
            verb()
        assert str(caught.value) == (
            "1 problem in the spec in best.ckpt\n"
            "  extractor.name  no extractor named 'my_timm', did you mean 'timm'? installed: timm, "
            "torchvision\n"
            "  install the package that it was trained with; if that was an object of a program, give "
            "validate or predict in Python a spec that holds it"
        )
    assert validate(spec, ckpt=report.best_ckpt).metrics == report.metrics
    assert predict(spec, ckpt=report.best_ckpt, out=tmp_path / "features.npy").dim == 16


def test_it_cannot_travel_and_takes_no_overrides(spec: TrainSpec) -> None:
    spec = spec.model_copy(update={"loss": Mine()})
    with pytest.raises(UsageError) as caught:
        train(spec, gpus=2)
    assert str(caught.value) == (
        "the spec holds objects that other processes cannot build from its words: loss 'mine' "
        f"({HERE}:Mine); install their package with its entry points, or start the script itself "
        "with torchrun"
    )
    with pytest.raises(UsageError) as caught:
        train(spec, ["training.epochs=2"])
    assert str(caught.value) == (
        f"overrides go with words, and no installed package has loss 'mine' ({HERE}:Mine); "
        "set the fields of the spec object instead"
    )
