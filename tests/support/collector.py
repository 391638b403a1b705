"""A collector's settings, its identity providers, and the process that runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.chain import WORKLOAD
from tests.support.idp import Idp
from tests.support.procs import Program
from valetkey.collector.settings import CollectorSettings
from valetkey.contracts import settings
from valetkey.contracts.events import CONTENT_TYPE_BATCH

ON_BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
"""What the store promises, it promises on both databases (tests/unit/collector/conftest.py)."""

AUDIENCE = "https://collector.test.example"
READER = "security-team"


class CollectorBench:
    """Everything that a collector needs, in one directory. ``url`` is set by the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.workloads = Idp(directory / "workloads", issuer="https://workloads.test.example")
        self.people = Idp(directory / "people", issuer="https://people.test.example")
        self.database = directory / "collector.db"
        self.config = directory / "collector.yaml"
        self.url = ""

    def tree(self, **changes: Any) -> dict[str, Any]:
        return {
            "bind": "127.0.0.1:0",
            "database": f"sqlite+aiosqlite:///{self.database}",
            "issuers": [
                self.workloads.trust(AUDIENCE, reusable=True),
                self.people.trust(AUDIENCE, "user"),
            ],
            "readers": [{"issuer": self.people.issuer, "subject": READER}],
        } | changes

    def settings(self, **changes: Any) -> CollectorSettings:
        text = json.dumps(self.tree(**changes))
        return settings.parse(CollectorSettings, text, name="test", program="collector")

    def program(self, *, replica: str = "", **changes: Any) -> Program:
        """The process, not started yet. ``replica`` tells it from others of this bench."""
        config = self.config.with_stem(f"collector{replica}")
        config.write_text(json.dumps(self.tree(**changes)))
        return Program.of("collector", config, self.directory / f"process{replica}")

    def sidecar(self, subject: str = WORKLOAD) -> dict[str, str]:
        """Headers of a sidecar that delivers."""
        token = self.workloads.mint(subject, AUDIENCE)
        return {"Authorization": f"Bearer {token}", "Content-Type": CONTENT_TYPE_BATCH}

    def reader(self, subject: str = READER) -> dict[str, str]:
        """Headers of somebody who reads."""
        return {"Authorization": f"Bearer {self.people.mint(subject, AUDIENCE)}"}

    def reader_token_file(self) -> Path:
        path = self.directory / "reader-token"
        self.people.token_file(path, READER, AUDIENCE)
        return path
