"""Rules for every test: no skip where all is required, no blocking call in a loop, no leak."""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

from tests.support.canaries import CANARIES, Canaries, Leak

pytest_plugins = ["tests.support.nats", "tests.support.postgres"]

# --- where files go ------------------------------------------------------------------------------


def _keep_files_in_memory() -> None:
    """Let temporary files lie in memory, unless TMPDIR says where.

    Thousands of databases and spools wait for their disk (fsync), which is most of the suite's
    time. kill -9, which is what tests do to programs, takes no more from memory than from a disk.
    """
    memory = Path("/dev/shm")
    if "TMPDIR" in os.environ or not os.access(memory, os.W_OK | os.X_OK):
        return
    if shutil.disk_usage(memory).free < 2 << 30:
        return
    os.environ["TMPDIR"] = str(memory)
    tempfile.tempdir = None  # looked up anew


_keep_files_in_memory()

# --- what the terminal is like decides no test ---------------------------------------------------

for _name in ("COLUMNS", "LINES"):  # pytest-xdist tells its workers; rich goes by it
    os.environ.pop(_name, None)

# --- what a property is tried with is the same each time -----------------------------------------

# The suite says whether a change is good, and so is no lottery. New inputs are looked for on purpose:
# with --hypothesis-profile=search, and for the wire with `make fuzz`.
_SLOW_IS_FINE: Final = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("suite", derandomize=True, **_SLOW_IS_FINE)
settings.register_profile("search", **_SLOW_IS_FINE)
settings.load_profile("suite")

# --- VALETKEY_REQUIRE=all: a skip is a failure ---------------------------------------------------


def _all_required() -> bool:
    return os.environ.get("VALETKEY_REQUIRE", "") == "all"


def _as_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _all_required() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"VALETKEY_REQUIRE=all, and this was skipped: {reason}"


def pytest_configure(config: pytest.Config) -> None:
    required = os.environ.get("VALETKEY_REQUIRE", "")
    if required not in {"", "all"}:
        raise pytest.UsageError(f"VALETKEY_REQUIRE={required!r}: the one value it takes is 'all'")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield
    _as_failure(report)
    for title, text in report.sections:
        CANARIES.check(text, f"{title} of {item.nodeid}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report: pytest.CollectReport = yield
    _as_failure(report)
    return report


# --- a blocking call in the event loop fails the test --------------------------------------------


@pytest.fixture(autouse=True)
def _no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """In async tests, code of ``valetkey`` that blocks the loop raises `BlockingError`.

    Only calls with our code on the stack count: tests may read files as they like.
    """
    if not inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        yield
        return
    with blockbuster_ctx("valetkey") as blockbuster:
        _exclude(blockbuster)
        yield


def _exclude(blockbuster: BlockBuster) -> None:
    for function in blockbuster.functions.values():
        # An import reads its module once per process.
        function.can_block_in("<frozen importlib._bootstrap>", {"_load_unlocked", "_find_spec"})
        # Migrations run once, in a thread and a loop of their own.
        for program in ("broker", "collector"):
            function.can_block_in(f"{program}/store/database.py", {"migrate"})
        # asyncpg looks for the user's own files at each connect, as libpq does.
        function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_dsn_and_args"})
        # A log line goes to the standard error, which is never waited for in deployment.
        function.can_block_in("logging/__init__.py", {"emit", "flush"})


# --- canaries: no secret of a test in any output -------------------------------------------------


@pytest.fixture(scope="session")
def canaries() -> Canaries:
    """Register secrets that no log, error body, metric or foreign file may show."""
    return CANARIES


@pytest.fixture(scope="session", autouse=True)
def _answers_hold_no_canary() -> Iterator[None]:
    """Every error body and metrics page that the test process reads over aiohttp is searched."""
    read = aiohttp.ClientResponse.read

    async def searched(self: aiohttp.ClientResponse) -> bytes:
        body = await read(self)
        if self.status >= 400 or self.url.path == "/metrics":
            CANARIES.check(body, f"{self.status} answer of {self.method} {self.url.path}")
        return body

    aiohttp.ClientResponse.read = searched  # type: ignore[method-assign]
    yield
    aiohttp.ClientResponse.read = read  # type: ignore[method-assign]


@pytest.fixture(scope="session", autouse=True)
def _files_hold_no_canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    CANARIES.check_tree(tmp_path_factory.getbasetemp())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A leak fails the session. pytest-xdist's workers hand theirs to the session that started them."""
    handed_over = getattr(session.config, "workeroutput", None)
    if handed_over is not None:
        handed_over["leaks"] = [(leak.name, leak.place) for leak in CANARIES.leaks]
    if CANARIES.leaks and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist found. One that did not say leaves it open: a leak."""
    found = getattr(node, "workeroutput", {}).get("leaks")
    if found is None:
        found = [("what it may have leaked is not known", f"{node.gateway.id}, which did not say")]
    for name, place in found:
        leak = Leak(name, place)
        if leak not in CANARIES.leaks:
            CANARIES.leaks.append(leak)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if CANARIES.leaks:
        terminalreporter.section("secrets where they must not be", red=True)
        for leak in CANARIES.leaks:
            terminalreporter.line(str(leak))
