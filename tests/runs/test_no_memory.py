"""What no memory can hold ends in one line, and is not taken for something else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metricli.runs.learner_state import load_state


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("extractor.dim=1000000000000", 7, r"out of memory for a tensor of [0-9.]+ GB; lower the batch size"),
        ("extractor.dim=1000000000000000000", 7, "out of memory for a tensor beyond any size; lower"),
        ("extractor.dim=100000000000000000000", 2, "not a number that can be read: '100000000000000000000'"),
    ],
)
def test_an_embedding_of_any_length(
    cli: Any, tiny: dict[str, Any], tmp_path: Path, word: str, code: int, said: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(tiny))  # JSON is YAML
    done = cli("train", "tiny.yaml", word)
    assert done.code == code
    assert re.search(said, done.err)
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()


def test_a_seed_of_any_size(cli: Any, trained: Any) -> None:
    done = cli("validate", "--ckpt", trained.best_ckpt, f"seed={2**62}")
    assert done.code == 2
    assert "seed" in done.err
    assert "Traceback" not in done.err


def test_a_state_without_memory_for_it_is_none_that_does_not_fit() -> None:
    def full(_state: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    learner: Any = SimpleNamespace(
        extractor=SimpleNamespace(load_state_dict=full),
        context=SimpleNamespace(accelerator=SimpleNamespace(scaler=None)),
    )
    with pytest.raises(torch.OutOfMemoryError):
        load_state(learner, {"extractor": {}})
