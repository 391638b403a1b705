"""The step in which a deployment opens a window: what is refused before, goes through, and ends."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Final

from valetkey.cli.demo.agent import Answer, Arrivals, Client
from valetkey.cli.demo.identity import JOB, JOB_CLAIMS
from valetkey.cli.demo.screen import Checks
from valetkey.cli.demo.stage import PURGE_GRANT, Stage
from valetkey.cli.service import Service, ServiceError
from valetkey.contracts.secret import Secret

_PURGE: Final = "/tickets/api/tickets/purge"
_OPEN: Final = 6
_PAUSE: Final = 0.1


class DeploymentStep:
    """A CI job announces itself; the agent may do something for as long as that lasts."""

    def __init__(self, stage: Stage, agent: Client, arrivals: Arrivals) -> None:
        self._stage = stage
        self._agent = agent
        self._arrivals = arrivals

    def tell(self, checks: Checks) -> None:
        answer, calls = self._call()
        code = (answer.status, answer.code)
        checks.equal("before the deployment", (403, "grant.outside_window"), code)
        branch = {**JOB_CLAIMS, "ref": "refs/heads/experiment"}
        denied = self._announce(branch)
        checks.equal("a job of another branch announces itself", "window.denied", denied)
        window = self._announce(JOB_CLAIMS)
        if not isinstance(window, dict):
            checks.equal("the deployment's job announces itself", "a window", window)
            return
        checks.equal("the deployment's job announces itself", "open", window["state"])
        answer, calls = self._call_again(window["deadline"])
        checks.equal("the same call", (200, 1), (answer.status, len(calls)))
        seen = calls[0] if calls else {}
        checks.equal("its scope", "tickets:purge", seen.get("scope"))
        life = seen.get("lifetime", 0)
        checks.true("its lifetime", f"at most {_OPEN} s", f"{life} s", holds=0 < life <= _OPEN)
        time.sleep(max(0.0, _until(window["deadline"])))
        answer, calls = self._call()
        code = (answer.status, answer.code)
        checks.equal(f"after {_OPEN} s, by itself", (403, "grant.outside_window"), code)
        checks.equal("calls that arrived at the API", 0, len(calls))

    def _call(self) -> tuple[Answer, list[dict[str, Any]]]:
        before = len(self._arrivals.all())
        answer = self._agent.call("POST", _PURGE)
        return answer, self._arrivals.since(before)

    def _call_again(self, deadline: str) -> tuple[Answer, list[dict[str, Any]]]:
        """Until it goes through: the sidecar remembers a denial for up to a second."""
        while True:
            answer, calls = self._call()
            if calls or _until(deadline) <= 0:
                return answer, calls
            time.sleep(_PAUSE)

    def _announce(self, claims: dict[str, str]) -> dict[str, Any] | str:
        """The window, or the code of the refusal: what ``valetkey windows open`` shows."""
        token = self._stage.ci.token(JOB, self._stage.broker_url, claims)
        broker = Service("broker", self._stage.broker_url, Secret(token), None)
        announcement = {"grant": PURGE_GRANT, "duration": f"{_OPEN}s"}
        try:
            return broker.ask(dict[str, Any], "POST", "/v1/windows", document=announcement)
        except ServiceError as error:
            return error.code
        finally:
            broker.close()


def _until(deadline: str) -> float:
    """Seconds until then: broker and demo run on one machine, by one clock."""
    return datetime.fromisoformat(deadline).timestamp() - time.time()
