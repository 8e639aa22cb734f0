"""What judging needs is checked and built once, before any image is read; its errors have a name."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from metricli import dry_run, evaluate, train, validate
from metricli.errors import DataError, SpecError
from metricli.specs.validate import ValidationSpec
from tests.runs.conftest import Listener
from tests.specs.fakes import install  # noqa: F401  (a fixture)

CUT = [{"name": "constant_threshold", "max_distance": 0.5}, "k_reciprocal"]
REFUSED = (
    "validation.postprocessors.1: k_reciprocal re-ranks whole rankings, not what 'constant_threshold' has "
    "made of it; put k_reciprocal before constant_threshold"
)
NOWHERE = "nowhere.csv"
HEADER = "label,path,split,is_query,is_gallery"
ASKING = [f"{label},q{label}.jpg,validation,1,0" for label in "abc"]
ASKED = [f"{label},g{label}{i}.jpg,validation,0,1" for label in "abc" for i in range(3)]


def problem(door):
    """The first problem of the spec error that a call ends in."""
    with pytest.raises(SpecError) as caught:
        door()
    assert caught.value.exit_code == 2
    found = caught.value.problems[0]
    return f"{found.path}: {found.message}".removesuffix(" (from the command line)")


def words(**changes):
    """Overrides of the validation block."""
    return [f"validation.{key}={value}".replace("'", '"') for key, value in changes.items()]


@pytest.fixture
def apart(tmp_path):
    """A table of queries apart from the gallery, and embeddings (12, 4) for it."""
    (tmp_path / "t.csv").write_text("\n".join([HEADER, *ASKING, *ASKED]) + "\n")
    return np.random.default_rng(0).normal(size=(12, 4)), tmp_path / "t.csv"


@pytest.fixture
def program(tmp_path):
    """A TorchScript file of a model over embeddings of some dimensions."""

    class Weighted(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.weights = nn.Linear(dim, 1)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.weights((a - b).abs())

    def make(dim):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(Weighted(dim)).save(str(tmp_path / f"{dim}.pt"))
        return {"name": "pairwise", "program": str(tmp_path / f"{dim}.pt")}

    return make


@pytest.fixture
def blind(monkeypatch):
    """Nothing may be embedded."""

    def embed(*_args, **_kwargs):
        raise AssertionError("embedded")

    monkeypatch.setattr("metricli.runs.validate.embed_rows", embed)
    monkeypatch.setattr("metricli.runs.training.embed_rows", embed)


def test_the_rules_of_postprocessors_hold_at_every_door(spec, whole):
    """Before the table is looked for, which is not there."""
    spec["data"] = {"table": NOWHERE}
    ckpt = whole().best_ckpt
    doors = [
        lambda: train(spec, words(postprocessors=CUT)),
        lambda: validate(spec, words(postprocessors=CUT)),
        lambda: validate({"validation": {"postprocessors": CUT}}, features="no.npy", data=NOWHERE),
        lambda: validate(None, words(postprocessors=CUT), ckpt=ckpt, data=NOWHERE),
        lambda: evaluate(np.ones((4, 2)), NOWHERE, validation=ValidationSpec(postprocessors=CUT)),
    ]
    for door in doors:
        assert problem(door) == REFUSED


def test_a_list_that_breaks_the_rules_costs_no_torch(tmp_path):
    (tmp_path / "cut.yaml").write_text(json.dumps({"validation": {"postprocessors": CUT}}))
    code = "import sys, metricli\ntry: metricli.validate('cut.yaml')\n"
    code += "except metricli.errors.SpecError: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("False\n", "")


DOUBTFUL = '''
class Doubtful(PostprocessorSpec):
    """Leaves all as it is, with a doubt."""

    name: Literal["doubtful"] = "doubtful"
    built: ClassVar[list[int]] = []

    def check(self, spec: Any, table: Any) -> list[Problem]:
        if table is None:
            return []
        of = f"{table.validation_rows} rows by {spec.validation.distance}"
        return [Problem("", f"is doubtful for {of}", severity="warning")]

    def build(self) -> Any:
        self.built.append(1)

        class Post:
            calls, notes = 0, []

            def __call__(self, rankings):
                self.calls += 1
                self.notes = [f"call {self.calls}"]
                return rankings

        return Post()
'''


@pytest.fixture
def doubtful(install):  # noqa: F811
    install("doubtful", "postprocessors", {"doubtful": "Doubtful"}, DOUBTFUL)
    return "doubtful"


def test_a_warning_of_a_check_is_said(apart, doubtful):
    listener = Listener()
    found = evaluate(*apart, validation=ValidationSpec(postprocessors=[doubtful]), reporter=listener)
    said = "validation.postprocessors.0: is doubtful for 12 rows by cosine"
    assert said in found.warnings
    assert listener.warned.count(said) == 1
    np.save(apart[1].with_name("f.npy"), apart[0])
    same = validate(
        {"validation": {"postprocessors": [doubtful]}},
        features=apart[1].with_name("f.npy"),
        data=apart[1],
        reporter=listener,
    )
    assert said in same.warnings


def test_a_run_builds_each_postprocessor_once(fit, doubtful, spec):
    report = fit(*words(postprocessors=[doubtful]))
    assert len(sys.modules["doubtful"].Doubtful.built) == 1
    assert [message for message in report.warnings if message.startswith("call")] == ["call 1", "call 2"]


def test_what_only_training_asks_is_not_asked_elsewhere(apart):
    few = ValidationSpec(metrics={"cmc": [1], "precision": [], "map": [], "map_r": False})
    assert few.monitor_problem is not None
    assert list(evaluate(*apart, validation=few).metrics["OVERALL"]) == ["cmc@1"]


def test_an_error_of_a_postprocessor_has_its_name(apart, program):
    def message(points, *listed):
        with pytest.raises(DataError) as caught:
            evaluate(points, apart[1], validation=ValidationSpec(postprocessors=list(listed)))
        return str(caught.value)

    said = "postprocessor 'pca_whitening': dim 5 is above the 4 dimensions of the embeddings"
    assert message(apart[0], {"name": "pca_whitening", "dim": 5}) == said
    said = message(apart[0].astype(np.float32), program(7))
    start = "postprocessor 'pairwise': the pairwise module fails on two batches of shape (27, 4): "
    assert said.startswith(start)
    assert "shapes cannot be multiplied (27x4 and 7x1)" in said.removeprefix(start)
    assert "\n" not in said
    for listed in ([], ["k_reciprocal"]):
        assert message(apart[0] * 1e200, *listed).startswith("the embeddings cannot be searched: ")


def test_a_damaged_program_is_found_before_images_are_embedded(spec, tmp_path, blind):
    (tmp_path / "half.pt").write_bytes(b"PK half")
    listed = words(postprocessors=[{"name": "pairwise", "program": str(tmp_path / "half.pt")}])
    said = f"validation.postprocessors.0: cannot read the program {str(tmp_path / 'half.pt')!r}"
    for verb in (validate, partial(train, run_dir=tmp_path / "run"), dry_run):
        assert problem(partial(verb, spec, listed)).startswith(said)
    assert not (tmp_path / "run").exists()


def test_augmentation_where_rows_are_query_and_gallery(spec, table, apart, blind):
    said = (
        "validation.postprocessors.0: would mix queries into the gallery items that they are to find: 14 "
        "rows of the table are both query and gallery; keep the two apart, or use query_expansion"
    )
    for verb in (train, validate, dry_run):
        assert problem(partial(verb, spec, words(postprocessors=["database_augmentation"]))) == said
    points, file = apart
    both = ValidationSpec(postprocessors=["database_augmentation"])
    evaluate(points, file, validation=both)
    file.write_text(file.read_text() + "a,a.jpg,test,1,1\na,a2.jpg,test,1,1\n")
    evaluate(points, file, validation=both)
    with pytest.raises(SpecError, match="2 rows of the table are both"):
        evaluate(points[:2], file, split="test", validation=both)


def test_augmentation_of_a_gallery_of_another_table(apart, tmp_path):
    points, file = apart
    alone = [line.replace(",0,1", ",1,1") for line in ASKED]
    (tmp_path / "both.csv").write_text("\n".join([HEADER, *alone]) + "\n")
    np.save(tmp_path / "g.npy", points)
    other = {"gallery_features": str(tmp_path / "g.npy"), "gallery_table": str(file)}
    spec = ValidationSpec(postprocessors=["database_augmentation"], **other)
    with pytest.raises(DataError, match=r"postprocessor 'database_augmentation': .* 9 of 9 queries are"):
        evaluate(points[3:], tmp_path / "both.csv", validation=spec)  # the very same images
    (tmp_path / "both.csv").write_text("\n".join([HEADER, *(f"{x[0]},new{x[2:]}" for x in alone)]) + "\n")
    assert evaluate(points[3:], tmp_path / "both.csv", validation=spec).gallery == 9


def test_an_index_without_faiss(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    spec["data"] = {"table": NOWHERE}
    index = {"search": {"index": "HNSW32"}}
    doors = [
        lambda: train(spec, words(**index)),
        lambda: validate(spec, words(**index)),
        lambda: evaluate(np.ones((4, 2)), NOWHERE, validation=ValidationSpec(**index)),
    ]
    for door in doors:
        said = "validation.search.index: needs faiss: pip install 'metricli[faiss]', or set it to null"
        assert problem(door) == said


def test_an_index_that_faiss_does_not_know(spec, apart, tmp_path, blind):
    pytest.importorskip("faiss")
    index = {"search": {"index": "HNWS32"}}
    said = "validation.search.index: faiss cannot make the index 'HNWS32' of {} dimensions: {}"
    said = said.format("{}", "could not parse index string HNWS32")
    for verb in (validate, dry_run, partial(train, run_dir=tmp_path / "run")):
        assert problem(partial(verb, spec, words(**index))) == said.format(8)
    door = partial(evaluate, *apart, validation=ValidationSpec(**index))
    assert problem(door) == said.format(4)


def test_a_dry_run_tries_what_judging_takes(spec, table, program, tmp_path):
    def message(**changes):
        with pytest.raises(DataError) as caught:
            dry_run(spec, words(**changes))
        return str(caught.value)

    said = "postprocessor 'pca_whitening': dim 9 is above the 8 dimensions of the embeddings"
    assert message(postprocessors=[{"name": "pca_whitening", "dim": 9}]) == said
    assert "the pairwise module fails" in message(postprocessors=[program(7)])
    np.save(tmp_path / "g.npy", np.ones((15, 3), dtype=np.float32))
    assert message(gallery_features=tmp_path / "g.npy").startswith(
        "the queries have 8 dimensions, and gallery_features 3"
    )
    listed = [{"name": "pca_whitening", "dim": 8}, "query_expansion", "k_reciprocal", program(8)]
    with pytest.raises(SpecError):  # the order, made anew
        dry_run(spec, words(postprocessors=[listed[2], listed[0]]))
    listed = [*listed[:2], program(8), {"name": "adaptive_threshold", "n_std": 3.0}]
    assert dry_run(spec, words(postprocessors=listed)).eval_batch["embeddings"] == [15, 8]


def test_a_dry_run_shows_images_to_a_model_that_compares_them(spec, tmp_path):
    class Small(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.shape[1:] == (3, 32, 32)
            return (a - b).flatten(1).abs().sum(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Small()).save(str(tmp_path / "small.pt"))
    listed = [{"name": "pairwise", "program": str(tmp_path / "small.pt"), "inputs": "images"}]
    assert dry_run(spec, words(postprocessors=listed)).eval_batch["images"] == 15
