"""``python -m bench.fleet_load FILE``: some thousand simulated sidecars in a process of their own.

The file says what there is (`bench.fleet`). Commands come as lines on standard input, and each is
answered by one line of JSON: ``go`` (all begin; answered when all are registered),
``take`` (what was seen since), ``told`` (when each event came to how many).
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.fleet_record import Texts
from bench.fleet_sidecar import Seen, Sidecar, Surroundings

_PATIENCE = 120.0


async def _arrive(sidecar: Sidecar, after: float) -> None:
    await asyncio.sleep(after)
    sidecar.began_at = time.monotonic()
    await sidecar.run()


async def _registered(sidecars: list[Sidecar]) -> dict[str, Any]:
    since = time.monotonic()
    while time.monotonic() - since < _PATIENCE:
        if all(one.registered_at for one in sidecars):
            break
        await asyncio.sleep(0.1)
    there = [one for one in sidecars if one.registered_at]
    return {
        "seconds": [one.registered_at - one.began_at for one in there],
        "at": [one.registered_at - since for one in there],
        "missing": len(sidecars) - len(there),
    }


def _told(sidecars: list[Sidecar]) -> dict[str, list[float]]:
    """When each event came to those that it came to, and they forget it."""
    told: dict[str, list[float]] = {}
    for one in sidecars:
        for jti, at in one.got.items():
            told.setdefault(jti, []).append(at)
        one.got.clear()
    return told


async def main(path: Path) -> None:
    spec = msgspec.json.decode(path.read_bytes())
    around = Surroundings(
        url=spec["url"],
        ports=tuple(spec["ports"]),
        collector=spec["collector"],
        source=spec["source"],
        audience=spec["audience"],
        texts=Texts.of(spec["texts"]),
        call_every=spec["call_every"],
        shipping=spec["shipping"],
        patience=spec["patience"],
    )
    seen = Seen()
    sidecars = [
        Sidecar(around, seen, spec["first"] + number, token)
        for number, token in enumerate(spec["tokens"])
    ]
    gc.freeze()
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    print(json.dumps({"ready": len(sidecars)}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        match line.strip():
            case "go":
                tasks += [
                    asyncio.create_task(_arrive(one, random.uniform(0, spec["within"])))
                    for one in sidecars
                ]
                said = await _registered(sidecars)
            case "take":
                said = seen.take()
                ports = [one.port for one in sidecars if one.hears]
                said["following"] = {str(port): ports.count(port) for port in set(ports)}
            case "told":
                said = _told(sidecars)
            case other:
                raise SystemExit(f"no such command: {other}")
        for task in tasks:
            if task.done():
                task.result()
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    random.seed()
    uvloop.run(main(Path(sys.argv[1])))
