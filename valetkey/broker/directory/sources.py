"""The directories that settings name, opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from valetkey.broker.core.attributes import Directory
from valetkey.broker.directory.listing import UserListing
from valetkey.broker.directory.scim import Ender, ScimDirectory
from valetkey.broker.directory.settings import DirectorySettings, LdapSettings
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.scim import ScimStore
from valetkey.contracts.errors import ConfigError

if TYPE_CHECKING:
    from valetkey.broker.directory.ldap import LdapDirectory


class Sources:
    """``all`` are the directories. ``scim`` is the store of what is provisioned, if anything is.

    ``users`` lists those that can be named.
    """

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
        self.users = UserListing(None, ())
        self._ldap: LdapDirectory | None = None
        if settings is not None and settings.scim is not None:
            rules = settings.scim.users
            ender = Ender(epochs, rules, clock=clock)
            self.scim = ScimStore(database, changes, actions, clock=clock, ends=ender)
            self.users = UserListing(self.scim, rules)
            capacity = settings.scim.remembered
            self.all.append(
                ScimDirectory(self.scim, changes, rules, capacity=capacity, clock=clock)
            )
        if settings is not None and settings.ldap is not None:
            self._ldap = _ldap(settings.ldap)
            self.all.append(self._ldap)

    async def load(self) -> None:
        """Raises `ConfigError`."""
        if self._ldap is not None:
            await self._ldap.load()

    async def sweep(self) -> None:
        """Forget what no token can rest on any more. Raises `StoreError`."""
        if self.scim is not None:
            await self.scim.subjects.sweep()

    async def close(self) -> None:
        """Leave the servers that were asked."""
        if self._ldap is not None:
            await self._ldap.close()


def _ldap(settings: LdapSettings) -> LdapDirectory:
    try:
        # The library is built on the system's libldap, which not everybody has or needs.
        from valetkey.broker.directory.ldap import LdapDirectory
    except ImportError as error:
        raise ConfigError(
            "directory.ldap needs python-ldap: pip install 'valetkey[ldap]'"
        ) from error
    return LdapDirectory(settings)
