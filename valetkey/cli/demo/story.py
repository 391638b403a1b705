"""The steps of the story. Each makes its calls, then checks what every party saw."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from valetkey.cli.demo import record
from valetkey.cli.demo.agent import Answer, Arrivals, Client, counter
from valetkey.cli.demo.approval import ApprovalStep
from valetkey.cli.demo.deployment import DeploymentStep
from valetkey.cli.demo.identity import AGENT, CONSOLE, USER, exchange
from valetkey.cli.demo.incident import LeakedToken
from valetkey.cli.demo.screen import Checks
from valetkey.cli.demo.stage import Stage
from valetkey.cli.demo.ticket_api import ATTACHMENTS, TICKETS

_TICKET: Final = "/tickets/api/tickets/7"
_COMMENTS: Final = "/tickets/api/tickets/7/comments"
_ATTACHMENT: Final = "/attachments/api/attachments/7"
_LONGEST_LIFE: Final = 120
_BURST: Final = 200
_BEFORE_KILL: Final = 60
_DELIVERY: Final = 15.0


class Story:
    """The story on one stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._agent = Client(stage.proxy_port)
        self._admin = Client(stage.admin_port)
        self._api = Client(stage.api_port)
        self._arrivals = Arrivals(stage.record)
        self._auditor = record.Auditor(stage.collector_port, stage.reader_token_file)
        self._approval = ApprovalStep(stage, self._agent, self._arrivals, self._auditor)
        self._deployment = DeploymentStep(stage, self._agent, self._arrivals)

    def steps(self) -> list[tuple[str, Callable[[Checks], None]]]:
        """Title and action of each step, in order."""
        return [
            ("An agent with no credential reads a ticket", self.reads),
            ("It tries to delete the ticket", self.may_not_delete),
            ("It sends a stolen Authorization header", self.stolen_header),
            ("It acts for a user", self.acts_for_a_user),
            ("It calls a target that wants sender-constrained tokens (DPoP)", self.dpop),
            ("Closing a ticket needs a person's yes", self._approval.tell),
            ("A deployment opens a window, which closes by itself", self._deployment.tell),
            ("The broker stops, and comes back", self.broker_stops),
            ("The collector is killed under load, and comes back", self.collector_is_killed),
            ("A token of the agent's leaks", LeakedToken(self._stage, self._call).tell),
            ("The record is verified, and one byte of a copy is changed", self.verify),
        ]

    def reads(self, checks: Checks) -> None:
        answer, calls = self._call("GET", _TICKET)
        checks.equal("status", 200, answer.status)
        checks.equal("calls that arrived at the API", 1, len(calls))
        seen = calls[0]
        checks.equal("credential at the API", "Bearer", seen["scheme"])
        checks.equal("its scope", "tickets:read", seen["scope"])
        checks.equal("its audience", TICKETS, seen["aud"])
        checks.equal("its subject", AGENT, seen["sub"])
        checks.true(
            "its lifetime",
            f"at most {_LONGEST_LIFE} s",
            f"{seen['lifetime']} s",
            holds=0 < seen["lifetime"] <= _LONGEST_LIFE,
        )

    def may_not_delete(self, checks: Checks) -> None:
        answer, calls = self._call("DELETE", _TICKET)
        self._check_refusal(checks, answer, 403, "grant.scope")
        checks.equal("calls that arrived at the API", 0, len(calls))
        answer, calls = self._call("PUT", _TICKET)
        checks.equal("code for a method without a route", "route.no_match", answer.code)
        checks.equal("calls that arrived at the API", 0, len(calls))

    def stolen_header(self, checks: Checks) -> None:
        console = self._stage.workloads.token(CONSOLE, self._stage.broker_url)
        stolen = exchange(self._stage.broker_port, console, TICKETS, "tickets:read tickets:delete")
        header = {"Authorization": f"Bearer {stolen}"}
        direct = self._api.call("DELETE", "/api/tickets/9", header)
        checks.equal("the stolen token, straight to the API", "200: it is live", _live(direct))
        # Only from here on would its arrival be the sidecar's fault.
        through = self._watch_for(stolen)
        answer, calls = self._call("GET", _TICKET, header)
        checks.equal("status through the sidecar", 200, answer.status)
        checks.equal("the stolen token at the API", "never arrived", through())
        checks.equal("scope at the API", "tickets:read", calls[0]["scope"])
        checks.equal("subject at the API", AGENT, calls[0]["sub"])
        on_record = self._newest_decision("tickets-read")
        checks.equal("dropped, on record", ["authorization"], on_record["unmapped"].get("dropped"))

    def acts_for_a_user(self, checks: Checks) -> None:
        user = self._stage.people.token(USER, self._stage.broker_url)
        through = self._watch_for(user)
        answer, calls = self._call("GET", _TICKET, {"X-Valetkey-Subject": user})
        checks.equal("status", 200, answer.status)
        checks.equal("sub at the API", USER, calls[0]["sub"])
        checks.equal("act at the API", AGENT, (calls[0]["act"] or {}).get("sub"))
        checks.equal("the user's own token at the API", "never arrived", through())
        on_record = self._newest_decision("tickets-read")["actor"]
        who = (on_record["user"]["uid"], on_record["app_uid"])
        checks.equal("user and workload, on record", (USER, AGENT), who)

    def dpop(self, checks: Checks) -> None:
        answer, calls = self._call("GET", _ATTACHMENT)
        checks.equal("status", 200, answer.status)
        challenge = [call.get("error", "let in") for call in calls]
        checks.equal("the API, first without its nonce", ["use_dpop_nonce", "let in"], challenge)
        last = calls[-1]
        checks.equal("credential at the API", "DPoP", last["scheme"])
        checks.equal(
            "audience and scope", (ATTACHMENTS, "attachments:read"), (last["aud"], last["scope"])
        )
        checks.true(
            "key that the token is bound to",
            "the one that made the proof",
            last["bound_to"],
            holds=bool(last["bound_to"]) and last["bound_to"] == last.get("proved_by"),
        )
        checks.equal("the API's nonce at the agent", None, answer.headers.get("dpop-nonce"))
        answer, calls = self._call("GET", _ATTACHMENT)
        checks.equal("the next call, calls at the API", (200, 1), (answer.status, len(calls)))

    def broker_stops(self, checks: Checks) -> None:
        self._stage.broker.stop()
        answer, _ = self._call("GET", _TICKET)
        checks.equal("broker gone: a credential that is cached", 200, answer.status)
        answer, calls = self._call("POST", _COMMENTS)
        self._check_refusal(checks, answer, 503, "broker.unavailable")
        checks.true(
            "Retry-After",
            "seconds",
            answer.headers.get("retry-after"),
            holds=answer.headers.get("retry-after", "").isdigit(),
        )
        checks.equal("calls that arrived at the API", 0, len(calls))
        self._stage.broker.start()
        self._stage.broker.wait_ready()
        answer, calls = self._call("POST", _COMMENTS)
        checks.equal("broker back: the same call", 201, answer.status)
        checks.equal("its scope", "tickets:comment", calls[0]["scope"] if calls else None)

    def collector_is_killed(self, checks: Checks) -> None:
        burst = _Burst(self._agent)
        burst.start()
        burst.wait_for(_BEFORE_KILL)
        self._stage.collector.kill()
        when = burst.answers
        burst.join()
        checks.true(
            "killed in the middle",
            f"after {_BEFORE_KILL} of {_BURST} calls or more",
            f"after {when}",
            holds=_BEFORE_KILL <= when < _BURST,
        )
        checks.equal("calls answered meanwhile", (_BURST, {200}), (burst.answers, burst.statuses))
        self._stage.collector.start()
        self._stage.collector.wait_ready()
        written = int(counter(self._admin, "valetkey_events_written_total"))
        waited = self._auditor.wait_for(written, within=_DELIVERY)
        # Meanwhile the sidecar may have written a heartbeat.
        by_now = int(counter(self._admin, "valetkey_events_written_total"))
        checks.true(
            "events at the collector",
            f"{written} (all written)",
            waited.count,
            holds=written <= waited.count <= by_now,
        )
        checks.equal("acknowledged up to", waited.count, waited.acked)
        checks.equal("decisions on record", self._agent.calls, waited.decisions)
        checks.equal("holes, breaks", (0, 0), (waited.gaps, waited.breaks))
        lost = int(counter(self._admin, "valetkey_events_lost_total"))
        checks.equal("events lost, by the sidecar's metric", 0, lost)

    def verify(self, checks: Checks) -> None:
        status, _ = record.verify(self._stage.database)
        checks.equal("valetkey audit verify", "exit 0", f"exit {status}")
        copy = self._stage.directory / "tampered.db"
        where = record.tampered_copy(self._stage.database, copy)
        status, output = record.verify(copy)
        checks.equal(f"the same, {where}", "exit 1", f"exit {status}")
        checks.true(
            "its verdict",
            "names the event",
            _named(output),
            holds="differ" in _named(output),
        )

    def _call(
        self, method: str, path: str, headers: dict[str, str] | None = None
    ) -> tuple[Answer, list[dict[str, Any]]]:
        """A call of the agent's, and what arrived at the API because of it."""
        before = len(self._arrivals.all())
        answer = self._agent.call(method, path, headers)
        return answer, self._arrivals.since(before)

    def _newest_decision(self, route: str) -> dict[str, Any]:
        """Once all that was written until now is at the collector."""
        written = int(counter(self._admin, "valetkey_events_written_total"))
        self._auditor.wait_for(written, within=_DELIVERY)
        return self._auditor.newest_decision(route)

    def _watch_for(self, secret: str) -> Callable[[], str]:
        before = self._arrivals.count_of(secret)

        def look() -> str:
            return "arrived" if self._arrivals.count_of(secret) > before else "never arrived"

        return look

    @staticmethod
    def _check_refusal(checks: Checks, answer: Answer, status: int, code: str) -> None:
        checks.equal("status and code", (status, code), (answer.status, answer.code))
        checks.equal(
            "form", "application/problem+json", answer.headers.get("content-type", "").split(";")[0]
        )


class _Burst(threading.Thread):
    """Many calls in a row, so that something happens in the middle of them."""

    def __init__(self, agent: Client) -> None:
        super().__init__(name="burst", daemon=True)
        self._agent = agent
        self._progress = threading.Condition()
        self.answers = 0
        self.statuses: set[int] = set()

    def run(self) -> None:
        for _ in range(_BURST):
            try:
                status = self._agent.call("GET", "/tickets/api/tickets").status
            except (OSError, http.client.HTTPException):
                status = 0
            with self._progress:
                self.answers += 1
                self.statuses.add(status)
                self._progress.notify_all()

    def wait_for(self, answers: int) -> None:
        deadline = time.monotonic() + _DELIVERY
        with self._progress:
            while self.answers < answers and time.monotonic() < deadline:
                self._progress.wait(1)


def _named(output: str) -> str:
    """The first line of a verdict that names an event, from the event on."""
    lines = (line[line.index("event ") :] for line in output.splitlines() if " event " in line)
    return next(lines, "nothing").strip()


def _live(answer: Answer) -> str:
    return (
        f"{answer.status}: it is live"
        if answer.status == http.HTTPStatus.OK
        else str(answer.status)
    )
