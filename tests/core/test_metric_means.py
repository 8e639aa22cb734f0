"""Means by category against a loop, and how values of other families join them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metricli.core.metrics import merge, summarize


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 30), st.integers(0, 5), st.integers(0, 2**20))
def test_summarize_is_the_loop(num, num_names, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(num, generator=generator, dtype=torch.float64)
    values[torch.rand(num, generator=generator) < 0.3] = math.nan
    codes = torch.randint(-1, num_names, (num,), generator=generator) if num_names else torch.full((num,), -1)
    names = [f"c{(7 * i) % 5}" for i in range(num_names)]
    table = summarize({"cmc@1": values}, codes, names)
    assert list(table) == ["OVERALL", *sorted(names)]
    for name, row in table.items():
        members: Tensor = values if name == "OVERALL" else values[codes == names.index(name)]
        judged = [v for v in members.tolist() if not math.isnan(v)]
        expected = sum(judged) / len(judged) if judged else math.nan
        assert isinstance(row["cmc@1"], float)
        assert row == pytest.approx({"cmc@1": expected}, nan_ok=True)


def test_summarize_refuses_codes_without_a_name():
    values = {"cmc@1": torch.ones(2)}
    for codes, names, message in (
        (torch.tensor([0, 2]), ["a", "b"], "codes must lie in [-1, 1], the places of the 2 names"),
        (torch.tensor([0]), ["a"], "codes must have shape (2,), got (1,)"),
        (torch.tensor([0, 0]), ["OVERALL"], "a category may not be called 'OVERALL'"),
    ):
        with pytest.raises(ValueError) as raised:
            summarize(values, codes, names)
        assert str(raised.value) == message


def test_values_of_other_families_join_the_means():
    metrics = summarize({"cmc@1": torch.tensor([1.0, 0.0])}, torch.tensor([1, 0]), ["b", "a"])
    merged = merge(metrics, {"eer": torch.tensor([0.1, 0.2, math.nan], dtype=torch.float64)}, ["b", "a"])
    assert list(merged) == ["OVERALL", "a", "b"]
    assert merged["OVERALL"] == {"cmc@1": 0.5, "eer": 0.1}
    assert merged["b"] == {"cmc@1": 0.0, "eer": 0.2}
    assert merged["a"] == pytest.approx({"cmc@1": 1.0, "eer": math.nan}, nan_ok=True)
    assert metrics["OVERALL"] == {"cmc@1": 0.5}  # what was given stays
    assert merge({}, {"eer": torch.tensor([0.5])}) == {"OVERALL": {"eer": 0.5}}
    with pytest.raises(ValueError, match=r"^eer must have shape \(3,\), got \(1,\)$"):
        merge(metrics, {"eer": torch.tensor([0.1])}, ["b", "a"])
