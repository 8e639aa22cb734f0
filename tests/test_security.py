"""The promises of SECURITY.md, one test each; `promise` ties them together."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricli.errors import CheckpointError, MetricliError, SpecError
from tests.cli.conftest import unbroken
from tests.conftest import FIGURES, ROOT
from tests.forging import forged, raw_file
from tests.report.pages import Page

PAGE = (ROOT / "SECURITY.md").read_text()
SOURCES = sorted((ROOT / "metricli").rglob("*.py"))
KEPT: dict[str, str] = {}
"""Promise -> the test that holds it."""

_heard: list[tuple[str, tuple[Any, ...]]] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _heard is not None:
        _heard.append((event, args))


sys.addaudithook(_hook)  # there is no way to remove it; it is silent outside of `heard`


@contextmanager
def heard() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """What Python itself reports of imports, files, processes and connections within."""
    global _heard
    _heard = events = []
    try:
        yield events
    finally:
        _heard = None


def named(events: list[tuple[str, tuple[Any, ...]]], *names: str) -> list[tuple[Any, ...]]:
    return [args for event, args in events if event.startswith(names)]


def promise(name: str) -> Callable[[Any], Any]:
    def note(test: Any) -> Any:
        KEPT[name] = test.__name__
        return test

    return note


PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def written(events: list[tuple[str, tuple[Any, ...]]]) -> set[str]:
    """Files that were opened for writing, or made by another name."""
    found = set()
    for path, mode, flags in named(events, "open"):
        if isinstance(path, (str, bytes, Path)) and (flags or 0) & WRITING:
            name = os.fsdecode(path)
            if not name.endswith(".pyc") and "__pycache__" not in name and name != os.devnull:
                found.add(name)
        del mode
    return found | {os.fsdecode(args[1]) for args in named(events, "os.rename", "os.link")}


class Bomb:
    """What runs `os.mkdir` when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_each_promise_has_its_test() -> None:
    promised = re.findall(r"^- \*\*(P\d+)\*\*", PAGE, re.MULTILINE)
    assert promised == [f"P{i + 1}" for i in range(len(promised))]
    assert sorted(KEPT, key=lambda name: int(name[1:])) == promised
    assert len(set(KEPT.values())) == len(promised)


def bombs(place: Path, folder: Path) -> dict[str, Path]:
    """A pickle that makes a folder, as every file that a command may be given."""
    files = {name: folder / name for name in ("a.ckpt", "b.ckpt", "w.pth", "w.pt", "w.safetensors", "f.npy")}
    files |= {name: folder / name for name in ("f.parquet", "t.csv", "t.parquet")}
    for path in files.values():
        path.write_bytes(pickle.dumps(Bomb(place)))
    for name in ("b.ckpt", "w.pt"):
        torch.save({"state_dict": {"a": torch.ones(2)}, "hyper_parameters": Bomb(place)}, files[name])
    return files


@promise("P1")
def test_nothing_is_unpickled(cli: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    from metricli import validate

    place = tmp_path / "exploded"
    files = bombs(place, tmp_path)
    commands = [["validate", "--ckpt", files[name]] for name in ("a.ckpt", "b.ckpt")]
    commands += [["validate", "--features", files[n], "--data", FIGURES] for n in ("f.npy", "f.parquet")]
    commands += [["inspect-dataset", files[name]] for name in ("t.csv", "t.parquet")]
    with heard() as events:
        for words in commands:
            done = cli(*words)
            assert done.code in (2, 3, 5), (words, done.err)
        for name in ("a.ckpt", "b.ckpt", "w.pth", "w.pt", "w.safetensors"):
            extractor = tiny["extractor"] | {"weights": str(files[name])}
            with pytest.raises(CheckpointError) as caught:
                validate(tiny | {"extractor": extractor})
            assert "\n" not in str(caught.value)
    assert not place.exists()
    assert str(place) not in {str(args[0]) for args in named(events, "os.mkdir")}
    assert named(events, "pickle.find_class") == []
    told = "more than tensors, refused: it asks for posix.mkdir; save the state_dict"
    assert told in refusal(files["w.pt"])


def refusal(path: Path) -> str:
    from metricli.components.weights import read_weights

    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    return str(caught.value)


@promise("P2")
def test_published_weights_are_read_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    from metricli.components.extractors import timm_extractor, torchvision_extractor

    place = tmp_path / "exploded"
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": Bomb(place)}, path)

    def fetch(*_args: Any, **_kwargs: Any) -> Any:
        return torch.load(path, weights_only=False)  # a library that is careless

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    for build, model in ((torchvision_extractor, "shufflenet_v2_x0_5"), (timm_extractor, "test_resnet")):
        with pytest.raises(MetricliError, match="cannot load the published weights"):
            build(model, pretrained=True)
        assert not place.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    fetch()
    assert place.exists(), "the file would have run"


@promise("P3")
def test_any_bytes_are_read_or_refused(cli: Any, trained: Any, tmp_path: Path) -> None:
    import random

    good = trained.best_ckpt.read_bytes()
    head = 8 + int.from_bytes(good[:8], "little")
    chance = random.Random(0)
    path = tmp_path / "a.ckpt"
    for _ in range(60):  # more in tests/components/test_tensorfile.py
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(head)] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
        assert_refused(path)
    path.unlink()
    os.mkfifo(path)  # nobody writes into it: reading would wait for ever
    done = cli("validate", "--ckpt", path)
    assert (done.code, done.err) == (5, f"error: the checkpoint '{path}' is no regular file\n")


def assert_refused(path: Path) -> None:
    from metricli.components.tensorfile import read_tensor_file

    with pytest.raises(CheckpointError) as caught:
        read_tensor_file(path)
    assert "\n" not in str(caught.value)


@promise("P4")
def test_the_content_is_checked_whatever_the_digest(cli: Any, trained: Any, tmp_path: Path) -> None:
    meta = json.dumps({"kind": "best", "spec": [], "base": "/"})
    path = raw_file(tmp_path / "a.ckpt", meta=meta)
    done = cli("validate", "--ckpt", "a.ckpt")
    what = "spec: input should be a valid dictionary, got []; take another copy, from whom you trust"
    assert done.code == 5
    assert done.err == f"error: 'a.ckpt' is damaged or was not written by metricli: {what}\n"
    for key in ("spec", "base", "extractor", "eval_transform", "labels", "metrics", "epoch"):
        forged(trained.best_ckpt, path, lambda meta, _, key=key: meta.pop(key))
        done = cli("validate", "--ckpt", "a.ckpt")
        assert done.code == 5
        assert f"not written by metricli: {key}: required, but missing" in done.err


@promise("P5")
def test_a_name_leads_to_an_entry_point_only(cli: Any, trained: Any, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(tmp_path))
    try:
        with heard() as events:
            for name in ("evil", "evil:Bomb", "evil.Bomb", "os.system", "tests.forging:forged", "../evil"):
                path = forged(
                    trained.best_ckpt,
                    tmp_path / "a.ckpt",
                    lambda meta, _, name=name: meta.update(extractor={"name": name}),
                )
                done = cli("validate", "--ckpt", path)
                assert done.code == 2
                assert f"no extractor named {name!r}" in done.err
    finally:
        sys.path.remove(str(tmp_path))
    assert not {args[0] for args in named(events, "import")} & {"evil", "tests.forging"}
    assert "evil" not in sys.modules


def hostile_sources(secret: Path) -> dict[str, Any]:
    """Every way by which an extractor's block says where weights are."""
    args = {"checkpoint_path": str(secret), "pretrained_cfg_overlay": {"file": str(secret)}}
    return {"weights": str(secret), "pretrained": False, "model_args": args}


@promise("P6")
def test_a_checkpoint_reaches_no_network_and_no_other_weights(cli: Any, trained: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.pth"
    torch.save({"a": torch.ones(2)}, secret)
    elsewhere: list[dict[str, Any]] = [
        hostile_sources(secret),
        {"pretrained": True, "weights": None},
        {"pretrained": True, "model": "test_resnet.r160_in1k"},
        {"model": "hf_hub:me/mine"},
        {"model": "hf-hub:me/mine", "pretrained": True},
        {"model": f"local-dir:{tmp_path}"},
    ]
    verbs: list[list[Any]] = [["validate"], ["predict", "--out", "f.npy"]]
    codes = []
    with heard() as events:
        for i, block in enumerate(elsewhere):
            path = forged(
                trained.best_ckpt,
                tmp_path / "a.ckpt",
                lambda meta, _, block=block: meta["extractor"].update(block),
            )
            codes.append(cli(*verbs[i % 2], "--ckpt", path).code)
        open_transform = {"name": "timm", "model": "hf_hub:me/mine"}
        forged(trained.best_ckpt, path, lambda meta, _: meta.update(eval_transform=open_transform))
        codes.append(cli("validate", "--ckpt", path).code)
        codes.append(cli("validate", "--ckpt", trained.best_ckpt, "extractor.model=hf_hub:me/mine").code)
    assert codes == [0, 0, 0, 5, 5, 5, 5, 5]
    assert named(events, *NETWORK) == []
    opened = {os.fsdecode(args[0]) for args in named(events, "open") if isinstance(args[0], (str, bytes))}
    assert str(path) in opened
    assert str(secret) not in opened


@promise("P7")
def test_an_extractor_is_as_large_as_its_weights(cli: Any, trained: Any, tmp_path: Path) -> None:
    import resource

    blocks: list[dict[str, Any]] = [
        {"dim": 10**11},
        {"dim": 10**30},
        {"dim": 15},
        {"model": "vit_giant_patch14_224"},
        {"model": "vit_tiny_patch16_224", "model_args": {"depth": 10**9}},
        {"model": "vit_tiny_patch16_224", "model_args": {"img_size": 10**6}},
        {"model": "vit_tiny_patch16_224", "model_args": {"embed_dim": 3 * 10**8}},
        {"model": "test_resnet", "model_args": {"features_only": True}},
    ]
    cli("validate", "--ckpt", trained.best_ckpt)  # what every run needs is there
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for block in blocks:
        path = forged(
            trained.best_ckpt,
            tmp_path / "a.ckpt",
            lambda meta, _, block=block: meta["extractor"].update(block),
        )
        done = cli("validate", "--ckpt", path)
        assert done.code == 5, (block, done.err)
        assert len(unbroken(done.err).strip().splitlines()) == 1, done.err
        assert "the weights of" in done.err or "cannot be built" in done.err
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, f"{grown} KiB more"


@promise("P8")
def test_no_other_program_is_started(cli: Any, trained: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(tiny))  # JSON is YAML
    words = ["--ckpt", trained.best_ckpt]
    with heard() as events:
        for command in (
            ["train", "tiny.yaml", "--dry-run"],
            ["validate", *words],
            ["predict", *words, "--out", "f.npy"],
            ["inspect-dataset", FIGURES, "--deep"],
            ["plugins"],
        ):
            assert cli(*command).code == 0, command
    assert named(events, *PROCESSES) == []
    assert named(events, *NETWORK) == []


@promise("P9")
def test_only_what_is_named_is_written(cli: Any, trained: Any, tmp_path: Path) -> None:
    run = {str(path): path.stat().st_mtime_ns for path in trained.run_dir.rglob("*")}
    with heard() as events:
        assert cli("predict", "--ckpt", trained.best_ckpt, "--out", "feats.npy").code == 0
        assert cli("validate", "--ckpt", trained.best_ckpt, "--out", "judged").code == 0
    paths = {Path(os.path.abspath(name)) for name in written(events)}
    assert tmp_path / "feats.npy" in paths
    ours = tuple(str(tmp_path / name) for name in ("feats.", ".feats.", "judged", ".judged"))
    strangers = {str(path) for path in paths if not str(path).startswith(ours) and not path.is_dir()}
    assert strangers == set()
    top = {path.name for path in tmp_path.iterdir()}
    assert top == {"feats.npy", "feats.json", "feats.index.csv", "judged"}
    assert {str(path): path.stat().st_mtime_ns for path in trained.run_dir.rglob("*")} == run


@promise("P10")
def test_a_spec_is_plain_data(tmp_path: Path) -> None:
    from metricli.specs.load import load_spec
    from metricli.specs.train import TrainSpec

    place = tmp_path / "exploded"
    bombs = [
        f"name: !!python/object/apply:os.mkdir ['{place}']",
        f"name: !!python/object/new:os.mkdir ['{place}']",
        "name: !!python/name:os.system",
        "a: &a [x, x]\n" + "\n".join(f"b{i}: &b{i} [*a, *a]" for i in range(2000)),
        "a: " + "[" * 2000,
        "name: " + "x" * 20_000_000,
    ]
    for text in bombs:
        (tmp_path / "spec.yaml").write_text(text)
        with heard() as events, pytest.raises(SpecError) as caught:
            load_spec(tmp_path / "spec.yaml", TrainSpec)
        assert caught.value.exit_code == 2
        assert len(str(caught.value)) < 20_000
        assert named(events, "os.mkdir", *PROCESSES) == []
    assert not place.exists()


UNSAFE = {"eval", "exec", "compile", "__import__"}
LISTED = {
    "components/loading.py": {"pickle.dumps"},  # whether a transform can travel to a worker
    "components/weights.py": {"torch.load"},  # weights_only
    "components/postprocessors/program.py": {"torch.jit.load"},  # TorchScript
    # the last word of our own process, in a private folder, and the shell that removes that folder
    "runs/wire.py": {"pickle.dumps", "pickle.loads", "subprocess.Popen"},
    "testing.py": {"subprocess.run"},  # a fresh Python that imports the plugin under test
}


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@promise("P11")
def test_no_text_becomes_code_in_the_package() -> None:
    risky = re.compile(
        r"(pickle|dill|joblib|marshal|shelve|cloudpickle)\.|torch\.(load|save|jit\.load|hub\.|package|export\.load)"
        r"|yaml\.(load|full_load|unsafe_load|load_all)$|subprocess\.|os\.(system|exec|popen|spawn|fork)"
        r"|(pd|pandas)\.read_(pickle|hdf)|np\.load$|numpy\.load$|runpy\.|(code|codeop)\.|ctypes\.PyDLL"
    )
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        name = str(path.relative_to(ROOT / "metricli"))
        for called, node in calls_of(ast.parse(path.read_text())):
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert called not in UNSAFE, (name, called)
            if called == "torch.load":
                assert options.get("weights_only") == "True", name
            if called.endswith("np.load"):
                assert options.get("allow_pickle") == "False", name
                continue
            if risky.match(called):
                found.setdefault(name, set()).add(called)
    assert found == LISTED


class Writing(nn.Module):
    """A program that writes what it is given."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        torch.save(a, "stolen")
        return (a - b).abs().sum(1)


@promise("P12")
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_program_that_writes_is_refused(cli: Any, trained: Any, tmp_path: Path) -> None:
    torch.jit.script(Writing()).save(str(tmp_path / "p.pt"))
    block = {"name": "pairwise", "program": str(tmp_path / "p.pt"), "top_n": 5, "inputs": "embeddings"}

    def change(meta: dict[str, Any], _: Any) -> None:
        meta["spec"]["validation"] = meta["spec"]["validation"] | {"postprocessors": [block]}

    forged(trained.best_ckpt, tmp_path / "a.ckpt", change)
    done = cli("validate", "--ckpt", "a.ckpt")
    assert done.code == 2
    assert "reads or writes files" in done.err
    assert not (tmp_path / "stolen").exists()


@promise("P13")
def test_a_run_keeps_no_secret(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from metricli.runs.directory import environment

    monkeypatch.setenv("HF_TOKEN", "s3cret-token")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    told = environment()
    assert "s3cret-token" not in json.dumps(told)
    assert told["variables"]["OMP_NUM_THREADS"] == "3"
    five = {"CUDA_VISIBLE_DEVICES", "METRICLI_DEVICE", "OMP_NUM_THREADS", "WORLD_SIZE", "SLURM_JOB_ID"}
    assert set(told["variables"]) <= five
    saved = json.loads((trained.run_dir / "env.json").read_text())
    assert set(saved) == {"python", "platform", "cores", "packages", "variables"}
    assert set(saved["variables"]) <= five


@promise("P14")
def test_words_in_a_page_are_text(cli: Any, tmp_path: Path) -> None:
    """A label of each kind, in a page of a table; tests/report has what a browser makes of pages of runs."""
    words = ["</script><script>alert(1)</script>", "<img src=http://x onerror=alert(2)>", "{{ 7 * 7 }}"]
    table = tmp_path / "df.csv"
    rows = [f'"{word}",{FIGURES.parent}/images/arc_plain_8.png,train,,' for word in words]
    table.write_text("\n".join(["label,path,split,is_query,is_gallery", *rows]) + "\n")
    done = cli("inspect-dataset", table, "--root", FIGURES.parent, "--html", "page.html")
    html = (tmp_path / "page.html").read_text()
    assert done.code == 0, done.err
    page = Page(html)
    assert all(word in page.text for word in words)
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert [kind.get("type", "") for kind, _ in page.scripts].count("") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "style")]
    (policy,) = (value for _, name, value in page.attributes if name == "content" and "-src" in value)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
