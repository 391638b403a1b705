"""Groups from an LDAP directory (RFC 4511): a search for the subject, then for its groups.

Invariants:

- What a token says goes into a filter escaped (RFC 4515 §3), never as syntax.
- TLS with the server's name and CA verified, always: there is no setting without.
- An answer counts for `remember` seconds and no longer. Where the directory does not answer within
  its time, or answers with more than it may, nothing is granted.
- The library blocks, so it runs in threads of its own: at most `connections` of them, however many
  ask. Who finds them all busy for too long is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import ldap
from cachetools import TTLCache
from ldap.filter import escape_filter_chars
from ldap.ldapobject import LDAPObject

from valetkey.broker.core.attributes import Attributes
from valetkey.broker.directory.settings import LdapSettings, LdapSubjectSettings
from valetkey.contracts import codes
from valetkey.contracts.errors import ConfigError, ValetkeyError
from valetkey.contracts.logs import Log

# RFC 4511 §4.1.4 and what policies can name; a directory with more for one user is misread.
MAX_GROUPS: Final = 1000
MAX_DEPTH: Final = 8
_REMEMBERED: Final = 10_000
_MAX_PASSWORD: Final = 4096
# Entries that differ in nothing but case.
MAX_ALIKE: Final = 16

_UNKNOWN: Final = Attributes(active=False)
_NO_SAY: Final = Attributes()


class DirectoryUnavailable(ValetkeyError):  # noqa: N818 - reads as what it is
    """The directory could not be asked, or its answer can't be used."""

    def __init__(self, reason: str) -> None:
        super().__init__(codes.SERVICE_UNAVAILABLE, f"LDAP: {reason}")


class LdapDirectory:
    """Made by settings, ended by `close`. ``monotonic`` gives seconds that only grow."""

    def __init__(
        self, settings: LdapSettings, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._rules = {rule.issuer: rule for rule in settings.subjects}
        self._known: TTLCache[tuple[str, str], Attributes] = TTLCache(
            _REMEMBERED, settings.remember, timer=monotonic
        )
        self._asking: dict[tuple[str, str], asyncio.Task[Attributes]] = {}
        self._threads = ThreadPoolExecutor(settings.connections, thread_name_prefix="ldap")
        self._idle: SimpleQueue[LDAPObject] = SimpleQueue()
        self._log = Log("broker.ldap")

    async def load(self) -> None:
        """Whether there is a password. It is read for each connection, so it can be changed.

        Raises `ConfigError`.
        """
        await asyncio.to_thread(_password, self._settings.password_file)

    async def attributes(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> Attributes:
        """Raises `DirectoryUnavailable`."""
        rule = self._rules.get(issuer)
        if rule is None:
            return _NO_SAY
        value = subject if rule.claim == "sub" else claims.get(rule.claim)
        if not isinstance(value, str) or not value:
            return _UNKNOWN
        key = (issuer, value)
        known = self._known.get(key)
        if known is not None:
            return known
        asking = self._asking.get(key)
        if asking is None:
            # One search for however many ask; it goes on if the one who began it leaves.
            asking = asyncio.create_task(self._ask(key, rule, value))
            self._asking[key] = asking
            asking.add_done_callback(lambda task: self._asked(key, task))
        return await asyncio.shield(asking)

    def _asked(self, key: tuple[str, str], task: asyncio.Task[Attributes]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # told to all who wait; where they have left, to nobody

    async def _ask(self, key: tuple[str, str], rule: LdapSubjectSettings, value: str) -> Attributes:
        # Twice the time of one operation: to connect and bind anew is part of it.
        limit = 2 * self._settings.timeout
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._search, rule, value)
        try:
            found = await asyncio.wait_for(work, limit)
        except TimeoutError as error:
            raise DirectoryUnavailable(f"no answer within {limit:g} s") from error
        self._known[key] = found
        return found

    async def close(self) -> None:
        """Leave; what is being asked is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        while (connection := self._take_idle()) is not None:
            connection.unbind_s()

    # --- in threads ------------------------------------------------------------------------------
    def _search(self, rule: LdapSubjectSettings, value: str) -> Attributes:
        reused = self._take_idle()
        try:
            if reused is not None:
                try:
                    return self._answer(reused, rule, value)
                except ldap.SERVER_DOWN:
                    pass  # closed by the server while it was idle: that says nothing of the server
            return self._answer(self._connect(), rule, value)
        except ConfigError as error:
            raise DirectoryUnavailable(str(error)) from error
        except ldap.LDAPError as error:
            # The library's text can quote what was searched for; the type says enough.
            self._log.warning("directory_failed", error_type=type(error).__name__)
            raise DirectoryUnavailable(type(error).__name__) from error

    def _answer(self, connection: LDAPObject, rule: LdapSubjectSettings, value: str) -> Attributes:
        """Ask on a connection, and keep it for the next one if it held."""
        wanted = f"(&{rule.filter}({rule.attribute}={escape_filter_chars(value)}))"
        entries = [
            (dn, attributes)
            for dn, attributes in self._entries(
                connection, rule.base, wanted, [rule.attribute], most=MAX_ALIKE
            )
            # Most attributes are compared whatever the case (RFC 4517 §4.2); a token is not.
            if value.encode() in _values(attributes, rule.attribute)
        ]
        if len(entries) == 1:
            groups = self._groups(connection, entries[0][0])
            found = Attributes(groups=frozenset(groups))
            if rule.claim != "sub":
                found = replace(found, found_by=frozenset({(rule.claim, value)}))
        else:
            if entries:
                self._log.warning("directory_ambiguous", issuer=rule.issuer)
            found = _UNKNOWN
        self._idle.put(connection)
        return found

    def _groups(self, connection: LDAPObject, member: str) -> set[str]:
        settings = self._settings.groups
        seen: dict[str, str] = {}
        level = [member]
        for _ in range(MAX_DEPTH):
            found = self._entries(
                connection,
                settings.base,
                _filled(settings.filter, level),
                [settings.name],
                most=MAX_GROUPS + 1,
            )
            level = [dn for dn, _ in found if dn not in seen]
            for dn, attributes in found:
                seen.setdefault(dn, _name(attributes, settings.name))
            if len(seen) > MAX_GROUPS:
                raise DirectoryUnavailable("more groups than may be looked at")
            if not level or not settings.nested:
                return set(seen.values())
        # To stop here would make groups vanish, and with them what is forbidden to them.
        raise DirectoryUnavailable("groups are nested too deeply")

    def _entries(
        self, connection: LDAPObject, base: str, wanted: str, attributes: list[str], *, most: int
    ) -> list[tuple[str, dict[str, list[bytes]]]]:
        try:
            found = connection.search_ext_s(
                base,
                ldap.SCOPE_SUBTREE,
                wanted,
                attributes,
                timeout=self._settings.timeout,
                sizelimit=most,
            )
        except ldap.SIZELIMIT_EXCEEDED as error:
            raise DirectoryUnavailable("more entries than may be looked at") from error
        # References to other servers (RFC 4511 §4.5.3) have no name: they are not followed.
        return [(dn, values) for dn, values in found if dn is not None]

    def _take_idle(self) -> LDAPObject | None:
        try:
            return self._idle.get_nowait()
        except Empty:
            return None

    def _connect(self) -> LDAPObject:
        settings = self._settings
        connection = ldap.initialize(settings.url)
        connection.set_option(ldap.OPT_PROTOCOL_VERSION, ldap.VERSION3)
        connection.set_option(ldap.OPT_REFERRALS, ldap.OPT_OFF)
        connection.set_option(ldap.OPT_NETWORK_TIMEOUT, float(settings.timeout))
        connection.set_option(ldap.OPT_TIMEOUT, float(settings.timeout))
        if settings.ca_file is not None:
            connection.set_option(ldap.OPT_X_TLS_CACERTFILE, str(settings.ca_file))
        connection.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
        connection.set_option(ldap.OPT_X_TLS_NEWCTX, 0)  # last: it takes what was set before
        if settings.start_tls:
            connection.start_tls_s()
        connection.simple_bind_s(settings.bind_dn, _password(settings.password_file))
        return connection


def _filled(template: str, values: list[str]) -> str:
    """The template with each value in its place, all of them joined by or."""
    filters = [template.replace("{}", escape_filter_chars(value)) for value in values]
    return filters[0] if len(filters) == 1 else f"(|{''.join(filters)})"


def _name(attributes: Mapping[str, list[bytes]], name: str) -> str:
    values = _values(attributes, name)
    if len(values) != 1:
        raise DirectoryUnavailable(f"a group does not have exactly one {name}")
    try:
        return values[0].decode()
    except UnicodeDecodeError as error:
        raise DirectoryUnavailable(f"the {name} of a group is not UTF-8") from error


def _values(attributes: Mapping[str, list[bytes]], name: str) -> list[bytes]:
    # RFC 4512 §2.5: attribute names are not case-sensitive.
    return next((found for key, found in attributes.items() if key.lower() == name.lower()), [])


def _password(path: Path) -> str:
    try:
        password = path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: LDAP password can't be read: {error}") from error
    if not 1 <= len(password) <= _MAX_PASSWORD:
        # RFC 4513 §5.1.2: a bind with a name and no password is anonymous, and succeeds.
        raise ConfigError(f"{path}: the LDAP password is empty or too long")
    return password
