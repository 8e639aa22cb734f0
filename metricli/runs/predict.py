"""`metricli predict`: the features of every row, written as they come, by one process or many."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from metricli.components.dataset import ImageDataset
from metricli.data.checks import require_sound
from metricli.data.table import Rows, Table, folder_table, read_table
from metricli.errors import DataError, MetricliError, UsageError
from metricli.placement import placement
from metricli.reporter import Reporter, SilentReporter
from metricli.reports import PredictReport
from metricli.runs.block_writer import BlockWriter
from metricli.runs.blocks import Blocks, RowsOf, shard_of
from metricli.runs.checkpoints import read_best_and_sha256
from metricli.runs.context import Context, choose_device, open_context, translated_errors
from metricli.runs.directory import find_checkpoint
from metricli.runs.embed import RowLoader, embed
from metricli.runs.embedding import skipped_paths
from metricli.runs.features import CHUNK, Layout, beside, check_out, index_lines, refuse_foreign
from metricli.runs.images import check_images
from metricli.runs.parts import (
    check_aloud,
    image_dataset,
    inference_extractor,
    load_inference,
    require_data,
    take_split,
)
from metricli.runs.processes import World, joined
from metricli.runs.unfinished import Unfinished
from metricli.specs.data import DataSpec
from metricli.specs.load import Loaded, Source
from metricli.specs.predict import PredictSpec

Shard = tuple[int, int]


def predict(
    source: Source | None,
    *,
    overrides: tuple[str, ...],
    ckpt: str | Path | None,
    data: dict[str, str],
    split: str,
    out: str | Path,
    shard: Shard | None = None,
    reporter: Reporter,
) -> PredictReport:
    """Write features, index and manifest, of all rows or of shard (i, n); every process calls this.

    Raises:
        MetricliError: see errors.py for the kinds.
    """
    started = time.monotonic()
    reporter = reporter if placement().is_main else SilentReporter()
    target = Path(out)
    check_out(target)
    path = find_checkpoint(ckpt)
    if ckpt is None:
        reporter.say(f"no --ckpt given: taking the newest run's, {path}")
    best, ckpt_sha256 = read_best_and_sha256(path)
    if best.notice:
        reporter.say(best.notice)
    loaded: Loaded[PredictSpec] = load_inference(source, best, PredictSpec, data, overrides)
    spec = loaded.spec
    block = require_data(spec)
    _refuse_replacing(target, block)
    with joined(choose_device(spec.compute), spec.compute.gpus) as world:
        table, warnings = _open_images(block, reporter, world)
        rows = take_split(table, split)
        check_images(table, [rows], block, reporter, warnings, world)
        context = open_context(spec.compute, reporter, world=world)
        extractor, _ = inference_extractor(spec, best, context)
        blocks = shard_of(len(rows), shard)
        layout = Layout(target.suffix, blocks.rows, int(extractor.dim), spec.prediction.dtype)  # type: ignore[arg-type]
        request = _request(spec, ckpt_sha256, rows, layout, extractor)
        if any(other != request for other in world.gather(request)):
            what = "the processes do not see the same checkpoint, table or root"
            raise DataError(what, hint="give them a shared disk, or each host a --shard")
        dataset = image_dataset(rows, spec.transforms.eval.build(), block)
        work = Unfinished(target, layout, blocks)
        job = _Job(context, spec, extractor, dataset, rows, work)
        facts = {"ckpt": str(path), "ckpt_sha256": request["ckpt_sha256"], "split": split}
        facts |= _facts(request, len(rows), shard)
        resumed, skipped = job.run(request, facts, shard)
        paths = skipped_paths(rows, skipped, reporter, of=blocks.rows)
    index, manifest = beside(target)
    return PredictReport(
        out=target,
        index=index,
        manifest=manifest,
        rows=layout.rows,
        dim=layout.dim,
        dtype=layout.dtype,
        ckpt=str(path),
        skipped=paths,
        warnings=warnings,
        seconds=time.monotonic() - started,
        resumed=resumed,
        shard=shard and f"{shard[0]}/{shard[1]}",
    )


@dataclass(frozen=True)
class _Job:
    """What a process works with once all is read and checked."""

    context: Context
    spec: PredictSpec
    extractor: nn.Module
    dataset: ImageDataset
    rows: Rows
    work: Unfinished

    def run(
        self, request: Mapping[str, Any], facts: Mapping[str, Any], shard: Shard | None
    ) -> tuple[int, list[int]]:
        """Every block done and the files in place: rows that were done before, rows that were skipped."""
        world, work = self.context.world, self.work
        take_skipped = require_data(self.spec).on_bad_image == "skip"
        reporter = self.context.reporter
        with ExitStack() as stack:
            world.once(lambda: stack.enter_context(work.locked()))
            with work.kept(is_main=world.is_main), translated_errors(), work.writing():
                token, done = world.once(lambda: work.take_up(request, reporter, take_skipped=take_skipped))
                pending = np.array([i for i in range(len(work.blocks)) if i not in done], dtype=np.int64)
                mine = self._embed(work.journal(token, world.rank), pending[world.rank :: world.size])
                shares = world.gather(mine)
                _assert_coverage(work.blocks, [list(done), *(blocks for blocks, _ in shares)])
                skipped = sorted(
                    row for share in (*done.values(), *(rows for _, rows in shares)) for row in share
                )
                world.once(lambda: self._finish(skipped, facts, shard))
        return sum(len(work.blocks.span(number)) for number in done), skipped

    def _embed(self, journal: Path, numbers: NDArray[np.int64]) -> tuple[list[int], list[int]]:
        """This process's blocks, alone: those that are done, and the rows of them that were skipped."""
        options, data = self.spec.prediction, require_data(self.spec)
        world = self.context.world
        name = "predict" if world.size == 1 else f"predict (1 of {world.size} processes)"
        with BlockWriter(self.work, journal, numbers, self.rows.paths) as writer:

            def keep(at: NDArray[np.int64], features: Tensor) -> None:
                writer.write(at, features.cpu().numpy())

            if len(numbers):
                loader = RowLoader(
                    self.context,
                    self.dataset,
                    batch_size=options.batch_size,
                    num_workers=options.num_workers,
                    rows=RowsOf(self.work.blocks, numbers),
                )
                embed(self.context, self.extractor, loader, keep, data=data, name=name)
            writer.finish()
            return writer.done, writer.skipped

    def _finish(self, skipped: list[int], facts: Mapping[str, Any], shard: Shard | None) -> None:
        blocks = self.work.blocks
        if shard is None and len(skipped) == blocks.rows:
            self.work.remove()
            raise DataError(f"none of the {blocks.rows} images could be read")
        left_out = frozenset(skipped)
        self.work.put_in_place(lambda: index_lines(self.rows, blocks, left_out), len(skipped), facts)


def _assert_coverage(blocks: Blocks, shares: list[list[int]]) -> None:
    """Every block done exactly once, by whichever run and process."""
    counts = Counter(number for share in shares for number in share)
    if counts != Counter(range(len(blocks))):
        odd = sorted(number for number in {*counts, *range(len(blocks))} if counts[number] != 1)
        what = f"{len(odd)} of {len(blocks)} blocks were not done exactly once, such as block {odd[:1]}"
        raise MetricliError(what)


def _request(
    spec: PredictSpec, ckpt_sha256: str, rows: Rows, layout: Layout, extractor: nn.Module
) -> dict[str, Any]:
    """All that the values of the rows depend on."""
    assert spec.extractor is not None
    transform = spec.transforms.eval
    return {
        "ckpt_sha256": ckpt_sha256,
        "rows_sha256": _rows_digest(rows),
        "root": str(rows.root.absolute()),
        "dim": layout.dim,
        "dtype": layout.dtype,
        "extractor": spec.extractor.model_dump(mode="json") | getattr(extractor, "resolved", {}),
        "eval transform": transform.model_dump(mode="json"),
        "data.max_pixels": require_data(spec).max_pixels,
    }


def _facts(request: Mapping[str, Any], rows: int, shard: Shard | None) -> dict[str, Any]:
    """What the manifest says of the request, by which a merge sees that shards belong together."""
    settings = [request[key] for key in ("extractor", "eval transform", "data.max_pixels")]
    text = json.dumps(settings, sort_keys=True)
    facts: dict[str, Any] = {
        "rows_sha256": request["rows_sha256"],
        "settings_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return facts if shard is None else facts | {"shard": f"{shard[0]}/{shard[1]}", "rows_of_all_shards": rows}


def _rows_digest(rows: Rows) -> str:
    """sha256 of paths, labels and boxes, in their order."""
    digest = hashlib.sha256()
    for start in range(0, len(rows), CHUNK):
        at = slice(start, start + CHUNK)
        boxes = None if rows.boxes is None else rows.boxes[at].tolist()
        digest.update(json.dumps([rows.paths[at].tolist(), rows.labels[at].tolist(), boxes]).encode())
    return digest.hexdigest()


def _refuse_replacing(out: Path, data: DataSpec) -> None:
    table = Path(data.table)
    for place in (out, *beside(out)):
        if place.exists() and table.exists() and place.samefile(table):
            what = f"--out {str(out)!r} would replace the table {data.table!r}"
            raise UsageError(what, hint="give another name")
    refuse_foreign(out)


def _open_images(data: DataSpec, reporter: Reporter, world: World) -> tuple[Table, list[str]]:
    """The table, or the folder as one, which the main process has checked for all; its warnings."""
    if not Path(data.table).is_dir():
        table = read_table(data.table, root=data.root, need="predict")
        return table, world.once(lambda: _checked(table, data, reporter))
    if data.root is not None:
        what = f"--root {data.root!r} with the folder {data.table!r}, whose images' paths start from itself"
        raise UsageError(what, hint="leave --root out")
    table, others = folder_table(data.table)
    return table, world.once(lambda: _checked_folder(table, others, data, reporter))


def _checked(table: Table, data: DataSpec, reporter: Reporter) -> list[str]:
    findings = check_aloud(table, reporter, need="predict", allow_outside_root=data.allow_outside_root)
    warnings = [finding.message for finding in require_sound(findings, data.table)]
    for message in warnings:
        reporter.warn(message)
    return warnings


def _checked_folder(table: Table, others: Mapping[str, int], data: DataSpec, reporter: Reporter) -> list[str]:
    try:
        warnings = _checked(table, data, reporter)
    except DataError as error:  # its hint is for tables
        hint = "repair or remove these files, or give a table of the images to take"
        raise DataError(error.message, hint=hint) from None
    if others:
        listed = ", ".join(
            f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(others.items())
        )
        warnings.append(f"files that are no images were left out: {listed}")
        reporter.warn(warnings[-1])
    return warnings
