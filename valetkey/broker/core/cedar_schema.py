"""The Cedar schema: what every policy, for every target, can speak of.

Written to ``config/valetkey.cedarschema`` by ``make generate``, for editors and reviews.

Invariants, which `cedar_text` and `permission` rely on:

- Entities that stand for people and programs are named ``issuer|subject``: subjects are unique
  within their issuer only. Roles and groups carry the names that the settings give them.
- Only what was verified is in a context. Inner ``act`` entries of a token are in none: they never
  drive a decision (RFC 8693 §4.1).
- ``method``, ``path``, ``mcp_method`` and ``mcp_tool`` are left out where a request leaves them
  open. Reading one that is left out is an error, and an error is a deny: a policy never decides on
  a guess. The same attributes are therefore not optional here, and ``has`` on them is refused.
"""

from __future__ import annotations

from typing import Final

# Left open by a request for more than one call: see the module's third invariant.
OPEN: Final = frozenset({"method", "path", "mcp_method", "mcp_tool"})
# What may be missing by its nature; `has` is for these only.
OPTIONAL: Final = frozenset({"user"})
APPROVED: Final = "approved"

SCHEMA: Final = """\
// What Valetkey's policies speak of. Generated from valetkey/broker/core/cedar_schema.py.

// Named in the settings: tables from claims, or the directory.
entity Role;
entity Group;

// Named `issuer|subject`. An agent is a workload that the settings list under `agents`.
entity Workload in [Role, Group] { issuer: String, subject: String };
entity Agent in [Role, Group] { issuer: String, subject: String };
entity User in [Role, Group] { issuer: String, subject: String };

// Target::"tickets", Route::"tickets/close" (settings: targets.tickets.routes),
// Tool::"issues/create_issue" (tools of MCP, called through tools/call).
entity Target;
entity Route in [Target];
entity Tool in [Target];
// What a token is asked for. Match it with `resource in …`.
entity Call in [Route, Tool, Target];

type Party = {
  issuer: String,
  subject: String,
  agent: Bool,
  roles: Set<String>,
  groups: Set<String>,
};

// Asked for the workload that acts and, where it acts for a user, for the user too: both must be
// permitted. One question for each scope and call.
action call appliesTo {
  principal: [Workload, Agent, User],
  resource: [Call],
  context: {
    now: datetime,         // the broker's clock
    weekday: Long,         // of now, in UTC: 1 is Monday, 7 is Sunday
    scope: String,
    environment: String,   // settings: targets.NAME.environment, or empty
    window: Bool,          // a grant whose deployment window is open gives the scope
    risk: String,          // low, medium, high or unrated: the highest of targets.NAME.risk in the
                           // settings and of what is known of the workload and the user
    actor: Party,          // the workload that acts
    user?: Party,          // the user that it acts for
    approved: Bool,        // people have said yes to this very request
    method: String,        // of HTTP
    path: String,
    mcp_method: String,    // empty where no message of MCP can be in the call
    mcp_tool: String,      // empty where no tool is called
  },
};
"""

# Without policies of their own, installations go on as grants alone decide.
BASE: Final = """\
@id("grants-decide")
@description("What a grant gives is permitted. In force while the settings name no policies.")
permit (principal, action == Action::"call", resource);
"""
