"""The step in which a person has to say yes: held, approved by somebody else, let out once."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from valetkey.cli.demo.administration import Administrator
from valetkey.cli.demo.agent import Answer, Arrivals, Client
from valetkey.cli.demo.identity import APPROVER, USER
from valetkey.cli.demo.record import Auditor
from valetkey.cli.demo.screen import Checks
from valetkey.cli.demo.stage import Stage

_CLOSE: Final = "/tickets/api/tickets/7/close"
_PATIENCE: Final = 4.0


class ApprovalStep:
    """The agent closes a ticket for a user, who can't approve that."""

    def __init__(self, stage: Stage, agent: Client, arrivals: Arrivals, auditor: Auditor) -> None:
        self._agent = agent
        self._arrivals = arrivals
        self._auditor = auditor
        people, url = stage.people, stage.broker_url
        self._user_token = people.token(USER, url)
        self._user = Administrator(stage.broker_port, self._user_token)
        self._approver = Administrator(stage.broker_port, people.token(APPROVER, url))

    def tell(self, checks: Checks) -> None:
        before = len(self._arrivals.all())
        call = _Call(self._agent, self._user_token)
        call.start()
        waiting = self._pending()
        approval = waiting["id"]
        detail = waiting["request"]["authorization_details"][0]
        checks.equal("what people see", "POST /api/tickets/7/close", _shown(detail))
        checks.equal(
            "and, as untrusted, what the agent says",
            "duplicate of 6",
            waiting["untrusted"]["purpose"],
        )
        checks.equal("calls that arrived at the API meanwhile", 0, self._since(before))
        status, problem = self._decide(self._user, approval)
        checks.equal(f"{USER}, for whom it is, says yes", "approval.self", problem.get("code"))
        status, decided = self._decide(self._approver, approval)
        checks.equal(f"{APPROVER} says yes", (200, "approved"), (status, decided.get("state")))
        answer = call.answer()
        checks.equal("the held call", 200, answer.status)
        checks.equal("calls that arrived at the API", 1, self._since(before))
        on_record = self._auditor.newest_decision("tickets-close")
        checks.equal("the approval, on record", approval, on_record["unmapped"].get("approval"))
        again = _Call(self._agent, self._user_token)
        again.start()
        answer = again.answer()
        checks.equal("the same call again", (403, "approval.pending"), (answer.status, answer.code))
        checks.true(
            "it would need another yes",
            "another id, and Retry-After",
            answer.body.get("approval"),
            holds=answer.body.get("approval") not in {None, approval}
            and answer.headers.get("retry-after", "").isdigit(),
        )
        checks.equal("calls that arrived at the API", 1, self._since(before))

    def _since(self, before: int) -> int:
        return len(self._arrivals.since(before))

    def _pending(self) -> dict[str, Any]:
        """What is before people, as soon as it is."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            _, page = self._approver.ask("GET", "/v1/approvals?state=pending")
            if page.get("items"):
                found: dict[str, Any] = page["items"][0]
                return found
            if time.monotonic() > deadline:
                raise TimeoutError("nothing is before people")
            time.sleep(0.02)

    @staticmethod
    def _decide(by: Administrator, approval: str) -> tuple[int, dict[str, Any]]:
        return by.ask("POST", f"/v1/approvals/{approval}/approve", {"reason": "it is a duplicate"})


class _Call(threading.Thread):
    """A call that takes as long as people take."""

    def __init__(self, agent: Client, user_token: str) -> None:
        super().__init__(name="held call", daemon=True)
        self._agent = agent
        self._headers = {
            "X-Valetkey-Subject": user_token,
            "X-Valetkey-Purpose": "duplicate of 6",
        }
        self._answer: Answer | None = None

    def run(self) -> None:
        self._answer = self._agent.call("POST", _CLOSE, self._headers)

    def answer(self) -> Answer:
        self.join(_PATIENCE * 4)
        if self._answer is None:
            raise TimeoutError("no answer")
        return self._answer


def _shown(detail: dict[str, Any]) -> str:
    return f"{' '.join(detail['actions'])} {detail['path']}"
