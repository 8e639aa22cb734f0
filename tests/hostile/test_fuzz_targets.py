"""What `make fuzz` feeds: every seed, torn and flipped, without the fuzzer."""

import random

import pytest

from fuzzing import seeds, targets

FLIPS = 12


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_and_their_neighbours_raise_nothing_else(name):
    target, draw = targets.TARGETS[name], random.Random(0)
    for seed in seeds.SEEDS[name]():
        target(seed)
        for _ in range(FLIPS if len(seed) < 4096 else 2):
            data = bytearray(seed or b"x")
            data[draw.randrange(len(data))] = draw.randrange(256)
            data = data[: draw.randrange(1, len(data) + 1)] if draw.random() < 0.3 else data
            target(bytes(data))


def test_a_fault_is_a_find(monkeypatch):
    from metricli.specs import document

    monkeypatch.setattr(document, "_scalar", lambda node: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        targets.a_spec(b"seed: 1")


def test_a_signed_checkpoint_comes_past_the_digest(tmp_path):
    from metricli.components.tensorfile import read_tensor_file

    sound = seeds.checkpoints()[0]
    changed = sound.replace(b'\\"epoch\\": 1', b'\\"epoch\\": 7')
    assert changed != sound
    file = tmp_path / "x.ckpt"
    file.write_bytes(targets.signed(changed))
    _, meta, _ = read_tensor_file(file)
    assert meta["epoch"] == 7
