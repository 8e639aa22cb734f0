"""The scripts of examples/python, shortened: they run, and the plain loop and the verbs agree to the bit."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "python"
NAMES = {"plain_loop", "pml_losses", "verbs"}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(SCRIPTS)
    found = {name: importlib.import_module(name) for name in sorted(NAMES)}
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name)
    return found


def test_the_scripts_are_these() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} == NAMES


def test_the_plain_loop_and_the_verbs_give_the_same_numbers(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    short = {"epochs": 2, "batches": 3}
    by_hand = scripts["plain_loop"].main(tmp_path / "plain.npy", **short)
    by_verbs = scripts["verbs"].main(tmp_path / "run", **short)
    assert set(by_hand) == {"cmc@1", "map@r"}
    assert by_hand == by_verbs
    plain, features = np.load(tmp_path / "plain.npy"), np.load(tmp_path / "run" / "features.npy")
    assert plain.shape == (96, 64)
    np.testing.assert_array_equal(plain, features)


def test_losses_of_pytorch_metric_learning_train(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    found = scripts["pml_losses"].main(tmp_path, epochs=1, batches=2)
    assert set(found) == {"pairs", "head"}
    assert all(0 <= value <= 1 for value in found.values())
    for name, loss in (("pairs", "MultiSimilarityLoss"), ("head", "ArcFaceLoss")):
        assert f"loss: {loss}" in (tmp_path / name / "spec.resolved.yaml").read_text()
