"""`init --plugin`: for each kind a package that installs, keeps the promises, and passes its tests."""

from __future__ import annotations

import importlib
import inspect
import runpy
import sys
import tomllib

import pytest
import yaml

import metricli.specs.kinds  # noqa: F401  (fills KINDS)
from metricli.cli.launch import run
from metricli.specs import registry
from metricli.specs.plugin import KINDS
from tests.cli.conftest import error_of, listing

NAMES = {kind: f"new_{KINDS[kind].singular}" for kind in KINDS}


def install(source, site):
    """What `pip install --target` leaves of a package, by its pyproject.toml (pip itself takes seconds)."""
    text = (source / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    for package in tomllib.loads(text)["tool"]["setuptools"]["packages"]:
        (source / package).rename(site / package)
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    lines = []
    for group, doors in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in doors.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A new package of every kind, written by the command and installed: kind -> its folder."""
    folder = tmp_path_factory.mktemp("packages")
    site = folder / "site"
    site.mkdir()
    found = {}
    for kind, name in NAMES.items():
        found[kind] = folder / kind
        assert run(["init", "--plugin", name, "--kind", kind, "--out", str(found[kind])]) == 0
        install(found[kind], site)
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    registry.refresh()
    yield found
    sys.path.remove(str(site))
    for module in [name for name in sys.modules if name.startswith("metricli_new_")]:
        del sys.modules[module]
    importlib.invalidate_caches()
    registry.refresh()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_new_package_passes_its_own_tests(kind, packages, tmp_path):
    """Among them check_plugin, and a value that was computed by hand."""
    (path,) = (packages[kind] / "tests").iterdir()
    tests = {name: test for name, test in runpy.run_path(str(path)).items() if name.startswith("test_")}
    assert len(tests) == 2
    assert f'check_plugin("{kind}", "{NAMES[kind]}")' in path.read_text()
    for test in tests.values():
        test(*([tmp_path] if "tmp_path" in inspect.signature(test).parameters else []))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_new_plugin_is_shown(kind, packages, cli):
    done = cli("plugins", kind, NAMES[kind])
    assert (done.code, done.err) == (0, "")
    package = f"metricli-new-{KINDS[kind].singular}"
    assert done.out.splitlines()[0] == f"{kind} {NAMES[kind]} ({package} 0.1.0): ok"


def test_a_run_uses_new_plugins_together(packages, cli, tiny, tmp_path):
    """The lines of their READMEs, in one spec that trains."""
    for kind in ("extractors", "samplers", "optimizers", "schedulers", "loggers"):
        tiny |= usage(packages[kind])
    tiny["loss"] = usage(packages["losses"])["loss"]
    tiny["sampler"]["n_labels"] = 6
    tiny["transforms"]["eval"] = usage(packages["transforms"])["transforms"]["eval"] | {"size": [32, 32]}
    tiny["validation"] |= usage(packages["postprocessors"])["validation"]
    tiny["training"]["epochs"] = 1
    tiny["scheduler"].pop("warmup_epochs", None)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(tiny))
    done = cli("train", "spec.yaml", "--run-dir", "run")
    assert done.code == 0, done.err
    assert "the mean that was taken away has the length" in done.err
    assert " train/loss " in (tmp_path / "run/new_logger.txt").read_text()
    tiny |= {"loss": {"name": "triplet", "miner": usage(packages["miners"])["loss"]["miner"]}}
    (tmp_path / "miner.yaml").write_text(yaml.safe_dump(tiny))
    assert cli("train", "miner.yaml", "--dry-run").code == 0


def usage(package):
    """The line of a spec in a README."""
    block = (package / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    return yaml.safe_load(block)


def test_a_new_package_lies_in_a_folder_by_its_name(cli, tmp_path):
    done = cli("init", "--plugin", "my_loss")
    assert (done.code, done.err) == (0, "")
    next_words = "pip install -e ./metricli-my-loss && metricli plugins losses my_loss"
    assert done.out == f"wrote metricli-my-loss; next: {next_words}\n"
    assert list(listing(tmp_path)) == [
        "metricli-my-loss",
        "metricli-my-loss/README.md",
        "metricli-my-loss/metricli_my_loss",
        "metricli-my-loss/metricli_my_loss/__init__.py",
        "metricli-my-loss/metricli_my_loss/components.py",
        "metricli-my-loss/metricli_my_loss/plugins.py",
        "metricli-my-loss/metricli_my_loss/py.typed",
        "metricli-my-loss/pyproject.toml",
        "metricli-my-loss/tests",
        "metricli-my-loss/tests/test_my_loss.py",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--plugin", "My-Loss"],
            "'My-Loss' cannot be the name of a plugin; expected up to 60 small letters",
        ),
        (
            ["--plugin", "../evil"],
            "'../evil' cannot be the name of a plugin; expected up to 60 small letters",
        ),
        (
            ["--plugin", "x" * 61],
            f"'{'x' * 61}' cannot be the name of a plugin; expected up to 60 small letters",
        ),
        (["--plugin", "class"], "'class' cannot be the name of a plugin; expected up to 60 small letters"),
        (["--plugin", "none"], "'none' would make a class None, a name that is taken; give another name"),
        (["--plugin", "field"], "'field' would make a class Field, a name that is taken; give another name"),
        (["--plugin", "triplet"], "a loss named 'triplet' is installed already; give another name"),
        (["--plugin", "a", "--kind", "loses"], "no kind of plugin named 'loses', did you mean 'losses'?"),
        (["--kind", "losses"], "--kind needs --plugin NAME; metricli init --plugin my_loss --kind losses"),
        (["t.csv", "--plugin", "a"], "--plugin takes --kind and --out alone; metricli init --plugin my_loss"),
        (["--plugin", "a", "--out", "no/where"], "--out 'no/where': the folder 'no' does not exist"),
        ([], "no TABLE or FOLDER is given; metricli init products.csv --out spec.yaml"),
    ],
)
def test_what_is_refused(refused, words, message):
    done = refused("init", *words)
    assert done.code == 2
    assert error_of(done).startswith(message)


def test_a_folder_that_is_there_is_left_alone(refused, tmp_path):
    (tmp_path / "metricli-mine").mkdir()
    assert (
        error_of(refused("init", "--plugin", "mine")) == "'metricli-mine' exists already; give another --out"
    )
