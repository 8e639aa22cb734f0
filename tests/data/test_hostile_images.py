"""Whatever lies at a path of a table: pixels as by hand, or one line; no hang, no program, no gigabytes."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from metricli.data import opening
from metricli.data.images import open_image, read_header
from metricli.data.opening import FORMATS, IMAGE_SUFFIXES
from metricli.errors import DataError
from tests.data.hostile import NOISE, bombs, chunk, cut, encoded, grey_tiff, png

BLUE = Image.fromarray(np.full((2, 3, 3), (10, 20, 250), dtype=np.uint8))


@pytest.fixture
def file(tmp_path: Path):
    def write(data: bytes, name: str = "x.jpg") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def silent(capfd):
    """Nothing may be printed, by Python or by a library below it."""
    yield
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def refusal(path: Path, **options: int) -> str:
    with pytest.raises(DataError) as caught:
        open_image(path, **options)
    message = caught.value.message
    assert message.isprintable(), "one line without control characters"
    assert message.startswith(f"cannot read image {str(path)!r}: ")
    return message.removeprefix(f"cannot read image {str(path)!r}: ")


def pixels(path: Path) -> list:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


# Broken ones.


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_a_file_cut_off_anywhere_is_refused_whoever_wants_the_rest_grey(file, kind, monkeypatch):
    whole = encoded(kind)
    assert open_image(file(whole)).size == (40, 40)
    for part in cut(whole):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        assert refusal(file(part))


@pytest.mark.usefixtures("silent")
def test_one_wrong_byte_in_a_png_is_refused(file):
    whole = encoded("PNG")
    for place in [whole.index(b"IHDR") + 17, whole.index(b"IDAT") + 40, whole.index(b"IDAT") + 1000]:
        broken = bytearray(whole)
        broken[place] ^= 1
        said = refusal(file(bytes(broken)))
    assert said == "its pixels do not fit their checksum", "which Pillow does not see"
    assert refusal(file(whole[: whole.index(b"IEND") - 6])) == "image file is truncated"
    assert pixels(file(whole[: whole.index(b"IEND") - 4])) == NOISE.tolist(), "nothing but its end is missing"


@pytest.mark.usefixtures("silent")
def test_what_is_no_image_is_said_to_be_what_it_is(file):
    reasons = {
        b"": "the file is empty",
        b"\xff": "not an image, or of a kind that is not read",
        bytes(5000): "the file holds zeros",
        np.random.default_rng(0).bytes(5000): "not an image, or of a kind that is not read",
        b"just text": "not an image, or of a kind that is not read",
        b"\n <!doctype HTML><title>404</title>": "not an image of a kind that is read, but HTML",
        b"<svg xmlns='x'/>": "not an image of a kind that is read, but SVG",
        b"<?xml version='1.0'?><svg/>": "not an image of a kind that is read, but XML",
        b"%PDF-1.7 ...": "not an image of a kind that is read, but PDF",
        b"version https://git-lfs.github.com": "not an image of a kind that is read, but a Git LFS pointer",
        encoded("EPS"): "not an image of a kind that is read, but PostScript",
        encoded("ICO"): "not an image of a kind that is read, but ICO",
    }
    for data, reason in reasons.items():
        assert refusal(file(data)) == reason


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "MSP", "PCX", "TGA", "SGI", "DDS", "SPIDER", "XBM"])
def test_no_other_decoder_of_pillow_is_reached(file, kind, monkeypatch):
    def start(*words: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    image = Image.new({"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB"), (32, 32))
    path = file(encoded(kind, image), "x.png")
    assert refusal(path).startswith("not an image")
    with pytest.raises(DataError):
        read_header(path)
    assert kind not in FORMATS


@pytest.mark.usefixtures("silent")
def test_what_is_no_regular_file_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    (tmp_path / "link.jpg").symlink_to(tmp_path / "good.png")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        assert refusal(tmp_path / "socket.jpg") == "is a socket"
    assert refusal(tmp_path / "folder.jpg") == "is a folder"
    assert refusal(tmp_path / "pipe.jpg") == "is a named pipe"
    assert refusal(tmp_path / "zero.jpg") == "is a device"
    assert refusal(tmp_path / "gone.jpg") == "a link to a file that does not exist"
    assert refusal(tmp_path / "loop.jpg") == "too many levels of symbolic links"
    assert refusal(tmp_path / "none.jpg") == "no such file"
    assert refusal(tmp_path / "good.png" / "below.png") == "not a directory"
    assert refusal(tmp_path / ("a" * 300)) == "file name too long"
    assert pixels(tmp_path / "link.jpg") == NOISE.tolist()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission(file):
    path = file(encoded("PNG"))
    path.chmod(0)
    assert refusal(path) == "permission denied"


def test_names_with_control_characters_are_escaped(tmp_path):
    for name in ["a\nb.jpg", "a\x1b[31mred.jpg", "a\rb.jpg", "a\u202egpj.jpg", "a\x7f.jpg", "a\udcff.jpg"]:
        assert refusal(tmp_path / name) == "no such file"
        (tmp_path / name).write_bytes(b"text")
        assert refusal(tmp_path / name) == "not an image, or of a kind that is not read"
    assert refusal(Path("a\0b.jpg")) == "embedded null byte"


def test_words_of_a_decoder_are_escaped(file, monkeypatch):
    def fail(*_args: object, **_options: object) -> None:
        raise ValueError("chunk \x1b[2J\u202e is odd\nand more")

    monkeypatch.setattr(Image, "open", fail)
    assert refusal(file(b"x")) == "chunk \\x1b[2J\\u202e is odd"


# Bombs.

BOMB_READER = """
import json, resource, sys, time
from pathlib import Path
from metricli.data.images import open_image, read_header
from metricli.errors import DataError
found = {}
for path in map(Path, sys.argv[1:]):
    said, started = [], time.monotonic()
    for read in (read_header, open_image):
        try:
            read(path)
            said.append("read")
        except DataError as error:
            said.append(error.message)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found[path.name] = {"said": said, "peak": peak, "seconds": time.monotonic() - started}
print(json.dumps(found))
"""


def test_bombs_take_neither_memory_nor_time(tmp_path):
    small = {"exif", "gif frames", "more data than pixels", "tiff strip"}  # and what they hold is sound
    paths = []
    for name, data in {"sound": encoded("JPEG"), **bombs()}.items():
        assert len(data) < 16_000_000
        (tmp_path / name).write_bytes(data)
        paths.append(str(tmp_path / name))
    words = [sys.executable, "-W", "error", "-c", BOMB_READER, *paths]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["sound"]["said"] == ["read", "read"]
    for name in bombs_names(found):
        bomb = found[name]
        if name in small:
            assert bomb["said"] == ["read", "read"], name
        else:
            assert all(
                said.startswith(f"cannot read image {str(tmp_path / name)!r}: ") for said in bomb["said"]
            )
        assert bomb["peak"] < found["sound"]["peak"] + 110, name
        assert bomb["seconds"] < 10, name


def bombs_names(found: dict) -> list[str]:
    return [name for name in found if name != "sound"]


def test_tiles_and_strips_beyond_the_image_are_refused(file, monkeypatch):
    tile = grey_tiff(t259=(3, 1, 8), t322=(4, 1, 40), t323=(4, 1, 40), t324=(4, 1, 138), t325=(4, 1, 64))
    path = file(tile)
    assert refusal(path, max_pixels=1599) == "its tiles of 40 x 40 are more than the 1599 pixels allowed"
    assert "tiles" not in refusal(path, max_pixels=1600)
    monkeypatch.setattr(opening, "_MOST_STRIPS", 2)
    assert refusal(file(grey_tiff(t273=(3, 3, 8)))) == "it claims to have 3 strips"
    again = struct.pack("<4I", 8, 8, 8, 8)
    monkeypatch.setattr(opening, "_MOST_STRIPS", 4)
    whole = grey_tiff(t273=(4, 4, 0), t278=(3, 1, 4))
    place = len(whole)
    whole = grey_tiff(t273=(4, 4, place), t278=(3, 1, 4)) + again
    assert refusal(file(whole)) == "its strips cover it 2 times"


# Sound ones.


def test_a_suffix_does_not_matter(file):
    for name in ["x.jpg", "x.gif", "x", "x.eps"]:
        assert pixels(file(encoded("PNG"), name)) == NOISE.tolist()
    assert read_header(file(encoded("PNG"), "x.jpg")) == (40, 40, "PNG")


def test_every_format_that_is_read_has_its_suffixes(file):
    known = Image.registered_extensions()
    for suffix in IMAGE_SUFFIXES - {".jpe"}:
        assert known[suffix] in (*FORMATS, "MPO"), suffix
    for kind in FORMATS:
        assert {suffix for suffix, other in known.items() if other == kind} & IMAGE_SUFFIXES, kind
        if kind in Image.SAVE:
            assert open_image(file(encoded(kind, BLUE))).size == (3, 2)
    assert pixels(file(encoded("MPO", BLUE, quality=100))) == pixels(file(encoded("JPEG", BLUE, quality=100)))


@pytest.mark.usefixtures("silent")
def test_the_first_frame(file):
    frames = [Image.new("RGB", (3, 2), colour) for colour in [(255, 0, 0), (0, 0, 255), (0, 255, 0)]]
    several = {"save_all": True, "append_images": frames[1:]}
    red = [[[255, 0, 0]] * 3] * 2
    for kind, options in {"GIF": {}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items():
        assert pixels(file(encoded(kind, frames[0], **several, **options))) == red, kind


@pytest.mark.usefixtures("silent")
def test_cmyk(file):
    ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [102, 51, 0, 51]]], dtype=np.uint8)
    light = [[255 - c for c in pixel] for pixel in ink[0].tolist()]
    by_hand = [[[round(part * rest[3] / 255) for part in rest[:3]] for rest in light]]
    image = (
        Image.fromarray(ink, mode=None)
        if ink.shape[2] != 4
        else Image.frombytes("CMYK", (4, 1), ink.tobytes())
    )
    assert np.abs(np.array(pixels(file(encoded("TIFF", image)))) - by_hand).max() <= 1
    flat = Image.frombytes("CMYK", (16, 16), bytes([102, 51, 0, 51]) * 256)
    written = encoded("JPEG", flat, quality=100)
    assert b"Adobe" in written, "inverted, as Photoshop does"
    assert np.abs(np.array(pixels(file(written))) - by_hand[0][3]).max() <= 3


@pytest.mark.usefixtures("silent")
def test_sixteen_bits(file):
    grey = [0, 255, 256, 0x1234, 65535]
    line = b"\0" + struct.pack(">5H", *grey)
    upper = [[[value >> 8] * 3 for value in grey]]
    assert pixels(file(png(5, 1, line, depth=16))) == upper
    key = chunk(b"tRNS", struct.pack(">H", 0x1234))
    upper[0][3] = [255, 255, 255]
    assert pixels(file(png(5, 1, line, depth=16, extra=key))) == upper, "the clear value is white"
    rgb = b"\0" + struct.pack(">6H", 0x1234, 0x00FF, 0xFFFF, 0, 0x8000, 0x0100)
    assert pixels(file(png(2, 1, rgb, depth=16, colour=2))) == [[[0x12, 0, 0xFF], [0, 0x80, 1]]]
    for order in ("<u2", ">u2"):
        image = Image.fromarray(np.array([grey], dtype=np.uint16))
        tags = {258: 16, 277: 1}
        assert pixels(file(encoded("TIFF", image, tiffinfo=tags))) == [
            [[value >> 8] * 3 for value in grey]
        ], order


@pytest.mark.usefixtures("silent")
def test_floats_that_are_none(file):
    nan, inf = np.nan, np.inf
    cases = {
        (100.0, 200.0, nan, inf, -inf): [0, 255, 0, 255, 0],
        (-3e38, 3e38, 0.0): [0, 255, 127],
        (nan, nan): [0, 0],
        (7.0, 7.0): [0, 0],
        (1e-40, 2e-40): [0, 255],
    }
    for values, expected in cases.items():
        image = Image.fromarray(np.array([values] * 300, dtype=np.float32))
        found = np.array(pixels(file(encoded("TIFF", image))))
        assert found.shape == (300, len(values), 3)
        assert (found == np.array(expected)[None, :, None]).all(), values


@pytest.mark.usefixtures("silent")
def test_transparency_over_white(file):
    white = [255, 255, 255]
    rgba = np.array([[[255, 0, 0, 255], [9, 9, 9, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    shown = [[[255, 0, 0], white, [204, 204, 204]]]
    for kind, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}.items():
        assert pixels(file(encoded(kind, Image.fromarray(rgba), **options))) == shown, kind
    la = Image.frombytes("LA", (3, 1), bytes([80, 255, 80, 0, 0, 51]))
    assert pixels(file(encoded("PNG", la))) == [[[80] * 3, white, [204] * 3]]
    palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 0])
    assert pixels(file(encoded("PNG", palette))) == [[[255, 0, 0], [0, 255, 0], [0, 0, 0]]]
    mixed = encoded("PNG", palette, transparency=b"\xff\x00\x33")
    assert pixels(file(mixed)) == [[[255, 0, 0], white, [204] * 3]]
    assert pixels(file(encoded("GIF", palette, transparency=1))) == [[[255, 0, 0], white, [0, 0, 0]]]
    key = chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    line = b"\0" + bytes([1, 2, 3, 1, 2, 4])
    assert pixels(file(png(2, 1, line, colour=2, extra=key))) == [[white, [1, 2, 4]]]


@pytest.mark.usefixtures("silent")
def test_one_bit(file):
    bits = np.array([[True, False, True]])
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        found = pixels(file(encoded(kind, Image.fromarray(bits))))
        assert found == [[[255] * 3, [0] * 3, [255] * 3]], kind


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_damaged_exif_leaves_the_pixels_alone(file, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    sound = encoded(kind, exif=exif)
    turned = open_image(file(sound))
    upright = np.asarray(open_image(file(encoded(kind))))
    assert (np.asarray(turned) == np.rot90(upright, -1)).all()
    for orientation in (0, 9, 65535):
        exif[0x0112] = orientation
        assert (np.asarray(open_image(file(encoded(kind, exif=exif)))) == upright).all()
    if kind == "TIFF":
        return
    for data in [
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"XX*\0\x08\0\0\0",
        b"II*\0\x08\0\0\0\xff\xff",
        b"\0" * 9,
    ]:
        assert (np.asarray(open_image(file(encoded(kind, exif=b"Exif\0\0" + data)))) == upright).all(), data


@pytest.mark.usefixtures("silent")
def test_text_chunks_that_are_sound_are_no_bombs(file):
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"words" * 1000))
    assert pixels(file(png(1, 1, b"\0\x80", extra=text))) == [[[128] * 3]]
