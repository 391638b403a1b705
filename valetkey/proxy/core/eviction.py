"""Which credentials signals end.

Pure. A credential says of its subject only the name, not whose name it is: one of a user is ended
by any signal about that name, rather one too many than one too few.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from valetkey.contracts.signals import KINDS, Kind, Signal
from valetkey.proxy.core.credential import Credential


class Ended:
    """What has ended, of any number of signals: a credential is looked at once for all of them.

    ``everything`` is for when it can't be known what has ended.
    """

    __slots__ = (
        "_everything", "_grants", "_hashes", "_jtis", "_keys", "_names", "_subjects", "_targets",
        "_txns",
    )  # fmt: skip

    def __init__(self, signals: Iterable[Signal] = (), *, everything: bool = False) -> None:
        self._everything = everything
        values: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
        self._subjects: set[tuple[str, str]] = set()
        for signal in signals:
            values[signal.kind].add(signal.value)
            if signal.kind == "subject":
                self._subjects.add((signal.issuer, signal.value))
        self._jtis = values["token"]
        self._hashes = values["hash"]
        self._txns = values["txn"]
        self._grants = values["grant"]
        self._keys = values["key"]
        self._names = values["subject"]
        self._targets = values["target"]

    def __call__(self, credential: Credential) -> bool:
        """Whether a credential rests on something that has, or may have, ended."""
        return (
            self._everything
            or self.certain(credential)
            or credential.key.audience in self._targets
            or (bool(self._names) and self._is_of(credential))
        )

    def certain(self, credential: Credential) -> bool:
        """Whether a signal is about just this credential, its transaction, grants or key.

        What `__call__` says of a subject, a target or everything is a question to the broker
        instead: the credential may be another one's of that name, or be younger than the signal.
        """
        return (
            credential.jti in self._jtis
            or credential.txn in self._txns
            or credential.key.thumbprint in self._keys
            or not self._grants.isdisjoint(credential.grants)
            or (bool(self._hashes) and credential.token_hash() in self._hashes)
        )

    def _is_of(self, credential: Credential) -> bool:
        key = credential.key
        return credential.subject in self._names or any(
            (key.tenant, name) in self._subjects for name in (key.subject, *key.actors)
        )


EVERYTHING: Final = Ended(everything=True)
