"""The commands that need no torch: plugins, schema, init, env, --version, --help."""

import pytest


@pytest.mark.parametrize("words", [[], ["losses"], ["losses", "triplet"]])
def test_plugins(cli, words):
    done = cli("plugins", *words, "--json")
    assert (done.code, done.err) == (0, "")
    assert {tuple(entry) for entry in done.json} == {
        ("kind", "name", "package", "version", "status", "fields")
    }
    assert {entry["status"] for entry in done.json} == {"ok"}
    assert ("losses", "triplet") in {(entry["kind"], entry["name"]) for entry in done.json}
    said = cli("plugins", *words)
    assert (said.code, said.err) == (0, "")
    assert "triplet" in said.out


def test_plugins_of_a_kind_say_what_they_are(cli):
    lines = cli("plugins", "miners").out.splitlines()
    assert lines[0].split() == ["name", "package", "what", "it", "is"]
    hard = next(line for line in lines if line.startswith("hard_triplets"))
    assert "farthest positive" in hard


def test_plugins_shows_the_fields_of_one(cli):
    done = cli("plugins", "losses", "triplet", "--json")
    fields = ["memory", "margin", "miner", "distance", "squared", "reduction"]
    assert list(done.json[0]["fields"]) == fields
    lines = cli("plugins", "losses", "triplet").out.splitlines()
    assert lines[0] == "losses triplet (metricli 0.1.0): ok"
    assert lines[1].startswith("Triplet loss: ")
    start = [line.split() for line in lines].index(["field", "default", "meaning"])
    assert start > 2, "what it is for is said too"
    assert [line.split()[:2] for line in lines[start + 1 :]] == [
        ["memory", "null"],
        ["margin", "0.2"],
        ["miner", "hard_triplets"],
        ["distance", "euclidean"],
        ["squared", "false"],
        ["reduction", "mean"],
    ]


@pytest.mark.parametrize("verb", ["train", "validate", "predict"])
def test_schema_accepts_the_tiny_spec_and_refuses_a_typo(cli, tiny, verb):
    import jsonschema

    done = cli("schema", verb)
    assert (done.code, done.err) == (0, "")
    validator = jsonschema.Draft202012Validator(done.json)
    validator.validate(tiny)
    assert not validator.is_valid({**tiny, "los": "triplet"})
    assert not validator.is_valid({**tiny, "extractor": {**tiny["extractor"], "dimm": 3}})


def test_init_writes_a_spec_that_trains(cli, figures, tmp_path):
    printed = cli("init", "figures/df.csv")
    assert (printed.code, printed.err) == (0, "")
    done = cli("init", "figures/df.csv", "--out", "spec.yaml")
    assert (done.code, done.out) == (0, "wrote spec.yaml; next: metricli train spec.yaml --dry-run\n")
    assert (tmp_path / "spec.yaml").read_text() == printed.out
    model = ["extractor.model=test_resnet", "extractor.pretrained=false"]
    tried = cli("train", "spec.yaml", *model, "--dry-run", "--json")
    assert tried.code == 0, tried.err
    assert tried.json["train_batch"]["images"] == 48


@pytest.mark.parametrize(
    ("folder", "name"),
    [("2024", "2024"), ("true", "true"), ("1e5", "1e5"), ("données", "donn-es"), ("数据", "run")],
)
def test_init_gives_a_name_that_train_takes(cli, figures, folder, name):
    from metricli import TrainSpec
    from metricli.specs.load import load_spec

    figures.rename(figures.parent / folder)
    target = figures.parent / "my spec.yaml"
    done = cli("init", f"{folder}/df.csv", "--out", "my spec.yaml")
    assert done.out == "wrote my spec.yaml; next: metricli train 'my spec.yaml' --dry-run\n"
    assert "metricli train 'my spec.yaml' --dry-run" in target.read_text()
    assert load_spec(target, TrainSpec).spec.name == name


@pytest.mark.parametrize(
    ("split", "what"), [("train", "no second train label"), ("validation", "no train rows")]
)
def test_init_needs_two_train_labels(refused, tmp_path, split, what):
    (tmp_path / "t.csv").write_text(f"label,path,split\na,1.jpg,{split}\na,2.jpg,{split}\n")
    done = refused("init", "t.csv")
    assert done.err == f"error: 't.csv' has {what} to write a training spec for\n"


def test_a_control_character_in_a_category_is_escaped():
    from metricli.tables import format_metrics

    lines = format_metrics({"OVERALL": {"cmc@1": 1.0}, "a\x1b[31m\nb é": {"cmc@1": 0.5}}).splitlines()
    assert lines[2] == "a\\x1b[31m\\nb é  0.5000"


def test_env(cli, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    done = cli("env", "--json")
    assert (done.code, done.err, done.json["schema_version"]) == (0, "", 1)
    assert set(done.json) == {
        "schema_version",
        "python",
        "platform",
        "cores",
        "packages",
        "variables",
    }
    assert done.json["packages"]["torch"][0].isdigit()
    assert "secret" not in done.out
    said = cli("env")
    assert (said.code, said.err) == (0, "")
    assert ["torch", done.json["packages"]["torch"]] in [line.split() for line in said.out.splitlines()]


def test_version_and_help(cli):
    done = cli("--version")
    assert (done.code, done.out, done.err) == (0, "metricli 0.1.0\n", "")
    done = cli("--help")
    assert (done.code, done.err) == (0, "")
    verbs = [
        "train",
        "validate",
        "predict",
        "merge",
        "inspect-dataset",
        "plugins",
        "schema",
        "init",
        "convert",
        "report",
        "env",
    ]
    assert [line.split()[0] for line in done.out.split("Commands:\n")[1].splitlines()] == verbs
    for verb in verbs:
        done = cli(verb, "--help")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"Usage: metricli {verb} ")
