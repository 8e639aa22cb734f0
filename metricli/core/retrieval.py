"""Exact nearest-neighbour search within a memory budget, and how many items each query could find."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from metricli.core.coarse import usable
from metricli.core.distances import Distance
from metricli.core.exclusion import NOTHING, Exclusion, count_matches, joint_codes
from metricli.core.layout import Layout, Strip
from metricli.core.nearest import Nearest
from metricli.core.pairs import PairCounter
from metricli.core.parallel import in_parallel, one_thread_each
from metricli.core.ranking import Space
from metricli.core.ranks import RankCounter
from metricli.core.relevant import marked_items
from metricli.core.results import SearchResult, Survey
from metricli.core.scan import Plan, Scan, squares_of
from metricli.core.settle import Settler

__all__ = ["SearchResult", "Survey", "check_search", "count_relevant", "search", "survey"]


def search(
    queries: Tensor,
    gallery: Tensor,
    *,
    k: int,
    distance: Distance = "cosine",
    exclude: Exclusion = NOTHING,
    budget_mb: float = 64,
    on_progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """The `k` gallery items nearest to each query, exactly: by distance, then gallery row.

    The result is the same to the bit for every `budget_mb`. Distances are taken from direct differences in
    float64, so equal embeddings are at distance 0 and tie; cosine is 1 - cos, and 1 where either is zero.
    Where `queries` is `gallery` and its rules are the same both ways, each pair is compared once.

    Args:
        queries: (Q, D); half types are computed as float32.
        gallery: (G, D), of the same type and device.
        k: columns of the result; those beyond what a query can retrieve are -1.
        distance: "cosine" or "euclidean".
        exclude: the pairs that may not be retrieved; its groups are searched one by one.
        budget_mb: working memory beside inputs and result; no Q x G matrix is ever held.
        on_progress: called with the number of queries just finished.

    Raises:
        ValueError: wrong shapes, types, `k`, `distance` or budget, or an embedding that is not finite.
    """
    return survey(
        queries,
        gallery,
        k=k,
        distance=distance,
        exclude=exclude,
        budget_mb=budget_mb,
        on_progress=on_progress,
    ).result


@torch.no_grad()
def survey(
    queries: Tensor,
    gallery: Tensor,
    *,
    k: int,
    distance: Distance = "cosine",
    exclude: Exclusion = NOTHING,
    query_labels: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    ranks: bool = False,
    resolution: int = 0,
    groups: Tensor | None = None,
    num_groups: int = 0,
    group_resolution: int | None = None,
    distances: bool = True,
    part: slice | None = None,
    budget_mb: float = 64,
    on_progress: Callable[[int], None] | None = None,
) -> Survey:
    """`search`, and in the same pass the ranks of relevant items and a histogram of all pairs.

    Args:
        queries, gallery, k, distance, exclude, budget_mb, on_progress: see `search`.
        query_labels: (Q,) int64, needed for `ranks` and a histogram; items of the same label are relevant.
        gallery_labels: (G,) int64.
        ranks: find the ranks of the nearest and the farthest relevant item of each query in its full
            ranking, exactly, in the order of `search`.
        resolution: a power of two, 0 for no histogram: how many bins each octave of the squared distance
            (of half of it, for cosine) has in the histogram of all pairs that `exclude` allows. A pair may be
            in the bin beside its own when its distance is within the rounding of a product of their edge.
        groups: (Q,) int64, the group in which a query's pairs are counted too; -1 for none.
        num_groups: how many groups there are.
        group_resolution: the same for groups, at most `resolution`, by default as fine.
        distances: measure them all; else only that of the nearest item, for the order needs few of them, and
            the others may be NaN. The indices are the same.
        part: survey these queries alone; `Survey.joined` makes the surveys of parts into that of all queries,
            with the same result and ranks to the bit.

    Raises:
        ValueError: as for `search`; labels or groups that are missing, of a wrong shape, or out of range.
    """
    check_search(queries, gallery, k, distance, budget_mb)
    exclude.check(len(queries), len(gallery))
    labels = _check_labels(queries, gallery, query_labels, gallery_labels, needed=ranks or resolution > 0)
    groups = _check_groups(queries, groups, num_groups)
    for name, each in (("resolution", resolution), ("group_resolution", group_resolution or resolution)):
        if each < 0 or each & (each - 1) or each > resolution or each > 2**16:
            raise ValueError(f"{name} must be a power of two, at most 65536, or 0, got {each!r}")
    same = queries is gallery or (
        queries.data_ptr() == gallery.data_ptr() and _laid_out_alike(queries, gallery)
    )
    gallery = queries if same else gallery
    step = max(1, int(budget_mb * 2**20 / (128 * queries.shape[1] + 1)))
    space = Space.of(queries, gallery, distance, chunk=step)
    squares, undirected = None, space.has_undirected
    if part is not None and part != slice(0, len(queries)):
        squares = squares_of(space, "queries", step) if resolution else None
        queries, groups, same, exclude = queries[part], groups[part], False, exclude.of_queries(part)
        labels = None if labels is None else (labels[0][part], labels[1])
        space = space.of_queries(part)
    layout = Layout.of(space, exclude, groups if resolution and num_groups > 0 else None)
    mirrored, coarse = same and exclude.symmetric, resolution == 0 and usable(space)
    plan = Plan.of(space, k, layout.reachable, budget_mb, mirrored=mirrored, coarse=coarse)
    result = SearchResult(
        torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device),
        torch.full((len(queries), k), torch.inf, dtype=space.bound_dtype, device=queries.device),
    )
    with torch.autocast(queries.device.type, enabled=False), one_thread_each():
        if plan.threads > 1:  # threads of torch, too short of work to gain time, would spin beside these
            torch.set_num_threads(1)
        scan = Scan(space, exclude, plan, layout)
        pairs = None
        if resolution and labels is not None:
            pairs = PairCounter(
                scan,
                labels,
                resolution=resolution,
                groups=groups,
                num_groups=num_groups,
                group_resolution=group_resolution or resolution,
                query_squares=scan.query_squares if squares is None else squares,
                undirected=undirected,
            )
        settler = Settler(scan, result, ordered=not distances)
        return _survey(settler, labels if ranks else None, pairs, on_progress)


def _survey(
    settler: Settler,
    labels: tuple[Tensor, Tensor] | None,
    pairs: PairCounter | None,
    on_progress: Callable[[int], None] | None,
) -> Survey:
    scan, result = settler.scan, settler.result
    plan, device, num = scan.plan, result.indices.device, len(result.indices)
    counter = RankCounter(scan, marked_items(scan, *labels)) if labels else None
    everyone = Nearest(scan, torch.arange(num, device=device)) if plan.symmetric else None

    def worker() -> Callable[[Strip], int]:
        memory = scan.memory()
        spare = scan.spare() if counter or pairs else memory.scores

        def work(strip: Strip) -> int:
            rows = scan.layout.queries[strip.first : strip.last]
            nearest = everyone or Nearest(scan, rows)
            places = rows if everyone else torch.arange(len(rows), device=device)
            for block in scan.blocks(strip, memory):
                for turned, side in enumerate(block.sides()):
                    listed = nearest.offer(side.queries if turned else places, side)
                    if counter is not None:
                        counter.count(side, listed, spare)
                if pairs is not None:
                    pairs.count(block, spare)
            if everyone is None:
                settler.settle(nearest, places)
            return len(rows)

        return work

    done = 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(count)

    strips = list(scan.layout.strips(plan.queries))
    in_parallel(strips, [worker() for _ in range(min(plan.threads, len(strips)) or 1)], note)
    if everyone is not None:
        settle = partial(_settle, settler, everyone, scan.layout)
        in_parallel(strips, [settle] * min(plan.threads, len(strips)), lambda _: None)
    if on_progress is not None and done < num:  # queries of groups that the gallery has not
        on_progress(num - done)
    first, last = (None, None) if counter is None else counter.ranks()
    return Survey(result, first, last, *(pairs.histograms() if pairs else (None, None)))


def _settle(settler: Settler, nearest: Nearest, layout: Layout, strip: Strip) -> int:
    rows = layout.queries[strip.first : strip.last]
    settler.settle(nearest, rows)
    return len(rows)


def _laid_out_alike(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.stride() == y.stride() and x.device == y.device


def _check_labels(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor | None,
    gallery_labels: Tensor | None,
    *,
    needed: bool,
) -> tuple[Tensor, Tensor] | None:
    if query_labels is None or gallery_labels is None:
        if needed:
            raise ValueError("ranks and a histogram need query_labels and gallery_labels")
        return None
    for name, codes, rows in (("query", query_labels, queries), ("gallery", gallery_labels, gallery)):
        if codes.shape != (len(rows),):
            raise ValueError(f"{name}_labels must have shape ({len(rows)},), got {tuple(codes.shape)}")
    return query_labels, gallery_labels


def _check_groups(queries: Tensor, groups: Tensor | None, num_groups: int) -> Tensor:
    if num_groups < 0:
        raise ValueError(f"num_groups must not be negative, got {num_groups!r}")
    if groups is None:
        return torch.full((len(queries),), -1, dtype=torch.int64, device=queries.device)
    if groups.shape != (len(queries),):
        raise ValueError(f"groups must have shape ({len(queries)},), got {tuple(groups.shape)}")
    if len(groups) and (int(groups.min()) < -1 or int(groups.max()) >= num_groups):
        raise ValueError(f"groups must lie in [-1, {num_groups - 1}]")
    return groups


def check_search(queries: Tensor, gallery: Tensor, k: int, distance: str, budget_mb: float) -> None:
    """Refuse what no search can take.

    Raises:
        ValueError: wrong shapes, types, `k`, `distance` or budget.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries and gallery must have shapes (Q, D) and (G, D), got {tuple(queries.shape)} and "
            f"{tuple(gallery.shape)}"
        )
    if not queries.is_floating_point() or queries.dtype != gallery.dtype:
        raise ValueError(
            f"queries and gallery must have one floating type, got {queries.dtype} and {gallery.dtype}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k!r}")
    if distance not in ("cosine", "euclidean"):
        raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
    if not budget_mb > 0:
        raise ValueError(f"budget_mb must be positive, got {budget_mb!r}")


def count_relevant(query_labels: Tensor, gallery_labels: Tensor, exclude: Exclusion = NOTHING) -> Tensor:
    """Gallery items of the query's label that the query may find, (Q,) int64, from labels (Q,) and (G,).

    Labels are grouped and counted, no Q x G matrix is formed.

    Raises:
        ValueError: the codes of `exclude` are of a wrong shape.
    """
    num = len(query_labels)
    exclude.check(num, len(gallery_labels))
    labels = torch.cat([query_labels, gallery_labels])
    groups = exclude.both("groups")
    if groups is not None:
        labels = joint_codes(labels, groups)
    query_labels, gallery_labels = labels[:num], labels[num:]
    ids, sequences = exclude.both("ids"), exclude.both("sequences")
    count = count_matches(query_labels, gallery_labels)
    with_id: Tensor | None = None
    if ids is not None:
        with_id = joint_codes(labels, ids)
        count -= count_matches(with_id[:num], with_id[num:])
    if sequences is not None:
        listed, held = sequences[:num] >= 0, sequences[num:] >= 0
        shared = joint_codes(labels, sequences)
        count -= count_matches(shared[:num], shared[num:][held]) * listed
        if with_id is not None:  # the item itself shares its sequence: it was taken off twice
            twice = joint_codes(with_id, sequences)
            count += count_matches(twice[:num], twice[num:][held]) * listed
    return count
