"""``/v1/incidents``: open one, see how far it is, close it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

import msgspec
from aiohttp import web

from valetkey.broker.api.admin import (
    AdminApi,
    ContentInvalid,
    answer,
    page_answer,
    read_json,
    read_page,
)
from valetkey.broker.core.feed import Progress
from valetkey.broker.core.grants import Target
from valetkey.broker.core.incidents import Exposure, Incident, Party
from valetkey.broker.incidents.exposed import Recognises, recognise
from valetkey.broker.incidents.response import MAX_EVIDENCE, MAX_REASON, Report, Response
from valetkey.broker.store.incidents import Incidents, Rotation
from valetkey.broker.store.signals import Signals
from valetkey.broker.trust.admins import Admin
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import b64url
from valetkey.contracts.times import rfc3339

PATH: Final = "/v1/incidents"
_HEX: Final = re.compile(r"[0-9a-fA-F]{64}\Z")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]{43}\Z")
_STATES: Final = ("open", "closed", "all")


class SubjectBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A subject, within its issuer."""

    issuer: str
    subject: str


class OpenBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What happened, to exactly one of these. ``token_hash`` is its SHA-256, hex or base64url."""

    reason: str
    evidence: str = ""
    subject: SubjectBody | None = None
    token: str | None = None
    token_hash: str | None = None
    grant: str | None = None
    key: str | None = None
    target: str | None = None


class CloseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why it may be closed. ``force``: although its subject has not attested itself since."""

    reason: str
    force: bool = False


class IncidentsApi:
    """``targets`` and ``issuers`` are those of settings: what is misspelt ends nothing."""

    def __init__(
        self,
        admin: AdminApi,
        response: Response,
        incidents: Incidents,
        signals: Signals,
        recognisers: Sequence[Recognises],
        *,
        targets: Iterable[Target],
        issuers: frozenset[str],
        knows_grant: Callable[[str], bool],
        longest_life: float,
    ) -> None:
        self._admin = admin
        self._response = response
        self._incidents = incidents
        self._signals = signals
        self._recognisers = recognisers
        self._targets = {name: t.audience for t in targets for name in (t.name, t.audience)}
        self._issuers = issuers
        self._knows_grant = knows_grant
        self._longest_life = longest_life

    def add_routes(self, router: web.UrlDispatcher) -> None:
        guard = self._admin.guard
        router.add_post(PATH, guard("operator", self._open))
        router.add_get(PATH, guard("viewer", self._list))
        router.add_get(PATH + "/{id}", guard("viewer", self._show))
        router.add_post(PATH + "/{id}/close", guard("operator", self._close))

    async def _open(self, request: web.Request, admin: Admin) -> web.Response:
        body = await read_json(request, OpenBody)
        _check_text("reason", body.reason, MAX_REASON)
        _check_text("evidence", body.evidence, MAX_EVIDENCE, empty=True)
        exposure = await self._exposure(body)
        report = Report(exposure, "admin", admin, body.reason, body.evidence)
        incident, new = await self._response.open(report)
        return answer(await self._describe(incident), status=201 if new else 200)

    async def _list(self, request: web.Request, _admin: Admin) -> web.Response:
        """The newest first."""
        page = read_page(request, known=("state",))
        state = request.query.get("state", "open")
        if state not in _STATES:
            raise ContentInvalid(f"state must be one of {', '.join(_STATES)}")
        found = await self._incidents.page(
            state=state, before=_cursor(page.after), limit=page.limit
        )
        last = found[-1] if len(found) == page.limit else None
        next_ = f"{last.opened_at!r}/{last.id}" if last is not None else ""
        return page_answer([_summary(incident) for incident in found], next_)

    async def _show(self, request: web.Request, _admin: Admin) -> web.Response:
        return answer(await self._describe(await self._find(request)))

    async def _close(self, request: web.Request, admin: Admin) -> web.Response:
        body = await read_json(request, CloseBody)
        _check_text("reason", body.reason, MAX_REASON)
        if body.force and "admin" not in admin.roles:
            raise CallerError(codes.SERVICE_FORBIDDEN, "force is for admins")
        incident = await self._find(request)
        closed = await self._response.close(
            incident, by=admin, reason=body.reason, force=body.force
        )
        if closed is None:
            raise CallerError(codes.INCIDENT_OPEN, "it has changed meanwhile")
        return answer(await self._describe(closed))

    async def _find(self, request: web.Request) -> Incident:
        id_ = request.match_info["id"]
        incident = await self._incidents.get(id_) if len(id_) <= 64 else None
        if incident is None:
            raise CallerError(codes.INCIDENT_UNKNOWN, "no such incident")
        return incident

    async def _exposure(self, body: OpenBody) -> Exposure:
        """What the body names, with what is known of it."""
        given = [
            name
            for name in ("subject", "token", "token_hash", "grant", "key", "target")
            if getattr(body, name) is not None
        ]
        if len(given) != 1:
            raise ContentInvalid(
                "name exactly one of subject, token, token_hash, grant, key and target"
            )
        if body.subject is not None:
            return self._subject(body.subject)
        if body.token is not None:
            found = await recognise(body.token.strip(), self._recognisers)
            if found is None:
                raise CallerError(codes.INCIDENT_TOKEN_UNKNOWN, "nobody recognises the token")
            return found.exposure
        if body.token_hash is not None:
            return Exposure("token_hash", _digest(body.token_hash))
        if body.key is not None:
            if not _BASE64URL.match(body.key):
                raise ContentInvalid("key must be an RFC 7638 SHA-256 thumbprint, base64url")
            return Exposure("key", body.key)
        if body.grant is not None:
            if not self._knows_grant(body.grant):
                raise ContentInvalid("grant is neither in the file of grants nor made by API")
            return Exposure("grant", body.grant)
        audience = self._targets.get(body.target or "")
        if audience is None:
            raise ContentInvalid("target is neither a name nor an audience in settings")
        return Exposure("target", audience)

    def _subject(self, named: SubjectBody) -> Exposure:
        if named.issuer not in self._issuers:
            raise ContentInvalid("subject.issuer is no issuer of workloads or users in settings")
        _check_text("subject.subject", named.subject, 1024)
        party = Party(named.issuer, named.subject)
        return Exposure("subject", named.subject, issuer=named.issuer, party=party)

    async def _describe(self, incident: Incident) -> dict[str, Any]:
        return {
            **_summary(incident),
            "evidence": incident.evidence,
            "containment": _containment(
                incident, await self._signals.progress(incident.id), self._longest_life
            ),
            "rotations": [_rotation(one) for one in await self._incidents.rotations([incident.id])],
        }


def _summary(incident: Incident) -> dict[str, Any]:
    about = {"kind": incident.kind, "value": incident.value}
    if incident.issuer:
        about["issuer"] = incident.issuer
    document: dict[str, Any] = {
        "id": incident.id,
        "state": "open" if incident.closed_at is None else "closed",
        "about": about,
        "reason": incident.reason,
        "source": incident.source,
        "opened_at": rfc3339(incident.opened_at),
        "opened_by": incident.opened_by,
    }
    if incident.renewed_at > incident.opened_at:
        document["renewed_at"] = rfc3339(incident.renewed_at)
    if incident.subject:
        document["subject"] = {
            "issuer": incident.subject_issuer,
            "subject": incident.subject,
            "epoch": incident.epoch,
            "attested_at": _time(incident.attested_at),
        }
    if incident.closed_at is not None:
        document["closed_at"] = rfc3339(incident.closed_at)
        document["closed_by"] = incident.closed_by
        document["close_reason"] = incident.close_reason
        document["forced"] = incident.forced
    return document


def _containment(
    incident: Incident, progress: Sequence[Progress], longest_life: float
) -> dict[str, Any]:
    """How far it is: when the last sidecar had acknowledged, and which have not."""
    times = [one.acknowledged_at for one in progress]
    at = incident.contained_at
    if at is None and times and None not in times:
        at = max(time for time in times if time is not None)
    document: dict[str, Any] = {
        "acknowledged_at": _time(at),
        "seconds": None if at is None else round(max(0.0, at - incident.renewed_at), 3),
        "pending": sum(time is None for time in times),
        "sidecars": [
            {
                "stream": one.stream,
                "subject": one.subject,
                "description": one.description,
                "acknowledged_at": _time(one.acknowledged_at),
            }
            for one in progress
        ],
        # Where neither a sidecar nor the target asks, tokens from before end by themselves.
        "tokens_expire_by": rfc3339(incident.renewed_at + longest_life),
    }
    return document


def _rotation(rotation: Rotation) -> dict[str, Any]:
    return {
        "issuer": rotation.rotator,
        "state": rotation.state,
        "detail": rotation.detail,
        "attempts": rotation.attempts,
        "at": rfc3339(rotation.at),
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)


def _cursor(after: str) -> tuple[float, str] | None:
    if not after:
        return None
    at, _, id_ = after.partition("/")
    try:
        return float(at), id_
    except ValueError as error:
        raise ContentInvalid("after is not the next of a page") from error


def _digest(text: str) -> str:
    """A SHA-256 in hex or base64url, as the latter."""
    if _HEX.match(text):
        return b64url(bytes.fromhex(text))
    if not _BASE64URL.match(text):
        raise ContentInvalid("token_hash must be a SHA-256, hex or base64url without padding")
    return text


def _check_text(
    name: Literal["reason", "evidence", "subject.subject"],
    text: str,
    longest: int,
    *,
    empty: bool = False,
) -> None:
    if not empty and not text.strip():
        raise ContentInvalid(f"{name} is empty")
    if len(text) > longest or "\0" in text:
        raise ContentInvalid(f"{name} is longer than {longest} characters, or holds a NUL")
