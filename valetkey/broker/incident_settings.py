"""Settings of incidents: what counts as fresh attestation, and who may report from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from valetkey.broker.core.security_events import EventName
from valetkey.contracts.fetch import is_safe_url
from valetkey.contracts.issuer import Algorithm
from valetkey.contracts.settings import Duration, Settings, duration

# Clocks that are further apart can tell nothing from what came before.
_MAX_SKEW: Final = 30.0
_LONGEST_RISK: Final = 30 * 86_400.0

SubjectFormat = Literal["opaque", "email", "account", "phone_number", "did", "uri"]
_ALL: Final[tuple[EventName, ...]] = get_args(EventName)


class PushSettings(Settings, frozen=True, kw_only=True):
    """It pushes to ``/v1/ssf/push/NAME``, with the bearer token that is in ``token_file``."""

    token_file: Path


class PollSettings(Settings, frozen=True, kw_only=True):
    """Its events are fetched from ``url``, with the bearer token that is in ``token_file``.

    ``every`` is how long to wait where it answers at once that there are none. ``ca_file`` (PEM)
    is trusted there instead of the system's roots.
    """

    url: str
    token_file: Path
    ca_file: Path | None = None
    every: Duration = duration(10)

    def __post_init__(self) -> None:
        if not is_safe_url(self.url):
            raise ValueError("url must be an https URL (http on loopback only)")
        if not 0.1 <= self.every <= 3600:
            raise ValueError("every is between 100ms and 1h")


class TransmitterSettings(Settings, frozen=True, kw_only=True):
    """A transmitter of security events (SSF 1.0, CAEP, RISC) whose word opens incidents.

    ``issuer`` and ``audience`` are ``iss`` and ``aud`` of its events, signed with a key of
    ``jwks_file`` or ``jwks_url``. ``subjects`` are the issuers whose subjects it may speak of;
    the broker's own identifier among them lets it name tokens of the broker's (``jwt_id``).
    ``identifiers`` says of other formats (RFC 9493) which issuer's ``sub`` they are.
    ``opens`` are the events that open an incident; others are acknowledged and logged.
    ``risk`` is for how long what it says of a subject's risk (``risk-level-change``) counts in
    policies (at most 30 days); left out, it does not.
    """

    issuer: str
    audience: str
    jwks_file: Path | None = None
    jwks_url: str | None = None
    jwks_ca_file: Path | None = None
    algorithms: tuple[Algorithm, ...] = ("ES256",)
    push: PushSettings | None = None
    poll: PollSettings | None = None
    subjects: tuple[str, ...] = ()
    identifiers: dict[SubjectFormat, str] = msgspec.field(default_factory=dict)
    opens: tuple[EventName, ...] = _ALL
    risk: Duration | None = None

    def __post_init__(self) -> None:
        if not self.issuer or not self.audience:
            raise ValueError("issuer and audience must not be empty")
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise ValueError("give one of jwks_file and jwks_url")
        if self.jwks_url is not None and not is_safe_url(self.jwks_url):
            raise ValueError("jwks_url must be an https URL (http on loopback only)")
        if not self.algorithms:
            raise ValueError("algorithms is empty")
        if (self.push is None) == (self.poll is None):
            raise ValueError("give one of push and poll")
        if not self.subjects and not self.identifiers:
            raise ValueError("subjects and identifiers are empty: it could speak of nobody")
        if not self.opens and self.risk is None:
            raise ValueError("opens is empty and risk left out: nothing it says would matter")
        if self.risk is not None and not 0 < self.risk <= _LONGEST_RISK:
            raise ValueError("risk is at most 30d, and not 0")


class GithubSettings(Settings, frozen=True, kw_only=True):
    """Alerts of GitHub's secret scanning, at ``/v1/alerts/github``.

    ``keys_file`` is what GitHub answers at ``/meta/public_keys/secret_scanning``: the keys that
    sign its alerts. It is read again each minute.
    """

    keys_file: Path


class IncidentSettings(Settings, frozen=True, kw_only=True):
    """What counts as fresh attestation after an incident, and who may report from outside.

    ``skew`` is by how much the clocks of issuers may be ahead of the broker's: an identity token
    counts as issued after the incident if its ``iat`` is later than that by more than ``skew``.
    """

    skew: Duration = duration(1)
    transmitters: dict[str, TransmitterSettings] = msgspec.field(default_factory=dict)
    github: GithubSettings | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.skew <= _MAX_SKEW:
            raise ValueError("skew is at most 30s")
        for name in self.transmitters:
            if not name.isascii() or not name.replace("-", "").isalnum() or len(name) > 64:
                raise ValueError("transmitters: names are letters, digits and -, at most 64")
