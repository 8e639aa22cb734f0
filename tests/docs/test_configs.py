"""The example configs: all of them load, one explains every key, and those of figures_mini learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from metricli.reports import OVERALL
from metricli.specs.base import SpecModel
from metricli.specs.load import check_spec, load_spec, read_document
from metricli.specs.train import TrainSpec

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"
NAMES = [
    "cars196_vits16",
    "figures_arcface",
    "figures_triplet",
    "finetune_vit",
    "inshop_vitb16",
    "reid_market1501_resnet50",
    "sop_resnet50",
]
MEASURED = {
    "figures_triplet": (["0.93", "0.89", "0.87"], ["0.73", "0.69", "0.64"]),
    "figures_arcface": (["0.93", "0.94", "0.96"], ["0.69", "0.80", "0.73"]),
}
"""cmc@1 and map@r of the best epoch, with the seeds 0, 1 and 2."""
UNTRAINED = (["0.06", "0.16", "0.14"], ["0.04", "0.05", "0.06"])


def config(name: str) -> Path:
    return CONFIGS / f"{name}.yaml"


def header(name: str) -> str:
    """The comment at the head of a config."""
    lines = config(name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines[: lines.index("")])


def test_the_configs_are_these() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_loads_without_a_warning_and_says_how_to_use_it(name: str) -> None:
    loaded = load_spec(config(name), TrainSpec)
    assert check_spec(loaded, None) == []
    manual = header(name)
    assert manual.startswith(f"# {name}: ")
    assert all(line.startswith("#") for line in manual.splitlines())
    words = [word for word in ("Purpose", "Command", "Expected", "How long") if f"\n# {word} " in manual]
    assert words == ["Purpose", "Command", "Expected", "How long"]
    assert f"metricli train {name}.yaml" in manual
    assert max(map(len, config(name).read_text().splitlines())) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_a_config_survives_being_written_as_resolved(name: str) -> None:
    loaded = load_spec(config(name), TrainSpec)
    assert TrainSpec.model_validate(loaded.spec.model_dump(mode="json")) == loaded.spec


def keys_of(model: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key that a spec could give, through the plugins it has chosen."""
    for key in type(model).model_fields:
        yield (*path, key)
        if isinstance(inner := getattr(model, key), SpecModel):
            yield from keys_of(inner, (*path, key))


def test_one_config_explains_every_key() -> None:
    document, _ = read_document(config("cars196_vits16"))
    spec = load_spec(config("cars196_vits16"), TrainSpec).spec
    text = config("cars196_vits16").read_text(encoding="utf-8").splitlines()
    keys = list(keys_of(spec))
    assert len(keys) > 80
    missing, unexplained = [], []
    for key in keys:
        line = document.lines.get(key)
        if line is None:
            missing.append(".".join(key))
        elif not text[line - 1].rstrip().endswith(":") and " # " not in text[line - 1]:
            unexplained.append(".".join(key))
    assert missing == []
    assert unexplained == []


def test_pretrained_models_exist_and_are_fed_what_they_were_trained_with() -> None:
    from timm import list_pretrained
    from timm.models import get_pretrained_cfg

    published, checked = set(list_pretrained()), []
    for name in NAMES:
        spec: Any = load_spec(config(name), TrainSpec).spec
        if spec.extractor.pretrained or spec.extractor.weights:
            assert spec.extractor.model in published
            theirs: Any = get_pretrained_cfg(spec.extractor.model)
            for transform in (spec.transforms.train, spec.transforms.eval):
                assert (tuple(transform.mean), tuple(transform.std)) == (theirs.mean, theirs.std)
            checked.append(name)
    assert checked == [name for name in NAMES if not name.startswith("figures_")]


def test_the_headers_and_the_readme_give_the_same_numbers() -> None:
    readme = (CONFIGS.parents[1] / "README.md").read_text(encoding="utf-8")
    cmc0, map0 = UNTRAINED
    for name, (cmc, map_r) in MEASURED.items():
        manual = header(name)
        assert f"Expected   cmc@1 {cmc[0]}, map@r {map_r[0]} (" in manual
        assert f"Seeds 1 and 2: cmc@1 {cmc[1]} and {cmc[2]}." in manual
        assert f"cmc@1 {cmc0[0]}, map@r {map0[0]} (seeds 1, 2: {cmc0[1]}, {cmc0[2]})" in manual
        row = f"| [{name}.yaml](examples/configs/{name}.yaml) | {', '.join(cmc)} | {', '.join(map_r)} |"
        assert row in readme
    assert f"| untrained `test_resnet` | {', '.join(cmc0)} | {', '.join(map0)} |" in readme


def overall(report: Any) -> dict[str, float]:
    found: dict[str, float] = report.metrics[OVERALL]
    return found


def test_three_epochs_of_figures_triplet_beat_the_untrained_network(tmp_path: Path) -> None:
    from metricli import train, validate

    words = ["training.epochs=3", "sampler.batches=10", "validation.every_n_epochs=3", "scheduler=constant"]
    before = overall(validate(config("figures_triplet")))
    after = overall(train(config("figures_triplet"), words, run_dir=tmp_path / "run"))
    assert before["cmc@1"] < 0.15
    assert after["cmc@1"] > before["cmc@1"] + 0.1
    assert after["map@r"] > before["map@r"] + 0.05


@pytest.mark.long
@pytest.mark.parametrize("name", list(MEASURED))
def test_the_figures_configs_learn(name: str, tmp_path: Path) -> None:
    from metricli import train, validate

    before = overall(validate(config(name)))
    report = train(config(name), run_dir=tmp_path / "run")
    assert overall(report)["cmc@1"] > before["cmc@1"] + 0.25
    assert overall(validate(ckpt=report.best_ckpt)) == overall(report)
