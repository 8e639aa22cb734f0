"""The conformance kit: every built-in keeps the promises, and a plugin that breaks one is told which."""

from __future__ import annotations

import re
import tomllib
import warnings

import pytest
import torch

from metricli import testing
from metricli.testing import check_plugin
from tests.conftest import ROOT
from tests.plugins.builtin import BUILT_IN, REQUIRED

PACKAGE = "bad-plugin"


class Apart(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).flatten(1).abs().sum(1)


def test_what_is_installed_is_what_pyproject_says():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    said = sorted(
        (group.removeprefix("metricli."), name) for group, names in groups.items() for name in names
    )
    assert said == BUILT_IN, "the installation is stale; run `make install`"


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_built_in(kind, name):
    build = kind != "extractors" and name != "pairwise"  # which needs a file
    plugin = check_plugin(kind, name, REQUIRED.get((kind, name)), build=build)
    assert (plugin.kind, plugin.name) == (kind, name)


@pytest.mark.parametrize("inputs", ["embeddings", "images"])
def test_pairwise_with_a_program(tmp_path, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Apart()).save(str(tmp_path / "apart.pt"))
    settings = {"program": str(tmp_path / "apart.pt"), "inputs": inputs}
    assert check_plugin("postprocessors", "pairwise", settings).inputs == inputs


def test_unknown_kind():
    with pytest.raises(AssertionError, match="no kind of plugin named 'loss'; kinds: extractors, transforms"):
        check_plugin("loss", "triplet")


def test_unknown_name():
    with pytest.raises(ValueError, match="no loss named 'tripplet', did you mean 'triplet'"):
        check_plugin("losses", "tripplet")


def test_settings_are_validated():
    with pytest.raises(ValueError, match="must be greater than 0, got -1"):
        check_plugin("losses", "triplet", {"margin": -1})


def model(base: str, *, doc: str = '"""Bad."""', fields: str = "", build: str = "") -> str:
    """Source of a plugin named bad with some lines of its class."""
    lines = [doc, 'name: Literal["bad"] = "bad"', *fields.splitlines(), *build.splitlines()]
    return f"\nclass Bad({base}):\n" + "\n".join(f"    {line}" for line in lines if line) + "\n"


FORM = {
    "no docstring": (model("LossSpec", doc=""), "Bad has no docstring"),
    "field undescribed": (
        model("LossSpec", fields="width: float = 0.5"),
        "the field 'width' of Bad has no description",
    ),
    "open": (model("LossSpec", fields='model_config = {"extra": "allow"}'), "Bad accepts unknown keys"),
    "lost in the dump": (
        "from pydantic import field_serializer\n"
        + model(
            "LossSpec",
            fields='width: float = Field(0.5, description="w")\n'
            '@field_serializer("width")\n'
            "def _rounded(self, value: float) -> float: return value + 1",
        ),
        "Bad does not survive a round trip",
    ),
}


@pytest.mark.parametrize(("source", "message"), FORM.values(), ids=FORM.keys())
def test_form(install, source, message):
    install(PACKAGE, "losses", {"bad": "Bad"}, source)
    with pytest.raises(AssertionError, match=f"^{re.escape(message)}"):
        check_plugin("losses", "bad", build=False)


def test_heavy_import(install, monkeypatch):
    """A small module stands in for torch, which takes seconds to import."""
    assert testing._HEAVY == ("torch", "torchvision", "timm", "accelerate")
    monkeypatch.setattr(testing, "_HEAVY", ("torch", "wave"))
    install("heavy-plugin", "losses", {"bad": "Bad"}, "import wave\n" + model("LossSpec"))
    with pytest.raises(AssertionError) as caught:
        check_plugin("losses", "bad", build=False)
    assert str(caught.value) == "importing heavy_plugin imports wave; import inside build() instead"


def test_import_that_works_in_this_process_only(install, monkeypatch):
    monkeypatch.setattr("sys.only_here", True, raising=False)
    source = "import sys\nassert sys.only_here\n" + model("LossSpec")
    install("lonely-plugin", "losses", {"bad": "Bad"}, source)
    with pytest.raises(AssertionError) as caught:
        check_plugin("losses", "bad", build=False)
    reason = "AttributeError: module 'sys' has no attribute 'only_here'"
    assert str(caught.value) == f"a fresh process cannot import lonely_plugin: {reason}"


def loss(value: str, more: str = "") -> tuple[str, str]:
    build = (
        "def build(self, *, dim, num_labels, label_to_category):\n"
        "    import torch\n"
        "    class Loss(torch.nn.Module):\n"
        "        def forward(self, embeddings, labels):\n"
        f"            {more or 'pass'}\n"
        f"            return {value}\n"
        "    return Loss()"
    )
    return "losses", model("LossSpec", build=build)


def miner(value: str) -> tuple[str, str]:
    build = f"def build(self):\n    return lambda embeddings, labels, reference, reference_labels: {value}"
    return "miners", model("MinerSpec", build=build)


def sampler(batches: str, length: str) -> tuple[str, str]:
    build = (
        "def build(self, *, labels, categories, seed):\n"
        "    import random\n"
        "    class Sampler:\n"
        "        def set_epoch(self, epoch): pass\n"
        f"        def __len__(self): return {length}\n"
        f"        def __iter__(self): return iter({batches})\n"
        "    return Sampler()"
    )
    return "samplers", model("SamplerSpec", build=build)


def optimizer(lr: float) -> tuple[str, str]:
    build = (
        "def build(self, params):\n"
        "    import torch\n"
        f"    return torch.optim.SGD([p for group in params for p in group['params']], lr={lr})"
    )
    return "optimizers", model("OptimizerSpec", build=build)


def transform(value: str) -> tuple[str, str]:
    return "transforms", model("TransformSpec", build=f"def build(self):\n    return lambda image: {value}")


def postprocessor(value: str, *lines: str) -> tuple[str, str]:
    """`value` is what a call on `r` returns, `result` its ranking; `lines` come before, in the call."""
    body = "".join(f"            {line}\n" for line in lines)
    build = (
        "def build(self):\n"
        "    import torch\n"
        "    from dataclasses import replace\n"
        "    from metricli.core.exclusion import NOTHING\n"
        "    from metricli.core.rankings import Rankings\n"
        "    from metricli.core.results import SearchResult\n"
        "    class Post:\n"
        "        notes, calls = [], 0\n"
        "        def __call__(self, r):\n"
        "            result = r.result\n"
        "            i, d = result.indices.clone(), result.distances.clone()\n"
        f"{body}"
        f"            return {value}\n"
        "    return Post()"
    )
    return "postprocessors", model("PostprocessorSpec", build=build)


BUILT = {
    "no rankings": (*postprocessor("result"), "a postprocessor returns Rankings, got SearchResult"),
    "in place": (
        *postprocessor("r.moved(queries=r.queries.neg_())"),
        "it changes in place what it is given",
    ),
    "a gallery that shrinks": (
        *postprocessor("r.moved(gallery=r.gallery[1:])"),
        "rows came or went: ((6, 8), (11, 8)) of 6 queries and 12 items",
    ),
    "another dimension": (
        *postprocessor("replace(r, gallery=r.gallery[:, 1:])"),
        "queries and gallery have other dimensions: ((6, 8), (12, 7))",
    ),
    "too few columns": (
        *postprocessor("r.reordered(SearchResult(i[:, :4], d[:, :4]))"),
        "the result has 4 columns, and 5 are asked for",
    ),
    "too few rows": (
        *postprocessor("r.reordered(SearchResult(i[1:], d[1:]))"),
        "the result has 5 rows for 6 queries",
    ),
    "other distances": (
        *postprocessor("r.reordered(SearchResult(i, d[:, :4]))"),
        "distances are (6, 4), indices (6, 5)",
    ),
    "indices of 32 bits": (
        *postprocessor("r.reordered(SearchResult(i.int(), d))"),
        "indices are torch.int32, expected int64",
    ),
    "an index too large": (
        *postprocessor("r.reordered(SearchResult(i, d))", "i[0, 0] = 12"),
        "an index is not in -1..11",
    ),
    "an item twice": (
        *postprocessor("r.reordered(SearchResult(i, d))", "i[0] = torch.tensor([3, 3, 1, 4, 5])"),
        "an item is retrieved twice: [3, 3, 1, 4, 5]",
    ),
    "an excluded item": (
        *postprocessor("r.reordered(Rankings(r.queries, r.gallery, 'cosine', NOTHING, r.k).result)"),
        "an item that is excluded for a query is retrieved",
    ),
    "a NaN": (*postprocessor("r.reordered(SearchResult(i, d * float('nan')))"), "a distance is NaN"),
    "a distance of nothing": (
        *postprocessor("r.reordered(SearchResult(i, d))", "i[:, -1] = -1"),
        "distances must be infinite where the index is -1 alone",
    ),
    "descending": (*postprocessor("r.reordered(SearchResult(i, -d))"), "distances descend"),
    "notes that pile up": (
        *postprocessor("r", "self.notes = [*self.notes, 'a']"),
        "notes must be of the last call alone, got ['a', 'a'] after ['a']",
    ),
    "notes that are no text": (*postprocessor("r", "self.notes = [1]"), "notes must be text"),
    "another order each time": (
        *postprocessor("r.reordered(SearchResult(i.flip(1) if self.calls > 1 else i, d))", "self.calls += 1"),
        "a second call on the same rankings gives others",
    ),
    "loss of each row": (
        *loss("embeddings.square().sum(1)"),
        "the loss is of shape (16,), expected a scalar",
    ),
    "loss NaN": (*loss("embeddings.sum() * float('nan')"), "the loss is not finite on random embeddings"),
    "loss without gradient": (
        *loss("embeddings.detach().sum().requires_grad_()"),
        "the loss gives the embeddings no gradient",
    ),
    "gradient NaN": (
        *loss("(embeddings * 0).square().sum().sqrt()"),
        "the gradient is not finite",
    ),
    "stats attached": (
        *loss("embeddings.sum()", "self.stats = {'norm': embeddings.norm()}"),
        "stats must be detached scalars",
    ),
    "stats of each row": (
        *loss("embeddings.sum()", "self.stats = {'norm': embeddings.detach().norm(dim=1)}"),
        "stats must be detached scalars",
    ),
    "miner": (*miner("(labels, labels, labels)"), "a miner returns a Mined, got tuple"),
    "sampler's length": (*sampler("[[0, 1], [2, 3]]", "3"), "len is 3, and 2 batches came"),
    "sampler without a seed": (
        *sampler("[random.sample(range(144), 20)]", "1"),
        "the batches are no function of (seed, epoch)",
    ),
    "optimizer stands": (*optimizer(0.0), "a step changed nothing"),
    "optimizer overshoots": (*optimizer(30.0), "a step went uphill"),
    "transform adds an axis": (
        *transform("image[None] / 255"),
        "a transform gives (3, H, W), got (1, 3, 40, 50)",
    ),
    "transform keeps bytes": (*transform("image"), "a transform gives floats, got torch.uint8"),
}


@pytest.mark.parametrize(("kind", "source", "message"), BUILT.values(), ids=BUILT.keys())
def test_what_is_built(install, kind, source, message):
    install(PACKAGE, kind, {"bad": "Bad"}, source)
    check_plugin(kind, "bad", build=False)
    with pytest.raises(AssertionError) as caught:
        check_plugin(kind, "bad")
    assert str(caught.value).splitlines()[0] == message


def test_a_good_third_party(install):
    kind, source = loss("embeddings.square().sum()", "self.stats = {'norm': embeddings.detach().norm()}")
    install(PACKAGE, kind, {"bad": "Bad"}, source)
    assert check_plugin(kind, "bad").name == "bad"
