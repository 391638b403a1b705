"""Which restrictions of a credential somebody has to enforce who is not the target.

Bound tokens are refused by targets where their proof is missing, and a transaction token is one by
its header. But a target knows nothing of one use, of MCP messages or of the feed: there the sidecar
that holds the credential enforces. A caller that does not say that it can gets none.
"""

from __future__ import annotations

from collections.abc import Iterable

from valetkey.broker.core.exchange import Issue, NeedsApproval
from valetkey.contracts.oauth import Capability


def needed(decision: Issue | NeedsApproval, *, of_target: Iterable[Capability]) -> frozenset[str]:
    """What who gets this credential must enforce; ``of_target``: what its target demands of all."""
    issue = decision.issue if isinstance(decision, NeedsApproval) else decision
    names: set[str] = set(of_target)
    if isinstance(decision, NeedsApproval) or issue.single_use:
        # Known before people are asked: what they approve of may be for one use.
        names.add("single_use")
    if any("mcp" in detail for detail in issue.details):
        names.add("mcp_filter")
    return frozenset(names)
