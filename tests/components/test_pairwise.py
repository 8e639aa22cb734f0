"""The pairwise re-ranker against a loop and OML's, and the programs that it is read from."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricli.components.postprocessors import ConstantThreshold, PairwiseReranker, load_program
from tests.components.ranked import Far, oml_modules, rankings_of, rows_of


@pytest.fixture(scope="module")
def oml() -> Any:
    return oml_modules()


@pytest.mark.parametrize("batch_size", [1, 7, 500])
@pytest.mark.parametrize("columns", [3, 10])
def test_pairwise_by_a_loop(batch_size, columns):
    given = rankings_of(k=columns)
    module = Far().train()
    module.inner.eval()
    found = PairwiseReranker(module, top_n=6, batch_size=batch_size)(given).result
    before = rankings_of(k=max(columns, 6)).result
    for q, (row, was) in enumerate(zip(found.indices.tolist(), before.indices.tolist(), strict=True)):
        scores = {i: float((given.queries[q, 1] - given.gallery[i, 1]).abs()) for i in was[:6]}
        assert row == sorted(was[:6], key=lambda i: scores[i]) + was[6:]
        if columns == 10:
            top = [scores[i] for i in row[:6]]
            lowered = max(0.0, top[-1] - float(before.distances[q, 6]))
            assert found.distances[q, :6].tolist() == pytest.approx([s - lowered for s in top], abs=1e-6)
    assert bool((found.distances.diff() >= 0).all())
    assert torch.equal(found.distances[:, 6:], before.distances[:, 6:])
    assert sum(call[0] for call in module.calls) == 12 * 6
    assert all(call[0] <= batch_size and call[1:] == (False, False, True) for call in module.calls)
    assert (module.training, module.inner.training) == (True, False)
    assert len({row[0] for row in found.indices.tolist()}) > 1


def test_pairwise_of_equal_scores_changes_nothing():
    given = rankings_of()
    assert torch.equal(PairwiseReranker(Far(0.0), top_n=8)(given).result.indices, given.result.indices)


def test_pairwise_of_short_and_of_empty_rankings():
    given = ConstantThreshold(max_distance=0.15, top_n=10)(rankings_of(k=10))
    found = PairwiseReranker(Far(-1.0), top_n=4)(given).result
    assert found.cut
    assert found.indices.shape == (12, 10)
    assert torch.equal(found.indices < 0, given.result.indices < 0)
    assert [sorted(row) for row in rows_of(found)] == [sorted(row) for row in rows_of(given.result)]
    assert bool((found.distances.isinf() == (found.indices < 0)).all())
    assert len({len(row) for row in rows_of(found)}) > 3
    nothing = ConstantThreshold(max_distance=0.0, top_n=10)(given)
    assert rows_of(PairwiseReranker(Far(), top_n=4)(nothing).result) == [[]] * 12


def test_pairwise_loads_each_image_once_for_a_batch():
    asked: list[Tensor] = []

    def images(rows: Tensor):
        def load(positions: Tensor) -> Tensor:
            asked.append(positions)
            return rows[positions].view(-1, 3, 2, 1)

        return load

    plain = rankings_of()
    plain = plain.moved(queries=plain.queries[:6].repeat(2, 1))
    given = replace(plain, query_images=images(plain.queries), gallery_images=images(plain.gallery))
    by_images = PairwiseReranker(Far(), top_n=5, inputs="images", batch_size=10)(given).result
    by_rows = PairwiseReranker(Far(), top_n=5, batch_size=10)(plain).result
    assert torch.equal(by_images.indices, by_rows.indices)
    assert torch.equal(by_images.distances, by_rows.distances)
    assert len(asked) == 12  # 60 pairs in 6 batches, of two sides
    assert all(len(positions) == len(set(positions.tolist())) for positions in asked)
    assert sum(map(len, asked)) == 6 * (2 + 5)  # two queries of the same five items stand together


def test_pairwise_without_images():
    with pytest.raises(ValueError, match="needs the images, and there are only embeddings here"):
        PairwiseReranker(Far(), top_n=5, inputs="images")(rankings_of())


class Giving(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.value(a, b)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda a, b: a, r"must give distances of shape \(24,\), got \(24, 6\)"),
        (lambda a, b: a[0, 0], r"got \(\)"),
        (lambda a, b: "far", "got str"),
        (lambda a, b: (a == b).sum(1), "must give floating-point distances, got torch.int64"),
        (lambda a, b: (a - b).sum(1) * torch.nan, "not finite"),
    ],
)
def test_pairwise_of_a_module_that_gives_something_else(value, message):
    module = Giving(value).train()
    with pytest.raises(ValueError, match=message):
        PairwiseReranker(module, top_n=2)(rankings_of())
    assert module.training


def test_pairwise_takes_a_column():
    found = PairwiseReranker(Giving(lambda a, b: (a - b).norm(dim=1, keepdim=True).half()), top_n=3)(
        rankings_of()
    )
    assert found.result.indices.shape == (12, 10)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_pairwise_orders_as_oml_s(oml, monkeypatch, sign):
    given = rankings_of(15, 70, 12)
    module = Far(sign).eval()

    def inference(model, base_dataset, pair_ids, **_):
        rows = torch.tensor(pair_ids)
        return module(given.queries[rows[:, 0]], given.gallery[rows[:, 1] - 1000])

    class Dataset:
        def get_query_ids(self):
            return torch.arange(15)

        def get_gallery_ids(self):
            return torch.arange(70) + 1000

    monkeypatch.setattr(oml[1], "pairwise_inference", inference)
    # OML scales negative distances up, past the tail; moved into the positive the order is the same
    theirs = oml[1].PairwiseReranker(5, None, 0, 9)
    ids, _ = theirs._process_raw(list(given.result.indices), list(given.result.distances), Dataset())[::-1]
    ours = PairwiseReranker(module, top_n=5)(given).result
    assert rows_of(ours) == [row.tolist() for row in ids]


class Program(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.weight * (a - b).abs().sum(1)


class Writing(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        torch.save(a, "stolen")
        return (a - b).abs().sum(1)


@pytest.fixture
def written(tmp_path) -> Any:
    def write(module: nn.Module) -> str:
        path = str(tmp_path / "program.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(module).save(path)
        return path

    return write


def test_a_program_is_its_module(written):
    program = load_program(written(Program()))
    given = rankings_of()
    ours = PairwiseReranker(program, top_n=5)(given).result
    theirs = PairwiseReranker(Program(), top_n=5)(given).result
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.distances, theirs.distances)


def test_a_program_that_writes_files_is_refused(written):
    with pytest.raises(ValueError, match=r"reads or writes files \(program/code/__torch__"):
        load_program(written(Writing()))


def test_what_is_no_program_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_program(str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="is a folder"):
        load_program(str(tmp_path))
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(ValueError, match=r"cannot read the program .*text.pt"):
        load_program(str(tmp_path / "text.pt"))
    torch.save({"w": torch.ones(2)}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"holds no TorchScript code; write it with torch\.jit\.save"):
        load_program(str(tmp_path / "state.pt"))
    with zipfile.ZipFile(tmp_path / "half.pt", "w") as archive:
        archive.writestr("half/code/__torch__.py", "class M(Module):\n  pass\n")
    with pytest.raises(ValueError, match=r"cannot read the program .*half.pt"):
        load_program(str(tmp_path / "half.pt"))
