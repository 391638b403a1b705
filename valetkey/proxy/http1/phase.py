"""How far a call has come."""

from __future__ import annotations

from typing import Final


class Phase:
    """In the order in which calls go through them. Integers: enum members cost on this path."""

    COLLECTING: Final = -1  # the body decides, and is not there yet
    DECIDING: Final = 0
    CONNECTING: Final = 1
    WAITING: Final = 2  # the request is under way; no final response head yet
    HOLDING: Final = 3  # the final response head is here, and what follows may still refuse it
    ANSWERING: Final = 4  # the final response head went to the workload
    SWITCHED: Final = 5  # to another protocol: a tunnel
    DONE: Final = 6
