"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) on lists of neighbours; no N x N matrix is ever held.

Every image of queries and gallery is a node. A node's k-reciprocal neighbours, expanded by those of its
neighbours, are encoded as weights exp(-d); two nodes are as near as their weights overlap (Jaccard). The
weights are sparse, so their overlap is taken over what both sides store, for chosen pairs alone.

d is the squared Euclidean distance (of unit rows for cosine, where it is twice the cosine distance) divided
by the row's largest. Where the text and the authors' published code differ, this follows the code, which the
published figures come from: a node is its own first neighbour, and a set is taken over if *more* than 2/3 of
it is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metricli.core.distances import Distance, unit_rows
from metricli.core.ranking import wide_dtype
from metricli.core.results import SearchResult

__all__ = ["Encoding", "Nodes", "encode", "farthest", "jaccard", "nodes_of", "rerank"]

_PAIRS = 1024  # pairs of rows measured at a time: both sides stay in the cache
_ENTRIES = 2**20  # entries of lists handled at a time
_BLOCK = 2048  # rows of a block of products


@dataclass(frozen=True)
class Nodes:
    """The distinct images of both sides."""

    rows: Tensor
    """(N, D)"""
    queries: Tensor
    """(Q,) int64: the node of each query."""
    gallery: Tensor
    """(G,) int64: the node of each gallery item."""
    doubled: int
    """Queries that are gallery items under another embedding, so that both are nodes."""


def nodes_of(
    queries: Tensor, gallery: Tensor, query_ids: Tensor | None = None, gallery_ids: Tensor | None = None
) -> Nodes:
    """One node for each gallery row (G, D), and for each query (Q, D) that is not among them.

    A query is the gallery item with its id (Q,), (G,), if their embeddings are equal.
    """
    num, device = len(gallery), gallery.device
    found = torch.full((len(queries),), -1, dtype=torch.int64, device=device)
    if query_ids is not None and gallery_ids is not None and num:
        ordered, order = gallery_ids.sort(stable=True)
        at = torch.searchsorted(ordered, query_ids).clamp_max(num - 1)
        found = torch.where(ordered[at] == query_ids, order[at], found)
    same = found >= 0
    if queries is not gallery:
        for part in torch.split(same.nonzero()[:, 0], _BLOCK):
            same[part] = (queries[part] == gallery[found[part]]).all(1)
    doubled = int(((found >= 0) & ~same).sum())
    alone = (~same).nonzero()[:, 0]
    found[alone] = num + torch.arange(len(alone), device=device)
    rows = torch.cat([gallery, queries[alone]]) if len(alone) else gallery
    return Nodes(rows, found, torch.arange(num, device=device), doubled)


def _norms(rows: Tensor, distance: Distance) -> Tensor | None:
    """|row| (N,) in the wide type, 1 for a zero row; None where no norm is asked for."""
    if distance == "euclidean":
        return None
    norms = torch.empty(len(rows), dtype=wide_dtype(rows.device), device=rows.device)
    for part in torch.split(torch.arange(len(rows), device=rows.device), _BLOCK):
        norms[part] = rows[part].to(norms.dtype).norm(dim=1)
    return torch.where(norms > 0, norms, 1.0)


def _measured(rows: Tensor, norms: Tensor | None, first: Tensor, second: Tensor) -> Tensor:
    """d before its division, of pairs of rows (P,) and (P,): (P,) in the wide type; cosine: halved."""
    out = torch.empty(len(first), dtype=wide_dtype(rows.device), device=rows.device)
    for start in range(0, len(first), _PAIRS):
        part = slice(start, start + _PAIRS)
        x, y = rows[first[part]].to(out.dtype), rows[second[part]].to(out.dtype)
        out[part] = (x - y).square_().sum(1) if norms is None else x.mul_(y).sum(1)
    if norms is not None:
        out.div_(norms[first]).div_(norms[second]).neg_().add_(1)
    return out.clamp_min_(0)


@torch.no_grad()
def farthest(rows: Tensor, distance: Distance) -> Tensor:
    """The largest d of each row of (N, D) to any other, before the division (N,); 1 where all are equal."""
    num, device = len(rows), rows.device
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    centre = rows.to(dtype).mean(0)
    best = torch.full((num,), -torch.inf, dtype=dtype, device=device)
    column = torch.zeros(num, dtype=torch.int64, device=device)

    def raise_(part: slice, far: Tensor, start: int) -> None:
        values, places = far.max(1)
        better = values > best[part]
        best[part] = torch.where(better, values, best[part])
        column[part] = torch.where(better, places + start, column[part])

    for top in range(0, num, _BLOCK):
        across = slice(top, min(top + _BLOCK, num))
        x = _moved(rows[across].to(dtype), centre, distance)
        for left in range(top, num, _BLOCK):
            down = slice(left, min(left + _BLOCK, num))
            y = x if left == top else _moved(rows[down].to(dtype), centre, distance)
            far = (x @ y.T).mul_(-2)
            if distance == "euclidean":
                far += x.square().sum(1)[:, None]
                far += y.square().sum(1)
            raise_(across, far, left)
            if left > top:
                raise_(down, far.T, top)
    largest = _measured(rows, _norms(rows, distance), torch.arange(num, device=device), column)
    return torch.where(largest > 0, largest, 1.0)


def _moved(rows: Tensor, centre: Tensor, distance: Distance) -> Tensor:
    return unit_rows(rows) if distance == "cosine" else rows - centre


@dataclass(frozen=True)
class Encoding:
    """Sparse weights of N nodes: those of node i are at `starts[i]` to `starts[i + 1]`, columns ascending."""

    starts: Tensor
    """(N + 1,) int64."""
    columns: Tensor
    """(E,) int32."""
    weights: Tensor
    """(E,) in the wide type; those of a node sum to 1."""

    @staticmethod
    def of(counts: list[Tensor], columns: list[Tensor], weights: list[Tensor]) -> Encoding:
        """Joined from blocks of nodes, given the number of entries of each node."""
        every = torch.cat(counts)
        return Encoding(
            torch.cat([every.new_zeros(1), every.cumsum(0)]), torch.cat(columns), torch.cat(weights)
        )

    def lists(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the lists of `nodes` (n,) lie, one after another: places (T,), owners (T,), lengths (n,)."""
        lengths = self.starts[nodes + 1] - self.starts[nodes]
        total = int(lengths.sum())
        owners = torch.repeat_interleave(lengths, output_size=total)
        before = self.starts[nodes] - (lengths.cumsum(0) - lengths)
        return torch.arange(total, device=nodes.device).add_(before[owners]), owners, lengths


@torch.no_grad()
def encode(
    rows: Tensor, neighbours: Tensor, largest: Tensor, *, k1: int, k2: int, distance: Distance
) -> Encoding:
    """The weights of every node, averaged over its first `k2` neighbours, itself among them.

    Args:
        rows: (N, D) embeddings of the nodes.
        neighbours: (N, K) int64, K <= k1 + 1: the nodes nearest to each, itself first; -1 where an
            approximate search found no more, and the average then takes the node itself.
        largest: (N,) of `farthest`.
        k1: reach of the neighbour lists; that of the lists taken over is half.
        k2: nodes averaged; 1: none but itself.
        distance: "cosine" or "euclidean".
    """
    num, norms = len(rows), _norms(rows, distance)
    missing = neighbours < 0
    neighbours = torch.where(missing, torch.arange(num, device=rows.device)[:, None], neighbours)
    reach = round(k1 / 2) + 1
    half = neighbours[:, :reach].contiguous()
    mutual, half_mutual = _mutual(neighbours) & ~missing, _mutual(half) & ~missing[:, :reach]
    counts, columns, weights = [], [], []
    for part in _parts(num, neighbours.shape[1] * (half.shape[1] + 1)):
        listed = _expanded(neighbours, mutual, half, half_mutual, part)
        kept = listed < num
        counts.append(kept.sum(1))
        first, second = torch.repeat_interleave(counts[-1]) + part.start, listed[kept]
        near = torch.exp(-_measured(rows, norms, first, second) / largest[first])
        total = torch.segment_reduce(near, "sum", lengths=counts[-1])
        columns.append(second.int())
        weights.append(near / total[first - part.start])
    plain = Encoding.of(counts, columns, weights)
    return plain if k2 == 1 else _averaged(plain, neighbours[:, :k2])


def _parts(num: int, width: int) -> Iterator[slice]:
    step = max(1, _ENTRIES // max(1, width))
    return (slice(start, min(start + step, num)) for start in range(0, num, step))


def _mutual(lists: Tensor) -> Tensor:
    """Whether node i is in the list of its j-th neighbour: (N, K) bool of lists (N, K)."""
    found = torch.empty(lists.shape, dtype=torch.bool, device=lists.device)
    for part in _parts(len(lists), lists.shape[1] ** 2):
        node = torch.arange(part.start, part.stop, device=lists.device)
        found[part] = (lists[lists[part]] == node[:, None, None]).any(2)
    return found


def _expanded(neighbours: Tensor, mutual: Tensor, half: Tensor, half_mutual: Tensor, part: slice) -> Tensor:
    """The expanded k-reciprocal neighbours of the nodes of `part`, each once, N elsewhere: (n, M)."""
    none, count = len(neighbours), part.stop - part.start
    own = neighbours[part].masked_fill(~mutual[part], none).sort(1).values
    of = neighbours[part]
    taken = half[of].masked_fill_(~half_mutual[of], none)
    flat = taken.view(count, -1)
    place = torch.searchsorted(own, flat).clamp_max_(own.shape[1] - 1)
    shared = ((own.gather(1, place) == flat) & (flat < none)).view(taken.shape).sum(2)
    accepted = mutual[part] & (3 * shared > 2 * (taken < none).sum(2))
    taken.masked_fill_(~accepted[:, :, None], none)
    merged = torch.cat([own, flat], 1).sort(1).values
    merged[:, 1:].masked_fill_(merged[:, 1:] == merged[:, :-1], none)
    return merged


def _averaged(plain: Encoding, neighbours: Tensor) -> Encoding:
    """The mean of the weights of each node's `neighbours` (N, k2): the paper's local query expansion."""
    num, k2 = neighbours.shape
    counts, columns, weights = [], [], []
    for part in _parts(num, k2 * (1 + len(plain.columns) // num)):
        places, owners, _ = plain.lists(neighbours[part].reshape(-1))
        keys, order = (owners.div_(k2, rounding_mode="floor") * num + plain.columns[places]).sort(stable=True)
        distinct, repeats = torch.unique_consecutive(keys, return_counts=True)
        sums = torch.segment_reduce(plain.weights[places[order]], "sum", lengths=repeats)
        owner = distinct.div(num, rounding_mode="floor")
        counts.append(torch.bincount(owner, minlength=part.stop - part.start))
        columns.append((distinct - owner * num).int())
        weights.append(sums / k2)
    return Encoding.of(counts, columns, weights)


@torch.no_grad()
def jaccard(encoding: Encoding, first: Tensor, second: Tensor) -> Tensor:
    """Jaccard distances (n, m) of the nodes `first` (n,) to `second` (n, m); 1 where `second` is -1.

    1 - sum of min(a, b) / sum of max(a, b) over the weights a, b of both. It is exactly 1 where they share
    no node.
    """
    num, (count, width) = len(encoding.starts) - 1, second.shape
    typical = 1 + len(encoding.columns) // max(1, num)
    step = max(1, min(_ENTRIES // max(1, width * typical), 4 * _ENTRIES // max(1, num)))
    own = torch.zeros(min(step, count), num, dtype=encoding.weights.dtype, device=first.device).view(-1)
    out = torch.ones(second.shape, dtype=own.dtype, device=first.device)
    for start in range(0, count, step):
        part = slice(start, start + step)
        row, column = (second[part] >= 0).nonzero(as_tuple=True)
        if len(row) == 0:
            continue
        places, owners, _ = encoding.lists(first[part])
        marks = owners.mul_(num).add_(encoding.columns[places])
        own[marks] = encoding.weights[places]
        places, owners, lengths = encoding.lists(second[part][row, column])
        theirs = (row * num)[owners].add_(encoding.columns[places])
        least = torch.minimum(own[theirs], encoding.weights[places])
        shared = torch.segment_reduce(least, "sum", lengths=lengths)
        out[part][row, column] = 1 - shared / (2 - shared)
        own[marks] = 0
    return out


@torch.no_grad()
def rerank(
    nodes: Nodes,
    neighbours: Tensor,
    candidates: SearchResult,
    *,
    k1: int,
    k2: int,
    lambda_value: float,
    distance: Distance,
) -> SearchResult:
    """The candidates (Q, n) by (1 - lambda) * Jaccard distance + lambda * d; ties stay in their order.

    `neighbours` (N, K) are those of `encode`. The order is that of the whole N x N computation, restricted to
    the candidates. Memory grows with the entries of the encoding (some 100 a node) and with Q x n.
    """
    largest, norms = farthest(nodes.rows, distance), _norms(nodes.rows, distance)
    encoding = encode(nodes.rows, neighbours, largest, k1=k1, k2=k2, distance=distance)
    indices, distances = candidates.indices.clone(), candidates.distances.clone()
    for part in _parts(len(indices), 4 * indices.shape[1]):
        found, own = candidates.indices[part], nodes.queries[part]
        there = found >= 0
        items = nodes.gallery[found.clamp_min(0)].masked_fill_(~there, -1)
        final = jaccard(encoding, own, items) * (1 - lambda_value)
        row, column = there.nonzero(as_tuple=True)
        d = _measured(nodes.rows, norms, own[row], items[row, column]) / largest[own[row]]
        final[row, column] += lambda_value * d
        final.masked_fill_(~there, torch.inf)
        final, order = final.sort(dim=1, stable=True)
        indices[part], distances[part] = found.gather(1, order), final.to(distances.dtype)
    return SearchResult(indices, distances, candidates.cut)
