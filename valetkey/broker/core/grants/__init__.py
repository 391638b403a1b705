"""Grants: which workload may have which scopes on which target.

Invariants:

- Nothing is allowed that no grant names. An empty grants list, an empty scope list and an empty
  condition list are errors, never "everything".
- A scope is granted for a request only if *every* authorization detail of the request is covered
  by a grant that holds this very scope: two grants never combine into something that neither
  gives (the details of one with the scopes of the other).
- The digest names the policy: same grants and targets, same digest, in whatever order written.

`form` is what people write, `compiled` what is asked, `index` how it is found, `policy` all of it.
"""

from valetkey.broker.core.grants.calls import Call
from valetkey.broker.core.grants.compiled import Grant, PolicyInvalid, Target
from valetkey.broker.core.grants.form import (
    METHOD,
    SCOPE_TOKEN,
    ConditionSettings,
    GrantSettings,
    GrantsFile,
    McpConditionSettings,
)
from valetkey.broker.core.grants.live import LiveGrants, OpenWindow
from valetkey.broker.core.grants.policy import Granted, GrantRules, Policy

__all__ = [
    "METHOD",
    "SCOPE_TOKEN",
    "Call",
    "ConditionSettings",
    "Grant",
    "GrantRules",
    "GrantSettings",
    "Granted",
    "GrantsFile",
    "LiveGrants",
    "McpConditionSettings",
    "OpenWindow",
    "Policy",
    "PolicyInvalid",
    "Target",
]
