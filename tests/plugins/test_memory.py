"""Every loss that can take a reference can have a memory bank, and has the same loss against it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from metricli.components.losses import MemoryLoss
from metricli.plugins.losses.memory import ReferenceLossSpec
from metricli.specs.kinds import LossSpec
from tests.plugins.builtin import BUILT_IN, settings_of

LOSSES = [name for kind, name in BUILT_IN if kind == "losses"]
WITH_MEMORY = {
    "circle",
    "contrastive",
    "fast_ap",
    "lifted_structure",
    "multi_similarity",
    "n_pairs",
    "nt_xent",
    "recall_at_k",
    "smooth_ap",
    "supcon",
    "surrogate_precision",
    "triplet",
}
SIZES = {"dim": 8, "num_labels": 4, "label_to_category": [0, 0, 1, 1]}


def spec_of(name: str, **settings: Any) -> Any:
    return LossSpec._resolve({**settings_of("losses", name), **settings})


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_has_a_memory_if_and_only_if_it_takes_a_reference(name: str) -> None:
    spec = spec_of(name)
    takes_one = "reference" in inspect.signature(spec.build(**SIZES).forward).parameters
    assert takes_one == isinstance(spec, ReferenceLossSpec) == (name in WITH_MEMORY)


@pytest.mark.parametrize("name", sorted(WITH_MEMORY))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_total_is_the_loss_of_the_batch_and_of_the_bank(name: str, dtype: torch.dtype) -> None:
    plain = spec_of(name).build(**SIZES)
    loss = spec_of(name, memory={"size": 20, "start_after": 1}).build(**SIZES)
    assert isinstance(loss, MemoryLoss)
    if dtype == torch.float64:
        loss.double()
    bank: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        labels = torch.randint(0, 4, (12,), generator=generator)
        rows = torch.nn.functional.normalize(torch.randn(12, 8, generator=generator, dtype=torch.float64))
        rows = rows.to(dtype).requires_grad_()
        expected = plain(rows, labels)
        if step >= 1:
            held, held_labels = (torch.cat(part)[-20:] for part in zip(*bank, strict=True))
            order = torch.arange(len(held)).roll(step * 12 % 20) if len(held) == 20 else slice(None)
            expected = expected + plain(rows, labels, held[order], held_labels[order])
        found = loss(rows, labels)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(value, rows)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients)
        assert torch.isfinite(gradients[0]).all()
        bank.append((rows.detach().to(loss.embeddings.dtype), labels))
    assert "memory_loss" in loss.stats
    assert float(loss.stats["memory_fill"]) == 1
