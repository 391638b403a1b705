"""Settings of what policies speak of: named routes, roles and groups from claims, agents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from valetkey.broker.core.attributes import ClaimTable, ClaimTables
from valetkey.broker.core.grants import METHOD, Call
from valetkey.broker.core.patterns import PathPattern, WorkloadPattern
from valetkey.contracts.settings import Settings

ROUTE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


class RouteSettings(Settings, frozen=True, kw_only=True):
    """Calls on a target that policies name together: ``Route::"target/name"``.

    ``path`` is a pattern as in grants. A request that lies only partly in a route that a policy
    names is refused.
    """

    methods: tuple[str, ...]
    path: str

    def __post_init__(self) -> None:
        if not self.methods or not all(METHOD.fullmatch(method) for method in self.methods):
            raise ValueError("methods must be a non-empty list of HTTP methods in capitals")
        PathPattern.parse(self.path)

    def compiled(self) -> Call:
        return Call(frozenset(self.methods), PathPattern.parse(self.path))


class ClaimSettings(Settings, frozen=True, kw_only=True):
    """A claim and the names that its values stand for.

    ``claim`` is the way to it, one member after the other (``[realm_access, roles]``). Its value is
    a text or a list of texts. ``names`` maps values, exactly, to names of roles or groups; other
    values give nothing.
    """

    claim: tuple[str, ...]
    names: dict[str, str]

    def __post_init__(self) -> None:
        self.compiled()

    def compiled(self) -> ClaimTable:
        return ClaimTable(self.claim, self.names)


class ClaimTablesSettings(Settings, frozen=True, kw_only=True):
    """Roles and groups from the tokens of one issuer of workloads or users."""

    issuer: str
    roles: ClaimSettings | None = None
    groups: ClaimSettings | None = None

    def __post_init__(self) -> None:
        if self.roles is None and self.groups is None:
            raise ValueError("give roles or groups: without, the table says nothing")


class AgentSettings(Settings, frozen=True, kw_only=True):
    """Workloads that are agents, ``Agent::"issuer|subject"`` to policies.

    ``workload`` is exact, or has one ``*`` for one segment, as in grants.
    """

    issuer: str
    workload: str

    def __post_init__(self) -> None:
        WorkloadPattern.parse(self.workload)


def check_issuers(
    names: Iterable[str], tables: Iterable[ClaimTablesSettings], agents: Iterable[AgentSettings]
) -> None:
    """Whether everything is about issuers of the settings. Raises `ValueError`."""
    known = set(names)
    for issuer in known:
        if "|" in issuer:  # it ends the issuer in names of entities: cedar_schema
            raise ValueError(f"issuer {issuer}: an issuer has no '|'")
    seen: set[str] = set()
    for table in tables:
        if table.issuer not in known:
            raise ValueError(f"claims: {table.issuer} is not among the issuers")
        if table.issuer in seen:
            raise ValueError(f"claims: {table.issuer} is listed twice")
        seen.add(table.issuer)
    for agent in agents:
        if agent.issuer not in known:
            raise ValueError(f"agents: {agent.issuer} is not among the issuers")


def compiled_claims(tables: Iterable[ClaimTablesSettings]) -> Mapping[str, ClaimTables]:
    """The tables by issuer."""
    return {
        table.issuer: ClaimTables(
            None if table.roles is None else table.roles.compiled(),
            None if table.groups is None else table.groups.compiled(),
        )
        for table in tables
    }


def compiled_agents(
    agents: Iterable[AgentSettings],
) -> Mapping[str, tuple[WorkloadPattern, ...]]:
    """The patterns by issuer."""
    compiled: dict[str, tuple[WorkloadPattern, ...]] = {}
    for agent in agents:
        patterns = compiled.get(agent.issuer, ())
        compiled[agent.issuer] = (*patterns, WorkloadPattern.parse(agent.workload))
    return compiled
