"""A product in half precision: it takes half the time, and tells which pairs the full one is for.

Rows x, y are rounded to bfloat16, x' and y'. By Cauchy and Schwarz their product is off by at most
|x - x'| |y| + |x'| |y - y'|, and those norms are known. A score is the squared gap by that product, which is
rounded to bfloat16 once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metricli.core.ranking import Space

if TYPE_CHECKING:
    from metricli.core.scan import Scan

__all__ = ["Coarse", "supported", "usable"]

_NARROW = 64  # columns of embeddings below which the full product is as fast
_EXTRA = 6  # columns of a row beside its own: its square and ones, in three parts each
_STEP = 8  # the product is fastest on rows of a multiple of this
_PACKED = 64  # rows that the product takes together
_OPEN = 0.01  # of the pairs left open: their bounds take as long as the full product of all
_PROBED = 64, 256  # rows of a product that is checked before any is believed


def usable(space: Space) -> bool:
    """Whether such a product is exact here, and the processor has instructions that make it fast."""
    (num, dim), device = space.queries.shape, space.queries.device
    if num == 0 or len(space.gallery) == 0 or dim < _NARROW:
        return False
    return space.bound_dtype == torch.float32 and not space.has_undirected and supported(device)


def supported(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 faster than float32."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


class Coarse:
    """The rows of both sides in bfloat16, how far they are rounded, and whether this pays."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.width = -(-(scan.space.gallery.shape[1] + _EXTRA) // _STEP) * _STEP
        self.gallery = self._measured("gallery")
        same = scan.space.queries is scan.space.gallery
        self.queries = self.gallery if same else self._measured("queries")
        self.seen = self.doubled = 0  # pairs of the product, and those whose full product was taken too
        self._probe, self._expected = self._probed(), 0.0

    @staticmethod
    def of(scan: Scan) -> Coarse | None:
        """None where the processor rounds otherwise than it should."""
        coarse = Coarse(scan)
        return coarse if coarse._rounds_as_told() else None

    @property
    def pays(self) -> bool:
        """False where too much will be left open, or was."""
        return self._expected < _OPEN and 4 * self.doubled <= self.seen

    def expect(self, asked: Tensor, low: Tensor, high: Tensor) -> None:
        """Tell that scores from `low` to `high` (Q,) will be looked for, of the queries `asked` (Q,) bool.

        How many of a sample of scores are so near tells how many will be left open: few where what is looked
        for is near, many where it lies amid the gallery, as with embeddings that are not trained.
        """
        queries, gallery, scores = self._probe
        error = self.error(queries, gallery, turned=False)[:, None] + scores.abs() * 2.0**-8
        near = (scores >= low[queries][:, None] - error) & (scores <= high[queries][:, None] + error)
        self._expected += float(near[asked[queries]].double().mean()) if bool(asked[queries].any()) else 0.0

    def _measured(self, side: str) -> tuple[Tensor, Tensor]:
        """(N,) how far each row is from its rounded one, and the larger norm of both."""
        space, step = self.scan.space, self.scan.plan.rows
        num = len(space.queries if side == "queries" else space.gallery)
        lost, sizes = torch.empty(num), torch.empty(num)
        for at in range(0, num, step):
            part = slice(at, min(at + step, num))
            rows = space.bound_rows(side, part)
            sizes[part] = rows.norm(dim=1)
            rounded = rows.bfloat16().float()
            torch.maximum(sizes[part], rounded.norm(dim=1), out=sizes[part])
            lost[part] = rounded.sub_(rows).norm(dim=1)
        return lost.mul_(1.001), sizes.mul_(1.001)  # more than those norms are rounded

    def _probed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Some queries, some gallery rows, and their scores (n, m) without any rounding of the product."""
        scan = self.scan
        queries, gallery = (
            torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()
            for most, rows in zip(_PROBED, (scan.space.queries, scan.space.gallery), strict=True)
        )
        left, right = self.left(queries, scan.left(queries)), self.right(gallery, scan.right(gallery))
        return queries, gallery, left.double() @ right.double().T

    def _rounds_as_told(self) -> bool:
        """Whether a product on this machine keeps to what is said of it."""
        scan, (queries, gallery, exact) = self.scan, self._probe
        left, right = self.left(queries, scan.left(queries)), self.right(gallery, scan.right(gallery))
        found = torch.mm(left, right.T, out=left.new_empty(len(left), len(right)))
        rounding = scan.slack * (scan.query_squares[queries][:, None] + scan.gallery_squares[gallery])
        least, most = ((exact + sign * rounding).float().bfloat16() for sign in (-1, 1))
        return bool(((least <= found) & (found <= most)).all())

    def rows(self, num: int) -> Tensor:
        """Memory for so many rows."""
        return torch.empty(num, self.width, dtype=torch.bfloat16)

    def left(self, queries: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Of queries (n,) as the full product takes them, (n, D + 2), what this one takes: -2x', |x|², 1; as
        the first rows of `out`, which comes back, if given."""
        dim = rows.shape[1] - 2
        out = self.rows(len(rows)) if out is None else out
        own = out[: len(rows)]
        own[:, :dim] = rows[:, :dim]
        _split(self.scan.query_squares[queries], own[:, dim : dim + 3])
        own[:, dim + 3 : dim + _EXTRA], own[:, dim + _EXTRA :] = 1, 0
        return out

    def right(self, gallery: Tensor | slice, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Of gallery rows (m,), as the full product takes them, what this one takes: y', 1, |y|²; as the
        first rows of `out`, which comes back, if given."""
        dim = rows.shape[1] - 2
        out = self.rows(len(rows)) if out is None else out
        own = out[: len(rows)]
        own[:, :dim] = rows[:, :dim]
        own[:, dim : dim + 3], own[:, dim + _EXTRA :] = 1, 0
        _split(self.scan.gallery_squares[gallery], own[:, dim + 3 : dim + _EXTRA])
        return out

    def error(self, queries: Tensor, gallery: Tensor, *, turned: bool) -> Tensor:
        """How far a score may be from the squared gap before it is rounded, for each of `queries` (n,) and
        any of `gallery` (m,); `turned`: both are of one side, and a block is turned over."""
        one, other = (self.gallery, self.queries) if turned else (self.queries, self.gallery)
        lost, sizes = one[0][queries], one[1][queries]
        product = lost * other[1][gallery].amax() + sizes * other[0][gallery].amax()
        rounding = self.scan.error(queries, gallery)  # of a product in which the squares are whole
        return (2 * product + rounding.float()).mul_(1.0001)

    def scores(self, left: Tensor, right: Tensor, queries: Tensor, gallery: Tensor, out: Tensor) -> Tensor:
        """(n, m) int16, the bits of the scores: of what is positive the order is that of the numbers.

        `left` and `right` may have more rows, of anything: some of them are multiplied too.
        """
        left, right = (
            left[: _rounded_up(len(queries), len(left))],
            right[: _rounded_up(len(gallery), len(right))],
        )
        scores = out.view(torch.bfloat16)[: len(left) * len(right)].view(len(left), len(right))
        torch.mm(left, right.T, out=scores)
        scores = scores[: len(queries), : len(gallery)]
        self.scan.exclude.apply_(scores, queries, gallery)
        self.seen += scores.numel()
        return scores.view(torch.int16)

    def full(self, queries: Tensor, gallery: Tensor, right: Tensor | None) -> Tensor:
        """The bounds (n, m) of the full product; `right`: the gallery rows as it takes them."""
        scan = self.scan
        self.doubled += len(queries) * len(gallery)
        right = scan.right(gallery) if right is None else right
        out = torch.empty(len(queries) * len(gallery))
        return scan.scores(scan.left(queries), right, queries, gallery, out)


def _rounded_up(num: int, most: int) -> int:
    """One of few sizes from `num` to `most`: for each shape of a product torch keeps code, 0.6 MB of it."""
    step = max(_PACKED, 1 << max(0, (num - 1).bit_length() - 3))
    return min(most, -(-num // step) * step)


def _split(values: Tensor, out: Tensor) -> None:
    """Write `values` (n,) float64 to `out` (n, 3) as a sum of three of its numbers: 24 bits of them."""
    rest = values.clone()
    for column in range(3):
        out[:, column] = rest
        rest -= out[:, column]
