"""No sequence of calls lets a requester approve itself, uses an approval twice, or outlives it.

A state machine plays any order of asking, deciding, using and waiting against the store on SQLite,
and holds a plain ledger beside it.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from valetkey.broker.core.approvals import Identity, Request, Requirement, Voter
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.approvals import Approvals, Denied, Entry, Taken, Waiting
from valetkey.broker.store.database import Database
from valetkey.broker.trust.admins import Admin
from valetkey.contracts.errors import CallerError

BOT = Identity("https://idp", "bot")
PEOPLE = "https://people"
NAMES = ("alice", "bob", "olga", "otto", "ole")
EXPIRES, VALID = 100.0, 300.0


@dataclass
class Ledger:
    """What one approval should be, told by what was done to it alone."""

    subject: str
    quorum: int
    expires_at: float
    yes: dict[str, tuple[int | None, float]] = field(default_factory=dict)
    ended: bool = False
    approved: bool = False
    uses: int | None = None
    until: float = 0.0
    taken: int = 0


class Machine(RuleBasedStateMachine):
    approvals: Bundle[str] = Bundle("approvals")

    @initialize()
    def open_store(self) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        url = f"sqlite+aiosqlite:///{Path(self.directory.name) / 'broker.db'}"
        self.database = self.run(Database.open(url))
        self.now = 1_000.0
        self.notices: list[tuple[str, str]] = []
        actions = AdminActions(self.database, clock=lambda: self.now)
        self.store = Approvals(self.database, actions, self.announce, open_limit=1000)
        self.ledgers: dict[str, Ledger] = {}

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.run(self.database.close())
            self.runner.close()
            self.directory.cleanup()

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    async def announce(self, _connection: Any, event: str, entry: Entry, _now: float) -> None:
        self.notices.append((event, entry.approval.id))

    @rule(
        target=approvals,
        subject=strategies.sampled_from(NAMES[:2]),
        quorum=strategies.integers(1, 2),
    )
    def ask(self, subject: str, quorum: int) -> str:
        return self.asked(subject, quorum)

    @rule(target=approvals, approval=approvals, times=strategies.integers(1, 4))
    def ask_again(self, approval: str, times: int) -> str:
        ledger = self.ledgers[approval]
        for _ in range(times):
            found = self.asked(ledger.subject, ledger.quorum)
        return found

    @rule(target=approvals, approval=approvals)
    def ask_at_its_end(self, approval: str) -> str:
        """At the very moment at which its time, or the time to decide, is over."""
        ledger = self.ledgers[approval]
        self.now = max(self.now, ledger.until if ledger.approved else ledger.expires_at)
        return self.asked(ledger.subject, ledger.quorum)

    @rule(approval=approvals, uses=strategies.none() | strategies.integers(1, 3))
    def agree(self, approval: str, uses: int | None) -> None:
        """As many people as it takes."""
        for name in NAMES[2:]:
            self.said(approval, name, uses, None)

    def asked(self, subject: str, quorum: int) -> str:
        found = self.run(
            self.store.take_or_open(
                request(subject, quorum),
                purpose="",
                expires=EXPIRES,
                valid=VALID,
                now=self.now,
            )
        )
        match found:
            case Taken():
                ledger = self.ledgers[found.id]
                assert (ledger.subject, ledger.quorum) == (subject, quorum)
                assert ledger.approved, "used without an approval"
                assert not ledger.ended, "used although it was taken back"
                assert self.now < ledger.until, "outlived"
                assert found.until == ledger.until
                ledger.taken += 1
                assert ledger.uses is None or ledger.taken <= ledger.uses, "used too often"
                assert found.single_use == (ledger.uses is not None)
            case Waiting():
                if found.opened:
                    expires_at = self.now + EXPIRES
                    self.ledgers[found.id] = Ledger(subject, quorum, expires_at)
                ledger = self.ledgers[found.id]
                assert not ledger.approved
                assert not ledger.ended
                assert self.now < ledger.expires_at
            case Denied():
                assert self.ledgers[found.id].ended
        return str(found.id)

    @rule(
        approval=approvals,
        name=strategies.sampled_from(NAMES),
        uses=strategies.none() | strategies.integers(1, 3),
        lasts=strategies.none() | strategies.integers(1, 300),
    )
    def approve(self, approval: str, name: str, uses: int | None, lasts: int | None) -> None:
        self.said(approval, name, uses, lasts)

    def said(self, approval: str, name: str, uses: int | None, lasts: int | None) -> None:
        ledger = self.ledgers[approval]
        until = None if lasts is None else self.now + lasts
        try:
            entry = self.run(
                self.store.approve(
                    approval, admin(name), voter(name),
                    reason="ok", uses=uses, until=until, now=self.now,
                )
            )  # fmt: skip
        except CallerError as error:
            self.refused(ledger, name, error.code.name)
            return
        assert name != ledger.subject, "approved by who asks"
        assert self.open(ledger)
        if uses is None and until is None:
            uses = 1
        ledger.yes[name] = (uses, self.now + VALID if until is None else until)
        counting = {who: terms for who, terms in ledger.yes.items() if terms[1] > self.now}
        ledger.approved = len(counting) >= ledger.quorum
        assert (entry.approval.decision == "approved") == ledger.approved
        if ledger.approved:
            ledger.uses = min((n for n, _ in counting.values() if n is not None), default=None)
            ledger.until = min(end for _, end in counting.values())

    def refused(self, ledger: Ledger, name: str, code: str) -> None:
        """A refusal has one of three reasons, and the ledger knows which."""
        if not self.open(ledger):
            assert code == "approval.closed"
        elif name == ledger.subject:
            assert code == "approval.self"
        else:
            assert code == "approval.voted"
            assert ledger.yes[name][1] > self.now

    @rule(approval=approvals, name=strategies.sampled_from(NAMES))
    def deny(self, approval: str, name: str) -> None:
        ledger = self.ledgers[approval]
        try:
            self.run(self.store.deny(approval, admin(name), voter(name), reason="no", now=self.now))
        except CallerError:
            assert not self.open(ledger)
            return
        assert self.open(ledger)
        ledger.ended = True

    @rule(approval=approvals)
    def revoke(self, approval: str) -> None:
        ledger = self.ledgers[approval]
        try:
            self.run(self.store.revoke(approval, admin("olga"), reason="no", now=self.now))
        except CallerError:
            return
        assert ledger.approved
        ledger.ended = True

    @rule(seconds=strategies.sampled_from([1, 30, 99, 100, 299, 300]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        self.run(self.store.sweep(before=self.now - 1e6, now=self.now))

    def open(self, ledger: Ledger) -> bool:
        return not ledger.approved and not ledger.ended and self.now < ledger.expires_at

    @invariant()
    def each_is_what_the_ledger_says(self) -> None:
        if not getattr(self, "ledgers", {}):
            return
        page = self.run(self.store.page(state=None, before=None, limit=500, now=self.now))
        assert len(page) == len(self.ledgers)
        for entry in page:
            ledger = self.ledgers[entry.approval.id]
            state = entry.approval.state(self.now)
            assert entry.used == ledger.taken
            assert (state == "pending") == self.open(ledger)
            assert state != "approved" or (ledger.approved and not ledger.ended)
            assert all(vote.voter.subject != ledger.subject or not vote.approves
                       for vote in entry.approval.votes)  # fmt: skip
        waiting = [ledger for ledger in self.ledgers.values() if self.open(ledger)]
        oldest = min((ledger.expires_at - EXPIRES for ledger in waiting), default=self.now)
        assert self.run(self.store.waiting(self.now)) == (len(waiting), oldest)


def request(subject: str, quorum: int) -> Request:
    return Request(
        client=BOT,
        subject=Identity(PEOPLE, subject),
        actors=(BOT,),
        audience="https://t",
        resource="https://t",
        scopes=("close",),
        details=({"path": "/t/7"},),
        thumbprint="key",
        policy_digest="policy",
        epochs=(0, 0),
        requirement=Requirement(quorum=quorum),
    )


def voter(name: str) -> Voter:
    return Voter(Identity(PEOPLE, name))


def admin(name: str) -> Admin:
    return Admin(PEOPLE, name, frozenset({"approver"}))


TestNoSequence = Machine.TestCase
TestNoSequence.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
