"""What a head learns besides its centres is saved with a run and comes back with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from metricli import TrainReport
from metricli.errors import Interrupted
from metricli.runs.checkpoints import read_last
from tests.runs.conftest import Listener, assert_same_weights, lines, tensors

Fit = Callable[..., TrainReport]
WITHOUT = ("sampler=null", "training.batch_size=7")


@pytest.mark.parametrize(
    ("loss", "kept"),
    [
        (
            "loss={name: cosface, scale: 16, mlp: [12, 6]}",
            {"weight", "chosen", "mlp.0.weight", "mlp.0.bias", "mlp.1.weight", "mlp.1.bias"},
        ),
        ("loss={name: adacos}", {"weight", "chosen", "scale"}),
    ],
)
def test_a_resumed_head_is_an_uninterrupted_one(fit: Fit, loss: str, kept: set[str]) -> None:
    whole = fit(loss, *WITHOUT)
    with pytest.raises(Interrupted) as caught:
        fit(loss, *WITHOUT, reporter=Listener(stop_after=2))
    run = Path(caught.value.hint.rpartition(" ")[2])
    state = read_last(run / "checkpoints" / "last.ckpt")[0]["loss"]
    assert set(state) == kept
    assert state["chosen"].sum() == 2 * 7, "two steps of seven images"
    resumed = fit(loss, *WITHOUT, resume=run)
    assert_same_weights(whole.last_ckpt, resumed.last_ckpt)
    assert lines(whole) == lines(resumed)
    assert not any("loss" in name for name in tensors(whole.best_ckpt)), "serving needs no head"
