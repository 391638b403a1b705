"""Settings that can't be used are refused with their key path; a good one is complete."""

from __future__ import annotations

import copy
from collections.abc import Callable
from ipaddress import IPv6Network
from typing import Any

import pytest

from tests.unit.proxy.core.conftest import compiled, route, tree
from valetkey.contracts.errors import ConfigError
from valetkey.proxy.core.snapshot import Snapshot, split_origin


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    """The good tree with one value set."""
    document = copy.deepcopy(tree())
    node: Any = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return document


FORWARD = {"bind": "127.0.0.1:0", "mode": "forward"}


def mcp(methods: list[str], tools: list[str] | None = None, **more: Any) -> dict[str, Any]:
    match: dict[str, Any] = {"path": more.pop("path", "/mcp")}
    if "http" in more:
        match["methods"] = more.pop("http")
    made = route(more.pop("name", "a"), "/")
    mcp = {"methods": methods, **({} if tools is None else {"tools": tools}), **more}
    return made | {"match": match | {"mcp": mcp}}


BAD = [
    ("broker in the clear", changed("broker", "url", value="http://broker.example"), "broker.url: plain http"),
    ("certificates in the clear", changed("broker", "mtls_url", value="http://127.0.0.1:7081"), "broker.mtls_url: certificates need https"),
    ("certificates of a token file", changed("broker", "mtls_url", value="https://broker.example:7081"), "has no certificates"),
    ("no source of identity", changed("workload", "identity", value={}), "give one of file and spiffe"),
    ("two sources of identity", changed("workload", "identity", value={"file": "/t", "spiffe": {"socket": "unix:///s"}}), "give one of file and spiffe"),
    ("an agent over TCP", changed("workload", "identity", value={"spiffe": {"socket": "tcp://127.0.0.1:1"}}), "socket"),
    ("an agent at a relative path", changed("workload", "identity", value={"spiffe": {"socket": "unix:agent.sock"}}), "socket"),
    ("an identity that is none", changed("workload", "identity", value={"spiffe": {"socket": "unix:///s", "id": "spiffe://A/x"}}), "lower-case"),
    ("broker with a path", changed("broker", "url", value="https://b.example/token"), "broker.url: an origin has no"),
    ("collector in the clear", tree(collector={"url": "http://c.example"}), "collector.url: plain http"),
    ("collector elsewhere by a trick", tree(collector={"url": "http://localhost.evil.example"}), "collector.url: plain http"),
    ("target url without scheme", changed("targets", "pay", "url", value="pay.example"), "targets.pay.url: not an http"),
    ("target url of another scheme", changed("targets", "pay", "url", value="ftp://pay.example"), "targets.pay.url: not an http"),
    ("target url with userinfo", changed("targets", "pay", "url", value="https://a:b@pay.example"), "targets.pay.url: an origin has no userinfo"),
    ("target url with empty userinfo", changed("targets", "pay", "url", value="https://@pay.example"), "targets.pay.url: an origin has no userinfo"),
    ("target url with path", changed("targets", "pay", "url", value="https://pay.example/v1"), "targets.pay.url: an origin has no"),
    ("target url with query", changed("targets", "pay", "url", value="https://pay.example?a"), "targets.pay.url: an origin has no"),
    ("target url with fragment", changed("targets", "pay", "url", value="https://pay.example#a"), "targets.pay.url: an origin has no"),
    ("target url without host", changed("targets", "pay", "url", value="https://"), "targets.pay.url: not an http"),
    ("target url with port 0", changed("targets", "pay", "url", value="https://pay.example:0"), "targets.pay.url: not an http"),
    ("target url with port beyond", changed("targets", "pay", "url", value="https://pay.example:65536"), "targets.pay.url: Port out of range"),
    ("target url with trailing dot", changed("targets", "pay", "url", value="https://pay.example."), "targets.pay.url: not an http"),
    ("target url with a space", changed("targets", "pay", "url", value="https://pay example"), "targets.pay.url: not an http"),
    ("target url with an escape", changed("targets", "pay", "url", value="https://pay%2eexample"), "targets.pay.url: not an http"),
    ("target url with a newline", changed("targets", "pay", "url", value="https://pay.example\n"), "targets.pay.url: not an http(s) origin in ASCII"),
    ("target url with a tab inside", changed("targets", "pay", "url", value="https://pay.exa\tmple"), "targets.pay.url: not an http(s) origin in ASCII"),
    ("target url with a U-label", changed("targets", "pay", "url", value="https://b\u00fccher.example"), "targets.pay.url: not an http(s) origin in ASCII"),
    ("target url with an address as one number", changed("targets", "pay", "url", value="https://2130706433"), "targets.pay.url: not an http"),
    ("target url with an address in hexadecimal", changed("targets", "pay", "url", value="https://0x7f.0x1"), "targets.pay.url: not an http"),
    ("target url with a short address", changed("targets", "pay", "url", value="https://127.1"), "targets.pay.url: not an http"),
    ("target url with an octal address", changed("targets", "pay", "url", value="https://0177.0.0.1"), "targets.pay.url: not an http"),
    ("target url with a zone", changed("targets", "pay", "url", value="https://[fe80::1%25eth0]"), "targets.pay.url: not an http"),
    ("target url with an empty label", changed("targets", "pay", "url", value="https://pay..example"), "targets.pay.url: not an http"),
    ("target url with a hyphen in front", changed("targets", "pay", "url", value="https://-pay.example"), "targets.pay.url: not an http"),
    ("target url with a long label", changed("targets", "pay", "url", value=f"https://{'a' * 64}.example"), "targets.pay.url: not an http"),
    ("target url with an open bracket", changed("targets", "pay", "url", value="https://[::1"), "targets.pay.url: "),
    ("NAT64 prefix of 95 bits", tree(network={"nat64": ["64:ff9b::/95"]}), "network.nat64: 64:ff9b::/95: a NAT64 prefix has"),
    ("NAT64 prefix of IPv4", tree(network={"nat64": ["10.0.0.0/8"]}), "network.nat64: "),
    ("CA file without TLS", changed("targets", "vendor", "ca_file", value="/ca.pem"), "targets.vendor.ca_file: the target's url is not https"),
    ("bad network", changed("targets", "vendor", "allow_networks", value=["10.0.0.1/8"]), "targets.vendor.allow_networks: 10.0.0.1/8"),
    ("header without a name", changed("targets", "vendor", "credential", value={"kind": "header"}), "targets.vendor.credential.name: kind header needs"),
    ("name without header", changed("targets", "pay", "credential", value={"kind": "dpop", "name": "X"}), "targets.pay.credential.name: only kind header"),
    ("unknown kind", changed("targets", "pay", "credential", value={"kind": "none"}), "targets: Invalid enum value 'none'"),
    ("credential in Host", changed("targets", "vendor", "credential", "name", value="Host"), "targets.vendor.credential.name: 'Host' can't"),
    ("credential in Connection", changed("targets", "vendor", "credential", "name", value="Connection"), "targets.vendor.credential.name"),
    ("credential in Cookie", changed("targets", "vendor", "credential", "name", value="Cookie"), "targets.vendor.credential.name"),
    ("credential in Content-Length", changed("targets", "vendor", "credential", "name", value="content-LENGTH"), "targets.vendor.credential.name"),
    ("header name with a newline", changed("targets", "vendor", "credential", "name", value="X-Key\n"), "targets: Expected `str` matching regex"),
    ("header name with a colon", changed("targets", "vendor", "credential", "name", value="X:Y"), "targets: Expected `str` matching regex"),
    ("Authorization passed", changed("targets", "vendor", "pass_headers", value=["Authorization"]), "targets.vendor.pass_headers: 'Authorization'"),
    ("hop-by-hop passed", changed("targets", "vendor", "pass_headers", value=["Upgrade"]), "targets.vendor.pass_headers: 'Upgrade'"),
    ("injected header passed", changed("targets", "vendor", "pass_headers", value=["x-vendor-KEY"]), "targets.vendor.pass_headers: 'x-vendor-KEY'"),
    ("user's token passed", changed("targets", "vendor", "pass_headers", value=["X-Valetkey-Subject"]), "targets.vendor.pass_headers"),
    ("user's token in Host", changed("workload", "subject_header", value="Host"), "workload.subject_header: 'host'"),
    ("user's token in Connection", changed("workload", "subject_header", value="Connection"), "workload.subject_header"),
    ("prefix taken", changed("targets", "vendor", "prefix", value="/tickets"), "targets.vendor.prefix: 'tickets' already leads to 'tickets'"),
    ("prefix of two segments", changed("targets", "vendor", "prefix", value="/a/b"), "targets: Expected `str` matching regex"),
    ("prefix that is a dot segment", changed("targets", "vendor", "prefix", value="/.."), "targets.vendor.prefix: a dot segment"),
    ("prefix with an escape", changed("targets", "vendor", "prefix", value="/%61"), "targets: Expected `str` matching regex"),
    ("host taken", changed("targets", "vendor", "hosts", value=["TICKETS.local."]), "targets.vendor.hosts: 'tickets.local' already leads to 'tickets'"),
    ("host that no header can name", changed("targets", "vendor", "hosts", value=["a b"]), "targets.vendor.hosts: 'a b' is no host name"),
    ("host with a scheme", changed("targets", "vendor", "hosts", value=["http://a"]), "targets.vendor.hosts"),
    ("host with wildcard", changed("targets", "vendor", "hosts", value=["*.a.example"]), "targets.vendor.hosts"),
    ("listener of no target", tree(listeners=[{"bind": "127.0.0.1:0", "target": "other"}]), "listeners.0.target: no target 'other'"),
    ("no listener", tree(listeners=[]), "listeners"),
    ("no target", tree(targets={}), "targets"),
    ("no route", tree(routes=[]), "routes"),
    ("route of no target", tree(routes=[route("a", "/a", target="other")]), "routes.0.target: no target 'other'"),
    ("route id taken", tree(routes=[route("a", "/a"), route("a", "/b")]), "routes.1.id: 'a' is taken"),
    ("routes that could both win", tree(routes=[route("a", "/{x}/b"), route("b", "/a/{y}")]), "routes.1.match: GET '/a/{y}' and '/{x}/b' could both win"),
    ("unusable pattern", tree(routes=[route("a", "/a/../b")]), "routes.0.match"),
    ("pattern without slash", tree(routes=[route("a", "a")]), "routes.0.match.path"),
    ("route without scopes", tree(routes=[route("a", "/a", scopes=[])]), "routes.0.scopes"),
    ("scope with a space", tree(routes=[route("a", "/a", scopes=["a b"])]), "routes.0.scopes"),
    ("route without methods", tree(routes=[route("a", "/a", methods=[])]), "routes.0.match.methods"),
    ("TRACE", tree(routes=[route("a", "/a", methods=["GET", "TRACE"])]), "routes.0.match.methods: no route can allow TRACE"),
    ("CONNECT", tree(routes=[route("a", "/a", methods=["CONNECT"])]), "routes.0.match.methods: no route can allow CONNECT"),
    ("parameter that passes anyway", changed("targets", "pay", "pass_parameters", value=["q"]), "targets.pay.pass_parameters: 'q' would pass anyway"),
    ("method in lower case", tree(routes=[route("a", "/a", methods=["get"])]), "routes.0.match.methods"),
    ("a route's head beyond the general one", tree(routes=[route("a", "/a", limits={"head_size": "33KiB"})]), "routes.0.limits.head_size: more than limits.head_size"),
    ("a route's headers beyond the general ones", tree(routes=[route("a", "/a", limits={"headers": 101})]), "routes.0.limits.headers: more than limits.headers"),
    ("a tunnel that is scrubbed", tree(routes=[route("a", "/a", upgrade=["websocket"], scrub_answers=True)]), "routes.0.scrub_answers: what goes through a tunnel"),
    ("a given CA and a key to keep", tree(interception={"ca": {"certificate": "/c", "key": "/k"}, "key_file": "/f"}), "interception.key_file: a given CA"),
    ("leaves for a minute", tree(interception={"leaf_lifetime": "1m"}), "interception.leaf_lifetime: between"),
    ("leaves for a year", tree(interception={"leaf_lifetime": "365d"}), "interception.leaf_lifetime: between"),
    ("the CA's key where its certificate goes", tree(interception={"key_file": "/f", "certificate_file": "/f"}), "interception.certificate_file: the same file as interception.key_file"),
    ("the bundle over the roots", tree(interception={"system_roots": "/f", "bundle_file": "/f"}), "interception.bundle_file: the same file as interception.system_roots"),
    ("the bundle over the given key", tree(interception={"ca": {"certificate": "/c", "key": "/k"}, "bundle_file": "/k"}), "interception.bundle_file: the same file as interception.ca.key"),
    ("a trust store's password that Java refuses", tree(interception={"truststore_password": "short"}), "interception.truststore_password"),
    ("a target with the reserved host", tree(listeners=[FORWARD], targets={"pay": {**tree()["targets"]["pay"], "url": "http://valetkey.invalid:1"}}, routes=[route("a", "/a", target="pay")]), "targets.pay.url: valetkey.invalid is the sidecar's own"),
    ("mcp by GET", tree(routes=[mcp(["ping"], http=["GET"])]), "routes.0.match.methods: messages of MCP come by POST"),
    ("mcp by POST and GET", tree(routes=[mcp(["ping"], http=["POST", "GET"])]), "routes.0.match.methods: messages of MCP come by POST"),
    ("mcp without methods", tree(routes=[mcp([])]), "routes.0.match.mcp.methods"),
    ("mcp with no tools", tree(routes=[mcp(["tools/call"], [])]), "routes.0.match.mcp.tools"),
    ("tools without tools/call", tree(routes=[mcp(["tools/list"], ["x"])]), "routes.0.match.mcp.tools: tools/call is not"),
    ("a method with two stars", tree(routes=[mcp(["*a*"])]), "routes.0.match.mcp.methods"),
    ("a tool with a line end", tree(routes=[mcp(["tools/call"], ["a\n"])]), "routes.0.match.mcp: a name has printable"),
    ("an empty tool", tree(routes=[mcp(["tools/call"], [""])]), "routes.0.match.mcp.tools"),
    ("unknown key of mcp", tree(routes=[mcp(["ping"], prompts=["x"])]), "routes.0.match.mcp.prompts: unknown key"),
    ("the same message twice", tree(routes=[mcp(["ping"]), mcp(["ping"], name="b")]), "routes.1.match: ping and ping could both win"),
    ("tools that cross", tree(routes=[mcp(["tools/call"], ["get_*"]), mcp(["tools/call"], ["*_all"], name="b")]), "routes.1.match: *_all and get_* could both win"),
    ("a route around mcp", tree(routes=[mcp(["ping"]), route("b", "/mcp", methods=["POST"])]), "routes.1.match: POST '/mcp' and '/mcp' could both win"),
    ("mcp around a route", tree(routes=[route("b", "/mcp", methods=["GET", "POST"]), mcp(["ping"])]), "routes.1.match: POST '/mcp' and '/mcp' could both win"),
    ("paths of mcp that cross", tree(routes=[mcp(["ping"], path="/{x}/b"), mcp(["ping"], path="/a/{y}", name="b")]), "routes.1.match: POST '/a/{y}' and '/{x}/b' could both win"),
    ("more tools than fit into a credential", tree(routes=[mcp(["tools/call"], [f"a_tool_with_a_name_{n}" for n in range(300)])]), "routes.0.match.mcp: too many names"),
    ("more tools than the broker takes", tree(routes=[mcp(["tools/call"], [f"a{n}" for n in range(1025)])]), "routes.0.match.mcp: more than 1024"),
    ("less for all messages than for one", tree(limits={"message": "2MiB", "messages": "1MiB"}), "limits.messages: less than limits.message"),
    ("upgrade in capitals", tree(routes=[route("a", "/a", upgrade=["WebSocket"])]), "routes.0.upgrade"),
    ("two upgrades in one", tree(routes=[route("a", "/a", upgrade=["websocket, x"])]), "routes.0.upgrade"),
    ("upgrade to HTTP/2", tree(routes=[route("a", "/a", upgrade=["h2c"])]), "routes.0.upgrade: 'h2c' can't be allowed"),
    ("upgrade to a version of HTTP", tree(routes=[route("a", "/a", upgrade=["http/2.0"])]), "routes.0.upgrade: 'http/2.0' can't be allowed"),
    ("upgrade to TLS", tree(routes=[route("a", "/a", upgrade=["tls/1.0"])]), "routes.0.upgrade: 'tls/1.0' can't be allowed"),
    ("WebSocket without GET", tree(routes=[route("a", "/a", methods=["POST"], upgrade=["websocket"])]), "routes.0.upgrade: websocket needs the method GET"),
    ("an upgrade of messages", tree(routes=[mcp(["ping"]) | {"upgrade": ["a"]}]), "routes.0.upgrade: what goes through a tunnel"),
    ("time limit without a unit", tree(routes=[route("a", "/a", timeouts={"stall": 5})]), "routes.0.timeouts.stall"),
    ("time limit that no route has", tree(routes=[route("a", "/a", timeouts={"idle": "5s"})]), "routes.0.timeouts.idle: unknown key"),
    ("unknown key", tree(other=1), "other: unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "document", "message"), BAD, ids=[case[0] for case in BAD])
def test_unusable_settings(name: str, document: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compiled(document)
    assert message in str(refused.value)


ORIGINS = [
    ("https://a.example", (True, "a.example", 443)),
    ("http://a.example", (False, "a.example", 80)),
    ("https://A.Example:8443/", (True, "a.example", 8443)),
    ("http://127.0.0.1:9000", (False, "127.0.0.1", 9000)),
    ("http://[::1]:9000", (False, "[::1]", 9000)),
    ("http://[0:0::0001]", (False, "[::1]", 80)),
    ("https://xn--bcher-kva.example", (True, "xn--bcher-kva.example", 443)),
]


@pytest.mark.parametrize(("url", "parts"), ORIGINS)
def test_origins(url: str, parts: tuple[bool, str, int]) -> None:
    assert split_origin(url, "x") == parts


def test_what_is_compiled(snapshot: Snapshot) -> None:
    pay, vendor = snapshot.targets["pay"], snapshot.targets["vendor"]
    assert (pay.authority, pay.url) == ("pay.example.com:8443", "https://pay.example.com:8443")
    assert snapshot.targets["tickets"].authority == "tickets.example.com"
    assert vendor.inject == "X-Vendor-Key"
    assert len(snapshot.routes) == len(tree()["routes"])
    assert {r.target for r in snapshot.routes} == set(snapshot.targets.values())


def test_bounds_of_a_route() -> None:
    made = compiled(
        tree(
            routes=[
                route("free", "/free"),
                route("bound", "/bound", limits={"head_size": "2KiB", "body_size": "1MiB"}),
                route("few", "/few", limits={"headers": 100}),
            ]
        )
    )
    free, bound, few = made.routes
    assert free.bounds is None
    assert bound.bounds is not None
    assert (bound.bounds.head_size, bound.bounds.body_size) == (2048, 1 << 20)
    assert bound.bounds.fields > 1 << 60
    assert few.bounds is not None
    assert few.bounds.fields == 100


@pytest.mark.parametrize(
    ("general", "own", "pace"),
    [
        (None, None, 0.01),
        ("1KiB", None, 1 / 1024),
        ("1KiB", "500B", 0.002),
        ("0B", None, float("inf")),
        ("1KiB", "0B", float("inf")),
    ],
)
def test_what_a_byte_of_a_body_is_worth(general: str | None, own: str | None, pace: float) -> None:
    made = compiled(
        tree(
            limits={"body_rate": general} if general else {},
            routes=[route("a", "/a", limits={"body_rate": own} if own else {})],
        )
    )
    assert made.routes[0].pace == pace
    assert made.routes[0].bounds is None


def test_a_route_that_scrubs_asks_for_answers_that_can_be_read() -> None:
    made = compiled(tree(routes=[route("a", "/a"), route("b", "/b", scrub_answers=True)]))
    plain, scrubs = made.routes
    assert plain.headers is plain.target.headers
    assert not plain.scrubs
    assert scrubs.scrubs
    assert scrubs.headers.added == b"accept-encoding: identity\r\n"
    assert {"accept-encoding", "range", "if-range"} <= scrubs.headers.dropped


@pytest.mark.parametrize(
    ("given", "compiled_to"),
    [
        (None, None),
        ([], ()),
        (["2001:db8:64::/96"], (IPv6Network("2001:db8:64::/96"),)),
    ],
)
def test_nat64_prefixes(given: Any, compiled_to: Any) -> None:
    network = {} if given is None else {"nat64": given}
    assert compiled(tree(network=network)).nat64 == compiled_to


def test_a_route_s_own_time_limits_go_before_the_general_ones() -> None:
    snapshot = compiled(
        tree(
            timeouts={"first_byte": "7s", "stream": "1h"},
            routes=[
                route("own", "/own", timeouts={"stall": "5s", "stream": "0s"}, upgrade=["a/1"]),
                route("general", "/general"),
            ],
        )
    )
    own, general = snapshot.routes
    assert (own.first_byte, own.stall, own.stream) == (7, 5, 0)
    assert (general.first_byte, general.stall, general.stream) == (7, 60, 3600)
    assert (own.upgrade, general.upgrade) == ({"a/1"}, frozenset())


POLICY: list[tuple[str, Callable[[], dict[str, Any]], bool]] = [
    ("nothing", tree, False),
    ("another timeout", lambda: tree(timeouts={"head": "1s"}), False),
    ("another listener", lambda: tree(listeners=[{"bind": "127.0.0.1:1"}]), False),
    ("another bound of a route", lambda: changed("routes", 0, "limits", value={"body_size": "1MiB"}), False),
    ("another timeout of a route", lambda: changed("routes", 0, "timeouts", value={"stall": "1s"}), False),
    ("an upgrade", lambda: changed("routes", 0, "upgrade", value=["websocket"]), True),
    ("another scope", lambda: changed("routes", 0, "scopes", value=["s:write"]), True),
    ("another method", lambda: changed("routes", 0, "match", "methods", value=["GET"]), True),
    ("messages of it alone", lambda: changed("routes", 3, "match", "mcp", value={"methods": ["*"]}), True),
    ("another limit of messages", lambda: tree(limits={"message": "1KiB"}), False),
    ("another audience", lambda: changed("targets", "pay", "audience", value="urn:x"), True),
    ("another url", lambda: changed("targets", "pay", "url", value="https://x.example"), True),
    ("another way to inject", lambda: changed("targets", "pay", "credential", "kind", value="bearer"), True),
    ("another host", lambda: changed("targets", "pay", "hosts", value=["x"]), True),
    ("another subject header", lambda: changed("workload", "subject_header", value="X-User"), True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "document", "differs"), POLICY, ids=[case[0] for case in POLICY])
def test_the_policy_digest_changes_with_what_decides(
    name: str, document: Callable[[], dict[str, Any]], differs: bool, snapshot: Snapshot
) -> None:
    assert (compiled(document()).policy_digest != snapshot.policy_digest) == differs
