"""`validate` on several processes: the same numbers, files and words as on one."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from metricli import predict, validate
from metricli.errors import DataError, MetricliError, ResourceError
from metricli.runs.context import Context
from metricli.runs.embed import RowLoader
from metricli.runs.embedding import placed
from metricli.runs.processes import World, joined
from metricli.runs.shared_rows import Host, complete, selected, share, shared_matrix
from tests.conftest import FIGURES
from tests.runs.conftest import Listener
from tests.worlds import Worlds

pytestmark = pytest.mark.xdist_group("worlds")

ALL = (
    "validation.metrics={cmc: [1, 5], precision: [3], map: [5], map_r: true, mrr: true, minp: true, "
    "fnmr: [0.05], tar: [0.05], eer: true, roc_auc: true, pcf: [0.5], alignment: true, uniformity: true, "
    "hubness: [3]}"
)
FEW = "validation.bootstrap.samples=100"
CSV = "validation.per_query=csv"


class Watcher(Listener):
    """Also counts what is done."""

    def __init__(self) -> None:
        super().__init__()
        self.done: dict[str, int] = {}
        self.now = ""

    def begin(self, name: str, total: int | None, unit: str) -> None:
        self.now = name
        self.done.setdefault(name, 0)

    def advance(self, amount: int, values: Any = None) -> None:
        self.done[self.now] += amount


def judged(cases: dict[str, dict[str, Any]], out: Path, locals_: list[int] | None = None) -> Any:
    """Each case judged by this process, the main one of which saves it; by `locals_` on pretended hosts."""
    if locals_ is not None:
        os.environ["LOCAL_RANK"] = str(locals_[int(os.environ["RANK"])])
        os.environ["LOCAL_WORLD_SIZE"] = str(max(locals_) + 1)
    found = {}
    (out / "tmp").mkdir(exist_ok=True)
    tempfile.tempdir = str(out / "tmp")
    with joined("cpu"):  # once for all of them
        for name, words in cases.items():
            watcher = Watcher()
            report = validate(device="cpu", reporter=watcher, **words)
            if os.environ.get("RANK", "0") == "0":
                report.save(out / name)
            document = report.to_dict()
            del document["seconds"]
            found[name] = document, watcher.said, watcher.warned, watcher.done
    tempfile.tempdir = None
    return found


def table_of(path: Path, change: Callable[[int, dict[str, str]], dict[str, str]]) -> str:
    """The table of figures with its validation rows changed, by their number."""
    with FIGURES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    judged_rows = [row for row in rows if row["split"] == "validation"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows([change(i, row) for i, row in enumerate(judged_rows)])
    return str(path)


@pytest.fixture(scope="module")
def cases(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Validations by name, as keywords of `validate`."""
    folder = tmp_path_factory.mktemp("cases")
    shutil.copytree(FIGURES.parent / "images", folder / "images")
    both = {"is_query": "True", "is_gallery": "True"}
    itself = table_of(folder / "itself.csv", lambda i, row: row | both)
    ways = {True: "True", False: "False"}
    apart = table_of(
        folder / "apart.csv",
        lambda i, row: row | {"is_query": ways[i % 3 == 0], "is_gallery": ways[i % 3 != 0]},
    )
    torn = table_of(folder / "torn.csv", lambda i, row: row | both)
    with FIGURES.open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file) if row["split"] == "validation"]
    for path in (paths[3], paths[40], paths[41]):
        shutil.copy(folder / path, folder / f"{path}.whole")
        (folder / path).write_bytes(b"torn")
    root = str(FIGURES.parent)
    ckpt = {"ckpt": str(trained.best_ckpt)}
    features = str(folder / "features.npy")
    predict(ckpt=trained.best_ckpt, data=itself, root=root, out=features, split="validation")
    noisy = np.load(features).astype(np.float64)
    noisy += 0.2 * np.random.default_rng(0).normal(size=noisy.shape)
    np.save(folder / "noisy.npy", noisy)
    rerank = ["validation.postprocessors=[k_reciprocal]"]
    expand = ["validation.postprocessors=[query_expansion]"]
    other_gallery = f"validation.gallery_features={folder / 'noisy.npy'}"
    return {
        "mixed": {**ckpt, "overrides": [FEW, CSV, ALL]},
        "itself": {**ckpt, "data": itself, "root": root, "overrides": [FEW, CSV, ALL]},
        "apart": {**ckpt, "data": apart, "root": root, "overrides": [FEW, CSV, "validation.unmatched=zero"]},
        "within": {**ckpt, "overrides": [FEW, CSV, ALL, "validation.search_within=category"]},
        "torn": {**ckpt, "data": torn, "overrides": [FEW, CSV, "data.on_bad_image=skip"]},
        "reranked": {**ckpt, "overrides": [FEW, CSV, *rerank]},
        "expanded": {**ckpt, "overrides": [FEW, CSV, ALL, *expand]},
        "features": {"features": features, "data": apart, "root": root, "overrides": [FEW, CSV, ALL]},
        "gallery": {
            "features": features,
            "data": itself,
            "root": root,
            "overrides": [FEW, CSV, other_gallery],
        },
        "against features": {
            **ckpt,
            "data": itself,
            "root": root,
            "against": str(folder / "noisy.npy"),
            "overrides": [FEW, CSV, ALL],
        },
        "against itself": {**ckpt, "against": str(trained.best_ckpt), "overrides": [FEW, CSV]},
    }


@pytest.fixture(scope="module")
def alone(cases: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """What one process finds, and the folder where it is saved."""
    out = tmp_path_factory.mktemp("alone")
    return judged(cases, out), out


def assert_alike(ours: Any, theirs: Any, where: str) -> None:
    """The same to 1e-6 in every number, and to the letter otherwise."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            assert_alike(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(*pair, f"{where}.{i}")
    elif isinstance(ours, float):
        assert math.isclose(ours, theirs, abs_tol=1e-6), f"{where}: {ours} and {theirs}"
    else:
        assert ours == theirs, where


def saved(folder: Path) -> Any:
    """The lines of per_query.csv with their numbers, and metrics.json."""

    def read(text: str) -> float | str:
        try:
            return float(text)
        except ValueError:
            return text

    with (folder / "per_query.csv").open(newline="") as file:
        lines = [{key: read(value) for key, value in row.items()} for row in csv.DictReader(file)]
    document = json.loads((folder / "metrics.json").read_text())
    del document["seconds"]
    return {"lines": lines, "document": document}


@pytest.mark.parametrize(("size", "locals_"), [(2, None), (3, None), (3, [0, 1, 0])])
def test_validate_finds_the_same(
    worlds: Worlds, cases: Any, alone: Any, tmp_path: Path, size: int, locals_: list[int] | None
) -> None:
    expected, out = alone
    told = worlds.run(size, judged, cases, tmp_path, locals_)
    for name, (document, said, warned, done) in expected.items():
        for rank, found in enumerate(told):
            theirs = found[name]
            assert_alike(theirs[0], document, f"{name} in rank {rank}")
            if rank:
                assert (theirs[1], theirs[2], theirs[3]) == ([], [], {}), "only the main process speaks"
        waiting = [
            line for line in told[0][name][1] if line.endswith("one process searches, and the others wait")
        ]
        assert len(waiting) == (name in ("reranked", "expanded"))
        assert [line for line in told[0][name][1] if line not in waiting] == said
        assert told[0][name][2] == warned
        if not waiting and "embed" in done:
            assert (
                told[0][name][3][f"embed (1 of {size} processes)"] <= math.ceil(done["embed"] / size) + 1
            ), "its share alone"
            assert told[0][name][3]["search"] <= math.ceil(done["search"] / size) + 1
        assert_alike(saved(tmp_path / name), saved(out / name), name)
    skipped = told[0]["torn"][0]["skipped"]
    assert len(skipped) == 3
    assert sum(f"{len(skipped)} of 96 images" in line for line in told[0]["torn"][2]) == 1
    assert not list((tmp_path / "tmp").iterdir()), "nothing is left of what they shared"


def torn_on(rank: int, words: dict[str, Any]) -> str:
    """What ends the validation of a process, which leaves the others then."""
    try:
        with joined("cpu"):
            validate(device="cpu", **words)
    except DataError as error:
        dist.destroy_process_group()
        return str(error)
    except RuntimeError as error:
        dist.destroy_process_group()
        return f"left alone: {type(error).__name__}"
    return "went on"


def test_a_bad_image_ends_all(worlds: Worlds, cases: Any) -> None:
    words = cases["torn"] | {"overrides": [FEW]}
    with pytest.raises(DataError) as caught:
        validate(device="cpu", **words)
    one, other = sorted(worlds.run(2, torn_on, 1, words, timeout=60))
    assert one.startswith("cannot read image")
    assert other.startswith(("left alone", "cannot read image"))
    assert str(caught.value) in (one, other) or "left alone" in other


@pytest.mark.parametrize(
    ("rows", "said"), [(range(1, 96), "0 times"), ([*range(96), 0], "2 times")], ids=["lost", "doubled"]
)
def test_every_row_is_embedded_once(
    cases: Any, monkeypatch: pytest.MonkeyPatch, rows: Any, said: str
) -> None:
    def loader(context: Any, dataset: Any, validation: Any) -> RowLoader:
        return RowLoader(context, dataset, batch_size=32, num_workers=0, rows=rows)

    monkeypatch.setattr("metricli.runs.validate.row_loader", loader)
    with pytest.raises(MetricliError) as caught:
        validate(device="cpu", **cases["itself"])
    assert str(caught.value).startswith("1 rows were not embedded once, the first, 'images/")
    assert str(caught.value).endswith(said)
    assert caught.value.exit_code == 1


def halves(first: str, second: str) -> str:
    """Two processes that are given two tables."""
    with joined("cpu") as world, pytest.raises(DataError) as caught:
        validate(features=[first, second][world.rank], data=[first, second][world.rank] + ".csv")
    return str(caught.value)


def test_other_files_on_other_hosts_are_refused(worlds: Worlds, tmp_path: Path) -> None:
    for name, count in (("a", 8), ("b", 6)):
        lines = ["label,path,split,is_query,is_gallery"]
        lines += [f"{i % 2},{i}.png,validation,1,1" for i in range(count)]
        (tmp_path / f"{name}.npy.csv").write_text("\n".join(lines) + "\n")
        np.save(tmp_path / f"{name}.npy", np.eye(count, 4, dtype=np.float32))
    told = worlds.run(2, halves, str(tmp_path / "a.npy"), str(tmp_path / "b.npy"))
    assert told == [
        f"processes {i} and {1 - i} have read another table; give all hosts the same files" for i in (0, 1)
    ]


def numbers(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(count * 3, dtype=dtype).view(count, 3) + 1


def shared(locals_: list[int], count: int, folder: str) -> Any:
    """A matrix that each rank writes its share of, completed, and selected from; and the files in between."""
    import metricli.runs.shared_rows as rooms

    rooms.BLOCK, tempfile.tempdir = 5, folder
    with joined("cpu") as here:
        world = World(here.rank, here.size, locals_[here.rank], max(locals_) + 1)
        host = Host.of(world)
        found: list[Any] = [host.ranks]
        for dtype in (torch.float32, torch.float64):
            matrix = shared_matrix(host, count, 3, dtype)
            world.wait()
            left = len(os.listdir(folder))
            world.wait()
            own = share(world, count)
            matrix[list(own)] = numbers(count, dtype)[list(own)]
            complete(host, matrix)
            some = np.array([i for i in range(count) if i % 3 != 1])
            picked = selected(host, matrix, some, torch.float64)
            run = selected(host, matrix, np.arange(1, count - 1), dtype)
            viewed = run.data_ptr() == matrix[1].data_ptr()
            found.append((left, viewed, matrix.clone(), picked.clone(), run.clone()))
            world.wait()
    rooms.BLOCK, tempfile.tempdir = 4096, None
    return found


@pytest.mark.parametrize(
    ("locals_", "hosts"),
    [
        ([0, 1, 2], [(0, 1, 2)] * 3),
        ([0, 1, 0], [(0, 1), (0, 1), (2,)]),
        ([0, 0, 0], [(0,), (1,), (2,)]),
    ],
)
@pytest.mark.parametrize("count", [2, 3, 17])
def test_rows_come_together(
    worlds: Worlds, tmp_path: Path, locals_: list[int], hosts: Any, count: int
) -> None:
    for rank, (ranks, *found) in enumerate(worlds.run(3, shared, locals_, count, str(tmp_path))):
        assert ranks == hosts[rank]
        for dtype, (left, viewed, matrix, picked, run) in zip(
            (torch.float32, torch.float64), found, strict=True
        ):
            assert left == 0, "no name is left once all have it open"
            whole = numbers(count, dtype)
            assert torch.equal(matrix, whole)
            assert viewed or count == 2
            assert torch.equal(run, whole[1 : count - 1])
            assert torch.equal(picked, whole[[i for i in range(count) if i % 3 != 1]].double())


def full(folder: str, missing: bool) -> str:
    """A disk without room, or a file that one process cannot open."""
    import metricli.runs.shared_rows as rooms

    def no_room(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    tempfile.tempdir = folder
    before = os.posix_fallocate
    opened = rooms._opened
    with joined("cpu") as world:
        if missing and world.rank == 1:
            rooms._opened = lambda path, size: opened(path + "x", size)
        elif not missing:
            os.posix_fallocate = no_room
        try:
            with pytest.raises(ResourceError) as caught:
                shared_matrix(Host.of(world), 100, 1000, torch.float32)
        finally:
            os.posix_fallocate, rooms._opened, tempfile.tempdir = before, opened, None
    return str(caught.value)


@pytest.mark.parametrize("missing", [False, True])
def test_no_room_is_an_error_everywhere(worlds: Worlds, tmp_path: Path, missing: bool) -> None:
    told = worlds.run(2, full, str(tmp_path), missing)
    assert told[0] == told[1]
    if missing:
        assert told[0].endswith(
            "which the processes of this host share: No such file or directory; "
            "let TMPDIR be the same folder for all of them"
        )
    else:
        assert told[0] == (
            f"'{tmp_path}' has no room for 0 MB of embeddings, which the processes of this host share: "
            "No space left on device; free some space there, or set TMPDIR to another folder"
        )
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_a_gpu_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    context = Context(SimpleNamespace(device=torch.device("cuda")), watcher, "fp32")  # type: ignore[arg-type]
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (300 * 2**20, 2**34))
    matrix = torch.zeros(2**20, 6)
    assert placed(context, matrix) is matrix
    assert watcher.warned == [
        "the embeddings (24 MB, twice) do not fit a GPU (300 MB are free): they are searched on the CPU"
    ]
