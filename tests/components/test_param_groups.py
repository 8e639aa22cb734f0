from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from metricli.components.extractors import timm_extractor
from metricli.components.losses import ArcFaceLoss
from metricli.components.param_groups import parameter_groups


def names(groups: list[dict[str, Any]], **modules: nn.Module) -> dict[str, set[str]]:
    found = {id(p): f"{m}.{name}" for m, module in modules.items() for name, p in module.named_parameters()}
    return {group["name"]: {found[id(p)] for p in group["params"]} for group in groups}


@pytest.fixture
def model() -> nn.Module:
    return timm_extractor("test_resnet", pooling="gem", dim=4, bnneck=True)


@pytest.fixture
def loss() -> nn.Module:
    return ArcFaceLoss(dim=4, num_labels=3)


def test_every_trainable_parameter_is_in_one_group_by_part_and_shape(
    model: nn.Module, loss: nn.Module
) -> None:
    groups = parameter_groups(model, loss, lr=0.1, head_lr=1.0, weight_decay=0.05)
    found = names(groups, extractor=model, loss=loss)
    assert found["head"] == {"extractor.projection.weight", "loss.weight"}
    assert found["head, no decay"] == {
        "extractor.projection.bias",
        "extractor.bnneck.weight",
        "extractor.pool.power",
    }
    backbone = {
        f"extractor.{name}": p.ndim for name, p in model.named_parameters() if name.startswith("backbone")
    }
    assert found["backbone"] == {name for name, ndim in backbone.items() if ndim > 1}
    assert found["backbone, no decay"] == {name for name, ndim in backbone.items() if ndim == 1}
    assert all(name.endswith((".bias", "weight")) for name in found["backbone, no decay"])
    assert sum(len(group) for group in found.values()) == sum(
        p.requires_grad for module in (model, loss) for p in module.parameters()
    )
    settings = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert settings == {
        "backbone": (0.1, 0.05),
        "backbone, no decay": (0.1, 0.0),
        "head": (1.0, 0.05),
        "head, no decay": (1.0, 0.0),
    }


def test_norms_and_biases_decay_on_request(model: nn.Module, loss: nn.Module) -> None:
    groups = parameter_groups(model, loss, lr=0.1, weight_decay=0.05, decay_norms_and_biases=True)
    assert [group["name"] for group in groups] == ["backbone", "head"]
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(0.1, 0.05)}


def test_a_head_without_its_own_rate_takes_the_rate(model: nn.Module, loss: nn.Module) -> None:
    assert {group["lr"] for group in parameter_groups(model, loss, lr=0.1)} == {0.1}


def test_what_does_not_train_is_left_out_and_what_is_shared_comes_once(
    model: nn.Module, loss: nn.Module
) -> None:
    for parameter in model.backbone.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    loss.weight = model.projection.weight  # type: ignore[union-attr]
    found = parameter_groups(model, loss, lr=0.1)
    assert [group["name"] for group in found] == ["head, no decay", "head"]
    assert [len(group["params"]) for group in found] == [3, 1]
    torch.optim.SGD(found)


def test_without_a_backbone_all_of_the_model_is_backbone(loss: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    found = names(parameter_groups(model, loss, lr=0.1), extractor=model, loss=loss)
    assert found == {
        "backbone": {"extractor.0.weight"},
        "backbone, no decay": {"extractor.0.bias", "extractor.1.weight", "extractor.1.bias"},
        "head": {"loss.weight"},
    }


def test_a_rate_of_the_loss_of_its_own(model: nn.Module, loss: nn.Module) -> None:
    groups = parameter_groups(model, loss, lr=0.1, head_lr=1.0, loss_lr=5.0, weight_decay=0.05)
    found = names(groups, extractor=model, loss=loss)
    assert found["loss"] == {"loss.weight"}
    assert found["head"] == {"extractor.projection.weight"}
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {
        "backbone": 0.1,
        "backbone, no decay": 0.1,
        "head": 1.0,
        "head, no decay": 1.0,
        "loss": 5.0,
    }
    alone = {g["name"]: g["lr"] for g in parameter_groups(model, loss, lr=0.1, loss_lr=5.0)}
    assert (alone["head"], alone["loss"]) == (0.1, 5.0)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_rates_by_layer_are_those_of_timm(name: str, loss: nn.Module) -> None:
    from timm.optim import param_groups_layer_decay

    model = timm_extractor(name, dim=4)
    backbone: Any = model.backbone
    named = {id(p): key for key, p in backbone.named_parameters()}
    theirs = param_groups_layer_decay(backbone, weight_decay=0.05, layer_decay=0.6)
    expected = {named[id(p)]: 0.1 * group["lr_scale"] for group in theirs for p in group["params"]}
    groups = parameter_groups(model, loss, lr=0.1, head_lr=1.0, layer_decay=0.6, weight_decay=0.05)
    ours = {named[id(p)]: group["lr"] for group in groups for p in group["params"] if id(p) in named}
    assert ours == pytest.approx(expected)
    assert len(set(ours.values())) > 3
    assert groups[0]["lr"] == 0.1, "the first group's rate is the one that is logged"
    assert {group["lr"] for group in groups if group["name"].startswith("head")} == {1.0}
    assert len({group["name"] for group in groups}) == len(groups)
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {not group["name"].endswith("no decay")}


def test_rates_by_layer_of_a_model_that_names_none(loss: nn.Module) -> None:
    with pytest.raises(ValueError, match="the backbone Sequential does not name its layers"):
        parameter_groups(nn.Sequential(nn.Linear(3, 4)), loss, lr=0.1, layer_decay=0.5)
