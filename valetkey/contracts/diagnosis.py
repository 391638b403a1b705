"""A host that is nobody's, for which a sidecar answers itself: so clients see where calls arrive.

Names under ``.invalid`` lead nowhere by definition (RFC 6761 §6.4), so a client that goes around
the sidecar finds no address, and a call that goes through it reaches no target. A sidecar that
intercepts TLS opens tunnels to it as it does for targets; no call inside is ever allowed.
"""

from __future__ import annotations

from typing import Final

DIAGNOSIS_HOST: Final = "valetkey.invalid"
