"""nginx as a reader: what it makes of a request is what it would hand to a server behind it.

nginx takes requests and passes each on, over a connection of its own, to this process: method,
URI, fields and the buffered body as nginx read them. `$uri`, the path as nginx normalised it for
its own decisions, comes along in a header.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote_to_bytes

from tests.fuzz.readers import Read, by_h11
from tests.support.ports import free_port
from tests.support.recording import TIMEOUT, Ended, Wire

NGINX: Final = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
_CONFIG: Final = """
daemon off; master_process off; pid nginx.pid; error_log error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{
    listen 127.0.0.1:{port};
    underscores_in_headers on; ignore_invalid_headers off; keepalive_requests 100000;
    location / {{
      proxy_pass http://127.0.0.1:{behind};
      proxy_set_header Host $http_host;
      proxy_set_header X-Nginx-Uri $uri;
    }}
  }}
}}
"""
# What nginx writes or takes out itself when it passes a request on (ngx_http_proxy_module).
_OWN: Final = frozenset({
    "host", "connection", "content-length", "transfer-encoding", "te", "keep-alive", "expect",
    "upgrade",
})  # fmt: skip


class Nginx:
    """A running nginx, and the server behind it. A context manager."""

    ignoring = _OWN

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._behind = socket.create_server(("127.0.0.1", 0))
        self.port = free_port()
        self.reads: list[Read] = []
        """What arrived behind nginx."""

    def __enter__(self) -> Self:
        assert NGINX is not None
        config = _CONFIG.format(port=self.port, behind=self._behind.getsockname()[1])
        (self._directory / "nginx.conf").write_text(config)
        with (self._directory / "stderr").open("wb") as errors:
            self._process = subprocess.Popen(
                [NGINX, "-p", str(self._directory), "-c", "nginx.conf"], stderr=errors
            )
        threading.Thread(target=self._serve, daemon=True).start()
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            else:
                return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.kill(self._process.pid, signal.SIGTERM)
        self._process.wait(TIMEOUT)
        self._behind.shutdown(socket.SHUT_RDWR)
        self._behind.close()

    def settle(self) -> None:
        """Forget what arrived, and also what is on its way yet from whoever has gone meanwhile.

        Behind nginx connections are served one after the other, so what it was given before this
        request has arrived when this one is answered.
        """
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            wire = Wire(sock)
            wire.send(b"GET /settled HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            answer = wire.rest()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert self.reads[-1].target == "/settled"
        self.reads.clear()

    def read(self, raw: bytes) -> tuple[list[Read], str]:
        """The requests in ``raw``, all of them whole, and why nginx refused, if it did."""
        self.settle()
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            wire = Wire(sock)
            wire.send(raw)
            for request in by_h11(raw)[0]:
                try:
                    head = wire.until(b"\r\n\r\n")
                    while head.startswith(b"HTTP/1.1 100 "):
                        head = wire.until(b"\r\n\r\n")
                    if not head.startswith(b"HTTP/1.1 200 "):
                        return list(self.reads), head.partition(b"\r\n")[0].decode()
                    if request.method != "HEAD":
                        wire.body(head)
                except (Ended, ConnectionError) as error:
                    return list(self.reads), type(error).__name__
        return list(self.reads), ""

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._behind.accept()
            except OSError:
                return
            with sock, contextlib.suppress(Ended, ConnectionError):  # nginx gave the call up
                wire = Wire(sock)
                head, body = wire.request()
                self.reads.append(_read(head, body))
                content = b"" if head.startswith(b"HEAD ") else b"ok"
                wire.send(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n" + content)


def _read(head: bytes, body: bytes) -> Read:
    start, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = start.split(" ")
    fields = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "X-Nginx-Uri":
            # What nginx decides on is what the sidecar decides on: decoded once, nothing else.
            path = unquote_to_bytes(target.partition("?")[0])
            if value.strip(" ").encode("latin-1") != path.strip(b" "):
                target = f"{target} normalised to {value}"
            continue
        fields.append((name.lower(), value.strip(" ").encode("latin-1")))
    return Read(method, target, fields, body, complete=True)
