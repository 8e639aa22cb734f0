"""Tables that are none, that are wrong, and that are meant to do harm."""

import pytest

from tests.hostile.tables import table_cases


@pytest.mark.parametrize("case", list(table_cases()), ids=lambda case: case.name)
def test_a_hostile_table(tried, case):
    tried(case)
