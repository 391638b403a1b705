"""A part of the broker: its endpoints, what it loads, what it does in the background.

`Foundation` is what all parts stand on; a part takes from it what it needs. To add a feature, write
one part under ``broker/parts/`` and list it in ``app.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from valetkey.broker.api.admin import AdminApi
from valetkey.broker.cedar_files import CedarFiles
from valetkey.broker.directory.sources import Sources
from valetkey.broker.incidents.response import Response
from valetkey.broker.incidents.rotation import Rotates
from valetkey.broker.issuers.jwt import JwtIssuer
from valetkey.broker.issuers.keyring import KeyRing
from valetkey.broker.metrics import Metrics
from valetkey.broker.policy_file import PolicyFile
from valetkey.broker.settings import BrokerSettings
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.assertions import UsedAssertions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.incidents import Incidents
from valetkey.broker.store.revocations import Revocations
from valetkey.broker.store.risks import Risks
from valetkey.broker.store.sealing import Sealer
from valetkey.broker.store.signals import Signals
from valetkey.broker.store.uses import GrantUses
from valetkey.broker.trust.clients import ClientAuthenticator
from valetkey.broker.trust.mtls import Certificates
from valetkey.broker.trust.parties import PartyResolver
from valetkey.broker.trust.people import People
from valetkey.broker.trust.standing import Standings
from valetkey.broker.trust.tokens import TokenVerifier
from valetkey.contracts.certificate_files import CertificateFiles


@dataclass(frozen=True, slots=True)
class Foundation:
    """Settings, clock, state and identity: what more than one part needs.

    ``clock`` gives seconds since the epoch, ``timer`` those of a clock that nobody sets: the one
    says when, the other for how long. ``tokens`` verifies what workloads and users present;
    administrators come through ``admin`` only. ``signals`` tells all sidecars what has
    ended: publish in the transaction that ends it. ``certificates`` are what clients bring by
    mutual TLS, ``served`` is the broker's own, where it speaks TLS itself.
    """

    config: BrokerSettings
    clock: Callable[[], float]
    timer: Callable[[], float]
    metrics: Metrics
    database: Database
    changes: Changes
    sealer: Sealer
    ring: KeyRing
    policies: PolicyFile
    cedar: CedarFiles
    signals: Signals
    revocations: Revocations
    epochs: Epochs
    incidents: Incidents
    risks: Risks
    rotators: tuple[Rotates, ...]
    response: Response
    standings: Standings
    uses: GrantUses
    assertions: UsedAssertions
    actions: AdminActions
    directories: Sources
    tokens: TokenVerifier
    certificates: Certificates
    served: CertificateFiles | None
    clients: ClientAuthenticator
    parties: PartyResolver
    people: People
    issuer: JwtIssuer
    admin: AdminApi


class Part:
    """The base of all parts; what a part does not have, it leaves out."""

    name: str = "part"

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the part's endpoints."""

    async def load(self) -> None:
        """Read state, before the first request. Raises `ConfigError` or `StoreError`."""

    async def run(self) -> None:
        """Work in the background until cancelled. The broker is unready once this has ended."""

    async def sweep(self) -> None:
        """Forget what has expired; called once a minute. Raises `StoreError`."""

    def stop(self) -> None:
        """Let go of requests that wait: no more will come, and the server waits for these."""

    async def close(self) -> None:
        """Once nothing is served and nothing runs any more; the database is still there."""

    def details(self) -> dict[str, str]:
        """Members for ``/readyz``."""
        return {}

    @property
    def runs(self) -> bool:
        """Whether there is background work."""
        return type(self).run is not Part.run
