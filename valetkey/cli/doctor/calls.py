"""Live calls: each runtime's clients call each URL, as programs of their own.

The programs (``probes/``) get the environment as it is and report each call as a line of JSON. One
that does not end in time is ended, and the calls that it did not report count as timed out.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from valetkey.cli.doctor.outcome import Call
from valetkey.cli.doctor.process import Ran, run
from valetkey.cli.doctor.proxy_url import Redaction
from valetkey.cli.doctor.runtimes import Runtime

# Starting a JVM and compiling one file takes seconds on a busy machine; building a Go program whose
# parts were never built here, a minute.
_START: Final = 15.0
_BUILD: Final = 120.0
_AT_ONCE: Final = 4
_LONGEST_ERROR: Final = 400
_MOST_BODY: Final = 4096
_GIT_HEAD: Final = "<= Recv header: "

# In the order of the report.
PYTHON_CLIENTS: Final = ("urllib", "requests", "httpx", "aiohttp")


class _Report(msgspec.Struct, frozen=True):
    client: str
    url: str
    status: int = 0
    content_type: str = ""
    via: str = ""
    body: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """The calls of one program; ``trouble`` is why it could make none."""

    runtime: Runtime
    calls: tuple[Call, ...]
    trouble: str = ""


Task = Callable[[], Made]


def make(
    runtimes: Iterable[Runtime], urls: Sequence[str], *, timeout: float, redact: Redaction
) -> list[Made]:
    """Every client of every runtime calls every URL; ``timeout`` is seconds per call."""
    tasks = [
        task
        for runtime in runtimes
        if not runtime.trouble
        for task in _tasks(runtime, tuple(urls), timeout)
    ]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        made = list(pool.map(lambda task: task(), tasks))
    return [
        replace(
            each,
            trouble=one_line(redact(each.trouble)),
            calls=tuple(replace(call, error=one_line(redact(call.error))) for call in each.calls),
        )
        for each in made
    ]


def one_line(text: str) -> str:
    """``text`` on one line, and not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_ERROR else f"{line[:_LONGEST_ERROR]}…"


def _tasks(runtime: Runtime, urls: tuple[str, ...], timeout: float) -> Iterator[Task]:
    if runtime.name == "python":
        assert runtime.python is not None
        for client in PYTHON_CLIENTS:
            # One program per client: a slow one costs the others nothing.
            if client == "urllib" or client in runtime.python.clients:
                yield partial(_python, runtime, urls, timeout, client)
    else:
        yield partial(_PROGRAMS[runtime.name], runtime, urls, timeout)


# --- programs with a probe ------------------------------------------------------------------------


def _python(runtime: Runtime, urls: tuple[str, ...], timeout: float, client: str) -> Made:
    argv = (runtime.executable, "-c", _source("client.py"), str(timeout), client, *urls)
    return _probe(runtime, argv, (client,), urls, timeout)


def _node(runtime: Runtime, urls: tuple[str, ...], timeout: float) -> Made:
    # fetch() came with Node 18.
    clients = ("fetch", "https") if runtime.release >= (18,) else ("https",)
    argv = (runtime.executable, "-e", _source("client.js"), str(timeout), *urls)
    return _probe(runtime, argv, clients, urls, timeout)


def _java(runtime: Runtime, urls: tuple[str, ...], timeout: float) -> Made:
    if not runtime.compiler or runtime.release < (11,):
        return Made(runtime, (), "it has no compiler for a probe (a JRE, or before Java 11)")
    with tempfile.TemporaryDirectory(prefix="valetkey-doctor-") as directory:
        file = Path(directory) / "Client.java"
        file.write_text(_source("Client.java"), encoding="utf-8")
        argv = (runtime.executable, str(file), str(timeout), *urls)
        return _probe(runtime, argv, ("HttpClient",), urls, timeout)


def _go(runtime: Runtime, urls: tuple[str, ...], timeout: float) -> Made:
    with tempfile.TemporaryDirectory(prefix="valetkey-doctor-") as directory:
        (Path(directory) / "client.go").write_text(_source("client.go"), encoding="utf-8")
        # Nothing is to be fetched for it: the standard library is all that it needs.
        extra = {"GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "", "CGO_ENABLED": "0"}
        built = run(
            (runtime.executable, "build", "-o", "client", "client.go"),
            timeout=_BUILD,
            extra=extra,
            cwd=directory,
        )
        if built.status != 0:
            return Made(runtime, (), f"the probe could not be built: {built.said}")
        argv = (str(Path(directory) / "client"), str(timeout), *urls)
        return _probe(runtime, argv, ("net/http",), urls, timeout)


def _probe(
    runtime: Runtime,
    argv: Sequence[str],
    clients: tuple[str, ...],
    urls: tuple[str, ...],
    timeout: float,
) -> Made:
    ran = run(argv, timeout=_START + timeout * len(clients) * len(urls))
    return Made(runtime, read_reports(runtime.name, ran, clients, urls))


def read_reports(
    name: str, ran: Ran, clients: tuple[str, ...], urls: tuple[str, ...]
) -> tuple[Call, ...]:
    """The calls that a probe reported. What it left out timed out with it, or it broke."""
    reported: dict[tuple[str, str], _Report] = {}
    for line in ran.out.splitlines():
        try:
            read = msgspec.json.decode(line, type=_Report)
        except msgspec.DecodeError:
            continue  # what a wrapper or a start-up file prints
        reported[read.client, read.url] = read
    calls = []
    for client in clients:
        for url in urls:
            report = reported.get((client, url))
            if report is not None:
                call = Call(
                    f"{name} {client}",
                    url,
                    status=report.status,
                    content_type=report.content_type,
                    via=report.via,
                    body=report.body,
                    error=report.error,
                )
            elif ran.status is None:
                call = Call(f"{name} {client}", url, timed_out=True)
            else:
                call = Call(f"{name} {client}", url, error=f"no report: {ran.said}")
            calls.append(call)
    return tuple(calls)


# --- programs that are clients themselves ---------------------------------------------------------


def _curl(runtime: Runtime, urls: tuple[str, ...], timeout: float) -> Made:
    # The heads of answers to CONNECT are not the target's.
    options = (
        "--silent", "--show-error", "--include", "--suppress-connect-headers", "--max-time",
        str(timeout),
    )  # fmt: skip
    calls = [
        read_curl(url, run((runtime.executable, *options, url), timeout=_START + timeout))
        for url in urls
    ]
    return Made(runtime, tuple(calls))


def read_curl(url: str, ran: Ran) -> Call:
    """The call that ``curl --include`` made."""
    if ran.status is None or ran.status == 28:
        return Call("curl", url, timed_out=True)
    if ran.status:
        said = next((line for line in ran.err.splitlines() if line.startswith("curl:")), ran.said)
        return Call("curl", url, error=said or f"exit status {ran.status}")
    head, _, body = ran.out.replace("\r\n", "\n").partition("\n\n")
    return _answered("curl", url, head.split("\n"), body)


def _git(runtime: Runtime, urls: tuple[str, ...], timeout: float) -> Made:
    # What was answered is only in the trace; git hides credentials in it by itself.
    extra = {
        "GIT_TRACE_CURL": "1", "GIT_TRACE_REDACT": "1", "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "", "SSH_ASKPASS": "", "LC_ALL": "C",
    }  # fmt: skip
    argv = (runtime.executable, "-c", "http.followRedirects=false", "ls-remote")
    calls = [read_git(url, run((*argv, url), timeout=timeout, extra=extra)) for url in urls]
    return Made(runtime, tuple(calls))


def read_git(url: str, ran: Ran) -> Call:
    """The call that a ``git ls-remote`` made, out of its trace."""
    if ran.status is None:
        return Call("git", url, timed_out=True)
    # The last head is the answer's: those of tunnels, and of a proxy that asked for its token
    # first, come before. One that a tunnel follows is the proxy's.
    _, head, rest = ran.err.rpartition(f"{_GIT_HEAD}HTTP/")
    if not head or "CONNECT tunnel failed" in rest or "CONNECT phase completed" in rest:
        said = next((line for line in ran.err.splitlines() if line.startswith("fatal:")), ran.said)
        return Call("git", url, error=said)
    lines = [f"HTTP/{rest.partition(chr(10))[0]}", *re.findall(f"{_GIT_HEAD}(.*)", rest)]
    return _answered("git", url, lines, "".join(re.findall(r"<= Recv data: (.*)", rest)))


def _answered(client: str, url: str, head: Sequence[str], body: str) -> Call:
    """A call out of the lines of a head and the beginning of a body."""
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head[1:])
    }
    match = re.match(r"HTTP/\S+ (\d{3})", head[0])
    if match is None:
        return Call(client, url, error=f"no HTTP: {head[0]}")
    return Call(
        client,
        url,
        status=int(match[1]),
        content_type=fields.get("content-type", ""),
        via=fields.get("via", ""),
        body=body[:_MOST_BODY],
    )


_PROGRAMS: Final[dict[str, Callable[[Runtime, tuple[str, ...], float], Made]]] = {
    "curl": _curl,
    "git": _git,
    "node": _node,
    "java": _java,
    "go": _go,
}


def _source(name: str) -> str:
    return (resources.files("valetkey.cli.doctor") / "probes" / name).read_text(encoding="utf-8")
