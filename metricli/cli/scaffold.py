"""`init --plugin`: a package with one plugin, ready to install, whose every line may be changed."""

from __future__ import annotations

import keyword
import re
import shlex
import shutil
from pathlib import Path
from string import Template

from metricli.cli.lines import out
from metricli.cli.scaffolds import PARTS
from metricli.cli.scaffolds.package import PACKAGE, PYPROJECT, README, TEST
from metricli.errors import ResourceError, UsageError

__all__ = ["init_plugin", "package_files"]

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 60


def init_plugin(name: str, kind: str, folder: Path | None) -> None:
    """Write the package of a plugin into a folder of its own.

    Raises:
        UsageError: no such kind, the name cannot be one or is taken, or the folder exists.
        ResourceError: it cannot be written.
    """
    _check(name, kind)
    folder = Path(f"metricli-{name.replace('_', '-')}") if folder is None else folder
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{str(folder)!r} exists already", hint="give another --out")
    if not folder.parent.is_dir():
        raise UsageError(f"--out {str(folder)!r}: the folder {str(folder.parent)!r} does not exist")
    part = folder.with_name(f".{folder.name}.part")
    try:
        for path, text in package_files(name, kind).items():
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).write_text(text, encoding="utf-8")
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ResourceError(f"cannot write {str(folder)!r}: {error.strerror}") from None
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    place = shlex.quote(f"{folder}" if folder.is_absolute() else f"./{folder}")
    out(f"wrote {folder}; next: pip install -e {place} && metricli plugins {kind} {name}")


def _check(name: str, kind: str) -> None:
    import metricli.specs.kinds  # noqa: F401  (fills KINDS)
    from metricli.specs.plugin import KINDS
    from metricli.specs.registry import names
    from metricli.specs.suggest import did_you_mean

    if kind not in PARTS:
        near = did_you_mean(kind, PARTS)
        raise UsageError(f"no kind of plugin named {kind!r}{near or ';'} kinds: {', '.join(KINDS)}")
    if len(name) > _LONGEST or not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(
            f"{name!r} cannot be the name of a plugin",
            hint=f"expected up to {_LONGEST} small letters, digits and _ between them, such as my_loss",
        )
    if name in names(kind):
        raise UsageError(
            f"a {KINDS[kind].singular} named {name!r} is installed already", hint="give another name"
        )
    parts = PARTS[kind]
    used = set(re.findall(r"\b[A-Z]\w*", parts.door + parts.component))
    if _class_name(name) in used | set(keyword.kwlist):
        raise UsageError(
            f"{name!r} would make a class {_class_name(name)}, a name that is taken", hint="give another name"
        )


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def package_files(name: str, kind: str) -> dict[str, str]:
    """Path in the package -> text."""
    parts = PARTS[kind]
    package = f"metricli_{name}"
    words = {
        "name": name,
        "Class": _class_name(name),
        "kind": kind,
        "package": package,
        "project": package.replace("_", "-"),
        "dependencies": ", ".join(f'"{each}"' for each in ("metricli", *parts.needs)),
        "usage": Template(parts.usage).substitute(name=name),
    }

    def filled(text: str) -> str:
        return Template(text).substitute(words)

    return {
        "pyproject.toml": filled(PYPROJECT),
        "README.md": filled(README),
        f"{package}/__init__.py": filled(PACKAGE),
        f"{package}/py.typed": "",
        f"{package}/plugins.py": filled(parts.door),
        f"{package}/components.py": filled(parts.component),
        f"tests/test_{name}.py": filled(TEST) + filled(parts.test),
    }
