"""Settings of the AuthZEN API."""

from __future__ import annotations

from typing import Literal

from valetkey.contracts.settings import Settings


class EnforcementPointSettings(Settings, frozen=True, kw_only=True):
    """A policy enforcement point that may ask: the subject of a token of ``issuer``.

    ``use`` says which issuers are meant: those in ``issuers`` that authenticate workloads, or those
    in ``admin.issuers``. ``bearer`` lets a workload ask with its token alone, without the proof of
    possession (DPoP) that it needs at ``/token``: many can't make one. For ``use: admin`` it is so
    anyway.
    """

    issuer: str
    subject: str
    use: Literal["workload", "admin"] = "workload"
    bearer: bool = False

    def __post_init__(self) -> None:
        if not self.issuer or not self.subject:
            raise ValueError("issuer and subject must not be empty")


class AuthzenSettings(Settings, frozen=True, kw_only=True):
    """The AuthZEN Authorization API 1.0. Left out, there is none.

    ``enforcement_points`` are those who may ask. They are trusted to say whose roles they ask for:
    claims in a question count as those of a verified token do.
    """

    enforcement_points: tuple[EnforcementPointSettings, ...]

    def __post_init__(self) -> None:
        if not self.enforcement_points:
            raise ValueError("enforcement_points is empty: leave authzen out for no API")
        names = [(point.use, point.issuer, point.subject) for point in self.enforcement_points]
        if len(set(names)) != len(names):
            raise ValueError("enforcement_points: one is listed twice")
