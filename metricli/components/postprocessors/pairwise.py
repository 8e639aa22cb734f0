"""Re-ranking by a model that takes two items and gives their distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from metricli.components.postprocessors.depth import deepened
from metricli.core.rankings import Images, Rankings
from metricli.core.results import SearchResult

__all__ = ["PairwiseReranker"]


class PairwiseReranker:
    """The first `top_n` of each ranking in the order of `module`; the rest stays as it is.

    Distances of the re-scored items are moved by one number for each query, if need be, so that none is above
    the first one behind them: their order and differences stay. Items that the module holds equal keep their
    order. Pairs are scored in batches, sorted so that an image is seldom loaded for two of them, and never
    twice for one. The module is moved to the device of the embeddings and run in evaluation mode, without
    gradients.

    Args:
        module: (a, b) -> distances (n,), of two embeddings (n, D) each or two images (n, 3, H, W) each; a of
            queries, b of gallery items.
        top_n: items re-scored for each query.
        inputs: what the module takes, "embeddings" or "images".
        batch_size: pairs in a forward pass.

    Raises:
        ValueError: `top_n` or `batch_size` below 1, unknown `inputs`; in the call: there are no images to
            load, or the module fails or gives something else than n finite numbers.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        top_n: int,
        inputs: Literal["embeddings", "images"] = "embeddings",
        batch_size: int = 128,
    ) -> None:
        for name, value in (("top_n", top_n), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        if inputs not in ("embeddings", "images"):
            raise ValueError(f"inputs must be 'embeddings' or 'images', got {inputs!r}")
        self.module, self.top_n, self.inputs, self.batch_size = module, top_n, inputs, batch_size
        self.notes: list[str] = []

    def __call__(self, rankings: Rankings) -> Rankings:
        """Reorder the result of `rankings`, which gets `top_n` columns if it has fewer."""
        sides = self._sides(rankings)
        rankings = deepened(rankings, self.top_n)
        result = rankings.result
        found = result.indices[:, : self.top_n]
        # queries that share their nearest item share others: their images are then loaded together
        first = found[:, 0] if found.shape[1] else found.new_zeros(len(found))
        rows = first.argsort(stable=True)
        there = found[rows] >= 0
        pairs = there.nonzero()
        query, item = rows[pairs[:, 0]], found[rows][there]
        scores = self._scores(query, item, *sides, rankings.queries.device)
        new = torch.full(found.shape, torch.inf, dtype=scores.dtype, device=found.device)
        new[query, pairs[:, 1]] = scores
        new, order = new.sort(dim=1, stable=True)
        indices, distances = result.indices.clone(), result.distances.clone()
        indices[:, : self.top_n] = found.gather(1, order)
        distances[:, : self.top_n] = new.to(distances.dtype)
        _lower(distances, self.top_n)
        return rankings.reordered(SearchResult(indices, distances, result.cut))

    def _sides(self, rankings: Rankings) -> tuple[Images, Images]:
        if self.inputs == "embeddings":
            return rankings.queries.__getitem__, rankings.gallery.__getitem__
        if rankings.query_images is None or rankings.gallery_images is None:
            raise ValueError(
                "pairwise with inputs: images needs the images, and there are only embeddings here; validate "
                "with the images, or set inputs: embeddings"
            )
        return rankings.query_images, rankings.gallery_images

    def _scores(
        self, query: Tensor, item: Tensor, of_query: Images, of_item: Images, device: torch.device
    ) -> Tensor:
        """The module's distances (P,) of pairs (P,) and (P,)."""
        training = [module for module in self.module.modules() if module.training]
        self.module.to(device).eval()  # not in inference mode, which would mark what is moved
        scores = []
        try:
            with torch.inference_mode(), torch.autocast(device.type, enabled=False):
                for start in range(0, len(query), self.batch_size):
                    part = slice(start, start + self.batch_size)
                    a, b = _loaded(of_query, query[part], device), _loaded(of_item, item[part], device)
                    scores.append(_checked(self._forward(a, b), len(a)))
        finally:
            for module in training:
                module.training = True
        return torch.cat(scores) if scores else torch.empty(0, device=device)

    def _forward(self, a: Tensor, b: Tensor) -> object:
        try:
            return self.module(a, b)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # TorchScript ends a long trace with it
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            reason = reason.removeprefix("RuntimeError: ")
            raise ValueError(
                f"the pairwise module fails on two batches of shape {tuple(a.shape)}: {reason}"
            ) from None


def _loaded(load: Callable[[Tensor], Tensor], positions: Tensor, device: torch.device) -> Tensor:
    """What `load` gives for each position (n,), asked once for each distinct one."""
    distinct, place = torch.unique(positions, return_inverse=True)
    return load(distinct).to(device)[place]


def _checked(scores: object, num: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.numel() != num or scores.ndim not in (1, 2):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"the pairwise module must give distances of shape ({num},), got {got}")
    scores = scores.reshape(num)
    if not scores.is_floating_point():
        raise ValueError(f"the pairwise module must give floating-point distances, got {scores.dtype}")
    scores = scores.float() if scores.element_size() < 4 else scores
    if not torch.isfinite(scores).all():
        raise ValueError("the pairwise module gives distances that are not finite")
    return scores


def _lower(distances: Tensor, top_n: int) -> None:
    """Move the first `top_n` of each row down, where the last of them is above the one behind it."""
    if distances.shape[1] <= top_n:
        return
    last, behind = distances[:, top_n - 1], distances[:, top_n]
    excess = torch.where(behind.isfinite(), (last - behind).clamp_min(0), 0.0)
    moved = distances[:, :top_n] - excess[:, None]
    distances[:, :top_n] = torch.minimum(moved, behind[:, None])  # against rounding
