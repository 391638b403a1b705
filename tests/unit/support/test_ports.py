from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.support import ports


def lowest_of_the_kernels() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def test_each_is_another_below_those_that_the_kernel_gives() -> None:
    given = [ports.free_port() for _ in range(300)]
    assert len(set(given)) == 300
    assert max(given) < lowest_of_the_kernels()


def test_one_that_is_taken_is_passed_over() -> None:
    with socket.socket() as taken:
        port = ports.free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert port not in {ports.free_port() for _ in range(ports._BLOCK - 1)}
    assert port in {ports.free_port() for _ in range(ports._BLOCK)}


def test_two_processes_share_none() -> None:
    code = "from tests.support.ports import free_port; print(*[free_port() for _ in range(400)])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60
    )
    other = {int(port) for port in ran.stdout.split()}
    assert len(other) == 400
    assert other.isdisjoint(ports.free_port() for _ in range(ports._BLOCK))
