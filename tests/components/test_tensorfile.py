from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metricli.components import tensorbytes, tensorfile
from metricli.components.tensorfile import (
    file_sha256,
    pack,
    read_tensor_file,
    unpack,
    write_tensor_file,
)
from metricli.errors import CheckpointError, ResourceError
from tests.forging import raw_file

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1, 2, 3], dtype=torch.int64),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "flag": torch.tensor([True, False]),
    "scalar": torch.tensor(4.0, dtype=torch.float64),
    "empty": torch.zeros(0, 5),
}
META = {"kind": "best", "labels": ["é", "007", '"quoted"'], "metrics": {"map@r": 0.25}}


def write(path: Path, **header: str) -> Path:
    """A checkpoint whose header says something else."""
    text = json.dumps({})
    fields = {"format": "metricli", "format_version": "1", "meta": text}
    fields["sha256"] = tensorfile._digest({"a": torch.ones(2)}, text)
    save_file({"a": torch.ones(2)}, path, metadata=fields | header)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensor_file(path)
    assert caught.value.exit_code == 5
    return caught.value.message


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    digest = write_tensor_file(path, TENSORS, META)
    tensors, meta, read_digest = read_tensor_file(path)
    assert meta == META
    assert digest == read_digest
    assert set(tensors) == set(TENSORS)
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert tensor.shape == TENSORS[name].shape
        assert torch.equal(tensor, TENSORS[name])
    assert os.listdir(tmp_path) == ["a.ckpt"], "no temporary file is left"
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_the_umask_says_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_tensor_file(tmp_path / "a.ckpt", TENSORS, META)
    finally:
        os.umask(before)
    assert (tmp_path / "a.ckpt").stat().st_mode & 0o777 == mode


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    one = write_tensor_file(tmp_path / "a.ckpt", TENSORS, META)
    reordered = dict(reversed(TENSORS.items()))
    assert write_tensor_file(tmp_path / "b.ckpt", reordered, META) == one
    for changed in (
        TENSORS | {"b": torch.tensor([1, 2, 4])},
        TENSORS | {"b": TENSORS["b"].reshape(3, 1)},
        TENSORS | {"b": TENSORS["b"].double().view(torch.float64)},
        {**TENSORS, "c": TENSORS["b"]},
    ):
        assert write_tensor_file(tmp_path / "c.ckpt", changed, META) != one
    assert write_tensor_file(tmp_path / "c.ckpt", TENSORS, META | {"epoch": 1}) != one


def test_shared_and_strided_tensors_and_views(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tied = torch.nn.Parameter(torch.ones(2))
    given_ = {"base": base, "turned": base.T, "part": base[1:2], "column": base[:, 1], "x": tied, "y": tied}
    write_tensor_file(tmp_path / "a.ckpt", given_, {})
    tensors, _, _ = read_tensor_file(tmp_path / "a.ckpt")
    assert all(torch.equal(tensors[name], given_[name]) for name in given_)
    assert (tmp_path / "a.ckpt").stat().st_size < 1500, "a view is written without what it is a view of"


def test_one_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_tensor_file(path, TENSORS, META)
    good = path.read_bytes()
    head = 8 + struct.unpack("<Q", good[:8])[0]
    positions = {*range(16), *range(head - 8, len(good)), *range(16, head, 2)}
    accepted = []
    for position in sorted(positions):
        for bit in {5, position % 8}:
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                read_tensor_file(path)
            except CheckpointError:
                continue
            accepted.append((position, bit))
    assert accepted == []
    assert len(positions) > 300
    path.write_bytes(good)
    read_tensor_file(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_tensor_file(path, TENSORS, META)
    good = path.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(10, len(good), 23), len(good) - 1]:
        path.write_bytes(good[:length])
        refusal(path)
    path.write_bytes(good + b"\0")
    refusal(path)


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.ckpt") == f"the checkpoint {str(tmp_path / 'none.ckpt')!r} does not exist"
    assert refusal(tmp_path) == f"the checkpoint {str(tmp_path)!r} is a folder"
    foreign = tmp_path / "foreign.ckpt"
    expected = f"{str(foreign)!r} is not a metricli checkpoint, or its head is damaged"
    save_file({"a": torch.ones(2)}, foreign)
    assert refusal(foreign) == expected
    save_file({"a": torch.ones(2)}, foreign, metadata={"format": "pt"})
    assert refusal(foreign) == expected
    torch.save({"a": torch.ones(2)}, foreign)
    assert refusal(foreign).startswith(expected)
    foreign.write_text("a: 1\n" * 30)
    assert refusal(foreign).startswith(expected)


@pytest.mark.parametrize(
    ("version", "message", "hint"),
    [
        ("2", "2, newer than this metricli reads (1)", "upgrade metricli"),
        ("012", "12, newer than this metricli reads (1)", "upgrade metricli"),
        ("0", "0, older than this metricli reads (1)", "use the metricli version that wrote it"),
        ("", "'', which is none: it is damaged, or not of metricli", ""),
        ("1.0\n", "'1.0\\n', which is none: it is damaged, or not of metricli", ""),
        ("\u0661", "'\u0661', which is none: it is damaged, or not of metricli", ""),
    ],
)
def test_another_format_is_named(tmp_path: Path, version: str, message: str, hint: str) -> None:
    path = write(tmp_path / "a.ckpt", format_version=version)
    with pytest.raises(CheckpointError) as caught:
        read_tensor_file(path)
    assert caught.value.message == f"{str(path)!r} has checkpoint format {message}"
    assert caught.value.hint == hint


def test_another_digest_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    read_tensor_file(path)
    assert refusal(write(path, meta='{"a": 1}')).endswith("its content does not match its sha256")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    digest = write_tensor_file(path, TENSORS, META)

    def full(_tensors: Any, part: Path, metadata: Any) -> None:
        part.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorfile, "save_file", full)
    with pytest.raises(ResourceError) as caught:
        write_tensor_file(path, {"a": torch.zeros(3)}, {})
    assert caught.value.message == f"cannot write {str(path)!r}: No space left on device"
    assert caught.value.hint == "free some space"
    assert os.listdir(tmp_path) == ["a.ckpt"]
    assert read_tensor_file(path)[2] == digest


def test_a_failed_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    digest = write_tensor_file(path, TENSORS, META)

    def broken(_handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ResourceError, match="check the folder and its permissions"):
        write_tensor_file(path, {"a": torch.zeros(3)}, {})
    assert os.listdir(tmp_path) == ["a.ckpt"]
    assert read_tensor_file(path)[2] == digest


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from metricli.components.tensorfile import read_tensor_file, write_tensor_file
from metricli.errors import ResourceError
path = Path(sys.argv[1])
digest = write_tensor_file(path, {"a": torch.ones(3)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_tensor_file(path, {"a": torch.ones(100_000)}, {})
except ResourceError as error:
    assert read_tensor_file(path)[2] == digest
    print(error)
"""


def test_a_limit_of_the_system_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == (
        f"cannot write {str(path)!r}: File too large; raise the limit on the size of a file (ulimit -f)\n"
    ), done.stderr
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot write"):
        write_tensor_file(tmp_path / "none" / "a.ckpt", TENSORS, META)


def test_no_pickle_is_near() -> None:
    source = Path(tensorfile.__file__).read_text()
    assert "import pickle" not in source
    assert "torch.load" not in source
    assert "torch.save" not in source


def test_checkpoints_open_without_running_anything(trained: Any) -> None:
    for path in (trained.best_ckpt, trained.last_ckpt):
        with safe_open(path, framework="np") as file:
            assert file.metadata()["format"] == "metricli"


scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5)
tensors_ = st.builds(
    lambda shape, kind: torch.randn(tuple(shape)).to(kind),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bfloat16]),
)
keys = st.integers(-5, 5) | st.text(max_size=3) | st.just("tensor") | st.just("items")
trees = st.recursive(
    scalars | tensors_,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(two, float) and math.isnan(two)
    return type(one) is type(two) and one == two and str(one) == str(two)


@settings(max_examples=60, deadline=None)
@given(tree=trees)
def test_a_tree_survives_packing_and_the_file(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    tensors: dict[str, Tensor] = {}
    packed = pack(tree, tensors, "state")
    path = tmp_path_factory.getbasetemp() / "tree.ckpt"
    write_tensor_file(path, tensors, {"state": packed})
    read, meta, _ = read_tensor_file(path)
    assert same(tree, unpack(meta["state"], read))


def test_tuples_come_back_as_lists() -> None:
    assert unpack(pack({"betas": (0.9, 0.99)}, {}, "s"), {}) == {"betas": [0.9, 0.99]}


@pytest.mark.parametrize("thing", [{1, 2}, object(), b"bytes", Path("x"), 1j])
def test_what_cannot_be_stored_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match=f"a state holds a {type(thing).__name__}, which a checkpoint cannot"):
        pack({"a": [thing]}, {}, "state")


def tensor(dtype: Any = "F32", shape: Any = (2,), place: Any = (0, 8)) -> dict[str, Any]:
    shape, place = (list(each) if isinstance(each, tuple) else each for each in (shape, place))
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


NO_TEXTS = "its metadata is no mapping of texts"
HEADERS: list[tuple[Any, bytes, str]] = [
    (b"[]", b"", "its header is no JSON object"),
    (b"{", b"", "its JSON is broken: "),
    (b"\xff\xfe{}", b"", "its JSON is broken: "),
    (b'{"a": 1, "a": 2}', b"", "its JSON has the key 'a' twice"),
    (b'{"a": ' + b"9" * 5000 + b"}", b"", "its JSON is broken: "),
    (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "its JSON is nested too deep"),
    (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", b"", "its JSON is nested too deep"),
    (b'{"__metadata__": {"format": ["metricli"]}}', b"", NO_TEXTS),
    (b'{"__metadata__": "metricli"}', b"", NO_TEXTS),
    ({"a": 3}, b"", "its tensor 'a' is not described by an object"),
    ({"a": {}}, b"", "its tensor 'a' is of type None, which cannot be read"),
    ({"a": tensor("F4")}, bytes(8), "its tensor 'a' is of type 'F4', which cannot be read"),
    ({"a": tensor(["F32"])}, bytes(8), "its tensor 'a' is of type ['F32'], which cannot be read"),
    ({"a": tensor(shape="2")}, bytes(8), "its tensor 'a' has the shape '2'"),
    ({"a": tensor(shape=(-2,))}, bytes(8), "its tensor 'a' has the shape [-2]"),
    ({"a": tensor(shape=(2.0,))}, bytes(8), "its tensor 'a' has the shape [2.0]"),
    ({"a": tensor(shape=(True, 2))}, bytes(8), "its tensor 'a' has the shape [True, 2]"),
    ({"a": tensor(shape=(2**62, 4))}, bytes(8), "its tensor 'a' has the shape [4611686018427387904, 4]"),
    ({"a": tensor(shape=(0, 2**62, 4), place=(0, 0))}, b"", "its tensor 'a' has the shape [0, "),
    ({"a": tensor(shape=(1,) * 33)}, bytes(8), "its tensor 'a' has the shape [1, 1, "),
    ({"a": tensor(place=(0, 4))}, bytes(8), "its tensor 'a' of shape [2] lies at [0, 4]"),
    ({"a": tensor(place=(8, 0))}, bytes(8), "its tensor 'a' of shape [2] lies at [8, 0]"),
    ({"a": tensor(place=(0, 8, 8))}, bytes(8), "its tensor 'a' of shape [2] lies at [0, 8, 8]"),
    ({"a": tensor(shape=(2**40,), place=(0, 2**42))}, bytes(8), "its tensors have 4398046511104 bytes, and"),
    ({"a": tensor(place=(4, 12))}, bytes(12), "the bytes of its tensor 'a' leave a gap or overlap"),
    ({"a": tensor(), "b": tensor()}, bytes(8), "the bytes of its tensor 'b' leave a gap or overlap"),
    ({"a": tensor("BOOL", (2,), (0, 2))}, b"\1\2", "its tensor 'a' has truth values other than 0 and 1"),
    ({"a\n\ud800": 3}, b"", "its tensor 'a\\n\\ud800' is not described by an object"),
    ({str(i): 0 for i in range(200_001)}, b"", "it has 200001 tensors"),
    (b'{"a": [' + b"[]," * 2_000_000 + b"[]]}", b"", "its JSON has "),
]


@pytest.mark.parametrize(("header", "data", "reason"), HEADERS, ids=[each[2][:40] for each in HEADERS])
def test_a_header_that_lies(tmp_path: Path, header: Any, data: bytes, reason: str) -> None:
    path = raw_file(tmp_path / "a.ckpt", header=header, data=data)
    what = f"{str(path)!r} is not a metricli checkpoint, or its head is damaged ({reason}"
    message = refusal(path)
    assert message.startswith(what)
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250


METAS = [
    ("", "its JSON is broken: Expecting value"),
    ("[1, 2]", "expected an object, got [1, 2]"),
    ('"' + "x" * 200 + '"', f"expected an object, got '{'x' * 56}..."),
    ('{"a": 1, "a": 1}', "its JSON has the key 'a' twice"),
    ("[" * 100_000, "its JSON is nested too deep"),
    ('{"a": ' * 250 + "1" + "}" * 250, "its JSON is nested too deep"),
    ('{"a": ' + "1" * 5000 + "}", "its JSON is broken: Exceeds the limit"),
    ("1" * 400, "expected an object, got a number beyond 64 bits"),
]


@pytest.mark.parametrize(("meta", "reason"), METAS, ids=[each[1] for each in METAS])
def test_a_meta_that_is_none(tmp_path: Path, meta: str, reason: str) -> None:
    path = raw_file(tmp_path / "a.ckpt", meta=meta)
    assert refusal(path).startswith(
        f"{str(path)!r} is damaged or was not written by metricli: meta: {reason}"
    )


def test_odd_metas_that_are_good(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "a.ckpt", meta='{"a": NaN, "b": "\\ud800", "c": -1e999}')
    assert str(read_tensor_file(path)[1]) == str({"a": math.nan, "b": "\ud800", "c": -math.inf})
    path = raw_file(tmp_path / "a.ckpt", meta='{"a": "\ud800"}')
    assert read_tensor_file(path)[1] == {"a": "\ud800"}


KINDS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64),
    *(torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32),
    *(torch.float64, torch.complex64),
)


def test_every_type_comes_back(tmp_path: Path) -> None:
    given_ = {f"{kind}.{n}": torch.tensor([1, 0, 1][:n]).to(kind) for kind in KINDS for n in (0, 1, 3)}
    given_ |= {f"{kind}.scalar": torch.tensor(1).to(kind) for kind in KINDS}
    write_tensor_file(tmp_path / "a.ckpt", given_, {})
    read = read_tensor_file(tmp_path / "a.ckpt")[0]
    assert read.keys() == given_.keys()
    for name, one in given_.items():
        assert (read[name].dtype, read[name].shape) == (one.dtype, one.shape)
        assert read[name].reshape(-1).view(torch.uint8).tolist() == one.reshape(-1).view(torch.uint8).tolist()


def test_what_is_used_is_what_was_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_tensor_file(path, {"a": torch.ones(100_000)}, {})
    tensors, _, _ = read_tensor_file(path)
    with path.open("r+b") as file:  # in place, as no one of us does
        file.seek(2000)
        file.write(b"\7" * 300_000)
        file.truncate(3000)
    assert torch.equal(tensors["a"], torch.ones(100_000))


def test_a_file_that_shrinks_under_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    write_tensor_file(path, {"a": torch.ones(100_000)}, {})
    entries = tensorbytes._entries

    def cut(*args: Any) -> Any:
        os.truncate(path, 1000)
        return entries(*args)

    monkeypatch.setattr(tensorbytes, "_entries", cut)
    assert refusal(path).endswith("head is damaged (it was cut off while it was read)")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path, what in (
        (tmp_path / "pipe", "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
        (tmp_path / "loop", "cannot be opened: Too many levels of symbolic links"),
        (tmp_path / "dangling", "does not exist"),
        (tmp_path / "pipe" / "a.ckpt", "does not exist"),
        (tmp_path / ("x" * 300), "cannot be opened: File name too long"),
        (tmp_path / "a\0b", "cannot be opened: embedded null byte"),
    ):
        assert refusal(path) == f"the checkpoint {str(path)!r} {what}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "a.ckpt")
    path.chmod(0)
    assert refusal(path) == f"the checkpoint {str(path)!r} cannot be opened: Permission denied"


def test_a_huge_hole_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "a.ckpt", header={"a": tensor(shape=(4,), place=(0, 16))}, data=bytes(16))
    os.truncate(path, 2**42)  # four TiB of nothing
    assert "its tensors have 16 bytes, and it holds 4398046510" in refusal(path)
    raw_file(path, header={"a": tensor("U8", (2**42,), (0, 2**42))})
    os.truncate(path, path.stat().st_size + 2**42)
    assert refusal(path).endswith(f"its {path.stat().st_size} bytes do not fit into the memory)")


@pytest.mark.parametrize(
    "packed",
    [
        {"tensor": "none"},
        {"tensor": ["a"]},
        {"tensor": {}},
        {"tensor": "a", "items": []},
        {"items": {}},
        {"items": [["a"]]},
        {"items": [[["a"], 1]]},
        {"items": [[{"tensor": "a"}, 1]]},
        {"items": "ab"},
        [[{}]],
    ],
)
def test_no_form_of_pack_is_refused(packed: Any) -> None:
    with pytest.raises(ValueError, match=r"there is no tensor|expected a"):
        unpack(packed, {"a": torch.ones(1)})
