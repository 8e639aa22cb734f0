"""Specs and overrides that are none, that are wrong, and that are meant to do harm."""

import pytest

from metricli.errors import SpecError
from metricli.specs.load import check_spec, load_spec
from metricli.specs.train import TrainSpec
from tests.conftest import TINY
from tests.hostile.specs import KEYS, VALUES, spec_cases


@pytest.mark.parametrize("case", list(spec_cases()), ids=lambda case: case.name)
def test_a_hostile_spec(tried, case):
    tried(case)


@pytest.mark.parametrize("key", KEYS)
def test_any_wrong_value_of_a_key_is_a_problem_or_fine(key):
    refused = []
    for value in VALUES:
        try:
            check_spec(load_spec(TINY, TrainSpec, [f"{key}={value}"]), None)
        except SpecError as error:
            refused.append(str(error))
    assert len(refused) >= 9, "most of these values are wrong for any key"
    assert max(map(len, refused)) < 5_000
