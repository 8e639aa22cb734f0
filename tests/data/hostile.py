"""Image files made byte by byte: sound ones of odd kinds, broken ones, and bombs."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """An image (by default noise) as a file of a kind."""
    file = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG."""
    right = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", right if crc is None else crc)


def png(
    width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG of raw scan lines, each with its filter byte; grey is colour 0, RGB 2."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + body


def zeros(count: int) -> bytes:
    """A zlib stream of many zeros, made without having them."""
    packer, out = zlib.compressobj(1), []
    for _ in range(count >> 20):
        out.append(packer.compress(bytes(1 << 20)))
    return b"".join([*out, packer.flush()])


def tiff(entries: dict[int, tuple[int, int, int]], rest: bytes = b"") -> bytes:
    """A TIFF of tags (kind, count, value); `rest` follows the only directory."""
    listed = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + listed + bytes(4) + rest


def grey_tiff(**changed: tuple[int, int, int]) -> bytes:
    """A grey TIFF of 8 x 8 pixels, some of its tags replaced: `t258` is tag 258."""
    entries = {256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    entries |= {int(name[1:]): value for name, value in changed.items()}
    if 322 not in entries:
        data = 10 + 12 * len(entries | {273: 0, 278: 0, 279: 0}) + 4
        entries = {273: (4, 1, data), 278: (3, 1, 8), 279: (4, 1, 64)} | entries
    return tiff(entries, bytes(range(64)))


def gif_frame(width: int, height: int, canvas: tuple[int, int]) -> bytes:
    """A GIF with one small frame on a canvas."""
    whole = encoded("GIF", Image.new("P", (width, height)))
    return whole[:6] + struct.pack("<HH", *canvas) + whole[10:]


def cut(data: bytes) -> Iterator[bytes]:
    """A file that ends too early, at many places."""
    for length in {0, 1, 2, 5, 9, 13, 20, 33, 60, *range(100, len(data) * 3 // 4, len(data) // 12)}:
        if length < len(data):
            yield data[:length]


def bombs() -> dict[str, bytes]:
    """Small files that claim, or unfold to, gigabytes."""
    text = zeros(1 << 28)
    exif = b"II*\0" + struct.pack("<IH", 8, 40000)
    exif += b"".join(struct.pack("<HHII", 40000 + i % 25000, 7, 400_000, 0) for i in range(40000))
    pixel = b"\0\x80"
    many = 200_000_000
    return {
        "ihdr": png(2**31 - 1, 2**31 - 1, pixel),
        "zeros": png(50_000, 50_000, b"").replace(chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", text)),
        "more data than pixels": png(8, 8, b"").replace(
            chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", text)
        ),
        "ztxt": png(1, 1, pixel, extra=chunk(b"zTXt", b"a\0\0" + text)),
        "itxt": png(1, 1, pixel, extra=chunk(b"iTXt", b"a\0\1\0\0\0" + text)),
        "iccp": png(1, 1, pixel, extra=chunk(b"iCCP", b"a\0\0" + text)),
        "many ztxt": png(1, 1, pixel, extra=chunk(b"zTXt", b"a\0\0" + zeros(1 << 20)) * 200),
        "exif": png(1, 1, pixel, extra=chunk(b"eXIf", exif)),
        "length": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR",
        "gif canvas": gif_frame(4, 4, (65535, 65535)),
        "gif frames": encoded(
            "GIF",
            Image.new("P", (64, 64)),
            save_all=True,
            append_images=[Image.new("P", (64, 64), i % 250) for i in range(1, 1500)],
        ),
        "webp canvas": b"RIFF"
        + struct.pack("<I", 30)
        + b"WEBPVP8X"
        + struct.pack("<I", 10)
        + b"\x02\0\0\0\xff\x3f\0\xff\x3f\0"
        + b"ANIM"
        + struct.pack("<IIH", 6, 0, 0),
        "bmp": b"BM"
        + struct.pack("<IHHI", 100, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        "ppm": b"P6 2000000000 2000000000 255\n" + bytes(100),
        "tiff size": grey_tiff(t256=(4, 1, 2**31), t257=(4, 1, 2**31)),
        "tiff tile": grey_tiff(
            t259=(3, 1, 8), t322=(4, 1, 40_000), t323=(4, 1, 40_000), t324=(4, 1, 138), t325=(4, 1, 64)
        ),
        "tiff strips": grey_tiff(t273=(4, many, 8), t279=(4, many, 8)),
        "tiff short list of strips": grey_tiff(t273=(4, 3_000_000, 8)) + bytes(12_000_000),
        "tiff strips again": grey_tiff(t273=(4, 190_000, 8), t278=(3, 1, 4)) + bytes(800_000),
        "tiff strip": grey_tiff(t279=(4, 1, 2**32 - 1)),
        "tiff samples": grey_tiff(t277=(3, 1, 65535)),
        "tiff bits": grey_tiff(t258=(3, 1, 65535)),
        "tiff directory": b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 65535) + bytes(100),
        "bigtiff directory": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(100),
        "j2k": b"\xff\x4f\xff\x51\0\x29\0\0"
        + struct.pack(">8I", 2**31, 2**31, 0, 0, 1, 1, 0, 0)
        + struct.pack(">H", 1)
        + b"\x07\x01\x01",
    }
