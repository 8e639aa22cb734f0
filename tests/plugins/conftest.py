"""The fake packages of tests/specs."""

from tests.specs.fakes import install  # noqa: F401  (a fixture)
