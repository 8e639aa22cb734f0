"""Who follows docs/plugins.md, and nothing else, ends with an installed package whose loss trains."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metricli.specs import registry
from tests.conftest import Outcome
from tests.docs.blocks import blocks_of, run_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "plugins.md"


def test_a_reader_sees_the_name_of_each_file() -> None:
    """The comments that name them for the test are not shown."""
    text = PAGE.read_text(encoding="utf-8")
    files = [name for block in blocks_of(PAGE) if (name := block.note("file")) is not None]
    assert len(files) == 5
    for name in files:
        assert f"\n`{name}`:\n\n<!-- file: {name} -->\n" in text


def test_the_tutorial_makes_a_package_whose_loss_trains(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for shared in ("data", "examples"):
        (tmp_path / shared).symlink_to(ROOT / shared)
    monkeypatch.syspath_prepend(site)
    here = {
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "PIP_TARGET": str(site),  # not into the environment of the tests
        "PIP_NO_BUILD_ISOLATION": "0",  # which is pip's way to say that there is none
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    ran: list[str] = []

    def program(name: str) -> Callable[..., Outcome]:
        def call(*words: str) -> Outcome:
            ran.append(name)
            command = [sys.executable, "-m", name, *words]
            done = subprocess.run(
                command, cwd=tmp_path, env=os.environ | here, capture_output=True, text=True, check=False
            )
            importlib.invalidate_caches()
            registry.refresh()
            return Outcome(done.returncode, done.stdout, done.stdout + done.stderr)

        return call

    assert cli("plugins", "losses", "margin").code == 2  # nobody else has it
    try:
        run_page(blocks_of(PAGE), cli, tmp_path, {"pip": program("pip"), "pytest": program("pytest")})
        listed = {entry["name"]: entry for entry in cli("plugins", "losses", "--json").json}
        assert listed["margin"]["package"] == "metricli-margin"
        assert listed["margin"]["status"] == "ok"
        too_far = cli("train", "examples/configs/figures_triplet.yaml", "loss={name: margin, beta: 1.9}")
        assert too_far.code == 2
        assert "no pair of normalised embeddings is 2.1 apart; lower beta or margin" in too_far.err
    finally:
        for module in [name for name in sys.modules if name.startswith("metricli_margin")]:
            del sys.modules[module]
        monkeypatch.undo()
        importlib.invalidate_caches()
        registry.refresh()
    assert ran == ["pip", "pytest"]
    run = tmp_path / "runs" / "margin"
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert yaml.safe_load((run / "spec.resolved.yaml").read_text())["loss"] == {
        "name": "margin",
        "margin": 0.2,
        "beta": 1.0,
    }
    assert '"beta": ' in (run / "metrics.jsonl").read_text()  # its own number is logged
