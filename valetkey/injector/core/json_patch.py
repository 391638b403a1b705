"""What makes one JSON document of another, as a JSON Patch (RFC 6902).

Members are compared one by one; a list that got longer or shorter keeps what is the same at its
beginning and its end. The result is right for any two documents, and short for what is done here.
"""

from __future__ import annotations

from typing import Any

Operation = dict[str, Any]


def diff(before: Any, after: Any, path: str = "") -> list[Operation]:
    """The operations, in the order in which they are to be applied."""
    if isinstance(before, dict) and isinstance(after, dict):
        return _of_objects(before, after, path)
    if isinstance(before, list) and isinstance(after, list):
        return _of_lists(before, after, path)
    # JSON tells 1 from true, Python does not.
    if type(before) is type(after) and before == after:
        return []
    return [{"op": "replace", "path": path, "value": after}]


def _of_objects(before: dict[str, Any], after: dict[str, Any], path: str) -> list[Operation]:
    found: list[Operation] = []
    for key in (*before, *(key for key in after if key not in before)):
        below = f"{path}/{_escaped(key)}"
        if key not in after:
            found.append({"op": "remove", "path": below})
        elif key not in before:
            found.append({"op": "add", "path": below, "value": after[key]})
        else:
            found += diff(before[key], after[key], below)
    return found


def _of_lists(before: list[Any], after: list[Any], path: str) -> list[Operation]:
    if len(before) == len(after):
        pairs = zip(before, after, strict=True)
        return [
            each
            for index, (one, other) in enumerate(pairs)
            for each in diff(one, other, f"{path}/{index}")
        ]
    shorter = min(len(before), len(after))
    head = 0
    while head < shorter and not diff(before[head], after[head]):
        head += 1
    tail = 0
    while tail < shorter - head and not diff(before[-1 - tail], after[-1 - tail]):
        tail += 1
    gone, come = before[head : len(before) - tail], after[head : len(after) - tail]
    # Each removal moves what follows to the same place.
    removals: list[Operation] = [{"op": "remove", "path": f"{path}/{head}"} for _ in gone]
    return removals + [
        {"op": "add", "path": f"{path}/{head + index}", "value": value}
        for index, value in enumerate(come)
    ]


def _escaped(key: str) -> str:
    """RFC 6901 §3."""
    return key.replace("~", "~0").replace("/", "~1")
