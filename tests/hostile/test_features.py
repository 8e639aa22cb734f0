"""Features files that are none, that lie, and that would not match their rows."""

import pytest

from tests.hostile.features import feature_cases


@pytest.mark.parametrize("case", list(feature_cases()), ids=lambda case: case.name)
def test_hostile_features(tried, case):
    outcome = tried(case)
    if case.name.startswith("sound: "):
        assert "4 queries (0 without match), 4 gallery rows" in outcome.out
