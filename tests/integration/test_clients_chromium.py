"""Chromium through the forward listener: the page is the one that it gets without a sidecar."""

from __future__ import annotations

import asyncio
import html
import json
import re
import ssl
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from tests.support.canaries import CANARIES
from tests.support.sidecar import Sidecar, World, target, whole
from tests.support.trusting_clients import Refused, Trust, chromium, missing

pytest_plugins = ["tests.support.wire_fixtures"]
pytestmark = pytest.mark.skipif(bool(missing(chromium)), reason=missing(chromium))

PAGE = """<!doctype html>
<html><head><title>A page</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page/style.css"></head>
<body><p id="styled">text</p><img id="picture" src="/page/picture.png">
<pre id="result"></pre><script src="/page/script.js"></script>
<script async src="/page/finished.js"></script></body></html>
"""
SCRIPT = """
async function digest(buffer) {
  const bytes = new Uint8Array(await crypto.subtle.digest('SHA-256', buffer));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join('');
}
async function ask(path, options) {
  const answer = await fetch(path, options);
  const type = answer.headers.get('content-type');
  return [answer.status, answer.url, answer.redirected, type, await digest(await answer.arrayBuffer())];
}
async function stream(path) {
  const reader = (await fetch(path)).body.getReader();
  let text = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return text;
    text += new TextDecoder().decode(value);
  }
}
function events(path, count) {
  return new Promise((resolve, reject) => {
    const seen = [], source = new EventSource(path);
    source.onerror = () => reject('no events');
    source.onmessage = (event) => {
      seen.push([event.lastEventId, event.data]);
      if (seen.length === count) { source.close(); resolve(seen); }
    };
  });
}
async function all() {
  const large = new Uint8Array(300_000).map((_, i) => i * 7);
  const picture = document.getElementById('picture');
  await picture.decode();
  return {
    style: getComputedStyle(document.getElementById('styled')).color,
    picture: [picture.naturalWidth, picture.naturalHeight],
    json: await (await fetch('/page/data?a=%C3%A9&b=1+2')).json(),
    head: await ask('/page/data', {method: 'HEAD'}),
    echo: await ask('/page/echo', {method: 'POST', body: large}),
    sent: await digest(large),
    large: await ask('/page/large'),
    zipped: await ask('/page/zipped'),
    moved: await ask('/page/moved'),
    missing: await ask('/page/missing'),
    streamed: await stream('/page/stream'),
    events: await events('/page/events', 3),
    many: await Promise.all([...Array(20).keys()].map((n) => ask('/page/data?n=' + n))),
  };
}
all().then((result) => JSON.stringify(result), (error) => 'failed: ' + error)
  .then((text) => { document.getElementById('result').textContent = text; })
  .then(() => fetch('/page/finished', {method: 'POST'}));
"""
LARGE = bytes(range(256)) * 4096


def picture() -> bytes:
    """A PNG of 3 × 2 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    rows = b"".join(b"\0" + bytes([200, 100, 50] * 3) for _ in range(2))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class Upstream:
    """A web server with TLS and one without, and what their calls brought as credentials."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.secure = self.plain = 0
        self.credentials: list[str | None] = []
        self._finished = asyncio.Event()
        self._context = context
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._note], client_max_size=1 << 22)
        app.router.add_get("/page/", _text(PAGE, "text/html"))
        app.router.add_get("/page/style.css", _text("#styled { color: rgb(1, 2, 3) }", "text/css"))
        app.router.add_get("/page/script.js", _text(SCRIPT, "text/javascript"))
        app.router.add_get("/page/picture.png", _bytes(picture(), "image/png"))
        app.router.add_get("/page/large", _bytes(LARGE, "application/octet-stream"))
        app.router.add_get("/page/data", _data)
        app.router.add_post("/page/echo", _echo)
        app.router.add_get("/page/zipped", _zipped)
        app.router.add_get("/page/moved", _moved)
        app.router.add_get("/page/stream", _stream)
        app.router.add_get("/page/events", self._events)
        app.router.add_post("/page/finished", self._finish)
        app.router.add_get("/page/finished.js", self._await_finish)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        for context in (self._context, None):
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        self.secure, self.plain = (address[1] for address in runner.addresses)
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.credentials.append(request.headers.get("Authorization"))
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Three events, and no end as long as the page is at work."""
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for number in range(3):
            await answer.write(b"id: %d\ndata: event %d\n\n" % (number, number))
        await asyncio.wait_for(self._finished.wait(), 20)
        return answer

    async def _finish(self, _request: web.Request) -> web.Response:
        self._finished.set()
        return web.Response()

    async def _await_finish(self, _request: web.Request) -> web.Response:
        """A script that is not there before the page's own is done, so that its load waits."""
        await asyncio.wait_for(self._finished.wait(), 20)
        self._finished.clear()
        return web.Response(content_type="text/javascript")


def _text(text: str, kind: str) -> Any:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind)

    return answer


def _bytes(body: bytes, kind: str) -> Any:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind)

    return answer


async def _data(request: web.Request) -> web.Response:
    return web.json_response({"path": request.raw_path, "host": request.headers["Host"]})


async def _echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def _zipped(_request: web.Request) -> web.Response:
    answer = web.Response(body=LARGE)
    answer.enable_compression(web.ContentCoding.gzip)
    return answer


async def _moved(_request: web.Request) -> web.Response:
    raise web.HTTPFound("/page/data?moved")


async def _stream(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    for number in range(50):
        await answer.write(b"line %d\n" % number)
    await answer.write_eof()
    return answer


@dataclass(frozen=True, slots=True)
class Site:
    upstream: Upstream
    sidecar: Sidecar
    direct: Trust
    """Trusts the CA of the upstream, and only that."""
    through: Trust
    """Trusts the sidecar's CA, and only that."""

    def url(self, path: str) -> str:
        return f"https://localhost:{self.upstream.secure}{path}"

    def visit(self, url: str, trust: Trust) -> str:
        """A page through the sidecar, its scripts done."""
        proxy = f"http://127.0.0.1:{self.sidecar.port}"
        # Without the exception, Chromium never asks a proxy for localhost.
        options = (f"--proxy-server={proxy}", "--proxy-bypass-list=<-loopback>")
        return chromium(url, trust, *options)


def trust(directory: Path, certificate: Path) -> Trust:
    home = directory / f"home-{certificate.stem}"
    home.mkdir()
    return Trust(certificate, certificate, certificate, home)


@pytest.fixture(scope="module")
def site(wire_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("chromium")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    theirs, ours = directory / "upstream.pem", directory / "sidecar.pem"
    authority.cert_pem.write_to_path(str(theirs))
    upstream = Upstream(context)
    near = {"allow_networks": ["127.0.0.0/8", "::1/128"]}
    sidecar = wire_world.sidecar(
        "chromium",
        {
            "secure": target(f"https://localhost:{upstream.secure}", ca_file=str(theirs), **near),
            "plain": target(f"http://localhost:{upstream.plain}", **near),
        },
        routes=[
            {
                **whole(name),
                "match": {"methods": ["GET", "HEAD", "POST"], "path": "/page/{rest*}"},
            }
            for name in ("secure", "plain")
        ],
        listeners=[{"bind": "127.0.0.1:0", "mode": "forward"}],
        interception={"certificate_file": str(ours)},
    )
    yield Site(upstream, sidecar, trust(directory, theirs), trust(directory, ours))
    assert sidecar.defects() == []
    sidecar.stop()
    upstream.close()


def result(page: str) -> Any:
    found = re.search(r'<pre id="result">(.+?)</pre>', page, re.DOTALL)
    assert found, page
    return json.loads(html.unescape(found[1]))


def test_the_page_is_the_one_without_a_sidecar(site: Site) -> None:
    """Style, picture, scripts, uploads, downloads, redirects, streams: all by TLS."""
    direct = chromium(site.url("/page/"), site.direct)
    assert set(site.upstream.credentials) == {None}
    site.upstream.credentials.clear()
    through = site.visit(site.url("/page/"), site.through)
    assert through == direct
    # Both could be wrong in the same way.
    seen = result(through)
    assert seen["style"] == "rgb(1, 2, 3)"
    assert seen["picture"] == [3, 2]
    assert seen["json"]["path"] == "/page/data?a=%C3%A9&b=1+2"
    assert seen["json"]["host"] == f"localhost:{site.upstream.secure}"
    assert seen["echo"][0] == 200
    assert seen["echo"][-1] == seen["sent"]
    assert seen["moved"][1:3] == [site.url("/page/data?moved"), True]
    assert seen["missing"][0] == 404
    assert seen["streamed"].endswith("line 49\n")
    assert seen["events"] == [[str(n), f"event {n}"] for n in range(3)]
    # Every call was the sidecar's: it alone has credentials.
    assert len(site.upstream.credentials) > 30
    assert all(
        credential and credential.startswith("Bearer ") for credential in site.upstream.credentials
    )
    for credential in filter(None, site.upstream.credentials):
        CANARIES.add(credential.removeprefix("Bearer "), name="access token")


def test_a_page_in_the_clear_is_asked_for_by_absolute_form(site: Site) -> None:
    url = f"http://localhost:{site.upstream.plain}/page/"
    direct, through = chromium(url, site.direct), site.visit(url, site.through)
    assert through == direct
    assert result(through)["json"]["host"] == f"localhost:{site.upstream.plain}"


def test_a_path_without_a_route_is_refused_in_so_many_words(site: Site) -> None:
    assert "route.no_match" in site.visit(site.url("/elsewhere"), site.through)


def test_a_browser_that_does_not_trust_the_sidecar_shows_nothing(site: Site) -> None:
    with pytest.raises(Refused, match="ERR_CERT_AUTHORITY_INVALID"):
        site.visit(site.url("/page/"), site.direct)
    codes = [event["data"]["unmapped"].get("code") for event in site.sidecar.events()]
    assert "interception.untrusted" in codes


def test_a_host_without_a_target_gets_no_tunnel(site: Site) -> None:
    with pytest.raises(Refused, match="ERR_TUNNEL_CONNECTION_FAILED"):
        site.visit("https://www.example.test/", site.through)
