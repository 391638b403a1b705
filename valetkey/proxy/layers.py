"""What is in force of the settings' layers: the operator's file, and the workload's owner's.

Each layer keeps its last good state by itself:

- A file that can't be used changes nothing, and is a problem until it can be.
- What the operator changes holds, whatever it does to the owner's layer: routes of the owner that
  no longer fit are withheld, one by one. Else an owner could keep what the operator took away.
- What the owner changes is taken whole or not at all: a new file with a route that widens is bad.
- While there is no good file of an owner who is to have one, nothing leaves. A file that fits in
  part is good enough to start with, so that the same files mean the same after a restart as before.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from valetkey.contracts import codes, settings
from valetkey.contracts.errors import ConfigError, SettingsRefused
from valetkey.proxy.core.compilation import compile_snapshot
from valetkey.proxy.core.narrowing import Withheld, closed, narrow
from valetkey.proxy.core.snapshot import Snapshot
from valetkey.proxy.settings import OwnerFileSettings, ProxySettings
from valetkey.proxy.settings_file import OwnerFile, SettingsFile

OPERATOR: Final = "operator"
OWNER: Final = "owner"
LAYERS: Final = (OPERATOR, OWNER)

# Sections that a running sidecar can't change: they belong to what was opened at the start.
_FIXED: Final = (
    "workload", "broker", "collector", "spool", "listeners", "interception", "admin", "owner",
    "instance", "limits.credentials",
)  # fmt: skip


class Layers:
    """The layers over the life of a process. Everything here blocks."""

    def __init__(self, file: SettingsFile) -> None:
        """Raises `ConfigError` where the operator's file can't be read."""
        self._file = file
        self.settings: ProxySettings = file.read()
        """The operator's, as they are in force."""
        owner = self.settings.owner
        self._owner_file = OwnerFile(owner.file) if owner and owner.file else None
        self._targets = owner.targets if owner else None
        self._owner: OwnerFileSettings | None = None
        self._thumbprint = ""
        self.digests: dict[str, str] = {OPERATOR: file.digest}
        """SHA-256 of each layer's file as it is in force, hex."""
        self._before = self.settings, dict(self.digests)
        self.problems: dict[str, SettingsRefused] = {}
        """By layer: why its file, as it is now, is not in force."""
        self.withheld: tuple[Withheld, ...] = ()
        """Routes of the owner's file in force that are not, since they would widen."""
        self.closed = False
        """Whether nothing may leave, because an owner's file never could be used."""

    def first(self, thumbprint: str) -> Snapshot:
        """What to begin with. ``thumbprint`` as in `compile_snapshot`. Raises `ConfigError`."""
        self._thumbprint = thumbprint
        return self._with_owner(self._compile(self.settings))

    def changed(self) -> bool:
        """Whether a file is another than when it was read last."""
        return self._file.changed() or (self._owner_file is not None and self._owner_file.changed())

    def look(self) -> tuple[object, ...]:
        """What tells one state of the files from another."""
        owner = self._owner_file
        return self._file.look(), None if owner is None else owner.look()

    def reload(self, *, anew: bool = False) -> Snapshot | None:
        """What to go on with, as the files are now; ``None``: with what is in force.

        ``anew``: never ``None``, but what is in force made once more.

        `problems` and `withheld` then say what of the files is not.
        """
        self._before = self.settings, dict(self.digests)
        made = self._with_owner(self._read_operator())
        return made if anew else self._as_changed(made)

    def reject(self, error: ConfigError) -> Snapshot | None:
        """As `reload`, without the operator's file: connections can't be made as it says."""
        self.settings = self._before[0]
        self.digests[OPERATOR] = self._before[1][OPERATOR]
        self.problems[OPERATOR] = SettingsRefused(codes.SETTINGS_INVALID, str(error))
        return self._as_changed(self._with_owner(self._compile(self.settings)))

    def _as_changed(self, made: Snapshot) -> Snapshot | None:
        return None if self.problems and self.digests == self._before[1] else made

    def _compile(self, loaded: ProxySettings) -> Snapshot:
        return compile_snapshot(loaded, thumbprint=self._thumbprint)

    def _read_operator(self) -> Snapshot:
        self.problems.pop(OPERATOR, None)
        try:
            new = self._file.read()
            self._refuse_fixed(new)
            try:
                made = self._compile(new)
            except ConfigError as error:
                raise SettingsRefused(codes.SETTINGS_INVALID, str(error)) from error
        except SettingsRefused as error:
            self.problems[OPERATOR] = error
            # It was compiled before, and is not kept: it is of the size of what is in force.
            return self._compile(self.settings)
        self.settings = new
        self.digests[OPERATOR] = self._file.digest
        return made

    def _refuse_fixed(self, new: ProxySettings) -> None:
        for section in _FIXED:
            read = attrgetter(section)
            key = difference(section, read(self.settings), read(new))
            if key:
                raise SettingsRefused(
                    codes.SETTINGS_RESTART, f"{self._file.path}: {key}: a change needs a restart"
                )

    def _with_owner(self, operator: Snapshot) -> Snapshot:
        """The operator's snapshot narrowed by the owner's file, as it is or as it was last good."""
        if self._owner_file is None:
            if self._targets is None:
                return operator
            return narrow(operator, None, self._targets, thumbprint=self._thumbprint)[0]
        self.problems.pop(OWNER, None)
        try:
            return self._take_owner(operator, self._owner_file)
        except SettingsRefused as error:
            self.problems[OWNER] = error
        self.closed = self._owner is None
        if self._owner is None:
            self.withheld = ()
            return closed(operator, thumbprint=self._thumbprint)
        made, self.withheld = self._narrow(operator, self._owner)
        return made

    def _take_owner(self, operator: Snapshot, file: OwnerFile) -> Snapshot:
        """Raises `SettingsRefused`, and then nothing was taken."""
        new = file.read()
        made, withheld = self._narrow(operator, new)
        is_new = file.digest != self.digests.get(OWNER)
        if withheld and is_new and self._owner is not None:
            raise SettingsRefused(
                withheld[0].code, f"{file.path}: " + "; ".join(str(each) for each in withheld)
            )
        self._owner, self.withheld, self.closed = new, withheld, False
        self.digests[OWNER] = file.digest
        return made

    def _narrow(
        self, operator: Snapshot, owner: OwnerFileSettings
    ) -> tuple[Snapshot, tuple[Withheld, ...]]:
        return narrow(operator, owner, self._targets, thumbprint=self._thumbprint)

    # --- what operators see -------------------------------------------------------------------

    def rejected(self) -> str:
        """Why files are not in force as they are now; empty if they are."""
        return "; ".join(str(self.problems[layer]) for layer in LAYERS if layer in self.problems)

    def health(self) -> dict[str, str]:
        """What ``/readyz`` and ``/healthz`` say besides, where an owner has a layer."""
        if self._owner_file is None:
            return {}
        return {"withheld_routes": "; ".join(str(each) for each in self.withheld)}


def difference(key: str, old: object, new: object) -> str:
    """The key path of the first difference between two values of settings, or empty."""
    if type(old) is type(new) and isinstance(old, settings.Settings):
        for name in old.__struct_fields__:
            found = difference(f"{key}.{name}", getattr(old, name), getattr(new, name))
            if found:
                return found
        return ""
    return "" if old == new else key
