"""Files that are no best.ckpt: exit 5, never half-used."""

import shutil

import numpy as np
import pytest

from tests.cli.conftest import error_of

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
            lambda source, target: shutil.copy(source.with_name("last.ckpt"), target),
            "'wrong.ckpt' is a last checkpoint, which is for --resume; give the best.ckpt beside it",
        ),
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
