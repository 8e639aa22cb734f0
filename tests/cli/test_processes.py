"""What only a process of its own shows: pipes, imports, packages, scripts."""

import os
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.cli.conftest import FIGURES, ROOT, process

LIGHT = """
import contextlib, io, os, sys
from metricli.cli.launch import run

table, spec = sys.argv[1:]
heavy = ("torch", "torchvision", "timm", "accelerate")
commands = [
    (["--help"], 0),
    (["--version"], 0),
    (["train", "--help"], 0),
    (["train", spec, "loss.margn=1"], 2),
    (["train", spec, "loss.margn=1", "--gpus", "2"], 2),
    (["train", "missing.yaml"], 2),
    (["train", spec, "--dry-run", "loss.margn=1"], 2),
    (["validate", spec, "loss.margn=1", "validation.metrics.cm=[1]"], 2),
    (["validate", "--fail-under", "x"], 2),
    (["schema"], 0),
    (["schema", "predict"], 0),
    (["plugins"], 0),
    (["plugins", "extractors", "timm"], 0),
    (["inspect-dataset", table], 0),
    (["inspect-dataset", table, "--deep", "--json"], 0),
    (["inspect-dataset", spec], 0),
    (["init", table], 0),
    (["init", "--plugin", "mine", "--kind", "miners"], 0),
    (["convert", "sop", ".", "--out", "t.csv"], 3),
    (["env"], 0),
    (["predict", "--shard", "0/8", "--out", "f.npy"], 2),
    (["merge", "missing.npy", "--out", "f.npy"], 3),
]
for words, expected in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = run(words)
    loaded = [name for name in heavy if name in sys.modules]
    assert (code, loaded) == (expected, []), (words, code, loaded, said.getvalue())
os.environ["_METRICLI_COMPLETE"] = "complete_bash"
os.environ |= {"COMP_WORDS": "metricli tr", "COMP_CWORD": "1"}
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    run([])
assert said.getvalue().split() == ["train"], said.getvalue()
assert not [name for name in heavy if name in sys.modules]
print("light")
"""


def test_light_commands_import_no_torch(spec, tmp_path):
    command = [sys.executable, "-c", LIGHT, FIGURES, spec]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("light\n", "")


def test_a_reader_that_goes_away_is_no_failure_of_ours(tmp_path):
    """As in `metricli schema | head -1`."""
    running = process("schema", cwd=tmp_path)
    assert running.stdout.readline() == "{\n"
    running.stdout.close()
    assert running.stderr.read() == ""
    running.stderr.close()
    assert running.wait(30) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_a_full_disk_under_stdout(tmp_path):
    with open("/dev/full", "w") as full:
        running = process("--version", cwd=tmp_path, stdout=full)
        _, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (
        7,
        "error: cannot write the output: No space left on device; free some space\n",
    )


@pytest.fixture
def site(tmp_path):
    """A folder with the example package as `pip install --target` leaves it (pip itself takes seconds)."""
    source, folder = ROOT / "examples/plugin", tmp_path / "site"
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    for package in project_packages(source):
        shutil.copytree(source / package, folder / package)
    info = folder / f"metricli_example_plugin-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    groups = project["entry-points"].items()
    lines = [
        line for group, doors in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in doors.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def project_packages(source):
    """The packages that its pyproject.toml installs."""
    return tomllib.loads((source / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


def test_a_third_party_plugin_is_used_by_its_name(tiny, tmp_path, site):
    """The example package, installed into a folder of its own, trains through the real command."""
    tiny["optimizer"] = {"name": "lion", "lr": 1e-4, "betas": [0.8, 0.95]}
    tiny["loss"] = {"name": "heated_softmax", "temperature": 0.1}
    tiny["training"]["epochs"] = 1
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(tiny))
    there = {"env": {"PYTHONPATH": str(site)}, "cwd": tmp_path}
    training = process("train", "spec.yaml", "--run-dir", "run", **there)

    out, err = process("plugins", "optimizers", **there).communicate(timeout=60)
    line = next(line for line in out.splitlines() if "lion" in line)
    assert line.split()[:3] == ["lion", "metricli-example-plugin", "0.1.0"], err

    out, err = training.communicate(timeout=120)
    assert training.returncode == 0, err
    assert "error" not in err
    assert "best epoch  1 of 1" in out
    resolved = yaml.safe_load((tmp_path / "run/spec.resolved.yaml").read_text())
    assert resolved["optimizer"] | {"name": "lion", "betas": [0.8, 0.95]} == resolved["optimizer"]
    assert resolved["loss"]["temperature"] == 0.1


def test_without_the_plugin_its_checkpoint_still_serves(cli, refused, tiny, tmp_path):
    """Its spec is refused by name; inference resolves no loss or optimizer (see test_sources)."""
    tiny["optimizer"] = "lion"
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(tiny))
    done = refused("train", "spec.yaml")
    assert done.code == 2
    assert "no optimizer named 'lion'" in done.err
    assert cli("validate", "spec.yaml").code == 0


def test_the_ci_script(spec, tmp_path):
    """`examples/ci.sh`: the literal commands of a project's CI, from the table to the features."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "GATE": "cmc@1=0.05", "METRICLI_DEVICE": "cpu"}
    command = ["bash", ROOT / "examples/ci.sh", spec, "work"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    assert {path.name for path in work.iterdir()} == {
        "runs",
        "best.ckpt",
        "metrics.json",
        "per_query.parquet",
        "pictures.json",
        "report.html",
        "feats.npy",
        "feats.json",
        "feats.index.csv",
    }
    assert "no findings" in done.stdout
    assert "90 queries (0 without match)" in done.stdout
    assert "204 rows of 16 float32 in feats.npy" in done.stdout
    assert "no --ckpt given: taking the newest run's, " in done.stderr
    both = done.stdout + done.stderr
    assert "\x1b" not in both
    assert "\r" not in both
    assert max(map(len, both.splitlines())) <= 200 + len(str(tmp_path))


def test_the_ci_script_stops_at_the_first_failure(spec, tmp_path):
    """A table with an error ends it with code 3, before anything is trained."""
    (tmp_path / "bad.csv").write_text("label,path,split,is_query,is_gallery\na,gone.png,train,,\n")
    (tmp_path / spec).write_text(
        "data: {table: bad.csv}\nextractor: {name: timm, model: x}\n"
        "loss: triplet\n"
        "training: {batch_size: 4}\n"
    )
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    command = ["bash", ROOT / "examples/ci.sh", spec, "work"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert not list((tmp_path / "work").iterdir())
