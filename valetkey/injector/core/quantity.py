"""Kubernetes quantities (``50m``, ``96Mi``), as far as they are written for containers."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_QUANTITY: Final = re.compile(r"([0-9]+)(?:\.([0-9]+))?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_UNITS: Final = {
    None: Fraction(1), "m": Fraction(1, 1000),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "P": Fraction(10**15),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
}  # fmt: skip


def amount(text: str) -> Fraction:
    """Its value: cores or bytes. Raises `ValueError`."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no quantity")
    whole, part, unit = found.groups()
    return Fraction(f"{whole}.{part or 0}") * _UNITS[unit]


def same_amount(one: object, other: object) -> bool:
    """Whether both are one quantity, however the API server has written it down meanwhile."""
    try:
        return amount(str(one)) == amount(str(other))
    except ValueError:
        return one == other
