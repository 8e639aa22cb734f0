"""`init` and `convert`: from a table, a folder of images or a published data set to a first spec."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from metricli.cli.lines import out
from metricli.cli.lines import table as print_table
from metricli.cli.progress import reporter
from metricli.errors import UsageError
from metricli.tables import printable

if TYPE_CHECKING:
    from metricli.data.converting import ConvertReport
    from metricli.data.starting import Start

_SCHEMA = "train.schema.json"
_COMMENT_AT = 26
"""The column where comments behind a value begin."""
_LONGEST = 120
_SAID = ("label-in-two-splits", "no-validation-rows", "single-instance-label")
"""Warnings that making the table of a folder has said."""


def init(
    source: Path,
    target: Path | None,
    *,
    root: Path | None = None,
    table: Path | None = None,
    share: float | None = None,
    seed: int | None = None,
) -> None:
    """Write a starter spec for a table; of a folder of images a table first.

    Raises:
        UsageError: a target exists, an option does not fit, or there are fewer than two train labels.
        DataError: the table or the folder cannot be read, or is no such thing.
        ResourceError: a target cannot be written.
    """
    from metricli.data.starting import start_from
    from metricli.data.writing import require_new, write_new

    is_folder = source.is_dir()
    given = {"--table": table, "--validation-share": share, "--seed": seed}
    for option in [name for name, value in given.items() if value is not None and not is_folder]:
        raise UsageError(f"{option} belongs to a folder of images, and {str(source)!r} is none")
    if target is not None:
        require_new(target, "--out")
    if is_folder:
        if root is not None:
            raise UsageError("--root belongs to a table; of a folder of images it is the folder")
        source, root = _table_of(source, table, target, 0.5 if share is None else share, seed or 0)
    start = start_from(source, root=root)
    if not start.report.suggested:
        what = "train rows" if start.facts.train_rows == 0 else "second train label"
        raise UsageError(f"{str(source)!r} has no {what} to write a training spec for")
    run = source.stem if is_folder else source.absolute().parent.name
    lines = list(_spec(run, source, root, target, start))
    for finding in start.report.findings:
        if finding.severity == "error" and finding.code != "path-outside-root":
            reporter().warn(f"training will refuse {str(source)!r}: {finding.message}")
        elif finding.severity == "warning" and not (is_folder and finding.code in _SAID):
            reporter().warn(finding.message)
    if target is None:
        out("\n".join(lines))
        return
    write_new(target, (f"{line}\n" for line in lines))
    out(f"wrote {target}; next: metricli train {shlex.quote(str(target))} --dry-run")


def _table_of(
    folder: Path, table: Path | None, target: Path | None, share: float, seed: int
) -> tuple[Path, Path | None]:
    """Write the table of a folder of images; it, and the root where that is not its own folder."""
    from metricli.data.label_folders import read_image_folder
    from metricli.data.writing import path_prefix, require_new, write_table

    if not 0 <= share <= 1:  # NaN too
        raise UsageError(f"--validation-share must be from 0 to 1, got {share}")
    known = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    table = table or known.with_name(f"{known.name}.csv")
    if table.suffix.lower() != ".csv":
        raise UsageError(f"--table {str(table)!r} is no .csv file")
    if target is not None and os.path.abspath(target) == os.path.abspath(table):
        raise UsageError("--out is the spec and --table the table, and both have one name")
    final = table.with_name(f"{table.stem}_test.csv")
    require_new(table, "--table")
    prefix = path_prefix(folder, table)
    made = read_image_folder(folder, prefix=prefix or "", share=share, seed=seed)
    if made.test:
        require_new(final, "--table")
    live = reporter()
    for note in made.notes:
        live.say(note)
    for doubt in made.doubts:
        live.warn(doubt)
    write_table(table, made.rows)
    live.say(f"wrote {table} ({len(made.rows)} rows)")
    root = None if prefix is not None else folder
    if made.test:
        write_table(final, made.test)
        words = f"metricli validate --ckpt best.ckpt --data {shlex.quote(str(final))} --split test"
        words += f" --root {shlex.quote(str(root))}" if root else ""
        live.say(f"wrote {final} ({len(made.test)} rows); in the end: {words}")
    return table, root


def _spec(run: str, source: Path, root: Path | None, target: Path | None, start: Start) -> Iterator[str]:
    """The lines of the spec, `run` being the name of its runs."""
    here = target.parent if target else Path.cwd()
    name = printable(shlex.quote(str(target))) if target else "spec.yaml"
    schema = printable(shlex.quote(str(target.parent / _SCHEMA if target else _SCHEMA)))
    yield f"# yaml-language-server: $schema={_SCHEMA}"
    yield "# With that line an editor completes and checks keys, once there is the file:"
    yield f"#   metricli schema train > {schema}"
    yield "#"
    yield f"# A first spec for {printable(source.name)}. Try it, then see what there is to beat, then train:"
    yield f"#   metricli train {name} --dry-run"
    yield f"#   metricli validate {name}"
    yield f"#   metricli train {name}"
    yield f"name: {_quoted(_ascii(run) or 'run')}"
    yield "seed: 0"
    yield from _data(source, root, here, start)
    yield "extractor:"
    yield _line("  name: timm", "or torchvision: metricli plugins extractors")
    yield _line("  model: resnet18", "any timm model; vit_small_patch16_224 is a strong start on a GPU")
    yield _line("  pretrained: true", "downloads weights; false trains from scratch")
    yield _line("  dim: 128", "length of the embedding")
    yield from _transforms(start)
    yield from _sampler(start)
    yield "loss:"
    yield _line("  name: triplet", "others and when to take them: metricli plugins losses")
    yield _line("  margin: 0.2", "distances of normalised embeddings lie in [0, 2]")
    yield "  miner: hard_triplets"
    yield "optimizer: {name: adamw, lr: 0.0003, weight_decay: 0.01}"
    yield "scheduler: {name: cosine, warmup_epochs: 1}"
    yield "training:"
    yield "  epochs: 20"
    yield "  # precision: bf16      # half the memory and time on a recent GPU"
    yield from _validation(start)


def _line(text: str, comment: str) -> str:
    line = f"{text.ljust(_COMMENT_AT - 1)} # {comment}"
    return line if len(line) <= _LONGEST else f"{text} # {comment}"


def _data(source: Path, root: Path | None, here: Path, start: Start) -> Iterator[str]:
    facts = start.facts
    held = f"{facts.train_rows} train rows, {facts.train_labels} train labels, "
    yield "data:"
    yield _line(f"  table: {_quoted(_from(source, here))}", held + f"{facts.validation_rows} validation rows")
    if root is not None:
        yield _line(f"  root: {_quoted(_from(root, here))}", "where its paths start")
    if any(finding.code == "path-outside-root" for finding in start.report.findings):
        yield _line("  allow_outside_root: true", "paths, or links, lead elsewhere: for a table you trust")


def _from(path: Path, here: Path) -> str:
    return os.path.relpath(path, here)


def _transforms(start: Start) -> Iterator[str]:
    images, size = start.report.images, start.size
    yield "transforms:"
    if images.get("width") and images.get("height"):
        width, height = (images[side][1] for side in ("width", "height"))
        median = f"the median image is {width:g} x {height:g}"
        if max(width, height) > 1.5 * min(width, height):
            median += f"; [height, width] such as [{2 * size}, {size}] keeps the shape" * (height > width)
            median += f"; [height, width] such as [{size // 2}, {size}] keeps the shape" * (width > height)
        yield f"  # {median}"
    yield f"  train: {{name: augment, size: {size}}}"
    yield f"  eval: {{name: resize_normalize, size: {size}}}"


def _sampler(start: Start) -> Iterator[str]:
    suggested, n_categories = start.report.suggested, start.categories
    yield "sampler:"
    yield from (f"  # {reason}" for reason in suggested["why"])
    if n_categories:
        each = max(1, suggested["n_labels"] // n_categories)
        there = start.facts.train_categories
        yield _line(
            "  name: category_balanced", "or balanced, without n_categories: labels of all categories"
        )
        yield _line(
            f"  n_categories: {n_categories}", f"of {there}: negatives of one category are the harder ones"
        )
        yield _line(f"  n_labels: {each}", "of each category")
    else:
        yield "  name: balanced"
        yield f"  n_labels: {suggested['n_labels']}"
    yield f"  n_instances: {suggested['n_instances']}"


def _validation(start: Start) -> Iterator[str]:
    judging = start.judging
    if not judging.queries or not judging.gallery:
        yield "# validation: no row asks or answers, so the last epoch is taken as the best, unjudged"
        return
    how = "each searches all others" if judging.alike else f"in a gallery of {judging.gallery}"
    yield "validation:"
    yield f"  # {judging.queries} queries, {how}; the median one has {judging.matches:g} to find"
    if judging.shared_labels:
        yield f"  # {judging.shared_labels} labels are trained on too: it says little of those never seen"
    if start.facts.train_categories or start.report.splits["validation"].categories:
        yield "  # each category has a line of its own below OVERALL"
    cmc = ", ".join(map(str, start.cmc))
    yield f"  metrics: {{cmc: [{cmc}], precision: [{start.depth}], map: [{start.depth}], map_r: true}}"
    yield _line("  monitor: map@r", "chooses best.ckpt")


def _ascii(name: str) -> str:
    """A folder's name as `name` of a spec takes it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name).lstrip("._-")


def _quoted(text: str) -> str:
    """Text as YAML; `2024` and `true` need quotes to be text."""
    import json

    from metricli.specs.document import parse

    plain = all(c.isalnum() or c in "._-/" for c in text) and parse(text, "").data == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def convert(
    data_set: str, source: Path, target: Path, *, split: str, boxes: bool, as_json: bool, quiet: bool
) -> None:
    """Convert a published data set, and print what was written beside what is published.

    Raises:
        UsageError: no such data set, split or boxes, or the target exists.
        DataError: annotations or images are missing or damaged.
        ResourceError: the target cannot be written.
    """
    from metricli.cli.words import show
    from metricli.data.converting import convert

    live = reporter(quiet=quiet)
    begun = False

    def on_progress(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            live.begin("reading image sizes", total, "image")
            begun = True
        live.advance(done - live.done)

    try:
        report = convert(data_set, source, target, split=split, boxes=boxes, on_progress=on_progress)
    finally:
        live.end()
    for note in report.notes:
        live.say(note)
    for difference in report.differences:
        live.warn(difference)
    show(report, _converted, as_json=as_json)


def _converted(report: ConvertReport) -> None:
    rows = [[what, f"{number:,}", f"{report.published[what]:,}"] for what, number in report.counts.items()]
    out(f"wrote {report.table}: {report.data_set}, split {report.split}")
    print_table(["", "here", "published"], rows)
    place = [shlex.quote(report.table), *(["--root", shlex.quote(report.root)] if report.root else [])]
    out(f"next: metricli inspect-dataset {' '.join(place)}")
    out(f"      metricli init {' '.join(place)} --out spec.yaml")
