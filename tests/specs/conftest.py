"""Load a spec from text in a folder of its own, and get back the words of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricli.data.facts import TableFacts
from metricli.errors import Problem, UsageError
from metricli.specs.load import Loaded, check_spec, load_spec
from metricli.specs.train import TrainSpec
from tests.specs.fakes import install  # noqa: F401  (a fixture)

BLOCKS = {
    "data": "{table: t.csv}",
    "extractor": "{name: timm, model: resnet18}",
    "sampler": "{name: balanced, n_labels: 8, n_instances: 4}",
    "loss": "triplet",
}

FACTS = TableFacts(
    rows=80,
    train_rows=60,
    train_labels=12,
    validation_rows=20,
    train_categories=3,
    instances_min=2,
    instances_median=4.0,
    instances_max=9,
    labels_with_one_instance=0,
    labels_in_two_categories=[],
    uncategorised_labels=0,
)


def yaml_of(**blocks: str) -> str:
    """A good spec of four lines, with some blocks replaced or, behind them, added."""
    return "".join(f"{key}: {value}\n" for key, value in {**BLOCKS, **blocks}.items())


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], str]:
    """Write train.yaml into an empty working directory; its name comes back."""
    monkeypatch.chdir(tmp_path)

    def call(text: str | bytes) -> str:
        Path("train.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "train.yaml"

    return call


@pytest.fixture
def load(write: Any) -> Callable[..., Loaded[TrainSpec]]:
    """The loaded spec of a text and overrides."""

    def call(text: str, *overrides: str) -> Loaded[TrainSpec]:
        return load_spec(write(text), TrainSpec, overrides)

    return call


@pytest.fixture
def warnings_of(load: Any) -> Callable[..., list[Problem]]:
    """What the checks say of a spec that passes them."""

    def call(text: str, *overrides: str, facts: TableFacts | None = None) -> list[Problem]:
        return check_spec(load(text, *overrides), facts)

    return call


@pytest.fixture
def refusal(warnings_of: Any) -> Callable[..., str]:
    """The whole text of the error that a spec ends in."""

    def call(text: str, *overrides: str, facts: TableFacts | None = None) -> str:
        with pytest.raises(UsageError) as caught:
            warnings_of(text, *overrides, facts=facts)
        return str(caught.value)

    return call
