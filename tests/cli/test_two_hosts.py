"""Two hosts, each a network namespace of its own: torchrun as documented, and the numbers of one process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Call
from tests.runs.test_processes_train import assert_same_lines, jsonl

HOSTS = ("metricli-host-1", "metricli-host-2")
LIMIT = 120


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def hosts() -> Iterator[tuple[str, ...]]:
    """Two namespaces with a cable between them, and nothing else."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        ip("-n", HOSTS[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", HOSTS[1])
        for number, host in enumerate(HOSTS, start=1):
            ip("-n", host, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")
        yield HOSTS
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, check=False)


def on_both(hosts: tuple[str, ...], folders: list[Path], *words: str) -> list[tuple[int, str, str]]:
    """Code, output and errors of one command on each host, started by torchrun."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"GLOO_SOCKET_IFNAME": "cable", "METRICLI_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    running = []
    for rank, (host, folder) in enumerate(zip(hosts, folders, strict=True)):
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}"]
        where = ["--master-addr=10.77.0.1", "--master-port=29400", "-m", "metricli"]
        command = ["ip", "netns", "exec", host, sys.executable, *torchrun, *where, *words]
        running.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        told = [process.communicate(timeout=LIMIT) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, out, err) for process, (out, err) in zip(running, told, strict=True)]


def test_two_hosts_train_as_one(
    hosts: tuple[str, ...], cli: Call, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """The hosts share no folder but the images: the second one writes nothing."""
    tiny["training"] |= {"precision": "fp64", "epochs": 1}
    spec = tmp_path / "tiny.yaml"
    spec.write_text(yaml.safe_dump(tiny, sort_keys=False))
    assert cli("train", spec, "--run-dir", "one").code == 0
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    told = on_both(hosts, folders, "train", str(spec), "--run-dir", "run", "--json")
    assert [code for code, _, _ in told] == [0, 0], told
    assert told[1][1] == "", "one process speaks"
    assert not list(folders[1].iterdir())
    assert_same_lines(jsonl(tmp_path / "one"), jsonl(folders[0] / "run"))
