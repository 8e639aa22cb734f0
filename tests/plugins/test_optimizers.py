"""Each optimizer's door leads to torch's own optimizer, with every setting carried through."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.optim
from torch.optim import Optimizer

from metricli.plugins import optimizers as doors
from metricli.specs import registry
from metricli.specs.kinds import OptimizerSpec

CLASSES = {
    name.lower(): found
    for name, found in vars(torch.optim).items()
    if isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer
}
OFFERED = {
    name: registry.load_plugin("optimizers", "optimizer", name, OptimizerSpec)
    for name in registry.names("optimizers")
}

OTHER: dict[str, dict[str, Any]] = {
    "adadelta": {"rho": 0.7, "eps": 1e-2},
    "adafactor": {"beta2_decay": -0.5, "d": 2.0},
    "adagrad": {"lr_decay": 0.3, "eps": 0.1},
    "adam": {"betas": [0.5, 0.7], "eps": 0.1, "amsgrad": True},
    "adamw": {"betas": [0.5, 0.7], "eps": 0.1, "amsgrad": True},
    "adamax": {"betas": [0.5, 0.7], "eps": 0.1},
    "asgd": {"lambd": 0.5, "alpha": 0.3, "t0": 2.0},
    "nadam": {"betas": [0.5, 0.7], "eps": 0.1, "momentum_decay": 0.5, "decoupled_weight_decay": True},
    "radam": {"betas": [0.5, 0.7], "eps": 0.1, "decoupled_weight_decay": True},
    "rmsprop": {"alpha": 0.5, "eps": 0.1, "momentum": 0.5, "centered": True},
    "rprop": {},
    "sgd": {"momentum": 0.9, "dampening": 0.0, "nesterov": True},
}


def run(make: Any) -> tuple[list[torch.Tensor], Optimizer]:
    """Five steps on a quadratic in two groups of different rates and decays."""
    weights = [torch.nn.Parameter(torch.linspace(-1, 2, 12).reshape(3, 4) * k) for k in (1, 3)]
    groups = [
        {"params": [weights[0]], "lr": 0.05, "weight_decay": 0.3, "name": "backbone"},
        {"params": [weights[1]], "lr": 0.01, "weight_decay": 0.0, "name": "head"},
    ]
    optimizer = make(groups)
    slope = torch.linspace(0.1, 4, 12).reshape(3, 4)
    for _ in range(5):
        optimizer.zero_grad()
        torch.autograd.backward(sum((slope * weight.square()).sum() for weight in weights))
        optimizer.step()
    return [weight.detach().clone() for weight in weights], optimizer


@pytest.mark.parametrize("name", CLASSES)
def test_every_torch_optimizer_is_offered_or_said_to_be_left_out(name):
    left_out = re.findall(r"\w+(?= \()", str(doors.__doc__).partition("Left out: ")[2])
    assert (name in OFFERED) != (CLASSES[name].__name__ in left_out)


def test_every_offered_optimizer_is_tried_here():
    assert OTHER.keys() == OFFERED.keys()


@pytest.mark.parametrize("name", OTHER)
def test_defaults_are_torch_s(name):
    ours, optimizer = run(OFFERED[name]().build)
    theirs, _ = run(CLASSES[name])
    assert type(optimizer) is CLASSES[name]
    assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))
    defaults = CLASSES[name]([torch.nn.Parameter(torch.ones(1))]).defaults
    assert OFFERED[name]().lr == defaults["lr"]
    assert OFFERED[name]().weight_decay == defaults.get("weight_decay", 0)


@pytest.mark.parametrize("name", OTHER)
def test_settings_reach_torch(name):
    settings = OTHER[name]
    assert settings.keys() == OFFERED[name].model_fields.keys() - {"name", *OptimizerSpec.model_fields}
    ours, optimizer = run(OFFERED[name](**settings).build)
    theirs, _ = run(lambda groups: CLASSES[name](groups, **settings))
    assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))
    for group in optimizer.param_groups:
        assert {key: list(group[key]) if key == "betas" else group[key] for key in settings} == settings
    if settings:
        assert not torch.equal(ours[0], run(OFFERED[name]().build)[0][0])


@pytest.mark.parametrize("name", OTHER)
def test_groups_keep_their_rate_and_decay(name):
    ours, optimizer = run(OFFERED[name](lr=7.0, weight_decay=0.9).build)
    rates = [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert rates == [("backbone", 0.05, 0.3), ("head", 0.01, 0.0)]
    assert all(torch.equal(mine, its) for mine, its in zip(ours, run(CLASSES[name])[0], strict=True))


@pytest.mark.parametrize("name", sorted(OTHER.keys() - {"rprop"}))
def test_decay_acts_on_its_group_alone(name):
    def without_decay(groups):
        return OFFERED[name]().build([{**group, "weight_decay": 0.0} for group in groups])

    with_decay, without = run(OFFERED[name]().build)[0], run(without_decay)[0]
    assert not torch.equal(with_decay[0], without[0])
    assert torch.equal(with_decay[1], without[1])


def test_a_generator_of_groups_is_taken():
    weight = torch.nn.Parameter(torch.ones(2))
    groups = ({"params": [weight], "lr": lr, "weight_decay": 0.0} for lr in (0.5,))
    assert OFFERED["adamw"]().build(groups).param_groups[0]["lr"] == 0.5
