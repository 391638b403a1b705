"""The step about a token that leaked: contained everywhere at once, and the way back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

from valetkey.cli.demo.agent import Answer
from valetkey.cli.demo.identity import AGENT, exchange, write_private
from valetkey.cli.demo.screen import Checks
from valetkey.cli.demo.stage import Stage
from valetkey.cli.demo.ticket_api import TICKETS
from valetkey.cli.service import Service, ServiceError

_PATH: Final = "/v1/incidents"
_TICKET: Final = "/tickets/api/tickets/7"
_PATIENCE: Final = 10.0
# What it may take on a busy machine; that is for all sidecars, and there is one.
_CONTAINED: Final = 1.0

Call = Callable[[str, str], tuple[Answer, list[dict[str, Any]]]]


class LeakedToken:
    """One token of the agent's is found where it should not be."""

    def __init__(self, stage: Stage, call: Call) -> None:
        self._stage = stage
        self._call = call

    def tell(self, checks: Checks) -> None:
        stage = self._stage
        operator = Service("broker", stage.broker_url, stage.operator_token_file, None)
        try:
            answer, _ = self._call("GET", _TICKET)
            checks.equal("before it: a call", 200, answer.status)
            thief = (stage.directory / "agent.token").read_text(encoding="ascii")
            leaked = exchange(stage.broker_port, thief, TICKETS, "tickets:read")
            incident = operator.ask(
                dict[str, Any],
                "POST",
                _PATH,
                document={"reason": "found in a paste", "token": leaked},
            )
            opened = time.time()
            incident = self._contained(operator, incident)
            self._check_containment(checks, incident)
            answer, calls = self._call("GET", _TICKET)
            checks.equal("the next call", (403, "subject.contained"), (answer.status, answer.code))
            checks.equal("calls that arrived at the API", 0, len(calls))
            checks.equal(
                "the thief, with the agent's identity", "subject.contained", self._try(thief)
            )
            path = f"{_PATH}/{incident['id']}/close"
            checks.equal("closing it now", "incident.open", _refused(operator, path))
            self._restart(after=opened)
            answer, _ = self._call("GET", _TICKET)
            checks.equal("the agent restarted: new identity token, new key", 200, answer.status)
            checks.equal("the thief, as before", "subject.contained", self._try(thief))
            closed = operator.ask(dict[str, Any], "POST", path, document={"reason": "restarted"})
            checks.equal("closing it now", ("closed", False), (closed["state"], closed["forced"]))
        finally:
            operator.close()

    @staticmethod
    def _contained(operator: Service, incident: dict[str, Any]) -> dict[str, Any]:
        """The incident once all sidecars have said that they dropped what they held."""
        deadline = time.monotonic() + _PATIENCE
        while incident["containment"]["seconds"] is None and time.monotonic() < deadline:
            time.sleep(0.005)
            incident = operator.ask(dict[str, Any], "GET", f"{_PATH}/{incident['id']}")
        return incident

    @staticmethod
    def _check_containment(checks: Checks, incident: dict[str, Any]) -> None:
        containment = incident["containment"]
        sidecars, pending = containment["sidecars"], containment["pending"]
        seconds = containment["seconds"]
        checks.equal(
            "sidecars that acknowledged", "1 of 1", f"{len(sidecars) - pending} of {len(sidecars)}"
        )
        checks.true(
            "from the incident to the last of them",
            f"at most {_CONTAINED:.0f} s",
            "never" if seconds is None else f"{seconds * 1000:.0f} ms",
            holds=seconds is not None and seconds <= _CONTAINED,
        )

    def _restart(self, *, after: float) -> None:
        """What a new pod has: an identity token from after the incident, a key of its own."""
        stage = self._stage
        stage.sidecar.stop()
        # `iat` is in whole seconds: the first that is surely later.
        time.sleep(max(0.0, math.ceil(after) - time.time()))
        token = stage.workloads.token(AGENT, stage.broker_url)
        write_private(stage.directory / "agent.token", token)
        stage.sidecar.start()
        stage.sidecar.wait_ready()

    def _try(self, identity: str) -> str:
        """What somebody with this identity token and a key of their own gets."""
        try:
            exchange(self._stage.broker_port, identity, TICKETS, "tickets:read")
        except RuntimeError as error:
            return str(error).rpartition(" ")[2]
        return "a token"


def _refused(operator: Service, path: str) -> str:
    try:
        operator.ask(dict[str, Any], "POST", path, document={"reason": "nothing to see here"})
    except ServiceError as error:
        return error.code
    return "closed"
