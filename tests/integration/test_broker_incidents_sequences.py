"""Any sequence of calls: containment loosens by an attestation from after the incident alone.

Hypothesis opens and closes incidents, by force too, issues identity tokens, makes keys and combines
them with each other, at a real broker, and keeps its own account of who must get what.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    multiple,
    rule,
)

from tests.integration.broker_support import IDP, PAYMENTS
from tests.integration.sequences_support import Machine, play
from tests.integration.test_broker_containment import active
from valetkey.contracts.dpop import ProofKey

_SKEW = 1.0


@dataclass
class Identity:
    """An identity token. It may be stolen, or old, or both: whoever has it may show it."""

    compact: str
    issued: int


@dataclass(eq=False)
class Key:
    key: ProofKey = field(default_factory=ProofKey)
    shown: float | None = None


@dataclass
class Minted:
    compact: str
    epoch: int
    expires: float


class Sequences(Machine):
    identities = Bundle("identities")
    keys = Bundle("keys")
    tokens = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.subject = f"spiffe://demo.example/ns/n{next(self.lab.numbers)}/sa/bot"
        self.epoch = 0
        self.contained_at: float | None = None
        self.open: str = ""
        self.attested_at: float | None = None

    def manage(self, path: str, body: Any, role: str) -> tuple[int, Any]:
        token = self.world.admin("ada" if role == "admin" else "olga", role=role)
        status, answer, _ = self.lab.run(self.lab.broker.manage("POST", path, body, token=token))
        return status, answer

    @rule(target=identities)
    def issue_identity(self) -> Identity:
        return Identity(self.world.workload(self.subject), int(self.now))

    @rule(target=keys)
    def make_key(self) -> Key:
        return Key()

    @rule(seconds=st.sampled_from([0.0, 0.4, 1.0, 1.1, 2.5, 30.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @rule()
    def report(self) -> None:
        body = {"reason": "r", "subject": {"issuer": IDP, "subject": self.subject}}
        status, answer = self.manage("/v1/incidents", body, "operator")
        known = bool(self.open) and (self.attested_at is None or self.now <= self.attested_at)
        assert status == (200 if known else 201), answer
        if not known:
            self.epoch += 1
            self.contained_at = self.now
            self.attested_at = None
        assert answer["subject"]["epoch"] == self.epoch
        assert not self.open or answer["id"] == self.open
        self.open = answer["id"]

    @rule(role=st.sampled_from(["operator", "admin"]), force=st.booleans())
    def close(self, role: str, force: bool) -> None:
        if not self.open:
            return
        path = f"/v1/incidents/{self.open}/close"
        status, answer = self.manage(path, {"reason": "r", "force": force}, role)
        if force and role != "admin":
            assert status == 403
        elif self.attested_at is None and not force:
            assert (status, answer["code"]) == (409, "incident.open")
        else:
            assert status == 200
            assert answer["forced"] is (self.attested_at is None)
            self.open = ""

    @rule(target=tokens, identity=identities, key=keys)
    def exchange(self, identity: Identity, key: Key) -> Any:
        self.world.proof_key = key.key
        form = self.world.form(identity.compact, audience=PAYMENTS, scope="payments:read")
        status, answer, _ = self.lab.run(self.lab.broker.exchange(form))
        if status == 401:
            assert self.now >= identity.issued + 3600
            return multiple()
        key.shown = self.now if key.shown is None else key.shown
        after = None if self.contained_at is None else self.contained_at + _SKEW
        if after is not None and (identity.issued <= after or key.shown <= after):
            assert (status, answer["code"]) == (400, "subject.contained")
            return multiple()
        assert status == 200, answer
        assert answer.get("epoch", 0) == self.epoch
        if self.open and self.attested_at is None:
            self.attested_at = self.now
        return Minted(answer["access_token"], self.epoch, self.now + answer["expires_in"])

    @rule(token=tokens)
    def inspect(self, token: Minted) -> None:
        self.world.proof_key = ProofKey()
        asked = self._active(token.compact)
        assert asked is (token.epoch == self.epoch and int(self.now) < int(token.expires))

    def _active(self, compact: str) -> bool:
        caller = self.world.workload(self.subject)
        return self.lab.run(active(self.lab.broker, compact, caller))


def test_no_sequence_of_calls_lets_back_in_what_leaked(tmp_path: Path) -> None:
    play(Sequences, tmp_path)
