"""Settings that are refused, and what the others mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from valetkey.broker.settings import BrokerSettings, longest_ttl
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.settings import parse, schema

URL = "https://broker.example"
ISSUER = {"issuer": "https://idp", "audience": URL, "use": "workload", "jwks_file": "/idp.json"}
DOMAIN = {"issuer": "spiffe://a.example", "kind": "spiffe", "audience": URL, "use": "workload",
          "jwks_file": "/bundle.json"}  # fmt: skip
PKI = {"issuer": "https://pki", "kind": "x509", "use": "workload", "ca_file": "/pki.pem"}
DOMAINS = {"issuers": [DOMAIN]}
MTLS = {"bind": "0.0.0.0:7081", "url": "https://broker.example:7081"}
TLS = {"cert_file": "/c", "key_file": "/k"}
VAULT = {"audience": "https://v", "credential": "mtls"}
USERS = {"issuer": "https://users", "audience": URL, "use": "user", "jwks_file": "/u.json"}
CLAIM = {"claim": ["roles"], "names": {"a": "b"}}
POINT = {"issuer": "https://idp", "subject": "gateway"}
TICKETS = {"audience": "https://t", "credential": "bearer"}


def scim(*issuers: str) -> dict[str, Any]:
    users = [{"issuer": issuer, "match": "id"} for issuer in issuers]
    return {"scim": {"users": users}}


def load(**changes: Any) -> BrokerSettings:
    document = {
        "issuer": URL,
        "master_key_file": "/master.key",
        "grants_file": "/grants.yaml",
        "issuers": [ISSUER],
        "targets": {"tickets": TICKETS},
        **changes,
    }
    text = msgspec.yaml.encode(document).decode()
    return parse(BrokerSettings, text, name="broker.yaml", program="broker")


def test_defaults() -> None:
    settings = load()
    assert settings.bind == "127.0.0.1:7080"
    assert settings.token_ttl == 120
    assert settings.keys.rotate_every == 86_400
    assert settings.tls is None
    assert settings.resource_servers == ()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("not loopback", {"bind": "0.0.0.0:7080"}, "is not loopback"),
        ("not loopback, v6", {"bind": "[::]:7080"}, "is not loopback"),
        ("a name", {"bind": "broker:7080"}, "is not loopback"),
        ("no port", {"bind": "127.0.0.1"}, "host:port"),
        ("route without methods", {"targets": {"t": {**TICKETS, "routes": {"r": {"methods": [], "path": "/"}}}}}, "methods"),
        ("route without a path", {"targets": {"t": {**TICKETS, "routes": {"r": {"methods": ["GET"], "path": "x"}}}}}, "begins with /"),
        ("route with a name of its own", {"targets": {"t": {**TICKETS, "routes": {"a/b": {"methods": ["GET"], "path": "/"}}}}}, "routes are named"),
        ("risk of no kind", {"targets": {"t": {**TICKETS, "risk": "huge"}}}, "huge"),
        ("target with a slash", {"targets": {"a/b": TICKETS}}, "no '/'"),
        ("issuer with a bar", {"issuers": [{**ISSUER, "issuer": "https://a|b"}]}, "no '|'"),
        ("claims of nobody", {"claims": [{"issuer": "https://x", "roles": CLAIM}]}, "not among the issuers"),
        ("claims twice", {"claims": [{"issuer": "https://idp", "roles": CLAIM}] * 2}, "listed twice"),
        ("claims of nothing", {"claims": [{"issuer": "https://idp"}]}, "roles or groups"),
        ("claims without names", {"claims": [{"issuer": "https://idp", "roles": {**CLAIM, "names": {}}}]}, "empty"),
        ("claims without a claim", {"claims": [{"issuer": "https://idp", "groups": {**CLAIM, "claim": []}}]}, "names no claim"),
        ("agents of nobody", {"agents": [{"issuer": "https://x", "workload": "a"}]}, "not among the issuers"),
        ("agents by two stars", {"agents": [{"issuer": "https://idp", "workload": "a/*/*"}]}, "only one"),
        ("enforcement points, none", {"authzen": {"enforcement_points": []}}, "is empty"),
        ("enforcement point twice", {"authzen": {"enforcement_points": [POINT, POINT]}}, "listed twice"),
        ("enforcement point of nobody", {"authzen": {"enforcement_points": [{**POINT, "issuer": "https://x"}]}}, "use: workload"),
        ("enforcement point of no admin", {"authzen": {"enforcement_points": [{**POINT, "use": "admin"}]}}, "use: admin"),
        ("tls is yes", {"tls": "yes"}, "tls"),
        ("tls without key", {"tls": {"cert_file": "/c"}}, "key_file"),
        ("http issuer", {"issuer": "http://broker.example"}, "https"),
        ("issuer with a path", {"issuer": URL + "/x"}, "issuer must be"),
        ("issuer with a slash", {"issuer": URL + "/"}, "issuer must be"),
        ("issuer with a query", {"issuer": URL + "?x"}, "issuer"),
        ("no targets", {"targets": {}}, "targets is empty"),
        ("audience twice", {"targets": {"a": TICKETS, "b": TICKETS}}, "same audience"),
        ("a directory of nothing", {"directory": {}}, "name a directory"),
        ("a directory for nobody", {"directory": {"scim": {"users": []}}}, "users is empty"),
        ("a directory for strangers", {"directory": scim("https://x")}, "not among the issuers"),
        ("an issuer looked up twice", {"directory": scim("https://idp", "https://idp")}, "twice"),
        ("audience is the broker", {"targets": {"a": {**TICKETS, "audience": URL}}}, "own issuer"),
        ("audience with a space", {"targets": {"a": {**TICKETS, "audience": "a b"}}}, "audience"),
        ("no credential", {"targets": {"a": {"audience": "x"}}}, "credential"),
        ("another credential", {"targets": {"a": {**TICKETS, "credential": "basic"}}}, "basic"),
        ("relative resource", {"targets": {"a": {**TICKETS, "resource": "/x"}}}, "resource"),
        ("long ttl", {"token_ttl": "2h"}, "between 1s and 1h"),
        ("no ttl", {"token_ttl": "0s"}, "between 1s and 1h"),
        ("long target ttl", {"targets": {"a": {**TICKETS, "ttl": "2h"}}}, "between 1s and 1h"),
        ("no issuers", {"issuers": []}, "nobody could authenticate"),
        ("only users", {"issuers": [USERS]}, "nobody could authenticate"),
        ("another audience", {"issuers": [{**ISSUER, "audience": "x"}]}, "audience must be"),
        ("list for self-signed", {"issuers": [{**ISSUER, "audience_list": True}]}, "as a list"),
        ("the broker itself", {"issuers": [{**ISSUER, "issuer": URL}]}, "to itself"),
        ("hmac", {"issuers": [{**ISSUER, "algorithms": ["HS256"]}]}, "HS256"),
        ("published too late", {"keys": {"rotate_every": "1h", "publish_before": "1h"}},
         "publish_before"),
        ("not published", {"keys": {"publish_before": "0s"}}, "publish_before"),
        ("no overlap unit", {"keys": {"overlap": 60}}, "duration with a unit"),
        ("no audiences", {"resource_servers": [
            {"issuer": "i", "subject": "s", "audiences": []}]}, "must not be empty"),
        ("no memory", {"limits": {"replay_proofs": 0}}, "positive"),
        ("an SVID for another audience", {"issuers": [{**DOMAIN, "audience": "x"}]},
         "audience must be"),
        ("a target of mtls without its listener", {"targets": {"a": VAULT}}, "mtls"),
        ("mtls without a trust domain", {"mtls": MTLS, "tls": TLS}, "no certificate could count"),
        ("mtls without a certificate", {**DOMAINS, "mtls": MTLS}, "give tls"),
        ("mtls behind any terminator", {**DOMAINS, "mtls": MTLS, "tls": "terminated"}, "give tls"),
        ("mtls at the port of the others", {**DOMAINS, "tls": TLS, "mtls": {
            **MTLS, "bind": "127.0.0.2:7080"}}, "another port"),
        ("certificates without their listener", {"issuers": [PKI]}, "needs the listener in mtls"),
        ("mtls at plain http", {**DOMAINS, "tls": TLS, "mtls": {**MTLS, "url": "http://x"}},
         "https"),
        ("mtls with a path", {**DOMAINS, "tls": TLS, "mtls": {**MTLS, "url": "https://x/"}},
         "without a path"),
        ("a loopback terminator elsewhere", {**DOMAINS, "mtls": {**MTLS, "terminator": "loopback"}},
         "is not loopback"),
        ("a terminator by name", {**DOMAINS, "tls": TLS, "mtls": {**MTLS, "terminator": "edge"}},
         "terminator"),
        ("a foreign terminator", {**DOMAINS, "tls": TLS, "mtls": {
            **MTLS, "terminator": "spiffe://b.example/edge"}}, "no issuer"),
        ("unknown key", {"grants": []}, "unknown key"),
    ],
)  # fmt: skip
def test_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"bind": "[::1]:0"},
        {"bind": "localhost:7080"},
        {"bind": "127.1.2.3:7080"},
        {"bind": "0.0.0.0:7080", "tls": "terminated"},
        {"bind": "0.0.0.0:7080", "tls": {"cert_file": "/c", "key_file": "/k"}},
        {"issuer": "http://127.0.0.1:7080", "issuers": [
            {**ISSUER, "audience": "http://127.0.0.1:7080"}]},
        {"issuers": [{**ISSUER, "audience": "x", "reusable": True, "audience_list": True}]},
        {"issuers": [DOMAIN]},
        {"issuers": [PKI], "tls": TLS, "mtls": MTLS},
        {**DOMAINS, "tls": TLS, "mtls": MTLS, "targets": {"a": VAULT}},
        {**DOMAINS, "mtls": {**MTLS, "bind": "127.0.0.1:1", "terminator": "loopback"}},
        {**DOMAINS, "tls": TLS, "mtls": {**MTLS, "terminator": "spiffe://a.example/edge"}},
        {"issuers": [{**ISSUER, "kind": "kubernetes", "audience": "x"}]},
    ],
)  # fmt: skip
def test_accepted(changes: dict[str, Any]) -> None:
    load(**changes)


@pytest.mark.parametrize(
    ("name", "written", "line"),
    [
        ("no tables", "claims: []", 11),
        ("an empty table", "claims:\n  - {}", 12),
        ("an empty list", "claims:\n  - repository: [acme/shop]\n    ref: []", 12),
        ("a value that is no list", "claims:\n  - ref: main", 12),
        ("no subjects", "subjects: []", 11),
    ],
)
def test_claim_tables_that_could_be_meant_to_let_all_in(name: str, written: str, line: int) -> None:
    """An empty table, list or set of tables stops the load, with the place."""
    text = """\
issuer: https://broker.example
master_key_file: /master.key
grants_file: /grants.yaml
targets: {tickets: {audience: "https://t", credential: bearer}}
issuers:
- issuer: https://ci.example
  audience: https://broker.example
  use: workload
  jwks_file: /ci.json
  reusable: true
""" + "".join(f"  {each}\n" for each in written.splitlines())
    with pytest.raises(ConfigError) as refused:
        parse(BrokerSettings, text, name="broker.yaml", program="broker")
    place = str(refused.value).split(": ")[0]
    assert place in {f"broker.yaml:{line}", "broker.yaml:6"}, str(refused.value)


def test_targets_have_their_defaults_filled_in() -> None:
    settings = load(
        targets={
            "tickets": TICKETS,
            "files": {
                "audience": "f",
                "credential": "dpop",
                "resource": "https://f/v1",
                "ttl": "1m",
            },
        }
    )
    tickets, files = settings.compiled_targets()
    assert (tickets.resource, tickets.ttl, tickets.credential) == ("https://t", 120, "bearer")
    assert (files.resource, files.ttl, files.credential) == ("https://f/v1", 60, "dpop")
    assert longest_ttl((tickets, files)) == 120
    assert settings.workload_issuers() == {"https://idp"}


def test_the_examples_are_good() -> None:
    config = Path(__file__).parents[3] / "config" / "broker.yaml"
    settings = parse(BrokerSettings, config.read_text(), name=str(config), program="broker")
    assert set(settings.targets) == {"tickets", "payments"}


def test_a_schema_can_be_made() -> None:
    text = msgspec.json.encode(schema(BrokerSettings)).decode()
    assert '"terminated"' in text
    assert "rotate_every" in text


ADMINS = {"issuer": "https://login", "audience": URL, "use": "admin", "jwks_file": "/l.json"}
RULE = {"role": "viewer", "issuer": "https://login", "subjects": ["olga"]}


def test_administrators() -> None:
    admin = load(admin={"issuers": [ADMINS], "roles": [RULE]}).admin
    assert admin is not None
    assert admin.roles[0].compiled().holds("https://login", "olga", {})
    assert load().admin is None


@pytest.mark.parametrize(
    ("admin", "message"),
    [
        ({"issuers": [], "roles": [RULE]}, "must not be empty"),
        ({"issuers": [ADMINS], "roles": []}, "must not be empty"),
        ({"issuers": [ADMINS, ADMINS], "roles": [RULE]}, "listed twice"),
        ({"issuers": [{**ADMINS, "use": "user"}], "roles": [RULE]}, "must have use: admin"),
        ({"issuers": [ADMINS], "roles": [{**RULE, "issuer": "https://x"}]}, "not among"),
        ({"issuers": [ADMINS], "roles": [{**RULE, "subjects": []}]}, "give subjects or claims"),
        ({"issuers": [ADMINS], "roles": [{**RULE, "subjects": [""]}]}, "non-empty"),
        ({"issuers": [ADMINS], "roles": [{**RULE, "claims": {"groups": []}}]}, "non-empty"),
        ({"issuers": [ADMINS], "roles": [{**RULE, "role": "root"}]}, "Invalid enum"),
        (
            {
                "issuers": [{**ADMINS, "issuer": URL}],
                "roles": [{**RULE, "issuer": URL}],
            },
            "never administer",
        ),
    ],
)
def test_administrators_that_are_refused(admin: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(admin=admin)


def test_an_issuer_of_administrators_is_not_one_of_workloads() -> None:
    with pytest.raises(ConfigError, match="belongs in"):
        load(issuers=[ISSUER, ADMINS])


@pytest.mark.parametrize("rate", [{"rate": 0, "burst": 1}, {"rate": 1, "burst": 0}])
def test_limits_that_are_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="positive"):
        load(limits={"exchanges": rate})
