"""The files that a package of any kind has."""

from __future__ import annotations

__all__ = ["PACKAGE", "PYPROJECT", "README", "TEST"]

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$project"
version = "0.1.0"
description = "$name, a plugin of metricli."
readme = "README.md"
requires-python = ">=3.11"
dependencies = [$dependencies]

# The name on the left is the one that a spec says; the class has it as `name` too.
[project.entry-points."metricli.$kind"]
$name = "$package.plugins:$Class"

[tool.setuptools]
packages = ["$package"]

[tool.setuptools.package-data]
$package = ["py.typed"]
"""

README = """\
# $project

Adds `$name` to the $kind of metricli.

- `$package/components.py`: the work itself, with flat arguments; it knows nothing of specs.
- `$package/plugins.py`: what a spec may say, one described field for each setting; no torch until `build`.
- `tests/test_$name.py`: what metricli promises of every plugin, and a value by hand.

```bash
pip install -e .                # once; a changed name needs it again
metricli plugins $kind $name
pytest tests
```

In a spec:

```yaml
$usage
```
"""

PACKAGE = '''\
"""Adds `$name` to the $kind of metricli."""
'''

TEST = '''\
"""What metricli promises of a plugin, and what this one does; the package must be installed."""

from metricli.testing import check_plugin


def test_it_keeps_the_promises_of_a_plugin() -> None:
    assert check_plugin("$kind", "$name").name == "$name"


'''
