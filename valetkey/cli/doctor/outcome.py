"""What a client's live call shows: the answer, or the words of its error, read as one outcome.

Clients say the same thing in many words. What is matched here is what the versions in use say; the
tests hold real messages of each.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from valetkey.contracts import codes, problem

Outcome = Literal[
    "through", "direct", "untrusted", "refused", "unreachable", "elsewhere", "timeout", "failed"
]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one client, as its probe reported it.

    With an answer: ``status``, ``content_type``, ``via`` and the beginning of ``body``. Without:
    ``error``, one line. ``timed_out`` if the probe had to be ended.
    """

    client: str
    url: str
    status: int = 0
    content_type: str = ""
    via: str = ""
    body: str = ""
    error: str = ""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """A call with its outcome; ``detail`` says in one line what was seen."""

    call: Call
    outcome: Outcome
    detail: str


# In this order: the words of a tunnel that was refused hold those of others.
_WORDS: Final[tuple[tuple[Outcome, re.Pattern[str]], ...]] = (
    (
        "refused",
        re.compile(
            r"tunnel\w*[^\n]{0,120}?[ (]([345]\d\d)\b"  # urllib, requests, curl, Node, Java
            r"|proxy response \(([345]\d\d)\)"  # undici
            r"|proxy\w*error: ([345]\d\d)\b"  # httpx, aiohttp
            r"|proxy returns \"HTTP/1\.[01] ([345]\d\d)"  # java.net.HttpURLConnection
            r"|http code ([345]\d\d) from proxy"  # libcurl before 7.86
            r"|\": (?:Forbidden|Proxy Authentication Required|Method Not Allowed|Bad Request"
            r"|Misdirected Request|Bad Gateway|Service Unavailable|Gateway Timeout)$",  # Go
            re.IGNORECASE,
        ),
    ),
    (
        "untrusted",
        re.compile(
            r"certificate.verify.failed|certificate verif|ssl certificate problem"
            r"|self.signed.cert|unable to (?:get|verify)|unknown authority|PKIX path"
            r"|unable_to_(?:get|verify)|peer's certificate|certificate is not trusted"
            r"|unable to find valid certification path|certificate signed by unknown",
            re.IGNORECASE,
        ),
    ),
    (
        "direct",
        re.compile(
            r"could ?n.t resolve host|name or service not known|enotfound|eai_again"
            r"|no such host|temporary failure in name resolution|name does not resolve"
            r"|no address associated|nodename nor servname|failed to resolve"
            r"|unresolvedaddress|unknownhost|server misbehaving|name resolution",
            re.IGNORECASE,
        ),
    ),
    (
        "unreachable",
        re.compile(
            r"connection refused|econnrefused|no route to host|network is unreachable"
            r"|failed to connect|cannot connect to|couldn.t connect|connectexception",
            re.IGNORECASE,
        ),
    ),
    ("timeout", re.compile(r"tim(?:ed|e) ?-?out|etimedout|deadline exceeded", re.IGNORECASE)),
)


def judge(call: Call) -> Judged:
    """Read one call."""
    if call.timed_out:
        return Judged(call, "timeout", "no answer in time")
    if call.error:
        for outcome, words in _WORDS:
            if words.search(call.error):
                return Judged(call, outcome, call.error)
        return Judged(call, "failed", call.error)
    if call.status == 407:
        return Judged(call, "refused", "407 Proxy Authentication Required")
    if is_sidecars(call.content_type, call.body):
        return Judged(call, "through", f"{call.status} {code_in(call.body)}")
    if "valetkey" in call.via:
        return Judged(call, "through", f"{call.status} from the target")
    return Judged(call, "elsewhere", f"{call.status} {call.content_type}".strip())


def is_sidecars(content_type: str, body: str) -> bool:
    """Whether an answer is a sidecar's own: a problem with one of its codes."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == problem.CONTENT_TYPE and codes.by_name(code_in(body)) is not None


def code_in(body: str) -> str:
    """The code of a problem; empty if there is none."""
    try:
        document: Any = json.loads(body)
    except ValueError:
        return ""
    code = document.get("code") if isinstance(document, dict) else None
    return code if isinstance(code, str) else ""
