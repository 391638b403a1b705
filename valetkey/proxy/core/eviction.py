"""Which credentials a signal ends.

Pure. A credential says of its subject only the name, not whose name it is: one of a user is ended
by any signal about that name, rather one too many than one too few.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from valetkey.contracts.jose import b64url
from valetkey.contracts.signals import Signal
from valetkey.proxy.core.credential import Credential

Ended = Callable[[Credential], bool]


def everything(_credential: Credential) -> bool:
    """For when it can't be known what has ended."""
    return True


def ended_by(signal: Signal) -> Ended:
    """Whether a credential rests on what the signal says has ended."""
    value = signal.value
    match signal.kind:
        case "token":
            return lambda credential: credential.jti == value
        case "hash":
            return lambda credential: _hash(credential) == value
        case "txn":
            return lambda credential: credential.txn == value
        case "grant":
            return lambda credential: value in credential.grants
        case "subject":
            return lambda credential: _is_of(credential, signal)
        case "key":
            return lambda credential: credential.key.thumbprint == value
        case "target":
            return lambda credential: credential.key.audience == value


def _hash(credential: Credential) -> str:
    return b64url(hashlib.sha256(credential.token.reveal().encode()).digest())


def _is_of(credential: Credential, signal: Signal) -> bool:
    key, name = credential.key, signal.value
    if credential.subject == name:
        return True
    return key.tenant == signal.issuer and (key.subject == name or name in key.actors)
