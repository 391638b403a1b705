"""The directories that settings name, opened."""

from __future__ import annotations

from collections.abc import Callable

from valetkey.broker.core.attributes import Directory
from valetkey.broker.directory.scim import Ender, ScimDirectory
from valetkey.broker.directory.settings import DirectorySettings
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.scim import ScimStore


class Sources:
    """``all`` are the directories. ``scim`` is the store of what is provisioned, if anything is."""

    def __init__(
        self,
        settings: DirectorySettings | None,
        database: Database,
        changes: Changes,
        actions: AdminActions,
        epochs: Epochs,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.all: list[Directory] = []
        self.scim: ScimStore | None = None
        if settings is not None and settings.scim is not None:
            rules = settings.scim.users
            ender = Ender(epochs, rules, clock=clock)
            self.scim = ScimStore(database, changes, actions, clock=clock, ended=ender)
            capacity = settings.scim.remembered
            self.all.append(ScimDirectory(self.scim, changes, rules, capacity=capacity))
