"""The commands of the first hour, `init` and `convert`, as typer takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="TABLE|FOLDER", help="A CSV or parquet table, or images in a folder a label."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The spec, instead of stdout, or the package's folder; never overwrites."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Where a TABLE's paths start; default its folder.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--table", metavar="CSV", help="The table of a FOLDER; default FOLDER.csv beside it."),
    ] = None,
    validation_share: Annotated[
        float | None,
        typer.Option("--validation-share", help="Of a FOLDER's labels, the share that judges; default 0.5."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of that split; default 0.")] = None,
    plugin: Annotated[
        str | None, typer.Option("--plugin", metavar="NAME", help="Start a package with a plugin instead.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Of that plugin, such as miners; default losses.")
    ] = None,
) -> None:
    """Write a commented starter spec for a table, or for a folder of images, or start a plugin package."""
    from metricli.errors import UsageError

    if plugin is not None or kind is not None:
        from metricli.cli.scaffold import init_plugin

        spec_words = (source, root, table, validation_share, seed)
        if plugin is None or any(word is not None for word in spec_words):
            what = "--kind needs --plugin NAME" if plugin is None else "--plugin takes --kind and --out alone"
            raise UsageError(what, hint="metricli init --plugin my_loss --kind losses")
        init_plugin(plugin, kind or "losses", out)
        return
    from metricli.cli import starter

    if source is None:
        raise UsageError("no TABLE or FOLDER is given", hint="metricli init products.csv --out spec.yaml")
    starter.init(source, out, root=root, table=table, share=validation_share, seed=seed)


def convert(
    data_set: Annotated[str, typer.Argument(help="cars196, cub200, sop or inshop.")],
    source: Annotated[Path, typer.Argument(help="The folder that its archive was unpacked to.")],
    out: Annotated[Path, typer.Option("--out", metavar="CSV", help="The table; never overwrites.")],
    split: Annotated[
        str, typer.Option("--split", help="paper: labels apart; oml: cars196 and cub200 as OML splits them.")
    ] = "paper",
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Write the boxes too: images are then cropped to them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and the result.")] = False,
) -> None:
    """Turn a published data set into a table, and hold its counts against the published ones."""
    from metricli.cli import starter

    starter.convert(data_set, source, out, split=split, boxes=boxes, as_json=as_json, quiet=quiet)
