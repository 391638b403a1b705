"""Calls over HTTP, as a request names them and as a grant's conditions cover them."""

from __future__ import annotations

from dataclasses import dataclass

from valetkey.broker.core.patterns import PathPattern
from valetkey.contracts.mcp import MessagePattern, message_patterns
from valetkey.contracts.oauth import HttpCallDetails


@dataclass(frozen=True, slots=True)
class Call:
    """Calls over HTTP: these methods on every path of this pattern.

    ``messages`` says that they carry one of these messages of MCP; ``None``: whatever they carry.
    """

    methods: frozenset[str]
    path: PathPattern
    messages: tuple[MessagePattern, ...] | None = None

    @classmethod
    def all_of(cls, details: HttpCallDetails) -> tuple[Call, ...]:
        """One per method and message, so that each may be covered by another grant or condition.

        Raises `PatternInvalid` for a path that is none, `NameInvalid` for such a message.
        """
        read = PathPattern.literal if details.exact else PathPattern.parse
        path = read(details.path)
        messages: list[tuple[MessagePattern, ...] | None] = [None]
        if details.mcp is not None:
            messages = [
                (message,)
                for message in message_patterns(
                    details.mcp.methods, details.mcp.tools, exact=details.exact
                )
            ]
        return tuple(
            cls(frozenset({method}), path, message)
            for method in dict.fromkeys(details.actions)
            for message in messages
        )

    def includes(self, other: Call) -> bool:
        return (
            other.methods <= self.methods
            and self.path.includes(other.path)
            and self._includes_messages(other.messages)
        )

    def may_meet(self, other: Call) -> bool:
        """Whether some call is one of both to any reader of paths, whatever the messages are."""
        return not self.methods.isdisjoint(other.methods) and self.path.may_meet(other.path)

    def _includes_messages(self, others: tuple[MessagePattern, ...] | None) -> bool:
        """Whether each of these messages is one of ours; any message at all is only in any."""
        if self.messages is None:
            return True
        return others is not None and all(
            any(own.includes(other) for own in self.messages) for other in others
        )
