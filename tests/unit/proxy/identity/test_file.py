"""The workload's token file: rotated, spoiled, swapped and gone."""

from __future__ import annotations

import os
import time

import pytest

from tests.support.canaries import CANARIES
from tests.support.idp import Idp
from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError
from valetkey.proxy.identity.file import FileIdentity


@pytest.fixture
def idp(tmp_path):
    return Idp(tmp_path / "idp")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "token"


@pytest.fixture
def read(idp, path):
    """An identity that has read a good token."""
    idp.token_file(path, "bot", "https://broker.example")
    identity = FileIdentity(path)
    identity.refresh()
    assert identity.principal() is not None
    return identity


def refused(identity):
    assert identity.principal() is None
    with pytest.raises(BrokerError) as failed:
        identity.token()
    assert failed.value.code is codes.IDENTITY_UNAVAILABLE
    assert failed.value.reason
    assert identity.problem == failed.value.reason
    return failed.value.reason


def test_before_the_first_reading_there_is_none(path):
    assert "not read yet" in refused(FileIdentity(path))


def test_a_token_names_the_workload(idp, path):
    token = idp.token_file(path, "bot", "https://broker.example", 100)
    identity = FileIdentity(path)
    identity.refresh()
    principal = identity.principal()
    assert (principal.tenant, principal.subject) == (idp.issuer, "bot")
    secret, left = identity.token()
    assert secret.reveal() == token
    assert 95 < left <= 100
    assert identity.problem == ""


def test_a_line_end_behind_it_is_no_part_of_it(idp, path):
    token = idp.token_file(path, "bot", "https://broker.example")
    path.write_text(token + "\n")
    identity = FileIdentity(path)
    identity.refresh()
    assert identity.token()[0].reveal() == token


def test_rotated(idp, path, read):
    before = read.principal()
    token = idp.token_file(path, "bot", "https://broker.example", 5000)
    read.refresh()
    assert read.token()[0].reveal() == token
    assert read.principal() is before  # the same workload: its keys stay


def test_rotated_in_place(idp, path, read):
    token = idp.mint("bot", "https://broker.example", 7000)
    with path.open("w") as file:
        file.write(token)
    os.utime(path, ns=(1, time.time_ns() + 1_000_000_000))
    read.refresh()
    assert read.token()[0].reveal() == token


def test_another_workload_is_another_principal(idp, path, read):
    before = read.principal()
    idp.token_file(path, "other", "https://broker.example")
    read.refresh()
    assert read.principal() is not before
    assert read.principal().subject == "other"


def test_swapped_as_the_kubelet_does(idp, tmp_path):
    """``token`` → ``..data/token``, ``..data`` → a directory per version, renamed over."""
    volume = tmp_path / "volume"
    for version in ("v1", "v2"):
        idp.token_file(volume / version / "token", version, "https://broker.example")
    (volume / "..data").symlink_to("v1")
    (volume / "token").symlink_to("..data/token")
    CANARIES.allow(volume)
    identity = FileIdentity(volume / "token")
    identity.refresh()
    assert identity.principal().subject == "v1"
    (volume / "..data_tmp").symlink_to("v2")
    (volume / "..data_tmp").rename(volume / "..data")
    identity.refresh()
    assert identity.principal().subject == "v2"


def _delete(path, _idp):
    path.unlink()


def _empty(path, _idp):
    path.write_text("")


def _garbage(path, _idp):
    path.write_bytes(b"\xff\x00garbage")


def _text(path, _idp):
    path.write_text("not.a.token at all")


def _huge(path, _idp):
    path.write_text("a" * (1 << 20))


def _directory(path, _idp):
    path.unlink()
    path.mkdir()


def _dangling(path, _idp):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _claims(**claims):
    def write(path, idp):
        idp.token_file(path, "bot", "https://broker.example", **claims)

    return write


SPOILED = {
    "deleted": (_delete, "can't be read"),
    "emptied": (_empty, "no JWT"),
    "garbage": (_garbage, "can't be read"),
    "text": (_text, "no JWT"),
    "huge": (_huge, "no JWT"),
    "a directory": (_directory, "can't be read"),
    "a link to nowhere": (_dangling, "can't be read"),
    "without sub": (_claims(iss=None), "lacks"),
    "without exp": (_claims(exp=None), "lacks"),
    "exp as text": (_claims(exp="soon"), "lacks"),
    "exp true": (_claims(exp=True), "lacks"),
    "exp without bound": (_claims(exp=10**400), "lacks"),
    "an empty issuer": (_claims(iss=""), "lacks"),
}


@pytest.mark.parametrize(("spoil", "problem"), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_file_keeps_the_token_until_it_expires_and_no_longer(
    idp, path, read, spoil, problem, monkeypatch, caplog
):
    token = read.token()[0].reveal()
    spoil(path, idp)
    for _ in range(3):
        read.refresh()
    assert read.token()[0].reveal() == token
    assert read.principal() is not None
    assert problem in read.problem
    said = [record for record in caplog.records if record.getMessage() == "identity_unavailable"]
    assert len(said) == 1
    now = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: now)
    assert problem in refused(read)


@pytest.mark.parametrize(("spoil", "problem"), SPOILED.values(), ids=SPOILED)
def test_a_file_that_was_never_good(idp, path, spoil, problem):
    idp.token_file(path, "bot", "https://broker.example")
    spoil(path, idp)
    identity = FileIdentity(path)
    identity.refresh()
    assert problem in refused(identity)


@pytest.mark.parametrize("spoil", [spoil for spoil, _ in SPOILED.values()], ids=SPOILED)
def test_recovery(idp, path, spoil):
    idp.token_file(path, "bot", "https://broker.example")
    spoil(path, idp)
    identity = FileIdentity(path)
    identity.refresh()
    if path.is_dir():
        path.rmdir()
    idp.token_file(path, "bot", "https://broker.example")
    identity.refresh()
    assert identity.principal().subject == "bot"
    assert identity.problem == ""


def test_an_expired_token(idp, path, read):
    idp.token_file(path, "bot", "https://broker.example", -1)
    read.refresh()
    assert refused(read) == "the token has expired"


def test_expiry_is_noticed_without_a_reading(read, monkeypatch):
    now = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: now)
    assert refused(read) == "the token has expired"


def test_what_did_not_change_is_not_read_again(path, read, monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("read again")

    monkeypatch.setattr(type(path), "open", fail)
    read.refresh()


def test_an_older_snapshots_keys_are_let_go(read):
    before = read.principal()
    read.forget_keys()
    after = read.principal()
    assert after is not before
    assert (after.tenant, after.subject, after.epoch) == (
        before.tenant,
        before.subject,
        before.epoch,
    )
