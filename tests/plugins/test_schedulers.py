"""Each schedule step by step against torch's own where the definitions agree, and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as theirs

from metricli.specs import registry
from metricli.specs.kinds import SchedulerSpec

BASES = (1.0, 0.02)
EPOCHS, STEPS = 6, 5
TOTAL = EPOCHS * STEPS


def spec_class(name: str) -> Any:
    return registry.load_plugin("schedulers", "scheduler", name, SchedulerSpec)


def spec_of(name: str, **settings: Any) -> Any:
    return spec_class(name)(**settings)


def sgd() -> SGD:
    return SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": base} for base in BASES])


def rates_of(optimizer: SGD) -> tuple[float, ...]:
    return tuple(group["lr"] for group in optimizer.param_groups)


def ours(name: str, **settings: Any) -> list[tuple[float, ...]]:
    """The rates in force at each step of a run, the schedule stepped as the training loop does it."""
    spec, optimizer = spec_of(name, **settings), sgd()
    schedule = spec.build(optimizer, total_steps=TOTAL, steps_per_epoch=STEPS)
    found = []
    for step in range(TOTAL):
        found.append(rates_of(optimizer))
        optimizer.step()
        unit = 1 if spec.interval == "step" else STEPS
        if (step + 1) % (unit * spec.frequency) == 0:
            schedule.step()
    return found


def of_torch(make: Any, every: int) -> list[tuple[float, ...]]:
    """The same of a torch schedule stepped every so many optimizer steps."""
    optimizer = sgd()
    schedule = make(optimizer)
    found = []
    for step in range(TOTAL):
        found.append(rates_of(optimizer))
        optimizer.step()
        if (step + 1) % every == 0:
            schedule.step()
    return found


def same(found: list[tuple[float, ...]], expected: list[tuple[float, ...]]) -> bool:
    assert len(found) == len(expected) == TOTAL
    return found == [pytest.approx(rates, rel=1e-9, abs=1e-15) for rates in expected]


def one_cycle_start(pct: float) -> float:
    """Torch ends the rise at step `pct * total - 1`, ours at the share `pct` of `total - 1` steps."""
    return (pct * TOTAL - 1) / (TOTAL - 1)


AGREE = {
    "cosine": (
        ("cosine", {}),
        lambda o: theirs.CosineAnnealingLR(o, T_max=TOTAL - 1),
        1,
    ),
    "cosine, a floor": (
        ("cosine", {"min_factor": 0.1}),
        lambda o: theirs.LambdaLR(o, lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * t / (TOTAL - 1))) / 2),
        1,
    ),
    "linear": (
        ("linear", {"min_factor": 0.2}),
        lambda o: theirs.LinearLR(o, start_factor=1, end_factor=0.2, total_iters=TOTAL - 1),
        1,
    ),
    "constant": (("constant", {}), lambda o: theirs.ConstantLR(o, factor=1), 1),
    "exponential, each epoch": (
        ("exponential", {"gamma": 0.5, "interval": "epoch"}),
        lambda o: theirs.ExponentialLR(o, gamma=0.5),
        STEPS,
    ),
    "exponential, each step": (
        ("exponential", {"gamma": 0.5}),
        lambda o: theirs.ExponentialLR(o, gamma=0.5 ** (1 / STEPS)),
        1,
    ),
    "step": (
        ("step", {"step_epochs": 2, "gamma": 0.3}),
        lambda o: theirs.StepLR(o, step_size=2, gamma=0.3),
        STEPS,
    ),
    "step, each epoch": (
        ("step", {"step_epochs": 2, "gamma": 0.3, "interval": "epoch"}),
        lambda o: theirs.StepLR(o, step_size=2, gamma=0.3),
        STEPS,
    ),
    "multistep": (
        ("multistep", {"milestones": [1, 4], "gamma": 0.3}),
        lambda o: theirs.MultiStepLR(o, milestones=[1, 4], gamma=0.3),
        STEPS,
    ),
    "multistep, each epoch": (
        ("multistep", {"milestones": [1, 4], "gamma": 0.3, "interval": "epoch"}),
        lambda o: theirs.MultiStepLR(o, milestones=[1, 4], gamma=0.3),
        STEPS,
    ),
    "one_cycle": (
        ("one_cycle", {"pct_start": one_cycle_start(0.3)}),
        lambda o: theirs.OneCycleLR(o, max_lr=list(BASES), total_steps=TOTAL, cycle_momentum=False),
        1,
    ),
    "one_cycle, other factors": (
        ("one_cycle", {"pct_start": one_cycle_start(0.5), "start_factor": 0.5, "min_factor": 0.25}),
        lambda o: theirs.OneCycleLR(
            o,
            max_lr=list(BASES),
            total_steps=TOTAL,
            pct_start=0.5,
            div_factor=2,
            final_div_factor=2,
            cycle_momentum=False,
        ),
        1,
    ),
}


@pytest.mark.parametrize(("schedule", "make", "every"), AGREE.values(), ids=AGREE.keys())
def test_agrees_with_torch(schedule, make, every):
    name, settings = schedule
    assert same(ours(name, **settings), of_torch(make, every))


def test_every_schedule_is_tried_here():
    assert {name for (name, _), _, _ in AGREE.values()} | {"plateau"} == set(registry.names("schedulers"))


@pytest.mark.parametrize("name", ["cosine", "linear", "one_cycle"])
def test_the_last_step_has_the_last_rate(name):
    assert ours(name, min_factor=0.125)[-1] == pytest.approx([0.125 * base for base in BASES])


def factors(name: str, **settings: Any) -> list[float]:
    found = ours(name, **settings)
    assert all(second == pytest.approx(BASES[1] * first) for first, second in found)
    return [first for first, _ in found]


def test_warm_up_by_hand():
    """Ten steps from 0.1 by 0.09 each, then the line over the 19 steps between step 10 and step 29."""
    expected = [0.1 + 0.09 * step for step in range(10)] + [1 - step / 19 for step in range(20)]
    assert factors("linear", warmup_epochs=2, warmup_start=0.1) == pytest.approx(expected)


def test_warm_up_of_a_part_of_an_epoch():
    """0.5 epochs of 5 steps round to 2: from 0, by a half, to 1 at step 2."""
    assert factors("constant", warmup_epochs=0.5, warmup_start=0)[:4] == pytest.approx([0, 0.5, 1, 1])


def test_warm_up_from_the_default_start():
    assert factors("cosine", warmup_epochs=1)[:6] == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802, 1])


def test_milestones_count_the_epochs_of_the_warm_up():
    found = factors("multistep", milestones=[1, 3], gamma=0.5, warmup_epochs=2, warmup_start=0)
    assert found == pytest.approx([step / 10 for step in range(10)] + [0.5] * 5 + [0.25] * 15)


@pytest.mark.parametrize("frequency", [2, 7])
def test_frequency_in_steps_holds_the_rate_between(frequency):
    every = factors("cosine")
    assert factors("cosine", frequency=frequency) == [
        every[step // frequency * frequency] for step in range(TOTAL)
    ]


@pytest.mark.parametrize("frequency", [1, 2])
def test_interval_in_epochs_holds_the_rate_between(frequency):
    every, stride = factors("linear", warmup_epochs=1), STEPS * frequency
    found = factors("linear", warmup_epochs=1, interval="epoch", frequency=frequency)
    assert found == [every[step // stride * stride] for step in range(TOTAL)]


def test_a_run_of_one_step():
    optimizer = sgd()
    schedule = spec_of("cosine").build(optimizer, total_steps=1, steps_per_epoch=1)
    assert rates_of(optimizer) == BASES
    optimizer.step()
    schedule.step()
    assert rates_of(optimizer) == (0, 0)


def test_a_state_put_back_gives_the_same_rates():
    spec, optimizer = spec_of("cosine", warmup_epochs=1), sgd()
    schedule = spec.build(optimizer, total_steps=TOTAL, steps_per_epoch=STEPS)
    for _ in range(12):
        optimizer.step()
        schedule.step()
    again = sgd()
    again.load_state_dict(optimizer.state_dict())
    resumed = spec.build(again, total_steps=TOTAL, steps_per_epoch=STEPS)
    resumed.load_state_dict(schedule.state_dict())
    for step in range(12, TOTAL):
        for each, its in ((optimizer, schedule), (again, resumed)):
            each.step()
            its.step()
        assert rates_of(again) == rates_of(optimizer), step


def plateau(values: list[float], **settings: Any) -> list[float]:
    optimizer = sgd()
    spec = spec_of("plateau", **settings)
    schedule = spec.build(optimizer, total_steps=TOTAL, steps_per_epoch=STEPS)
    found = []
    for value in values:
        optimizer.step()
        schedule.step(value)
        found.append(rates_of(optimizer)[0])
    return found


def test_plateau_falls_after_patience_validations_without_any_gain():
    """Higher is better; a third equal value in a row, patience 1, is the second without a gain."""
    values = [0.5, 0.6, 0.6, 0.6, 0.6 + 1e-9, 0.5, 0.5, 0.5, 0.5]
    assert plateau(values, patience=1, factor=0.5) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_plateau_takes_negative_values_of_metrics_where_lower_is_better():
    assert plateau([-3.0, -2.0, -1.0, -1.5, -1.5], patience=0, factor=0.5) == [1, 1, 1, 0.5, 0.25]


def test_plateau_keeps_the_least_rate():
    assert plateau([1.0] * 4, patience=0, factor=0.1, min_lr=0.05) == pytest.approx([1, 0.1, 0.05, 0.05])


def test_plateau_is_the_one_that_watches():
    watching = {name for name in registry.names("schedulers") if spec_class(name).monitored}
    assert watching == {"plateau"}
    assert (spec_of("plateau").interval, spec_of("plateau").frequency) == ("epoch", 1)
