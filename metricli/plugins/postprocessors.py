"""The doors to what happens to a ranking before it is judged: thresholds, re-ranking, other embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.specs.base import SpecPath
from metricli.specs.kinds import PostprocessorSpec

if TYPE_CHECKING:
    from metricli.core.rankings import Rankings
    from metricli.data.facts import TableFacts


class _Door(PostprocessorSpec):
    """What all share: some orders of the list lose what an earlier one did."""

    effect: ClassVar[Literal["moves", "orders", "cuts"]]
    """Changes embeddings, changes the order, or drops the end of each ranking."""
    unwanted: ClassVar[dict[str, str]] = {}
    """Effects that may not stand before this one in the list, and why not."""

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Nothing before it in the list may be undone by it."""
        problems = super().check(spec, table)
        for earlier in spec.validation.postprocessors:
            if earlier is self:
                break
            reason = self.unwanted.get(getattr(earlier, "effect", ""))
            if reason:
                own = self.name  # type: ignore[attr-defined]
                advice = (
                    f"put {own} before {earlier.name}" if earlier.name != own else "remove one of the two"
                )
                problems.append(Problem("", f"{own} {reason} {earlier.name!r} has made of it; {advice}"))
        return problems


LookedAt = Annotated[
    int | None,
    Field(
        ge=1,
        description="items of each ranking to look at, those behind are not retrieved; null: as many as the "
        "metrics ask for, so that one metric's value depends on the others",
    ),
]
_ANEW = "searches the gallery anew with other embeddings, which loses what"


class ConstantThreshold(_Door):
    """Items farther than a fixed distance are not retrieved."""

    effect = "cuts"
    name: Literal["constant_threshold"] = "constant_threshold"
    max_distance: float = Field(ge=0, description="items farther than this are not retrieved")
    top_n: LookedAt = 100

    def build(self) -> Callable[[Rankings], Rankings]:
        """A `ConstantThreshold`."""
        from metricli.components.postprocessors import ConstantThreshold

        return ConstantThreshold(max_distance=self.max_distance, top_n=self.top_n)


class AdaptiveThreshold(_Door):
    """Each ranking ends before its first wide gap between consecutive distances."""

    effect = "cuts"
    name: Literal["adaptive_threshold"] = "adaptive_threshold"
    n_std: float = Field(
        ge=0, description="a gap is wide above this multiple of the mean gap of all rankings"
    )
    top_n: LookedAt = 100

    def build(self) -> Callable[[Rankings], Rankings]:
        """An `AdaptiveThreshold`."""
        from metricli.components.postprocessors import AdaptiveThreshold

        return AdaptiveThreshold(n_std=self.n_std, top_n=self.top_n)


class KReciprocal(_Door):
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017)."""

    effect = "orders"
    unwanted: ClassVar[dict[str, str]] = {
        "cuts": "re-ranks whole rankings, not what",
        "orders": "makes its own order from the distances, which loses the order that",
    }
    name: Literal["k_reciprocal"] = "k_reciprocal"
    k1: int = Field(20, ge=1, description="neighbours among which an image is looked for in return")
    k2: int = Field(6, ge=1, description="neighbours whose encodings are averaged; 1: none but its own")
    lambda_value: float = Field(
        0.3, ge=0, le=1, description="share of the original distance; the rest is the Jaccard distance"
    )
    top_n: int | None = Field(
        100,
        ge=1,
        description="items of each ranking to re-rank; null: as many as the metrics ask for, so that one "
        "metric's value depends on the others",
    )

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """k2 of the k1 neighbours are averaged."""
        problems = super().check(spec, table)
        if self.k2 > self.k1:
            problems.append(Problem("k2", f"must be at most k1, got k2 {self.k2} and k1 {self.k1}"))
        return problems

    def build(self) -> Callable[[Rankings], Rankings]:
        """A `KReciprocal`."""
        from metricli.components.postprocessors import KReciprocal

        return KReciprocal(k1=self.k1, k2=self.k2, lambda_value=self.lambda_value, top_n=self.top_n)


class _Moving(_Door):
    effect = "moves"
    unwanted: ClassVar[dict[str, str]] = {"orders": _ANEW, "cuts": _ANEW}


class _Mixing(_Moving):
    k: int = Field(10, ge=1, description="nearest items that are mixed in")
    alpha: float = Field(
        3.0, ge=0, description="an item weighs cos^alpha, the row itself 1; 0: all weigh the same"
    )


class QueryExpansion(_Mixing):
    """Each query becomes the weighted mean of itself and its nearest items."""

    name: Literal["query_expansion"] = "query_expansion"

    def build(self) -> Callable[[Rankings], Rankings]:
        """A `QueryExpansion`."""
        from metricli.components.postprocessors import QueryExpansion

        return QueryExpansion(k=self.k, alpha=self.alpha)


class DatabaseAugmentation(_Mixing):
    """Each gallery item becomes the weighted mean of itself and its nearest items of the gallery."""

    name: Literal["database_augmentation"] = "database_augmentation"

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Queries must be apart from the gallery, as far as the judged table holds both."""
        problems = super().check(spec, table)
        if table is not None and table.queries_in_gallery and spec.validation.gallery_table is None:
            what = (
                "would mix queries into the gallery items that they are to find: "
                f"{table.queries_in_gallery} rows of the table are both query and gallery; keep the two "
                "apart, or use query_expansion"
            )
            problems.append(Problem("", what))
        return problems

    def build(self) -> Callable[[Rankings], Rankings]:
        """A `DatabaseAugmentation`."""
        from metricli.components.postprocessors import DatabaseAugmentation

        return DatabaseAugmentation(k=self.k, alpha=self.alpha)


class PCAWhitening(_Moving):
    """All embeddings projected to whitened principal components (Jégou and Chum, ECCV 2012)."""

    name: Literal["pca_whitening"] = "pca_whitening"
    dim: int | None = Field(None, ge=1, description="components to keep; null: all")
    eps: float = Field(
        1e-6, ge=0, description="added to every variance, as a share of the largest, against noise"
    )
    fit: Literal["gallery"] = Field("gallery", description="the embeddings that it is fitted on")

    def build(self) -> Callable[[Rankings], Rankings]:
        """A `PCAWhitening`."""
        from metricli.components.postprocessors import PCAWhitening

        return PCAWhitening(dim=self.dim, eps=self.eps)


class Pairwise(_Door):
    """The first items of each ranking in the order of a model that compares two items."""

    effect = "orders"
    name: Literal["pairwise"] = "pairwise"
    program: SpecPath = Field(
        description="TorchScript file (torch.jit.save) of the model: two batches in, n distances out"
    )
    top_n: int = Field(10, ge=1, description="items of each ranking to re-score; the rest stays")
    inputs: Literal["embeddings", "images"] = Field(
        "embeddings", description="what the model compares: embeddings (n, D) or images (n, 3, H, W)"
    )
    batch_size: int = Field(128, ge=1, description="pairs in a forward pass")

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The program is there."""
        problems = super().check(spec, table)
        if not Path(self.program).is_file():
            problems.append(Problem("program", f"no such file: {self.program}"))
        return problems

    def build(self) -> Callable[[Rankings], Rankings]:
        """A `PairwiseReranker` over the model of the file."""
        from metricli.components.postprocessors import PairwiseReranker, load_program

        return PairwiseReranker(
            load_program(self.program), top_n=self.top_n, inputs=self.inputs, batch_size=self.batch_size
        )
