"""The machine by kind, and the versions of what ran: never names of hosts, users or places."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.processes import NotRun
from bench.servers import HERE, envoy_binary


def describe(temporary: Path, mitmdump: Path) -> dict[str, Any]:
    """Hardware, kernel and versions; ``temporary`` is where the spools lie."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "spool_file_system": _file_system(temporary),
        "tcp_congestion_control": _sysctl("net/ipv4/tcp_congestion_control"),
        "load_average": round(os.getloadavg()[0], 2),  # of others: nothing of ours runs yet
        "versions": _versions(mitmdump),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    command = ["df", "--output=fstype", str(directory)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[-1].strip()


def _sysctl(name: str) -> str:
    return (Path("/proc/sys") / name).read_text().strip()


def _versions(mitmdump: Path) -> dict[str, str]:
    found = {"python": f"{platform.python_version()} ({_build()})", "data path": _data_path()}
    for name in ("valetkey", "uvloop", "httptools", "aiohttp", "msgspec", "cryptography"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "from source"
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx:
        found["nginx"] = _said([nginx, "-v"], r"nginx/(\S+)")
    if wrk := shutil.which("wrk"):
        found["wrk"] = _said([wrk, "-v"], r"wrk \S*?(\d+\.\d+\.\d+)")
    if go := shutil.which("go"):
        found["go"] = _said([go, "version"], r"go(\d+(?:\.\d+)*)")
    with suppress(NotRun):
        found["envoy"] = _said([envoy_binary(), "--version"], r"/(\d+\.\d+\.\d+)/")
    if mitmdump.is_file():
        found["mitmproxy"] = _said([str(mitmdump), "--version"], r"Mitmproxy: (\S+)")
    return found


def _build() -> str:
    """Whether the interpreter says that it was built with profile-guided optimisation.

    That is up to a quarter of its speed. Debian's is, but does not say so.
    """
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS"))
    return "PGO" if "--enable-optimizations" in arguments else "PGO not stated"


def _data_path() -> str:
    """Whether the installed package (not the source beside us) holds compiled modules."""
    run = subprocess.run(
        [sys.executable, "-c", "import valetkey.proxy.pep as pep; print(pep.__file__)"],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    return "compiled" if run.stdout.strip().endswith(".so") else "interpreted"


def _said(command: list[str], pattern: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    match = re.search(pattern, run.stdout + run.stderr)
    return match[1] if match else "unknown"


def _commit() -> str:
    """Short hash of what was measured, with ``+`` when files were changed since."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(HERE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
