from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.collector import AUDIENCE
from valetkey.collector.settings import CollectorSettings, database_url
from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError

ISSUER = {"issuer": "https://i", "audience": AUDIENCE, "use": "workload", "jwks_file": "/j"}
LEAST = {"issuers": [ISSUER]}


def load(tree, environ=None):
    text = json.dumps(tree)
    return settings.parse(
        CollectorSettings, text, name="c.yaml", program="collector", environ=environ or {}
    )


def test_what_is_not_said_is_closed():
    loaded = load(LEAST)
    assert loaded.readers == ()
    assert loaded.bind == "127.0.0.1:7090"
    assert loaded.tls is None
    assert loaded.max_batch_bytes == 8 * 1024 * 1024
    assert database_url(loaded.database).database == "/var/lib/valetkey/collector.db"


REFUSED = {
    "no issuer": ({"issuers": []}, "none has use: workload"),
    "nobody could write": ({"issuers": [ISSUER | {"use": "user"}]}, "none has use: workload"),
    "plain HTTP on every address": (LEAST | {"bind": "0.0.0.0:7090"}, "is not loopback"),
    "plain HTTP on a name": (LEAST | {"bind": "collector:7090"}, "is not loopback"),
    "an issuer of the broker's administrators": (
        LEAST | {"issuers": [{**LEAST["issuers"][0], "use": "admin"}]},
        "use: admin is the broker's",
    ),
    "a cluster": ({"issuers": [ISSUER | {"kind": "kubernetes"}]}, "are for the broker"),
    "certificates": (
        {"issuers": [{"issuer": "p", "kind": "x509", "use": "workload", "ca_file": "/c"}]},
        "are for the broker",
    ),
    "no port": (LEAST | {"bind": "127.0.0.1"}, "not host:port"),
    "a reader of an issuer that is not trusted": (
        LEAST | {"readers": [{"issuer": "https://x", "subject": "s"}]},
        "not one of the issuers",
    ),
    "a reader without a name": (
        LEAST | {"readers": [{"issuer": "https://i", "subject": ""}]},
        "readers.0.subject",
    ),
    "another database": (LEAST | {"database": "postgresql://x/y"}, "database must be"),
    "a database in memory": (LEAST | {"database": "sqlite+aiosqlite://"}, "database must be"),
    "no URL": (LEAST | {"database": "x"}, "not an SQLAlchemy URL"),
    "no batch at all": (LEAST | {"max_batch_bytes": "0B"}, "must be positive"),
    "an unknown key": (LEAST | {"reader": []}, "reader: unknown key"),
}


@pytest.mark.parametrize(("tree", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(tree, message):
    with pytest.raises(ConfigError, match=r"^c\.yaml:1: ") as refused:
        load(tree)
    assert message in str(refused.value)


def test_plain_http_beyond_loopback_takes_a_word_for_it():
    loaded = load(LEAST | {"bind": "0.0.0.0:7090", "tls": "terminated"})
    assert loaded.tls == "terminated"


def test_a_variable_replaces_a_key():
    assert load(LEAST, {"VALETKEY_COLLECTOR__BIND": "'127.0.0.1:1'"}).bind == "127.0.0.1:1"


def test_the_example_loads():
    example = Path(__file__).parents[3] / "config" / "collector.yaml"
    loaded = settings.load(CollectorSettings, example, program="collector", environ={})
    assert loaded.readers
