"""The stage: keys, settings files, ports and the four programs, in one directory."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from valetkey.cli.demo.identity import (
    AGENT,
    APPROVER,
    AUDITOR,
    CI,
    CONSOLE,
    JOB_CLAIMS,
    OPERATIONS,
    OPERATOR,
    PEOPLE,
    USER,
    WORKLOADS,
    Issuer,
    write_private,
)
from valetkey.cli.demo.process import Program, ProgramFailed
from valetkey.cli.demo.ticket_api import ATTACHMENTS, TICKETS

INSTANCE: Final = "agent-1"
PURGE_GRANT: Final = "agent-purges-tickets"

GRANTS: Final[list[dict[str, Any]]] = [
    {
        "id": "agent-works-on-tickets",
        "workload": AGENT,
        "issuer": WORKLOADS,
        "target": "tickets",
        "scopes": ["tickets:read", "tickets:comment"],
        "on_behalf_of": "users",
    },
    {
        "id": "agent-reads-attachments",
        "workload": AGENT,
        "issuer": WORKLOADS,
        "target": "attachments",
        "scopes": ["attachments:read"],
    },
    {
        "id": "agent-closes-tickets",
        "workload": AGENT,
        "issuer": WORKLOADS,
        "target": "tickets",
        "scopes": ["tickets:close"],
        "on_behalf_of": "users",
        "approval": {"quorum": 1, "expires": "10m"},
    },
    {
        "id": PURGE_GRANT,
        "workload": AGENT,
        "issuer": WORKLOADS,
        "target": "tickets",
        "scopes": ["tickets:purge"],
        "use": "deployment",
        "window": {"opened_by": [{"issuer": CI, "claims": JOB_CLAIMS}], "longest": "1m"},
    },
    {
        "id": "console-deletes-tickets",
        "workload": CONSOLE,
        "issuer": WORKLOADS,
        "target": "tickets",
        "scopes": ["tickets:read", "tickets:delete"],
    },
]


def _route(
    name: str, method: str, path: str, scope: str, target: str = "tickets", **more: Any
) -> dict[str, Any]:
    match = {"methods": [method], "path": path}
    return {"id": name, "target": target, "match": match, "scopes": [scope], **more}


ROUTES: Final = [
    _route("tickets-list", "GET", "/api/tickets", "tickets:read"),
    _route("tickets-read", "GET", "/api/tickets/{id}", "tickets:read"),
    _route("tickets-comment", "POST", "/api/tickets/{id}/comments", "tickets:comment"),
    _route("tickets-delete", "DELETE", "/api/tickets/{id}", "tickets:delete", audit="durable"),
    _route(
        "tickets-close",
        "POST",
        "/api/tickets/{id}/close",
        "tickets:close",
        approval={"hold": "4s"},
        audit="durable",
    ),
    _route("tickets-purge", "POST", "/api/tickets/purge", "tickets:purge"),
    _route("attachments", "GET", "/api/attachments/{id}", "attachments:read", "attachments"),
]


class Stage:
    """Everything that runs. ``with`` starts it and, at the end, stops whatever still runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ports = _free_ports(5)
        self.proxy_port, self.admin_port, self.broker_port, self.collector_port, self.api_port = (
            ports
        )
        self.broker_url = f"http://127.0.0.1:{self.broker_port}"
        self.collector_url = f"http://127.0.0.1:{self.collector_port}"
        self.proxy_url = f"http://127.0.0.1:{self.proxy_port}"
        self.api_url = f"http://127.0.0.1:{self.api_port}"
        self.database = directory / "collector.db"
        self.record = directory / "ticket-api.jsonl"
        self.reader_token_file = directory / "auditor.token"
        self.operator_token_file = directory / "operator.token"
        for name in ("config", "logs"):
            (directory / name).mkdir()
        self.workloads = Issuer(WORKLOADS, directory)
        self.people = Issuer(PEOPLE, directory)
        self.ci = Issuer(CI, directory)
        self.operations = Issuer(OPERATIONS, directory)
        self._write_secrets()
        self._write_settings()
        admin = f"http://127.0.0.1:{self.admin_port}"
        self.broker = self._program("broker", self.broker_url)
        self.collector = self._program("collector", self.collector_url)
        self.sidecar = self._program("proxy", admin)
        self.ticket_api = Program(
            "ticketing API",
            (
                *("-m", "valetkey.cli.demo.ticket_api", "--port", str(self.api_port)),
                *("--issuer", self.broker_url, "--record", str(self.record)),
            ),
            directory / "logs" / "ticket-api.log",
            f"{self.api_url}/healthz",
        )
        self.programs = (self.broker, self.collector, self.ticket_api, self.sidecar)

    def __enter__(self) -> Self:
        try:
            for program in self.programs:  # all at once: none needs another in order to start
                program.start()
            for program in self.programs:
                program.wait_ready()
            # What it fetched before it follows the feed, it drops then: the story comes after that.
            self.sidecar.wait_for("feed", "connected")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop what runs; the sidecar first, so that it can still deliver its record."""
        with contextlib.ExitStack() as stack:  # each is stopped, also when another fails to stop
            for program in self.programs:
                stack.callback(program.stop)

    def _program(self, name: str, url: str) -> Program:
        return Program(
            "sidecar" if name == "proxy" else name,
            ("-m", f"valetkey.{name}", "--config", str(self.directory / "config" / f"{name}.yaml")),
            self.directory / "logs" / f"{name}.log",
            f"{url}/readyz",
        )

    def _write_secrets(self) -> None:
        write_private(self.directory / "master.key", secrets.token_bytes(32))
        token = self.workloads.token(AGENT, self.broker_url)
        write_private(self.directory / "agent.token", token)
        # One for the collector alone: whoever runs it can't go to the broker with it.
        token = self.workloads.token(AGENT, self.collector_url)
        write_private(self.directory / "collector.token", token)
        write_private(self.reader_token_file, self.workloads.token(AUDITOR, self.collector_url))
        write_private(self.operator_token_file, self.operations.token(OPERATOR, self.broker_url))

    def _write_settings(self) -> None:
        workloads = self.workloads.trust(self.broker_url, "workload")
        people = self.people.trust(self.broker_url, "user")
        self._write("grants", {"grants": GRANTS})
        self._write(
            "broker",
            {
                "issuer": self.broker_url,
                "bind": f"127.0.0.1:{self.broker_port}",
                "database": f"sqlite+aiosqlite:///{self.directory / 'broker.db'}",
                "master_key_file": str(self.directory / "master.key"),
                "grants_file": str(self.directory / "config" / "grants.yaml"),
                "issuers": [workloads, people],
                "admin": {
                    "issuers": [
                        self.people.trust(self.broker_url, "admin"),
                        self.operations.trust(self.broker_url, "admin"),
                    ],
                    # Both may approve, but nobody what they asked for.
                    "roles": [
                        {"role": "approver", "issuer": PEOPLE, "subjects": [APPROVER, USER]},
                        {"role": "operator", "issuer": OPERATIONS, "subjects": [OPERATOR]},
                    ],
                },
                "approvals": {"deferred": True, "interval": "1s"},
                "deployments": {"issuers": [self.ci.trust(self.broker_url, "deployment")]},
                "incidents": {"skew": "0s"},  # one machine, one clock
                "targets": {
                    "tickets": {"audience": TICKETS, "credential": "bearer"},
                    "attachments": {"audience": ATTACHMENTS, "credential": "dpop"},
                },
            },
        )
        self._write(
            "collector",
            {
                "bind": f"127.0.0.1:{self.collector_port}",
                "database": f"sqlite+aiosqlite:///{self.database}",
                "issuers": [self.workloads.trust(self.collector_url, "workload")],
                "readers": [{"issuer": WORKLOADS, "subject": AUDITOR}],
            },
        )
        self._write("proxy", self._proxy_settings())

    def _proxy_settings(self) -> dict[str, Any]:
        def target(audience: str, prefix: str, kind: str) -> dict[str, Any]:
            return {
                "url": self.api_url,
                "audience": audience,
                "prefix": prefix,
                "credential": {"kind": kind},
                "allow_networks": ["127.0.0.0/8"],
            }

        return {
            "instance": INSTANCE,
            "workload": {"identity": {"file": str(self.directory / "agent.token")}},
            "broker": {"url": self.broker_url},
            "collector": {
                "url": self.collector_url,
                "identity": {"file": str(self.directory / "collector.token")},
            },
            "spool": {"dir": str(self.directory / "spool")},
            "listeners": [{"bind": f"127.0.0.1:{self.proxy_port}", "mode": "reverse"}],
            "admin": {"bind": f"127.0.0.1:{self.admin_port}"},
            "targets": {
                "tickets": target(TICKETS, "/tickets", "bearer"),
                "attachments": target(ATTACHMENTS, "/attachments", "dpop"),
            },
            "routes": ROUTES,
        }

    def _write(self, name: str, settings: dict[str, Any]) -> None:
        # Through JSON: YAML anchors for repeated parts would only puzzle the reader of the file.
        plain = json.loads(json.dumps(settings))
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        (self.directory / "config" / f"{name}.yaml").write_text(text, encoding="utf-8")


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that the kernel gives to no outgoing connection meanwhile.

    Linux gives those from 32768 on, others from 49152.
    """
    found: list[int] = []
    for port in random.sample(range(12_000, 32_768), 1_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ProgramFailed("of 127.0.0.1, no port between 12000 and 32767 is free")
