"""Groups from a real LDAP server, and what comes of an exchange when it is not there."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.integration.broker_support import (
    TICKETS,
    USERS,
    Served,
    World,
    claims_of,
    serving,
)
from tests.support.canaries import CANARIES
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.slapd import BASE, BIND_DN, Slapd
from tests.support.waiting import until
from valetkey.broker.core.attributes import Attributes
from valetkey.broker.directory.settings import (
    DirectorySettings,
    LdapGroupSettings,
    LdapSettings,
    LdapSubjectSettings,
)
from valetkey.contracts.errors import ConfigError, ValetkeyError
from valetkey.contracts.settings import Duration

ldap = pytest.importorskip(
    "valetkey.broker.directory.ldap",
    reason="python-ldap is not there (apt-get install libldap-dev libsasl2-dev, make .venv/.ldap)",
)
python_ldap = ldap.ldap
PASSWORD = "a-password-of-the-directory"


def _people() -> str:
    people = ["alice", "bob", "twin", "o(dd)*ne\\", "ring", "deep", "leaver"]
    entries = [f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: Demo\ndc: demo"]
    entries += [
        f"dn: ou={unit},{BASE}\nobjectClass: organizationalUnit\nou: {unit}"
        for unit in ("people", "others", "groups")
    ]
    for number, uid in enumerate(people):
        entries.append(
            f"dn: cn=person {number},ou=people,{BASE}\nobjectClass: inetOrgPerson\n"
            f"cn: person {number}\nsn: x\nuid: {uid}"
        )
    entries.append(
        f"dn: cn=other,ou=others,{BASE}\nobjectClass: inetOrgPerson\ncn: other\nsn: x\nuid: twin"
    )

    def group(name: str, *members: str) -> str:
        lines = "\n".join(f"member: {member}" for member in members)
        return f"dn: cn={name},ou=groups,{BASE}\nobjectClass: groupOfNames\ncn: {name}\n{lines}"

    def person(uid: str) -> str:
        return f"cn=person {people.index(uid)},ou=people,{BASE}"

    def of(name: str) -> str:
        return f"cn={name},ou=groups,{BASE}"

    entries += [
        group("team (a*b)", person("alice"), person("o(dd)*ne\\")),
        group("company", of("team (a*b)")),
        group("ring1", person("ring"), of("ring2")),
        group("ring2", of("ring1")),
        group("deep0", person("deep")),
        *(group(f"deep{number}", of(f"deep{number - 1}")) for number in range(1, 9)),
    ]
    return "\n\n".join(entries) + "\n"


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    directory = tmp_path_factory.mktemp("slapd")
    CANARIES.add(PASSWORD, name="LDAP password", allow=[directory / "slapd.conf"])
    server = Slapd(directory, _people(), password=PASSWORD)
    server.start()
    yield server
    server.stop()


def settings(slapd: Slapd, tmp_path: Path, **changes: Any) -> LdapSettings:
    password = tmp_path / "ldap-password"
    password.write_text(changes.pop("password", PASSWORD) + "\n")
    CANARIES.allow(password)
    subject = LdapSubjectSettings(issuer=USERS, base=BASE, attribute="uid")
    values: dict[str, Any] = {
        "url": slapd.ldaps,
        "bind_dn": BIND_DN,
        "password_file": password,
        "ca_file": slapd.ca_file,
        "subjects": (subject,),
        "groups": LdapGroupSettings(base=f"ou=groups,{BASE}"),
        "timeout": Duration(2),
        **changes,
    }
    return LdapSettings(**values)


@asynccontextmanager
async def opened(
    slapd: Slapd, tmp_path: Path, *, monotonic: Any = time.monotonic, **changes: Any
) -> AsyncIterator[Any]:
    directory = ldap.LdapDirectory(settings(slapd, tmp_path, **changes), monotonic=monotonic)
    try:
        yield directory
    finally:
        await directory.close()


async def refused(directory: Any, subject: str = "alice") -> str:
    with pytest.raises(ValetkeyError) as error:
        await directory.attributes(USERS, subject, {})
    assert error.value.code.name == "service.unavailable"
    return str(error.value.reason)


UNKNOWN = Attributes(active=False)


async def test_groups_direct_and_through_groups(slapd: Slapd, tmp_path: Path) -> None:
    async with opened(slapd, tmp_path) as directory:
        assert await directory.attributes(USERS, "alice", {}) == Attributes(
            groups=frozenset({"team (a*b)", "company"})
        )
        assert await directory.attributes(USERS, "bob", {}) == Attributes()
        assert await directory.attributes(USERS, "nobody", {}) == UNKNOWN
        assert await directory.attributes("https://elsewhere", "alice", {}) == Attributes()
    groups = LdapGroupSettings(base=BASE, nested=False)
    async with opened(slapd, tmp_path, groups=groups) as directory:
        assert (await directory.attributes(USERS, "alice", {})).groups == {"team (a*b)"}


async def test_start_tls(slapd: Slapd, tmp_path: Path) -> None:
    async with opened(slapd, tmp_path, url=slapd.ldap, start_tls=True) as directory:
        assert (await directory.attributes(USERS, "alice", {})).groups


INJECTIONS = (
    "*", "a*", "alice)(uid=*", "*)(|(uid=*", "alice\\", "\\61lice", "al\x00ice", "(alice)",
    "alice)(objectClass=*))(&(uid=alice", "o(dd)*ne", "ALICE", ")", "x" * 5000,
)  # fmt: skip


async def test_what_a_token_says_is_no_filter(slapd: Slapd, tmp_path: Path) -> None:
    """RFC 4515 §3. The one whose name has all such characters is found by it alone."""
    async with opened(slapd, tmp_path) as directory:
        for value in INJECTIONS:
            assert await directory.attributes(USERS, value, {}) == UNKNOWN, value
        assert (await directory.attributes(USERS, "o(dd)*ne\\", {})).groups


async def test_the_claim_of_the_settings(slapd: Slapd, tmp_path: Path) -> None:
    rule = LdapSubjectSettings(issuer=USERS, base=BASE, attribute="uid", claim="login")
    async with opened(slapd, tmp_path, subjects=(rule,)) as directory:
        assert (await directory.attributes(USERS, "x", {"login": "alice"})).groups
        for claims in ({}, {"login": ""}, {"login": ["alice"]}, {"login": 1}):
            assert await directory.attributes(USERS, "alice", claims) == UNKNOWN


async def test_two_entries_are_nobody(slapd: Slapd, tmp_path: Path) -> None:
    async with opened(slapd, tmp_path) as directory:
        assert await directory.attributes(USERS, "twin", {}) == UNKNOWN
    rule = LdapSubjectSettings(issuer=USERS, base=f"ou=others,{BASE}", attribute="uid")
    async with opened(slapd, tmp_path, subjects=(rule,)) as directory:
        assert await directory.attributes(USERS, "twin", {}) == Attributes()


async def test_groups_in_a_circle_end_and_deep_ones_are_refused(
    slapd: Slapd, tmp_path: Path
) -> None:
    async with opened(slapd, tmp_path) as directory:
        assert (await directory.attributes(USERS, "ring", {})).groups == {"ring1", "ring2"}
        assert "too deeply" in await refused(directory, "deep")


async def test_whom_it_trusts(slapd: Slapd, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    plain = {"url": slapd.ldap, "start_tls": True}
    for changes in (
        {"ca_file": stranger},
        {"ca_file": stranger, **plain},
        {"ca_file": None},
        {"url": slapd.ldaps.replace("127.0.0.1", "localhost")},  # not in the certificate
        {"password": "wrong"},
        {"bind_dn": f"cn=nobody,{BASE}"},
    ):
        async with opened(slapd, tmp_path, **changes) as directory:
            await refused(directory)


async def test_entries_that_a_filter_leaves_out(slapd: Slapd, tmp_path: Path) -> None:
    rule = LdapSubjectSettings(issuer=USERS, base=BASE, attribute="uid", filter="(!(cn=person 0))")
    async with opened(slapd, tmp_path, subjects=(rule,)) as directory:
        assert await directory.attributes(USERS, "alice", {}) == UNKNOWN
        assert await directory.attributes(USERS, "bob", {}) == Attributes()


async def test_an_answer_counts_for_its_time_and_no_longer(slapd: Slapd, tmp_path: Path) -> None:
    now = 0.0
    async with opened(slapd, tmp_path, monotonic=lambda: now, remember=Duration(5)) as directory:
        assert (await directory.attributes(USERS, "alice", {})).groups
        slapd.stop()
        try:
            now = 4.9
            assert (await directory.attributes(USERS, "alice", {})).groups
            await refused(directory, "bob")
            now = 5.1
            await refused(directory)
        finally:
            slapd.start()
        assert (await directory.attributes(USERS, "alice", {})).groups


async def test_a_server_that_is_silent_costs_its_time_and_blocks_nobody(
    slapd: Slapd, tmp_path: Path
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        url = f"ldaps://localhost:{silent.getsockname()[1]}"
        async with opened(slapd, tmp_path, url=url, timeout=Duration(1)) as directory:
            asked = asyncio.gather(*(refused(directory, f"user{n}") for n in range(12)))
            turns = 0
            while not asked.done():
                await asyncio.sleep(0.01)
                turns += 1
            await asked
            # Were the loop what waits, it would have turned once for each.
            assert turns > 2 * 12


async def test_many_ask_once(slapd: Slapd, tmp_path: Path, monkeypatch: Any) -> None:
    async with opened(slapd, tmp_path) as directory:
        searched: list[str] = []
        search = directory._search
        monkeypatch.setattr(
            directory, "_search", lambda rule, value: searched.append(value) or search(rule, value)
        )
        found = await asyncio.gather(*(directory.attributes(USERS, "alice", {}) for _ in range(50)))
        assert searched == ["alice"]
        assert all(one.groups for one in found)


async def test_an_exchange_for_who_is_there(slapd: Slapd, tmp_path: Path) -> None:
    password = tmp_path / "world" / "ldap-password"
    password.parent.mkdir()
    password.write_text(PASSWORD)
    CANARIES.allow(password)
    directory = {
        "ldap": {
            "url": slapd.ldaps,
            "bind_dn": BIND_DN,
            "password_file": str(password),
            "ca_file": str(slapd.ca_file),
            "subjects": [{"issuer": USERS, "base": BASE, "attribute": "uid"}],
            "groups": {"base": f"ou=groups,{BASE}"},
        }
    }
    world = World(tmp_path / "world", free_url(), overrides={"directory": directory})
    async with serving(world) as served:

        async def exchanged(user: str) -> str:
            form = world.user_form(world.workload(), world.user(user))
            status, body, _ = await served.exchange(form)
            return "issued" if status == 200 else str(body["code"])

        assert await exchanged("alice") == "issued"
        assert await exchanged("mallory") == "subject.inactive"
        slapd.stop()
        try:
            assert await exchanged("bob") == "service.unavailable"
        finally:
            slapd.start()
        assert await exchanged("bob") == "issued"


def chained_world(slapd: Slapd, root: Path, *, database: str = "") -> World:
    """Users are found by ``login``, and tokens of ours are taken for theirs."""
    root.mkdir(parents=True)
    password = root / "ldap-password"
    password.write_text(PASSWORD)
    CANARIES.allow(password)
    rule = {"issuer": USERS, "base": BASE, "attribute": "uid", "claim": "login"}
    world = World(root, free_url())
    ours = {
        "issuer": world.url, "audience": TICKETS, "use": "user", "jwks_url": world.url + "/jwks",
    }  # fmt: skip
    world.overrides = {
        "issuers": [*world.document()["issuers"], ours],
        "directory": {
            "ldap": {
                "url": slapd.ldaps,
                "bind_dn": BIND_DN,
                "password_file": str(password),
                "ca_file": str(slapd.ca_file),
                "subjects": [rule],
                "groups": {"base": f"ou=groups,{BASE}"},
            }
        },
    }
    if database:
        world.overrides["database"] = database
    return world


async def chained(served: Served, subject_token: str) -> tuple[str, dict[str, Any]]:
    """What comes of exchanging on: ``issued`` or a code, and the new token's claims."""
    form = served.world.user_form(served.world.workload(), subject_token, scope="tickets:list")
    status, body, _ = await served.exchange(form)
    return ("issued", claims_of(body["access_token"])) if status == 200 else (body["code"], {})


async def first(served: Served, subject: str, login: str) -> str:
    world = served.world
    form = world.user_form(world.workload(), world.user(subject, login=login))
    status, body, _ = await served.exchange(form)
    assert status == 200, body
    return str(body["access_token"])


async def test_who_is_found_by_another_claim_is_found_through_our_own_tokens(
    slapd: Slapd, tmp_path: Path
) -> None:
    """Also after a restart; by what the first token said, and by nothing that ours says."""
    world = chained_world(slapd, tmp_path / "world")
    async with serving(world) as served:
        # The subject is called as somebody else is in the directory.
        token = await first(served, "bob", "alice")
        assert claims_of(token)["groups"] == ["company", "team (a*b)"]
        code, child = await chained(served, token)
        assert (code, child.get("sub")) == ("issued", "bob")
        assert child["groups"] == ["company", "team (a*b)"]
        payload = json.dumps([claims_of(token), child])
        assert "alice" not in payload, "targets get to know no more than sub"
        # Nor does it show in another user's token, or serve there.
        other = await first(served, "alice", "bob")
        assert claims_of(other)["found_by"] != claims_of(token)["found_by"]
        assert (await chained(served, other))[1]["groups"] == []
    async with serving(world) as served:
        assert (await chained(served, token))[0] == "issued"


async def test_every_replica_finds_through_our_own_tokens(
    slapd: Slapd, tmp_path: Path, postgres: Postgres
) -> None:
    world = chained_world(slapd, tmp_path / "world", database=postgres.database())
    async with serving(world) as one, serving(world, free_url()) as other:
        token = await first(one, "s-1", "alice")
        code, child = await chained(other, token)
        assert (code, child.get("groups")) == ("issued", ["company", "team (a*b)"])


async def test_who_left_the_directory_is_not_found_through_our_own_tokens(
    slapd: Slapd, tmp_path: Path
) -> None:
    world = chained_world(slapd, tmp_path / "world")
    world.overrides["directory"]["ldap"]["remember"] = "100ms"
    async with serving(world) as served:
        token = await first(served, "s-2", "leaver")
        assert (await chained(served, token))[0] == "issued"
        await asyncio.to_thread(remove, slapd, "leaver")

        async def refused_it() -> bool:
            return (await chained(served, token))[0] == "subject.inactive"

        await until(refused_it, "the entry is gone for the broker too")


def remove(slapd: Slapd, uid: str) -> None:
    """Take an entry out, as the administrator of the directory."""
    connection = python_ldap.initialize(slapd.ldaps)
    connection.set_option(python_ldap.OPT_X_TLS_CACERTFILE, str(slapd.ca_file))
    connection.set_option(python_ldap.OPT_X_TLS_NEWCTX, 0)
    connection.simple_bind_s(BIND_DN, PASSWORD)
    ((dn, _),) = connection.search_s(BASE, python_ldap.SCOPE_SUBTREE, f"(uid={uid})")
    connection.delete_s(dn)
    connection.unbind_s()


async def test_an_empty_password_would_bind_as_nobody(slapd: Slapd, tmp_path: Path) -> None:
    """RFC 4513 §5.1.2: the broker does not start with one, and does not bind with one."""
    for password in ("", "\n"):
        async with opened(slapd, tmp_path, password=password) as directory:
            with pytest.raises(ConfigError, match="empty"):
                await directory.load()
            assert "empty" in await refused(directory)


def test_directory_settings_know_both() -> None:
    with pytest.raises(ValueError, match="name a directory"):
        DirectorySettings()
