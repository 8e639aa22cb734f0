"""Fuzz one reader, guided by coverage: python -m fuzzing.run TARGET SECONDS [FOLDER].

Needs `pip install 'metricli[fuzz]'`. What is no MetricliError is written to FOLDER (default `fuzzing/finds`)
with its traceback, once for each place that raises, and the search goes on; the last line counts them.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["metricli", "yaml"]):
    import yaml  # noqa: F401

    from fuzzing import seeds, targets
    from metricli.components import tensorfile  # noqa: F401
    from metricli.data import checks, table  # noqa: F401
    from metricli.runs import checkpoints  # noqa: F401
    from metricli.specs import load, train  # noqa: F401

RSS_MB = 1500


class Finds:
    """Runs a target, and keeps what it should not have raised."""

    def __init__(self, target: targets.Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.places: dict[tuple[str, ...], str] = {}
        self.runs = 0

    def __call__(self, data: bytes) -> None:
        """Try one input."""
        self.runs += 1
        try:
            self.target(data)
        except Exception as error:  # whatever it is: that is what is looked for
            frames = traceback.extract_tb(error.__traceback__)
            place = (type(error).__name__, *(f"{frame.name}:{frame.lineno}" for frame in frames[-3:]))
            if place not in self.places:
                self.places[place] = targets.name_of(data)
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / self.places[place]).write_bytes(data)
                text = "".join(traceback.format_exception(error))
                (self.folder / f"{self.places[place]}.txt").write_text(text, errors="backslashreplace")

    def say(self) -> None:
        """The last line."""
        print(f"{self.runs} executions, {len(self.places)} finds in {self.folder}", file=sys.stderr)  # noqa: T201


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """A mutation of a checkpoint that comes past the digest; one in eight is left unsigned."""
    changed = bytes(atheris.Mutate(data, max_size))
    return changed if seed % 8 == 0 else targets.signed(changed)[:max_size]


def main(name: str, seconds: int, folder: Path) -> None:
    """Fuzz one target for a time."""
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-corpus-"))
    atexit.register(shutil.rmtree, corpus, ignore_errors=True)
    for seed in seeds.SEEDS[name]():
        (corpus / targets.name_of(seed)).write_bytes(seed)
    finds = Finds(targets.TARGETS[name], folder)
    atexit.register(finds.say)
    words = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={RSS_MB}",
        "-timeout=120",
    ]
    words += ["-max_len=8192", "-print_final_stats=1", f"-artifact_prefix={folder}{os.sep}", "-seed=1"]
    folder.mkdir(parents=True, exist_ok=True)
    mutator = {"custom_mutator": mutated} if name == "checkpoint" else {}
    atheris.Setup(words, finds, **mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3] if len(sys.argv) > 3 else "fuzzing/finds"))
