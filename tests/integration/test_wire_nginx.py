"""A real nginx as the target: what a server that nobody here wrote makes of our requests."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.nginx import NGINX
from tests.support.ports import free_port
from tests.support.recording import Recording
from tests.support.sidecar import Sidecar, World, target

pytest_plugins = ["tests.support.wire_fixtures"]

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

BODY = bytes(range(256)) * 4096  # 1 MiB
CONFIG = """
daemon off; master_process off; pid nginx.pid; error_log error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log access.log;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  keepalive_requests 3; client_max_body_size 2m;
  server {{
    listen 127.0.0.1:{port};
    root files;
    location /echo {{ return 200 "$request_method $request_uri $http_via $http_x_kept\\n"; }}
    location /chunks {{ ssi on; ssi_types *; }}
    location /secret {{ if ($http_authorization ~ "^Bearer ") {{ return 200 "in\\n"; }} return 401; }}
    location /upload {{ dav_methods PUT; create_full_put_path on; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nginx")
    (root / "files" / "upload").mkdir(parents=True)
    (root / "files" / "large").write_bytes(BODY)
    (root / "files" / "chunks.txt").write_text('a<!--#echo var="request_method" -->b' * 2000)
    return root


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording, files: Path) -> Iterator[Sidecar]:
    assert NGINX is not None
    port = free_port()
    (files / "nginx.conf").write_text(CONFIG.format(port=port))
    with (files / "stderr").open("wb") as err:
        server = subprocess.Popen([NGINX, "-p", str(files), "-c", "nginx.conf"], stderr=err)
    made = wire_world.sidecar("nginx", {"nginx": target(f"http://127.0.0.1:{port}", prefix="/n")})
    try:
        session_upstream.wait_for(lambda: made.ask(get("/n/echo")).status == 200)
        yield made
        assert made.defects() == []
        made.stop()
    finally:
        made.kill()
        os.kill(server.pid, signal.SIGTERM)
        server.wait(10)


def get(path: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", *lines, "", ""])
    return head.encode() + body


def test_a_file_with_validators_and_ranges(sidecar: Sidecar) -> None:
    with sidecar.open() as client:
        client.send(get("/n/large"))
        whole = client.answer()
        assert (whole.status, whole.body) == (200, BODY)
        [etag] = whole.values("etag")
        client.send(get("/n/large", f"If-None-Match: {etag}"))
        assert client.answer().status == 304
        client.send(get("/n/large", "Range: bytes=10-19"))
        part = client.answer()
        assert (part.status, part.body) == (206, BODY[10:20])
        client.send(get("/n/large", method="HEAD"))
        assert client.answer(head_only=True).values("content-length") == [str(len(BODY))]
        client.send(get("/n/no-such-file"))
        assert client.answer().status == 404


def test_connections_that_nginx_ends_now_and_then_lose_no_call(sidecar: Sidecar) -> None:
    """keepalive_requests is 3: every third answer says Connection: close."""
    with sidecar.open() as client:
        for n in range(50):
            client.send(get(f"/n/echo?{n}", "X-Kept: yes"))
            answer = client.answer()
            assert answer.body == b"GET /echo?%d 1.1 valetkey yes\n" % n
            assert answer.values("connection") == []


def test_chunks_from_nginx(sidecar: Sidecar) -> None:
    answer = sidecar.ask(get("/n/chunks.txt"))
    assert (answer.status, answer.chunked) == (200, True)
    assert answer.body == b"aGETb" * 2000


def test_the_credential_is_there(sidecar: Sidecar) -> None:
    assert sidecar.ask(get("/n/secret", "Authorization: Basic no")).body == b"in\n"


@pytest.mark.parametrize("chunked", [False, True])
def test_uploads(chunked: bool, sidecar: Sidecar, files: Path) -> None:
    name = f"file-{chunked}"
    body = BODY
    if chunked:
        pieces = [BODY[at : at + 10_000] for at in range(0, len(BODY), 10_000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    answer = sidecar.ask(get(f"/n/upload/{name}", framing, method="PUT", body=body))
    if answer.status == 405:
        pytest.skip("this nginx is built without its WebDAV module")
    assert answer.status == 201
    assert (files / "files" / "upload" / name).read_bytes() == BODY


def test_an_upload_that_nginx_refuses_early(sidecar: Sidecar) -> None:
    with sidecar.open() as client:
        client.send(get("/n/upload/x", "Content-Length: 100000000", method="PUT"))
        answer = client.answer()
        assert (answer.status, answer.closes) == (413, True)
