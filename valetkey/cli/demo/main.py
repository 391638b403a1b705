"""``valetkey demo``: set the stage, tell the story, show the trail."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from valetkey.cli.audit.database import DatabaseRecord
from valetkey.cli.audit.tail import make_console, table_printer
from valetkey.cli.demo.process import ProgramFailed
from valetkey.cli.demo.screen import Checks, Screen
from valetkey.cli.demo.stage import Stage
from valetkey.cli.demo.story import Story
from valetkey.contracts.events import TYPE_DECISION

_INTERRUPTED: Final = 130  # what a shell says of a command that Ctrl-C ended


def run(*, keep: bool) -> int:
    """Tell the story. 0 if every step showed what it should, 1 if not.

    With ``keep`` everything stays up until Ctrl-C, also after a failure.
    """
    console = make_console()
    screen = Screen(console)
    directory = Path(tempfile.mkdtemp(prefix="valetkey-demo-"))
    begun = time.monotonic()
    holds = False
    # SIGINT too: a shell starts background jobs with it ignored.
    previous = {
        number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        screen.title("Valetkey: broker, collector, sidecar and a ticketing API, on this machine")
        with Stage(directory) as stage:
            holds = _tell(Story(stage), screen)
            _show_trail(stage, console)
            _verdict(screen, holds, time.monotonic() - begun)
            if keep:
                _stay(stage, screen)
    except ProgramFailed as error:
        holds = False
        screen.line(f"✗ {error}", "bold red")
    except KeyboardInterrupt:
        screen.line("interrupted")
        shutil.rmtree(directory, ignore_errors=True)
        return _INTERRUPTED
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if holds:
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    screen.line(f"logs and settings: {directory}", "red")
    return 1


def _tell(story: Story, screen: Screen) -> bool:
    """All steps, also after one that failed: what still holds is worth knowing."""
    holds = True
    for title, step in story.steps():
        checks = Checks()
        try:
            step(checks)
        except ProgramFailed:
            raise
        except Exception as error:  # noqa: BLE001 - whatever happened, the step did not hold
            checks.true("the step ran to its end", "yes", _brief(error), holds=False)
        screen.step(title, checks)
        holds = holds and checks.hold
    return holds


def _show_trail(stage: Stage, console: Console) -> None:
    """The last calls, by the same code as ``valetkey audit tail``; the burst as one line."""
    console.print()
    console.print(
        f"[bold]The trail[/bold]  valetkey audit tail --db {stage.database}", soft_wrap=True
    )
    record = DatabaseRecord(stage.database)
    try:
        found = record.newest({"type": TYPE_DECISION}, 1000)
    finally:
        record.close()
    burst = [entry for entry in found if b'"tickets-list"' in entry.raw]
    table_printer(console, fixed=False)([entry for entry in found if entry not in burst])
    console.print(f"and {len(burst)} calls on tickets-list")


def _verdict(screen: Screen, holds: bool, seconds: float) -> None:
    screen.line("")
    if holds:
        screen.line(f"✓ every step showed what it should ({seconds:.1f} s)", "bold green")
    else:
        screen.line("✗ a step did not show what it should", "bold red")


def _stay(stage: Stage, screen: Screen) -> None:
    screen.line("")
    screen.title("Everything is left running; Ctrl-C stops it")
    for line in (
        f"sidecar      {stage.proxy_url}/tickets/api/tickets/7      try: curl -i that",
        f"  metrics    http://127.0.0.1:{stage.admin_port}/metrics",
        f"broker       {stage.broker_url}/.well-known/oauth-authorization-server",
        f"collector    {stage.collector_url}/v1/sources",
        f"ticket API   {stage.api_url}/api/tickets/7      (401 without a token)",
        f"settings     {stage.directory}/config",
        f"trail        valetkey audit tail --follow --db {stage.database}",
        f"reader       --collector {stage.collector_url} --token-file {stage.reader_token_file}",
    ):
        screen.line(line)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        screen.line("stopping")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Ctrl-C and SIGTERM stop the demo alike: nothing of it may stay behind."""
    raise KeyboardInterrupt


def _brief(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
