"""The runtimes on PATH, and what each says about itself.

A runtime is asked, where it can be: Python names its certifi bundle and OpenSSL's paths, Java its
system properties, git its settings. So the answer holds for what is installed here, patches of
distributions included.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from valetkey.cli.doctor.process import Ran, run

Run = Callable[[Sequence[str]], Ran]

# Time for a program to say its version: a JVM on a busy machine takes a second or two.
_PATIENCE: Final = 15.0


class PythonFacts(msgspec.Struct, frozen=True):
    """``cafile`` and ``capath`` are OpenSSL's own, without what variables say."""

    version: str
    cafile: str = ""
    capath: str = ""
    certifi: str = ""
    clients: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program on PATH. ``version`` is empty where it did not say one; ``trouble`` is why.

    Of the facts only those of its own kind are filled.
    """

    name: str
    executable: str
    version: str
    trouble: str = ""
    python: PythonFacts | None = None
    properties: dict[str, str] = field(default_factory=dict)
    """Java's system properties."""
    config: dict[str, str] = field(default_factory=dict)
    """git's ``http.*`` for https:// URLs, names in lower case."""
    compiler: bool = True
    """Whether a probe in source can be run."""

    @property
    def release(self) -> tuple[int, ...]:
        """The numbers of its version."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])


# `python` where there is no `python3`, as in some images.
_COMMANDS: Final = {
    "curl": ("curl",),
    "git": ("git",),
    "python": ("python3", "python"),
    "node": ("node", "nodejs"),
    "java": ("java",),
    "go": ("go",),
}
NAMES: Final = tuple(_COMMANDS)

_PYTHON: Final = """
import importlib, json, platform, ssl, sys
sys.path[:] = [p for p in sys.path if p]
paths = ssl.get_default_verify_paths()
found = {"version": platform.python_version(), "clients": {},
         "cafile": paths.openssl_cafile or "", "capath": paths.openssl_capath or ""}
for name in ("requests", "httpx", "aiohttp", "urllib3", "certifi"):
    try:
        module = importlib.import_module(name)
    except Exception:
        continue
    if name == "certifi":
        found["certifi"] = module.where()
    else:
        found["clients"][name] = str(getattr(module, "__version__", "?"))
print(json.dumps(found))
"""


def find(names: Sequence[str], *, patience: float = _PATIENCE) -> list[Runtime]:
    """Those of ``names`` that are on PATH, asked about themselves."""
    found = []
    for name in names:
        paths = (shutil.which(command) for command in _COMMANDS[name])
        executable = next((path for path in paths if path), None)
        if executable is not None:
            found.append(describe(name, executable, lambda argv: run(argv, timeout=patience)))
    return found


def describe(name: str, executable: str, ask: Run) -> Runtime:
    """What the runtime at ``executable`` says; ``ask`` runs it."""
    return _DESCRIBE[name](executable, ask)


def _python(executable: str, ask: Run) -> Runtime:
    ran = ask((executable, "-c", _PYTHON))
    try:
        facts = msgspec.json.decode(ran.out, type=PythonFacts)
    except msgspec.DecodeError:
        return Runtime("python", executable, "", _trouble(ran))
    return Runtime("python", executable, facts.version, python=facts)


def _java(executable: str, ask: Run) -> Runtime:
    ran = ask((executable, "-XshowSettings:properties", "-version"))
    properties: dict[str, str] = dict(
        re.findall(r"^ {4}(\S+) = (.*)$", ran.err + ran.out, re.MULTILINE)
    )
    version = properties.get("java.version", "")
    if ran.status != 0 or not version:
        return Runtime("java", executable, "", _trouble(ran))
    # Since Java 11 `java File.java` compiles and runs (JEP 330), if the compiler is there.
    modules = ask((executable, "--list-modules")).out
    return Runtime(
        "java", executable, version, properties=properties, compiler="jdk.compiler" in modules
    )


def _git(executable: str, ask: Run) -> Runtime:
    found = _versioned("git", executable, ask, ("--version",))
    listed = ask((executable, "config", "--get-urlmatch", "http", "https://valetkey.invalid/")).out
    config = {
        key.lower(): value
        for key, _, value in (line.partition(" ") for line in listed.splitlines())
        if key
    }
    return Runtime("git", executable, found.version, found.trouble, config=config)


def _versioned(name: str, executable: str, ask: Run, arguments: Sequence[str]) -> Runtime:
    ran = ask((executable, *arguments))
    match = re.search(r"\d+\.\d+[\w.+-]*", ran.out)
    if ran.status != 0 or not match:
        return Runtime(name, executable, "", _trouble(ran))
    return Runtime(name, executable, match[0])


def _trouble(ran: Ran) -> str:
    if ran.status is None:
        return "it does not end"
    return ran.said or f"exit status {ran.status}"


_DESCRIBE: Final[dict[str, Callable[[str, Run], Runtime]]] = {
    "curl": lambda executable, ask: _versioned("curl", executable, ask, ("--version",)),
    "git": _git,
    "python": _python,
    "node": lambda executable, ask: _versioned("node", executable, ask, ("--version",)),
    "java": _java,
    "go": lambda executable, ask: _versioned("go", executable, ask, ("version",)),
}
