"""Draw the figures_mini data set again: `python data/figures_mini/make.py [FOLDER]` (default: this folder).

Meant to give the same bytes anywhere: the standard library's Mersenne Twister, exactly rounded array arithmetic
(`sin` and `cos` of a few numbers an image are the one exception), and a PNG writer of our own with stored
(uncompressed) blocks, so that no zlib, Pillow or numpy release changes a file.
"""

import csv
import math
import random
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Shape = Callable[[Field, Field, float], Mask]
Colour = tuple[int, int, int]
Row = dict[str, str | int]

SEED = 20240
COLUMNS = (
    "label",
    "path",
    "split",
    "is_query",
    "is_gallery",
    "category",
    "sequence",
    "x_1",
    "x_2",
    "y_1",
    "y_2",
)
NUM_TRAIN = 9  # images of a train label
NUM_VALIDATION = 8  # images of a validation label, those of its sequence included
NUM_BURST = 4  # images of a sequence
BACKGROUND, FILL, MARK, CLUTTER = range(4)
NUM_SHADES = 4  # 4 materials of 4 shades: a 16-colour palette, half a byte a pixel


def polygon(num_corners: int, depth: float = 1.0) -> Shape:
    """A regular polygon, or for `depth` < 1 a star whose inner corners lie at that radius."""
    count = num_corners if depth == 1.0 else 2 * num_corners
    radii = [1.0 if depth == 1.0 or i % 2 == 0 else depth for i in range(count)]
    corners = [
        (radius * math.cos(2 * math.pi * i / count), radius * math.sin(2 * math.pi * i / count))
        for i, radius in enumerate(radii)
    ]

    def inside(u: Field, v: Field, inset: float) -> Mask:
        scale = 1 - 1.6 * inset
        result = np.zeros(u.shape, dtype=bool)
        for (x_a, y_a), (x_b, y_b) in zip(corners, corners[1:] + corners[:1], strict=True):
            if y_a == y_b:
                continue
            crosses = (v < y_a * scale) != (v < y_b * scale)
            result ^= crosses & (u < x_a * scale + (v - y_a * scale) * ((x_b - x_a) / (y_b - y_a)))
        return result

    return inside


def ring(inner: float, gaps: int = 0) -> Shape:
    """A ring from radius `inner` to 1, cut open on `gaps` sides."""

    def inside(u: Field, v: Field, inset: float) -> Mask:
        square = u * u + v * v
        result = (square <= (1 - inset) ** 2) & (square >= (inner + inset) ** 2)
        for i in range(gaps):
            cos, sin = math.cos(2 * math.pi * i / gaps), math.sin(2 * math.pi * i / gaps)
            result &= (u * cos + v * sin < 0) | (abs(v * cos - u * sin) > 0.24 + inset)
        return result

    return inside


def strokes(*segments: tuple[float, float, float, float], width: float = 0.22) -> Shape:
    """Thick strokes with round ends along `segments` (x_a, y_a, x_b, y_b)."""

    def inside(u: Field, v: Field, inset: float) -> Mask:
        result = np.zeros(u.shape, dtype=bool)
        for x_a, y_a, x_b, y_b in segments:
            d_x, d_y = x_b - x_a, y_b - y_a
            along = np.clip(((u - x_a) * d_x + (v - y_a) * d_y) / (d_x * d_x + d_y * d_y), 0, 1)
            p, q = u - x_a - along * d_x, v - y_a - along * d_y
            result |= p * p + q * q <= (width - inset) ** 2
        return result

    return inside


SHAPES: dict[str, dict[str, Shape]] = {
    "polygon": {"triangle": polygon(3), "square": polygon(4), "hexagon": polygon(6)},
    "star": {"star4": polygon(4, 0.4), "star6": polygon(6, 0.5), "star9": polygon(9, 0.6)},
    "ring": {"ring": ring(0.45), "arc": ring(0.45, gaps=1), "cuffs": ring(0.45, gaps=2)},
    "glyph": {
        "tee": strokes((-0.55, -0.55, 0.55, -0.55), (0, -0.55, 0, 0.75)),
        "zed": strokes((-0.5, -0.6, 0.5, -0.6), (0.5, -0.6, -0.5, 0.6), (-0.5, 0.6, 0.5, 0.6)),
        "plus": strokes((-0.7, 0, 0.7, 0), (0, -0.7, 0, 0.7), width=0.3),
    },
}


def striped(u: Field, _: Field) -> Mask:
    """Parallel stripes."""
    return np.asarray(np.floor((u + 8) / 0.2) % 2 == 0)


def dotted(u: Field, v: Field) -> Mask:
    """A square lattice of dots."""
    p, q = (u + 8) % 0.4 - 0.2, (v + 8) % 0.4 - 0.2
    return p * p + q * q <= 0.13**2


def checked(u: Field, v: Field) -> Mask:
    """A chess board."""
    return np.asarray((np.floor((u + 8) / 0.27) + np.floor((v + 8) / 0.27)) % 2 == 0)


MARKS = {mark.__name__: mark for mark in (striped, dotted, checked)}
PLAIN = "plain"  # no mark
HOLLOW = "hollow"  # only the outline of the shape is left

# Every shape and every mark is seen in training; no validation label's pair of them is.
LABELS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "polygon": {
        "train": (("triangle", "striped"), ("square", "dotted"), ("hexagon", "hollow")),
        "validation": (("triangle", "dotted"), ("square", "hollow"), ("hexagon", "striped")),
    },
    "star": {
        "train": (("star4", "plain"), ("star6", "striped"), ("star9", "checked")),
        "validation": (("star4", "striped"), ("star6", "checked"), ("star9", "plain")),
    },
    "ring": {
        "train": (("ring", "striped"), ("arc", "plain"), ("cuffs", "hollow")),
        "validation": (("ring", "plain"), ("arc", "hollow"), ("cuffs", "striped")),
    },
    "glyph": {
        "train": (("tee", "plain"), ("zed", "hollow"), ("plus", "dotted")),
        "validation": (("tee", "hollow"), ("zed", "dotted"), ("plus", "plain")),
    },
}
BURSTS = ("triangle_dotted", "arc_hollow", "plus_plain")  # the labels with a sequence


@dataclass(frozen=True)
class Scene:
    """All that an image shows, but its noise."""

    width: int
    height: int
    x: float
    y: float
    radius: float
    angle: float
    light: tuple[float, float]
    colours: tuple[Colour, Colour, Colour, Colour]
    lines: tuple[tuple[float, float, float], ...]
    blobs: tuple[tuple[float, float, float], ...]
    boxed: bool


def brightness(colour: Colour) -> float:
    """Perceived brightness, 0 to 255."""
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def draw_colour(rng: random.Random, low: float, high: float) -> Colour:
    """A random colour of a brightness between `low` and `high`."""
    while True:
        grey = 120 * rng.random()
        colour = (
            int(grey + 135 * rng.random()),
            int(grey + 135 * rng.random()),
            int(grey + 135 * rng.random()),
        )
        if low <= brightness(colour) <= high:
            return colour


def draw_scene(rng: random.Random, *, boxed: bool) -> Scene:
    """Draw the nuisances: place, size, turn, light, colours, clutter; with a box the figure is small."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    width, height = (96, 96) if boxed else (int(between(64, 81)), int(between(64, 81)))
    radius = between(21, 26) if boxed else between(0.33, 0.46) * min(width, height)
    x = between(radius + 1, width - radius - 1)
    y = between(radius + 1, height - radius - 1)
    background = draw_colour(rng, 30, 80)
    fill = draw_colour(rng, 150, 230)
    mark = draw_colour(rng, 10, 60)
    lines = tuple((between(0, 2 * math.pi), between(-0.5, 0.5), between(0.6, 1.2)) for _ in range(3))
    blobs = tuple((between(0, width), between(0, height), between(1.5, 4)) for _ in range(6 if boxed else 3))
    return Scene(
        width=width,
        height=height,
        x=x,
        y=y,
        radius=radius,
        angle=between(-0.5, 0.5),
        light=(between(-1.5, 1.5), between(-1.5, 1.5)),
        colours=(background, fill, mark, draw_colour(rng, 80, 150)),
        lines=lines[: int(between(0, 3))],
        blobs=blobs,
        boxed=boxed,
    )


def nudge(rng: random.Random, scene: Scene) -> Scene:
    """The next image of a burst: the same scene, a hair later."""
    return replace(
        scene,
        x=scene.x + rng.random() - 0.5,
        y=scene.y + rng.random() - 0.5,
        angle=scene.angle + 0.06 * (rng.random() - 0.5),
    )


def draw_scenes(rng: random.Random, num_images: int, *, burst: bool) -> list[Scene]:
    """The scenes of a label; with a burst its first ones are one scene, nudged."""
    scenes: list[Scene] = []
    for position in range(num_images):
        if burst and 0 < position < NUM_BURST:
            scenes.append(nudge(rng, scenes[-1]))
        else:
            scenes.append(draw_scene(rng, boxed=position % 4 == 2))
    return scenes


def render(rng: random.Random, scene: Scene, shape: Shape, mark: str) -> npt.NDArray[np.uint8]:
    """Palette indices of a scene with its figure and fresh noise, (height, width)."""
    rows, columns = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float64) + 0.5
    material = np.full(rows.shape, BACKGROUND, dtype=np.uint8)
    for x, y, radius in scene.blobs:
        material[(columns - x) ** 2 + (rows - y) ** 2 <= radius * radius] = CLUTTER

    cos, sin = math.cos(scene.angle) / scene.radius, math.sin(scene.angle) / scene.radius
    u = (columns - scene.x) * cos + (rows - scene.y) * sin
    v = (rows - scene.y) * cos - (columns - scene.x) * sin
    figure = shape(u, v, 0.0)
    material[figure] = FILL
    if mark == HOLLOW:
        material[figure & shape(u, v, 0.13)] = BACKGROUND
    elif mark != PLAIN:
        material[figure & MARKS[mark](u, v)] = MARK

    for angle, offset, half_width in scene.lines:
        across = (columns - scene.x) * math.cos(angle) + (rows - scene.y) * math.sin(angle)
        material[abs(across - offset * scene.radius) <= half_width] = CLUTTER

    noise = np.frombuffer(rng.randbytes(rows.size), dtype=np.uint8).reshape(rows.shape) / 256
    slope = scene.light[0] * (columns / scene.width - 0.5) + scene.light[1] * (rows / scene.height - 0.5)
    shade = np.clip(np.floor(1.0 + slope + 2.0 * noise), 0, NUM_SHADES - 1).astype(np.uint8)
    return np.asarray(material * np.uint8(NUM_SHADES) + shade)


def encode_png(indices: npt.NDArray[np.uint8], colours: tuple[Colour, ...]) -> bytes:
    """A 4-bit palette PNG with one stored block (RFC 1950, 1951 and 2083)."""
    height, width = indices.shape
    padded = np.pad(indices, ((0, 0), (0, width % 2)))
    packed = padded[:, 0::2] << 4 | padded[:, 1::2]
    lines = np.pad(packed, ((0, 0), (1, 0))).tobytes()  # filter type 0 before every line
    size = len(lines)
    stored = (
        b"\x78\x01\x01"
        + struct.pack("<HH", size, size ^ 0xFFFF)
        + lines
        + struct.pack(">I", zlib.adler32(lines))
    )
    shades = (0.62, 0.80, 0.94, 1.06)
    palette = bytes(
        min(255, int(channel * shade)) for colour in colours for shade in shades for channel in colour
    )

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", palette)
        + chunk(b"IDAT", stored)
        + chunk(b"IEND", b"")
    )


def box(scene: Scene) -> Row:
    """Left, right, top and bottom of the figure's circle."""
    margin = scene.radius + 1
    return {
        "x_1": max(0, int(scene.x - margin)),
        "x_2": min(scene.width, math.ceil(scene.x + margin)),
        "y_1": max(0, int(scene.y - margin)),
        "y_2": min(scene.height, math.ceil(scene.y + margin)),
    }


def flags(split: str, position: int, label_number: int) -> Row:
    """Most validation rows are both; a few are only one of the two."""
    if split == "train":
        return {"is_query": "", "is_gallery": ""}
    only = position == NUM_VALIDATION - 1
    return {
        "is_query": "false" if only and label_number % 2 == 0 else "true",
        "is_gallery": "false" if only and label_number % 2 == 1 else "true",
    }


def make(folder: Path) -> list[Row]:
    """Write `df.csv` and `images/` into `folder`; the rows are returned too."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for split, num_images in (("train", NUM_TRAIN), ("validation", NUM_VALIDATION)):
        pairs = [(category, *pair) for category, splits in LABELS.items() for pair in splits[split]]
        for label_number, (category, variant, mark) in enumerate(pairs):
            label = f"{variant}_{mark}"
            rng = random.Random(f"{SEED} {label}")
            scenes = draw_scenes(rng, num_images, burst=label in BURSTS)
            for position, scene in enumerate(scenes):
                path = f"images/{label}_{position}.png"
                indices = render(rng, scene, SHAPES[category][variant], mark)
                (folder / path).write_bytes(encode_png(indices, scene.colours))
                row: Row = {"label": label, "path": path, "split": split, "category": category}
                row |= flags(split, position, label_number)
                if label in BURSTS and position < NUM_BURST:
                    row["sequence"] = f"burst_{BURSTS.index(label)}"
                row |= box(scene) if scene.boxed else {}
                rows.append(row)
    with (folder / "df.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


if __name__ == "__main__":
    made = make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
    print(f"{len(made)} images")
