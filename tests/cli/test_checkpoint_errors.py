"""Files that are no best.ckpt: exit 5, never half-used."""

import numpy as np
import pytest

from metricli.errors import CheckpointError
from tests.cli.conftest import error_of
from tests.forging import forged

FOREIGN = "'wrong.ckpt' is not a metricli checkpoint, or its head is damaged"


def flipped(source, target):
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)


def foreign(_, target):
    from safetensors.numpy import save_file

    save_file({"weight": np.ones(3, "f4")}, target)


@pytest.mark.parametrize("verb", ["validate", "predict"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda source, target: None, "the checkpoint 'wrong.ckpt' does not exist"),
        (lambda source, target: target.write_text("hello"), FOREIGN),
        (lambda source, target: target.write_text(""), FOREIGN),
        (lambda source, target: target.write_bytes(source.read_bytes()[:-1000]), FOREIGN),
        (foreign, FOREIGN),
        (flipped, "'wrong.ckpt' is damaged: its content does not match its sha256"),
        (
            lambda source, target: target.mkdir(),
            "the folder 'wrong.ckpt' holds no checkpoints/best.ckpt; give a best.ckpt, or a run directory",
        ),
    ],
)
def test_a_wrong_checkpoint(refused, trained, tmp_path, verb, make, message):
    make(trained.best_ckpt, tmp_path / "wrong.ckpt")
    out = ["--out", "f.npy"] if verb == "predict" else []
    done = refused(verb, "--ckpt", "wrong.ckpt", *out)
    assert done.code == 5
    assert error_of(done).startswith(message)
    assert len(error_of(done).splitlines()) == 1


@pytest.mark.parametrize("where", [0.0005, 0.5, 0.999])
def test_a_flipped_bit_anywhere_is_noticed(refused, trained, tmp_path, where):
    content = bytearray(trained.best_ckpt.read_bytes())
    content[int(len(content) * where)] ^= 4
    (tmp_path / "wrong.ckpt").write_bytes(content)
    assert refused("validate", "--ckpt", "wrong.ckpt").code == 5


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_no_checkpoint_and_no_run(refused, verb):
    done = refused(verb, *(["--out", "f.npy"] if verb == "predict" else []))
    assert done.code == 5
    assert error_of(done) == (
        "no --ckpt is given, and there is no run with a best.ckpt under ./runs; "
        "give --ckpt FILE, or train first: metricli train spec.yaml"
    )


def test_an_override_that_changes_the_model_does_not_fit(refused, trained):
    done = refused("validate", "--ckpt", trained.best_ckpt, "extractor.dim=8")
    assert done.code == 5
    assert f"the weights of '{trained.best_ckpt}' do not fit the extractor" in error_of(done)


def test_a_checkpoint_error_as_json(cli, tmp_path):
    (tmp_path / "wrong.ckpt").write_text("hello")
    done = cli("validate", "--ckpt", "wrong.ckpt", "--json")
    assert (done.code, list(done.json), done.json["error"]["code"]) == (5, ["error"], "checkpoint")


def change(*steps, to=None):
    """A change of the meta: the value at these steps, which None removes."""

    def apply(meta, tensors):
        for step in steps[:-1]:
            meta = meta[step]
        if to is None:
            del meta[steps[-1]]
        else:
            meta[steps[-1]] = to

    return apply


def key_of(name):
    """Where the item of a packed mapping stands."""

    def apply(meta, tensors):
        meta["state"]["items"] = [pair for pair in meta["state"]["items"] if pair[0] != name]

    return apply


WRONG_BEST = [
    (change("kind", to="bset"), "kind: expected best or last, got 'bset'"),
    (change("kind"), "kind: expected best or last, got None"),
    (change("spec", to=[1]), "spec: input should be a valid dictionary, got [1]"),
    (change("base", to=3), "base: expected a path, got 3"),
    (change("base", to="/a\0b"), "base: expected a path, got '/a\\x00b'"),
    (change("extractor", to="timm"), "extractor: input should be a valid dictionary, got 'timm'"),
    (change("labels", to={"a": 1}), "labels: input should be a valid list, got {'a': 1}"),
    (change("labels", to=["a", 7]), "labels.1: input should be a valid string, got 7"),
    (
        change("metrics", "OVERALL", "cmc@1", to="high"),
        "metrics.OVERALL.'cmc@1': input should be a valid number",
    ),
    (change("metrics", "OVERALL", to=0.5), "metrics.OVERALL: input should be a valid dictionary, got 0.5"),
    (change("epoch", to=-1), "epoch: input should be greater than or equal to 0, got -1"),
    (change("epoch", to=1.0), "epoch: input should be a valid integer, got 1.0"),
    (
        change("epoch", to=10**400),
        "epoch: input should be less than 9223372036854775808, got a number beyond",
    ),
]


@pytest.mark.parametrize(("make", "what"), WRONG_BEST, ids=[each[1] for each in WRONG_BEST])
def test_wrong_content_with_a_right_digest(refused, trained, tmp_path, make, what):
    forged(trained.best_ckpt, tmp_path / "a.ckpt", make)
    done = refused("validate", "--ckpt", "a.ckpt")
    assert done.code == 5
    assert error_of(done).startswith(f"'a.ckpt' is damaged or was not written by metricli: {what}")
    assert len(error_of(done).splitlines()) == 1


WRONG_LAST = [
    (change("progress"), "progress: required, but missing"),
    (change("progress", to=[]), "progress: input should be a valid dictionary, got []"),
    (change("progress", "step"), "progress.step: required, but missing"),
    (change("progress", "step", to="3"), "progress.step: input should be a valid integer, got '3'"),
    (change("progress", "step", to=-3), "progress.step: expected a count, got -3"),
    (change("progress", "skipped", to=[1]), "progress.skipped.0: input should be a valid string, got 1"),
    (change("rows"), "rows: required, but missing"),
    (change("labels", to="abc"), "labels: input should be a valid list, got 'abc'"),
    (change("spec", to=None), "spec: required, but missing"),
    (change("model", to=7), "model: input should be a valid dictionary"),
    (change("model", "base", to=7), "model.base: expected a path, got 7"),
    (change("state", to=7), "state: input should be a valid dictionary"),
    (change("state", to={"tensor": "none"}), "state: there is no tensor 'none'"),
    (change("state", to={"items": [[["a"], 1]]}), "state: expected a key and its value, got [['a'], 1]"),
    (key_of("optimizer"), "state.optimizer: required, but missing"),
    (key_of("ema"), "state.ema: required, but missing"),
]


@pytest.mark.parametrize(("make", "what"), WRONG_LAST, ids=[each[1] for each in WRONG_LAST])
def test_wrong_content_of_a_run_to_resume(trained, tmp_path, make, what):
    from metricli.runs.checkpoints import read_best, read_last

    path = forged(trained.last_ckpt, tmp_path / "last.ckpt", make)
    for read in (read_last, read_best):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert caught.value.message.startswith(
            f"{str(path)!r} is damaged or was not written by metricli: {what}"
        )


def test_keys_of_a_newer_version_are_left_alone(cli, trained, tmp_path):
    from metricli.runs.checkpoints import read_last

    def add(meta, _):
        meta["colour"] = "green"
        if meta["kind"] == "last":
            meta["progress"]["mood"] = [1]

    forged(trained.best_ckpt, tmp_path / "a.ckpt", add)
    assert cli("validate", "--ckpt", "a.ckpt").code == 0
    path = forged(trained.last_ckpt, tmp_path / "b.ckpt", add)
    state, meta = read_last(path)
    assert set(state) >= {"extractor", "optimizer"}
    assert "mood" not in meta["progress"]
    assert meta["progress"]["step"] == trained.steps


def test_a_tensor_that_is_no_weight(refused, trained, tmp_path):
    def add(meta, tensors):
        tensors["stranger"] = next(iter(tensors.values()))

    forged(trained.best_ckpt, tmp_path / "a.ckpt", add)
    done = refused("validate", "--ckpt", "a.ckpt")
    assert done.code == 5
    assert "tensors: 'stranger' is no weight of an extractor" in error_of(done)
