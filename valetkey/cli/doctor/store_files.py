"""Reads trust stores, to see whether the interception CA is in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from valetkey.cli.doctor.certificates import certificates_in, is_old_java_store, java_store
from valetkey.cli.doctor.trust import Holding, Place

_NOTHING: Final = Holding(readable=False)
# OpenSSL finds a certificate in a directory by the hash of its subject (openssl-rehash(1)).
_HASHED: Final = re.compile(r"[0-9a-f]{8}\.\d+")
# Larger files are no trust stores: Mozilla's whole bundle has 0.2 MiB.
_MOST: Final = 16 << 20


class StoreFiles:
    """`trust.Read` for one CA; a place is read once."""

    def __init__(self, der: bytes) -> None:
        self._der = der
        self._seen: dict[tuple[str, str], Holding] = {}

    def read(self, place: Place) -> Holding:
        if place.form == "built in":
            return Holding(readable=True)
        key = (place.form, place.path)
        if key not in self._seen:
            self._seen[key] = self._read(place, Path(place.path))
        return self._seen[key]

    def _read(self, place: Place, path: Path) -> Holding:
        try:
            if path.is_dir():
                return self._directory(path, hashed=place.form != "directory")
            if place.form == "java":
                return self._java(_content(path), place.password)
            return self._held(certificates_in(_content(path)))
        except OSError:
            return _NOTHING

    def _directory(self, path: Path, *, hashed: bool) -> Holding:
        found: list[bytes] = []
        for entry in sorted(path.iterdir()):
            if entry.is_file() and (not hashed or _HASHED.fullmatch(entry.name)):
                try:
                    found += certificates_in(_content(entry))
                except OSError:
                    continue  # as the clients do
        return self._held(found)

    def _java(self, store: bytes, password: str | None) -> Holding:
        if is_old_java_store(store):
            return Holding(readable=True, holds_ca=self._der in store)
        ders = java_store(store, password)
        return _NOTHING if ders is None else self._held(ders)

    def _held(self, ders: Iterable[bytes]) -> Holding:
        known = set(ders)
        return Holding(readable=bool(known), holds_ca=self._der in known, count=len(known))


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST)
