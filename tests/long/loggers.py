"""Every logger whose package is installed, really run: `python -m tests.long.loggers`.

Each is begun, told things and closed, and again as in a resumed run. What is printed: the version, the
seconds, warnings, the hosts that it asked for, and what it left. The last result: results/loggers.txt.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from metricli.runs.directory import RunDirectory
from metricli.runs.logs import Logs
from metricli.specs.kinds import LoggerSpec
from metricli.specs.registry import names
from tests.runs.conftest import Listener

SPEC = {"name": "prod", "loss": {"name": "triplet", "margin": 0.2}, "validation": {"monitor": "cmc@1"}}
PACKAGES = {"mlflow": "mlflow-skinny"}


def session(spec: LoggerSpec, run: RunDirectory, step: int) -> tuple[float, list[str]]:
    """Steps up to 4, a validation and a figure; the seconds it took, and the warnings."""
    listener, started = Listener(), time.monotonic()
    with Logs(run, [spec], listener, step=step, resolved=SPEC) as logs:
        for at in range(step + 1, 5):
            logs.row(at, 1, "train", {"loss": 1 / at})
        logs.row(4, 1, "validation", {"cmc@1": 0.5, "map@r": float("nan")}, category="a & ../b")
        logs.figure(4, "validation/worst", np.full((40, 50, 3), 100, np.uint8))
    return time.monotonic() - started, listener.warned


def one(name: str, step: int) -> None:
    """What one session says, as JSON."""
    asked, resolve = list[str](), socket.getaddrinfo

    def listen(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(str(host))
        return resolve(host, *args, **kwargs)

    socket.getaddrinfo = listen
    spec: Any = LoggerSpec._resolve(name)
    run = RunDirectory(Path.cwd() / "run")
    if not step:
        run.start(SPEC)
    seconds, warned = session(spec, run, step)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    found = {
        "version": version(PACKAGES.get(name, spec.package)),
        "seconds": round(seconds, 1),
        "warnings": warned,
        "hosts asked for": asked,
        "files": len(files),
        "kilobytes": sum(path.stat().st_size for path in files) // 1000,
        "told": json.loads((run.path / "loggers" / f"{name}.json").read_text())["sent"],
    }
    sys.stdout.write(json.dumps(found) + "\n")


def main() -> None:
    """All of them, or the session that is named, in this process."""
    if len(sys.argv) > 1:
        one(sys.argv[1], int(sys.argv[2]))
        return
    for name in names("loggers"):
        spec: Any = LoggerSpec._resolve(name)
        if find_spec(spec.package) is None:
            sys.stdout.write(f"{name}: not installed\n")
            continue
        with tempfile.TemporaryDirectory() as place:
            env = {**os.environ, "HOME": place, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            for step in ("0", "2"):
                command = [sys.executable, "-m", "tests.long.loggers", name, step]
                done = subprocess.run(
                    command, capture_output=True, text=True, cwd=place, env=env, check=False, timeout=300
                )
                said = done.stdout.strip() or done.stderr[-500:]
                sys.stdout.write(f"{name} after step {step}, exit {done.returncode}: {said}\n")
                noise = [line for line in done.stderr.splitlines() if line.strip()]
                sys.stdout.write("".join(f"    on stderr: {line[:150]}\n" for line in noise[:5]))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
