"""The commands: words in, a verb of the api called, its report shown; heavy imports wait for a verb."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from metricli import __version__
from metricli.cli import first
from metricli.cli.report import report
from metricli.cli.words import required, show, spec_and_overrides
from metricli.placement import placement

app = typer.Typer(
    name="metricli",
    help="One YAML spec in, a trained, judged and shipped image embedding model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="SPEC|KEY=VALUE", help="A YAML spec, and overrides of its keys."),
]
Gpus = Annotated[int | None, typer.Option("--gpus", min=1, help="Processes, one for each GPU.")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, mps or auto.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Ckpt = Annotated[
    Path | None, typer.Option("--ckpt", help="A checkpoint, or the directory of a run or a step.")
]
Data = Annotated[Path | None, typer.Option("--data", help="A table instead of the spec's.")]
Root = Annotated[Path | None, typer.Option("--root", help="Where paths start; default the table's folder.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and the result.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"metricli {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def train(
    words: Words = None,
    gpus: Gpus = None,
    device: Device = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="The run directory itself.")] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="DIR|auto", help="A run, or one of its steps, to go on with."),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option("--allow-change", metavar="KEY", help="A key of the spec that may differ on resume."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One batch of each kind; writes nothing.")
    ] = False,
    requeue_exit_code: Annotated[
        int | None,
        typer.Option(
            "--requeue-exit-code",
            metavar="[CODE]",
            min=1,
            max=255,
            help="The exit code, 75 unless given, after SIGTERM or SIGUSR1: saved, or not yet begun.",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model from SPEC."""
    from metricli import api
    from metricli.cli import render
    from metricli.cli.progress import reporter
    from metricli.cli.requeue import requeued

    spec, overrides = spec_and_overrides(words)
    spec = required(spec, "metricli train spec.yaml")
    live = reporter(quiet=quiet)
    if dry_run:
        tried = api.dry_run(spec, overrides, gpus=gpus, device=device, reporter=live)
        show(tried, render.dry, as_json=as_json)
        return
    with requeued(requeue_exit_code):
        report = api.train(
            spec,
            overrides,
            gpus=gpus,
            device=device,
            run_dir=run_dir,
            resume=resume,
            allow_change=allow_change or [],
            reporter=live,
        )
    show(report, render.trained, as_json=as_json)


@app.command()
def validate(
    words: Words = None,
    ckpt: Ckpt = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Score saved embeddings; needs --data.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Compare with a checkpoint, features, or an earlier --out."),
    ] = None,
    data: Data = None,
    root: Root = None,
    split: Annotated[str, typer.Option("--split", help="The rows to judge.")] = "validation",
    gpus: Gpus = None,
    device: Device = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option("--fail-under", metavar="METRIC=VALUE", help="Exit with 8 where a metric is worse."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write metrics.json, per_query and report.html to this folder."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge a checkpoint, an extractor as SPEC builds it, or saved features."""
    from metricli import api
    from metricli.cli import gates, render
    from metricli.cli.progress import reporter
    from metricli.cli.report import write_page
    from metricli.errors import MetricliError

    spec, overrides = spec_and_overrides(words)
    limits, live = gates.parse(fail_under or []), reporter(quiet=quiet)
    gates.check_folder(out)
    report = api.validate(
        spec,
        overrides,
        ckpt=ckpt,
        features=features,
        against=against,
        data=data,
        root=root,
        split=split,
        gpus=gpus,
        device=device,
        require=[limit.metric for limit in limits],
        reporter=live,
    )
    if not placement().is_main:  # one process writes, speaks and holds the gate
        return
    more: dict[str, Any] = {}
    failure = None
    try:
        if out is not None:
            report.save(out)
            write_page(out, live)
        if limits:
            more["gate"] = [limit.check(report.metrics) for limit in limits]
    except MetricliError as error:  # the metrics are there, and may have cost hours: show them first
        failure, more["error"] = error, error.to_dict()
    show(report, render.validated, as_json=as_json, more=more)
    if failure is not None:
        raise failure
    gates.enforce(more.get("gate", []))


@app.command()
def predict(
    out: Annotated[Path, typer.Option("--out", help="A .npy, .parquet or .safetensors file.")],
    words: Words = None,
    ckpt: Ckpt = None,
    data: Annotated[Path | None, typer.Option("--data", help="A table or a folder of images.")] = None,
    root: Root = None,
    split: Annotated[str, typer.Option("--split", help="The rows to predict.")] = "all",
    gpus: Gpus = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32 or float16.")] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="The I-th of N parts of the rows; see merge.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Save the features of a trained model, by default of the newest run below ./runs.

    The same command goes on with what an unfinished one has left in OUT.part.
    """
    from metricli import api
    from metricli.cli import render
    from metricli.cli.progress import reporter

    spec, overrides = spec_and_overrides(words)
    report = api.predict(
        spec,
        overrides,
        out=out,
        ckpt=ckpt,
        data=data,
        root=root,
        split=split,
        gpus=gpus,
        device=device,
        dtype=dtype,
        shard=shard,
        reporter=reporter(quiet=quiet),
    )
    show(report, render.predicted, as_json=as_json)


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="The files of every --shard.")],
    out: Annotated[Path, typer.Option("--out", help="A .npy, .parquet or .safetensors file.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put the shards of a predict together, after proving that they are all there and belong together."""
    from metricli import api
    from metricli.cli import render
    from metricli.cli.progress import reporter

    report = api.merge(parts, out=out, reporter=reporter(quiet=quiet))
    show(report, render.predicted, as_json=as_json)


@app.command("inspect-dataset")
def inspect_dataset(
    table: Annotated[Path, typer.Argument(metavar="TABLE|SPEC", help="A CSV or parquet table, or a spec.")],
    root: Root = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image; look for identical files.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page for a browser, too.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a table and say what is in it; exit code 3 where there are errors."""
    from metricli import api
    from metricli.cli import render
    from metricli.cli.progress import reporter

    live = reporter(quiet=quiet)
    begun = False

    def on_progress(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            live.begin("reading images", total, "image")
            begun = True
        live.advance(done - live.done)

    try:
        report = api.inspect_dataset(table, root=root, deep=deep, html=html, on_progress=on_progress)
    finally:
        live.end()
    if html is not None:
        live.say(f"report {html}")
    show(report, render.inspected, as_json=as_json)
    if report.errors:
        raise typer.Exit(3)


@app.command()
def plugins(
    kind: Annotated[str | None, typer.Argument(help="Only this kind, such as losses.")] = None,
    name: Annotated[str | None, typer.Argument(help="Only this plugin, with its fields.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins, broken ones too."""
    from metricli.cli import light

    light.plugins(kind, name, as_json=as_json)


@app.command()
def schema(verb: Annotated[str, typer.Argument(help="train, validate or predict.")] = "train") -> None:
    """Print the JSON schema of a verb's spec, for editors."""
    from metricli.cli import light

    light.schema(verb)


app.command()(first.init)
app.command()(first.convert)
app.command()(report)


@app.command()
def env(
    words: Words = None,
    distributed: Annotated[
        bool,
        typer.Option("--distributed", help="Check that SPEC trains alike in two CPU processes and in one."),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print versions, for a bug report; or check a spec for training in several processes."""
    from metricli.cli import light

    spec, overrides = spec_and_overrides(words)
    if distributed:
        from metricli import api
        from metricli.cli import render
        from metricli.cli.progress import reporter

        spec = required(spec, "metricli env --distributed spec.yaml")
        report = api.check_processes(spec, overrides, reporter=reporter(quiet=quiet))
        show(report, render.compared_processes, as_json=as_json)
        render.require_parity(report)
        return
    if words:
        from metricli.errors import UsageError

        raise UsageError(f"env takes no {words[0]!r}", hint="metricli env --distributed spec.yaml checks one")
    light.env(as_json=as_json)
