"""MCP messages as policy names them: patterns over JSON-RPC methods and tools.

The same patterns stand in the sidecar's routes, in authorization details (RFC 9396) and in the
broker's grants, so that all three mean the same by them.

Invariants:

- A pattern is a name, or has one ``*`` for any run of characters, an empty one included.
- Names compare character by character: case, width and composition count.
- A pattern includes another only if it includes *every* name that the other one matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

METHOD_TOOLS_CALL: Final = "tools/call"
# What messages without a method are called: answers to requests of the server.
METHOD_RESPONSE: Final = "response"
ANY: Final = "*"

# MCP 2026-07-28, server/tools: names SHOULD have 1 to 128 characters of [A-Za-z0-9_.-]. Servers
# in the field have others, so only what no reader could see is refused.
MAX_NAME: Final = 256
# Each pattern is a question to the policy; the broker also bounds the size of a request.
MAX_PATTERNS: Final = 1024


class NameInvalid(ValueError):  # noqa: N818 - reads as what it is
    """Text that is no name, or no pattern of names."""


def check_name(text: str) -> str:
    """``text``, if it can be the name of a method or tool. Raises `NameInvalid`.

    1 to 256 printable characters, no space at either end: a reader that trims, or that stops at a
    control character, would read another name.
    """
    if not 1 <= len(text) <= MAX_NAME:
        raise NameInvalid(f"a name has 1 to {MAX_NAME} characters")
    if not text.isprintable() or text != text.strip():
        raise NameInvalid("a name has printable characters only, and no outer spaces")
    return text


@dataclass(frozen=True, slots=True)
class NamePattern:
    """One name, or every name that starts with ``prefix`` and ends with ``suffix``."""

    prefix: str
    suffix: str
    exact: bool

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """``create_issue``, ``create_*``, ``*``. Raises `NameInvalid`."""
        check_name(text)
        if "*" not in text:
            return cls(text, "", exact=True)
        if text.count("*") > 1:
            raise NameInvalid("a pattern has at most one *")
        prefix, _, suffix = text.partition("*")
        return cls(prefix, suffix, exact=False)

    @classmethod
    def literal(cls, name: str) -> NamePattern:
        """A name that stands for itself, whatever it holds. Raises `NameInvalid`."""
        return cls(check_name(name), "", exact=True)

    def __str__(self) -> str:
        return self.prefix if self.exact else f"{self.prefix}*{self.suffix}"

    def matches(self, name: str) -> bool:
        if self.exact:
            return name == self.prefix
        return (
            len(name) >= len(self.prefix) + len(self.suffix)
            and name.startswith(self.prefix)
            and name.endswith(self.suffix)
        )

    def includes(self, other: NamePattern) -> bool:
        """Whether every name that ``other`` matches is matched here too."""
        if other.exact:
            return self.matches(other.prefix)
        # A glob matches its prefix and suffix with anything between, so that is all there is to
        # compare; and no single name includes a glob.
        return (
            not self.exact
            and other.prefix.startswith(self.prefix)
            and other.suffix.endswith(self.suffix)
        )

    def overlaps(self, other: NamePattern) -> bool:
        """Whether some name is matched by both."""
        if self.exact:
            return other.matches(self.prefix)
        if other.exact:
            return self.matches(other.prefix)
        return (self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix)) and (
            self.suffix.endswith(other.suffix) or other.suffix.endswith(self.suffix)
        )


@dataclass(frozen=True, slots=True)
class MessagePattern:
    """Messages by method; of those that call a tool, the ones that call such a tool."""

    method: NamePattern
    tool: NamePattern

    @property
    def calls_tools(self) -> bool:
        return self.method.matches(METHOD_TOOLS_CALL)

    def includes(self, other: MessagePattern) -> bool:
        """Whether every message that ``other`` matches is matched here too."""
        return self.method.includes(other.method) and (
            not other.calls_tools or self.tool.includes(other.tool)
        )


def message_patterns(
    methods: Sequence[str], tools: Sequence[str], *, exact: bool = False
) -> tuple[MessagePattern, ...]:
    """Every method with every tool; no tools means any. Raises `NameInvalid`.

    ``exact`` takes the texts for names, not for patterns.
    """
    read = NamePattern.literal if exact else NamePattern.parse
    patterns: list[MessagePattern] = []
    any_tool = NamePattern.parse(ANY)
    of_tools = [read(tool) for tool in dict.fromkeys(tools)] or [any_tool]
    for text in dict.fromkeys(methods):
        method = read(text)
        # Where no tool can be called, tools make no difference.
        with_tools = of_tools if method.matches(METHOD_TOOLS_CALL) else [any_tool]
        if len(patterns) + len(with_tools) > MAX_PATTERNS:
            raise NameInvalid(f"more than {MAX_PATTERNS} methods and tools")
        patterns += [MessagePattern(method, tool) for tool in with_tools]
    return tuple(patterns)
