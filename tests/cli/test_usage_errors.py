"""Words that cannot be meant: exit 2, one sentence that says what was meant instead, nothing touched."""

import pytest

from tests.cli.conftest import error_of
from tests.plugins.builtin import installed

LOSSES = installed("losses")

SPEC_PROBLEMS = [
    ("loss.margn=0.1", "loss.margn  unknown key, did you mean 'margin'? (from the command line)"),
    (
        "loss.name=tripplet",
        f"loss.name  no loss named 'tripplet', did you mean 'triplet'? installed: {LOSSES}"
        " (from the command line)",
    ),
    ("loss.margin=abc", "loss.margin  expected a number, got 'abc' (from the command line)"),
    (
        "validation.monitor=cmc@2",
        "validation.monitor  'cmc@2' is not computed, did you mean 'cmc@5'? computed: cmc@1, cmc@5, "
        "precision@5, map@5, map@r, loss (from the command line)",
    ),
]


def test_a_spec_file_with_a_sign_in_its_path_is_no_override(cli, spec, tmp_path):
    (tmp_path / "lr=3").mkdir()
    (tmp_path / spec).rename(tmp_path / "lr=3" / "spec.yaml")
    done = cli("train", "lr=3/spec.yaml", "training.epoch=1", "--dry-run")
    assert done.code == 2
    assert done.err.startswith("error: 1 problem in lr=3/spec.yaml\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "x.yaml"], "no such command 'trian', did you mean 'train'?"),
        (
            ["train", "x.yaml", "--gpu", "1"],
            "no such option: --gpu, did you mean --gpus?",
        ),
        (["train"], "no SPEC is given; metricli train spec.yaml"),
        (
            ["train", "a.yaml", "b.yaml", "c=1"],
            "one SPEC at most, got 'a.yaml', 'b.yaml'; overrides are KEY=VALUE",
        ),
        (["train", "x.yaml"], "no spec file 'x.yaml'; `metricli init TABLE` writes one"),
        (["predict"], "missing option '--out'; see metricli predict --help"),
        (["inspect-dataset"], "missing argument 'TABLE|SPEC'; see metricli inspect-dataset --help"),
        (["schema", "trian"], "no spec for the verb 'trian'; verbs: train, validate, predict"),
        (
            ["plugins", "loses"],
            "no kind of plugin named 'loses', did you mean 'losses'? kinds: extractors, transforms, "
            "samplers, losses, miners, optimizers, schedulers, postprocessors, loggers",
        ),
        (
            ["plugins", "losses", "tripplet"],
            f"no plugin named 'tripplet' among the losses, did you mean 'triplet'? installed: {LOSSES}",
        ),
        (
            ["validate", "--features", "f.npy", "--ckpt", "best.ckpt"],
            "--features and --ckpt exclude each other; give one of them",
        ),
        (
            ["validate", "--features", "f.npy"],
            "no table is given; give --data TABLE, or data: {table: ...} in the spec",
        ),
    ],
)
def test_a_wrong_command_line_is_one_sentence(refused, words, message):
    done = refused(*words)
    assert (done.code, error_of(done)) == (2, message)


def test_a_spec_named_almost_right_is_suggested(refused, spec):
    done = refused("train", "tiny.yml")
    message = "no spec file 'tiny.yml', did you mean 'tiny.yaml'?"
    assert (done.code, error_of(done)) == (2, message)


@pytest.mark.parametrize(("override", "problem"), SPEC_PROBLEMS)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_wrong_override_is_named_by_its_key(refused, spec, override, problem, dry):
    done = refused("train", spec, override, *dry)
    assert (done.code, error_of(done)) == (2, f"1 problem in tiny.yaml\n  {problem}")


def test_all_problems_of_a_spec_come_at_once_with_their_lines(refused, tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "data: {table: df.csv}\nextractor: {name: timm, model: resnet18}\nepochs: 3\n"
        "loss:\n  name: triplet\n  margn: 0.2\ntraining: {batch_size: 8}\n"
    )
    done = refused("train", "bad.yaml")
    assert done.code == 2
    head, *problems = error_of(done).splitlines()
    assert head == "2 problems in bad.yaml"
    assert [line.split()[:3] for line in problems] == [["line", "3", "epochs"], ["line", "6", "loss.margn"]]


def test_json_puts_the_same_error_on_stdout_as_one_document(cli):
    done = cli("validate", "x.yaml", "--json")
    assert done.code == 2
    message, hint = "no spec file 'x.yaml'", "`metricli init TABLE` writes one"
    assert done.json == {"error": {"code": "usage", "message": message, "hint": hint}}
    assert error_of(done) == f"{message}; {hint}"


def test_no_words_are_answered_with_the_help_on_stderr(cli):
    done = cli()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: metricli [OPTIONS] COMMAND [ARGS]...")


@pytest.mark.parametrize("verb", ["train", "validate", "predict"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--device", "nope"],
            "compute.device  must be 'auto', 'cpu', 'cuda' or 'mps', got 'nope' (from the command line)",
        ),
        (["--device", "cuda"], "the device 'cuda' is not visible here; visible: cpu"),
        (["--gpus", "0"], "invalid value for '--gpus'"),
        (["--gpus", "two"], "invalid value for '--gpus'"),
    ],
)
def test_a_device_that_is_not_there(refused, spec, trained, monkeypatch, verb, words, message):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    place = {"train": [], "validate": [], "predict": ["--ckpt", trained.best_ckpt, "--out", "f.npy"]}[verb]
    done = refused(verb, spec, *place, *words)
    assert done.code == 2
    assert message in error_of(done)


def test_metricli_device_is_checked(refused, spec, monkeypatch):
    monkeypatch.setenv("METRICLI_DEVICE", "banana")
    done = refused("validate", spec)
    assert (done.code, error_of(done)) == (
        2,
        "METRICLI_DEVICE is 'banana', expected auto, cpu, cuda or mps",
    )


def test_the_device_option_wins_over_the_variable(cli, spec, monkeypatch):
    monkeypatch.setenv("METRICLI_DEVICE", "banana")
    assert cli("validate", spec, "--device", "cpu").code == 0
