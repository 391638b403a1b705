from __future__ import annotations

import json

import pytest

from valetkey.collector.nats_settings import NatsSettings, NatsTlsSettings
from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError

LEAST = {"servers": ["tls://nats.example:4222"], "stream": "VALETKEY"}


def load(tree):
    return settings.parse(NatsSettings, json.dumps(tree), name="n.yaml", program="collector")


def test_what_is_not_said():
    loaded = load(LEAST)
    assert (loaded.subject, loaded.subjects) == ("valetkey.record", "valetkey.record.>")
    assert (loaded.acknowledge, loaded.batch) == ("stored", 500)


TAKEN = {
    "several": {"servers": ["tls://a:4222", "tls://b:4222"]},
    "loopback": {"servers": ["nats://127.0.0.1:4222"]},
    "loopback by IPv6": {"servers": ["nats://[::1]:4222"]},
    "TLS by something else": {"servers": ["nats://nats:4222"], "tls": "terminated"},
    "TLS with files": {"tls": {"ca_file": "/ca"}, "nkey_file": "/seed"},
}


@pytest.mark.parametrize("changes", TAKEN.values(), ids=TAKEN)
def test_what_is_taken(changes):
    load(LEAST | changes)


REFUSED = {
    "no server": ({"servers": []}, "servers"),
    "no port": ({"servers": ["tls://nats.example"]}, "tls://HOST:PORT"),
    "another scheme": ({"servers": ["https://nats.example:4222"]}, "tls://HOST:PORT"),
    "no scheme": ({"servers": ["nats.example:4222"]}, "tls://HOST:PORT"),
    "a path": ({"servers": ["tls://nats.example:4222/x"]}, "tls://HOST:PORT"),
    "a port that is none": ({"servers": ["tls://nats.example:x"]}, "tls://HOST:PORT"),
    "a password": ({"servers": ["tls://a:b@nats.example:4222"]}, "has no user"),
    "plain text to elsewhere": ({"servers": ["nats://nats.example:4222"]}, "is not loopback"),
    "one of two in plain text": (
        {"servers": ["tls://a:4222", "nats://b:4222"]},
        "is not loopback",
    ),
    "TLS and none": (
        {"servers": ["nats://127.0.0.1:4222"], "tls": {"ca_file": "/ca"}},
        "so a server is tls://",
    ),
    "TLS twice": ({"tls": "terminated"}, "tls: terminated is for nats://"),
    "a certificate without its key": ({"tls": {"cert_file": "/c"}}, "go together"),
    "two identities": ({"credentials_file": "/c", "nkey_file": "/n"}, "give one of"),
    "a stream's name": ({"stream": "a.b"}, "stream"),
    "a subject with wildcards": ({"subject": "a.>"}, "subject"),
    "an empty token": ({"subject": "a..b"}, "subject"),
    "no time": ({"answer": "1ms"}, "answer is between"),
    "a whole batch and more": ({"batch": 5000}, "batch"),
    "an unknown key": ({"password": "x"}, "unknown key"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        load(LEAST | changes)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nats\.tls"):
        NatsTlsSettings(ca_file=tmp_path / "none").context()
