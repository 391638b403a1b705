"""Resource indicators (RFC 8707): absolute URIs without fragment, and whose they are."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from valetkey.broker.core.patterns import PathPattern, PatternInvalid


class ResourceInvalid(ValueError):  # noqa: N818 - reads as what it is
    """Text that is no resource indicator."""


def parse_resource(text: str) -> SplitResult:
    """RFC 8707 §2: absolute, no fragment; by our own rule no query and no userinfo either."""
    try:
        parts = urlsplit(text)
        port_is_readable = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ResourceInvalid("not a URI") from error
    # An empty fragment or query leaves no trace in the parts, so the text itself is asked.
    if not parts.scheme or not port_is_readable or "#" in text or "?" in text:
        raise ResourceInvalid("not an absolute URI without query and fragment")
    if not (parts.netloc or parts.path) or "@" in parts.netloc:
        raise ResourceInvalid("names nothing, or has userinfo")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ResourceInvalid("characters outside RFC 3986")
    return parts


def resource_belongs(resource: str, of_target: str) -> bool:
    """Whether ``resource`` is the target's own or lies below it, at a segment's boundary.

    Byte by byte: another spelling of the same place is another place.
    """
    if resource == of_target:
        return True
    try:
        asked, own = parse_resource(resource), parse_resource(of_target)
        if not asked.netloc or (asked.scheme, asked.netloc) != (own.scheme, own.netloc):
            return False
        below = PathPattern.literal(asked.path or "/")
        base = PathPattern.parse(own.path.rstrip("/") + "/{rest*}")
    except (ResourceInvalid, PatternInvalid):
        return False
    return base.includes(below)
