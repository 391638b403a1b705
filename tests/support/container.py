"""The image, built and run without a Docker engine: buildah, and podman with runc, on a base of our own.

``make image-test`` builds it by ``make image``, as a release does, but on a Debian that mmdebstrap makes
of the machine's own package sources, since no image registry can be assumed. Storage is in ``.image/``,
apart from the user's. What the machine needs to reach the package registries (certificate, index, proxy)
is read from its own settings and passed as build secrets.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final

from tests.support.procs import STOP_TIMEOUT, Program
from tests.support.waiting import until_sync

ROOT: Final = Path(__file__).resolve().parents[2]
IMAGE: Final = "localhost/valetkey:test"
UID: Final = 64_707
_PLACE: Final = ROOT / ".image"
_BASE: Final = "localhost/valetkey-base:bookworm"
_SUITE: Final = "bookworm"
# As in the official images, on which the default base is; what compiles is put in by the Dockerfile.
_PACKAGES: Final = "python3,ca-certificates"
_BUILD_PACKAGES: Final = "gcc libc6-dev python3-dev python3-venv"
_TOOLS: Final = ("buildah", "podman", "runc", "mmdebstrap")
_NUMBERS: Final = count()


def missing() -> str:
    """Why the image can't be built and run here, or empty."""
    lacking = " ".join(tool for tool in _TOOLS if shutil.which(tool) is None)
    if lacking:
        return f"no {lacking} (Debian: apt-get install --no-install-recommends {' '.join(_TOOLS)})"
    return "" if os.geteuid() == 0 else "it takes root to make a base and to run containers"


def unbuilt() -> str:
    """Why there is no image to be tested, or empty."""
    if reason := missing():
        return reason
    found = subprocess.run([*podman(), "image", "exists", IMAGE], check=False)
    return "no image: `make image-test` builds it" if found.returncode else ""


# --- building -------------------------------------------------------------------------------------


@cache
def _storage() -> tuple[str, ...]:
    """Layers as overlays where the file system takes them, else as copies."""
    place = ("--root", str(_PLACE / "storage"), "--runroot", str(_PLACE / "run"))
    for driver in ("overlay", "vfs"):
        options = (*place, "--storage-driver", driver)
        if not subprocess.run(
            ["buildah", *options, "images"], check=False, capture_output=True
        ).returncode:
            return options
    raise AssertionError(f"buildah can keep nothing in {_PLACE}")


def podman() -> tuple[str, ...]:
    """The command with its options. crun refuses machines with both versions of cgroups."""
    options = ("--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc")
    return ("podman", *_storage(), *options)


def _buildah(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["buildah", *_storage(), *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.strip()


def build() -> None:
    """The base, unless it is there, and the image: layers that did not change are kept."""
    _PLACE.mkdir(exist_ok=True)
    digest = _digest() or _make_base()
    with tempfile.TemporaryDirectory() as name:
        secrets = [f"--secret id={file.name},src={file}" for file in _secrets(Path(name))]
        variables = {
            "BUILDAH": " ".join(("buildah", *_storage())),
            "BASE": _BASE,
            "BASE_DIGEST": digest,
            "IMAGE": IMAGE,
            "IMAGE_OPTIONS": f'--build-arg BUILD_PACKAGES="{_BUILD_PACKAGES}" {" ".join(secrets)}',
        }
        subprocess.run(
            ["make", "image", *(f"{name}={value}" for name, value in variables.items())],
            check=True,
            cwd=ROOT,
        )


def _digest() -> str:
    listed = _buildah("images", "--digests", "--format", "{{.Name}}:{{.Tag}} {{.Digest}}")
    found = dict(line.split() for line in listed.splitlines())
    return found.get(_BASE, "")


def _make_base() -> str:
    archive = _PLACE / "base.tar"
    options = ("--variant=minbase", f"--include={_PACKAGES}")
    # Without a mirror named, it takes those of the machine.
    subprocess.run(["mmdebstrap", *options, _SUITE, archive], check=True)
    container = _buildah("from", "scratch")
    _buildah("add", "--quiet", container, archive, "/")
    _buildah("commit", "--quiet", "--rm", container, _BASE)
    archive.unlink()
    return _digest()


def _secrets(directory: Path) -> Iterable[Path]:
    """How this machine reaches the registries, as files for the build's secrets."""
    roots = directory / "ca.pem"
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    # A variable (":env:") stands after, and over, what files say.
    said = dict(re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE))
    shutil.copy(said.get("cert") or ssl.get_default_verify_paths().cafile or "", roots)
    yield roots
    kept = {
        key: said[key]
        for key in ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
        if key in said
    }
    pip = directory / "pip.conf"
    kept = {"cert": f"/run/secrets/{roots.name}", **kept}
    pip.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in kept.items()))
    yield pip
    dumped = subprocess.run(
        ["apt-config", "dump", "Acquire"], check=True, stdout=subprocess.PIPE, text=True
    )
    apt = directory / "apt.conf"
    apt.write_text(
        "".join(f"{line}\n" for line in dumped.stdout.splitlines() if "proxy" in line.lower())
    )
    yield apt


# --- running --------------------------------------------------------------------------------------


def described() -> dict[str, Any]:
    """What the image says of itself."""
    listed = subprocess.run(
        [*podman(), "image", "inspect", IMAGE], check=True, stdout=subprocess.PIPE
    )
    (image,) = json.loads(listed.stdout)
    return image


def confined(*, name: str, mounts: Mapping[str, Path], env: Mapping[str, str]) -> tuple[str, ...]:
    """``podman run`` as the chart and the injector run it: nobody's root, nothing to write on."""
    return (
        *podman(),
        *("run", "--rm", "--name", name, "--read-only", "--read-only-tmpfs=false"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host"),
        # A machine that is a container itself may not raise limits, nor make namespaces of cgroups.
        *("--cgroupns", "host"),
        *("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1024:1024"),
        *(f"--volume={path}:{place}" for place, path in mounts.items()),
        *(f"--env={key}={value}" for key, value in env.items()),
    )


class Container(Program):
    """A program in a container of the image. ``argv`` follows the image's own entry point.

    ``mounts``: what is at which place, and with ``:ro`` behind the place, not to be written on.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        directory: Path,
        *,
        name: str,
        mounts: Mapping[str, Path],
        env: Mapping[str, str] | None = None,
    ) -> None:
        # Without systemd nobody starts health checks at intervals; tests start them themselves.
        super().__init__((), directory, name=name, env={"DISABLE_HC_SYSTEMD": "true"})
        self.container = f"valetkey-{name}-{os.getpid()}-{next(_NUMBERS)}"
        run = confined(name=self.container, mounts=mounts, env=env or {})
        self._argv = (*run, IMAGE, *argv)

    @property
    def pid(self) -> int:
        """Of the program itself, as this machine numbers it."""
        listed = self._podman("inspect", "--format", "{{.State.Pid}}", self.container)
        return int(listed.stdout)

    def health(self) -> tuple[int, str]:
        """The image's own check, run in the container: its exit status, and what it says."""
        done = self._podman("healthcheck", "run", self.container)
        log = self._podman("inspect", "--format", "{{json .State.Health.Log}}", self.container)
        lines = json.loads(log.stdout) or [{"Output": ""}]
        return done.returncode, f"{lines[-1]['Output']}{done.stderr}"

    def kill(self) -> None:
        """Until it is gone: a container that is still being made can't be killed yet."""

        def gone() -> bool:
            if self.running:
                self._podman("kill", "--signal", "KILL", self.container)
            return not self.running

        until_sync(gone, f"the end of {self.container}", seconds=STOP_TIMEOUT, poll=0.1)

    def terminate(self) -> None:
        if self.running:
            self._podman("kill", "--signal", "TERM", self.container)

    @staticmethod
    def _podman(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*podman(), *arguments], check=False, capture_output=True, text=True, timeout=60
        )


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command in the image (not of its entry point), to its end."""
    argv = confined(
        name=f"valetkey-run-{os.getpid()}-{next(_NUMBERS)}",
        mounts=options.pop("mounts", {}),
        env=options.pop("env", {}),
    )
    return subprocess.run(
        [*argv, "--no-healthcheck", "--entrypoint", command[0], IMAGE, *command[1:]],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "DISABLE_HC_SYSTEMD": "true"},
    )


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    build()
