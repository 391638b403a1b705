"""Clients of other makes, each told in its own way to trust a CA, each asked for one page.

Every client gets a ``url`` and the files that a sidecar writes for it, and gives the page's text
or raises `Refused` with what it said. Names under ``.test`` lead to this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

TIMEOUT: Final = 60


class Refused(Exception):  # noqa: N818 - reads as what it is
    """The client would not talk to the server, or could not."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a client may be told to trust; an empty one is as a system that knows nothing of it."""

    certificate: Path
    bundle: Path
    truststore: Path
    home: Path
    """A directory for what clients keep, theirs alone."""


def run(*command: str, env: Mapping[str, str], cwd: Path) -> tuple[str, str]:
    """Output and errors of a program; `Refused` if it fails."""
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(cwd), **env},
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{command[0]} took too long") from error
    if ended.returncode != 0:
        raise Refused(f"{command[0]}: {ended.stdout[-1000:]} {ended.stderr[-1000:]}")
    return ended.stdout, ended.stderr


def curl(url: str, trust: Trust) -> str:
    parts = urlsplit(url)
    there = f"{parts.hostname}:{parts.port}:127.0.0.1"
    return run(
        "curl", "--silent", "--show-error", "--resolve", there, "--cacert", str(trust.bundle), url,
        env={}, cwd=trust.home,
    )[0]  # fmt: skip


def openssl(url: str, trust: Trust) -> str:
    """``s_client``: its checks as strict as they get, the request by hand."""
    parts = urlsplit(url)
    host = str(parts.hostname)
    named = host.endswith(".test")
    identity = (
        ["-servername", host, "-verify_hostname", host]
        if named
        else ["-noservername", "-verify_ip", host]
    )
    ended = subprocess.run(
        [
            "openssl", "s_client", "-connect", f"127.0.0.1:{parts.port}", *identity,
            "-CAfile", str(trust.certificate), "-x509_strict", "-verify_return_error", "-quiet",
        ],
        input=f"GET / HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n",
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    if ended.returncode != 0:
        raise Refused(ended.stderr[-1000:])
    return ended.stdout.partition("\n\n")[2]


_NODE: Final = """
const https = require('https');
const [url, named] = [new URL(process.argv[2]), process.argv[2].includes('.test')];
const lookup = (_host, options, done) =>
  options.all ? done(null, [{address: '127.0.0.1', family: 4}]) : done(null, '127.0.0.1', 4);
https.get(url, named ? {lookup} : {}, (answer) => {
  answer.setEncoding('utf8');
  answer.on('data', (text) => process.stdout.write(text));
}).on('error', (error) => { console.error(error.code); process.exit(1); });
"""


def node(url: str, trust: Trust) -> str:
    script = trust.home / "get.js"
    script.write_text(_NODE)
    env = {"NODE_EXTRA_CA_CERTS": str(trust.certificate)}
    return run("node", str(script), url, env=env, cwd=trust.home)[0]


_JAVA: Final = """
import java.net.URI;
import java.net.http.*;

public class Get {
    public static void main(String[] arguments) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(arguments[0])).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.print(answer.body());
    }
}
"""


def java(url: str, trust: Trust) -> str:
    source = trust.home / "Get.java"
    source.write_text(_JAVA)
    hosts = trust.home / "hosts"
    hosts.write_text(f"127.0.0.1 {urlsplit(url).hostname}\n")
    return run(
        "java", "-XX:TieredStopAtLevel=1", f"-Djdk.net.hosts.file={hosts}",
        f"-Djavax.net.ssl.trustStore={trust.truststore}",
        "-Djavax.net.ssl.trustStorePassword=changeit", str(source), url,
        env={}, cwd=trust.home,
    )[0]  # fmt: skip


def chromium(url: str, trust: Trust, *options: str) -> str:
    """The page's text as Chromium shows it; the CA is in the NSS database of a home of its own."""
    database = trust.home / ".pki" / "nssdb"
    if not database.exists():
        database.mkdir(parents=True)
        here = f"sql:{database}"
        run("certutil", "-N", "-d", here, "--empty-password", env={}, cwd=trust.home)
        run(
            "certutil", "-A", "-d", here, "-t", "C,,", "-n", "ca", "-i", str(trust.certificate),
            env={}, cwd=trust.home,
        )  # fmt: skip
    document, errors = run(
        CHROMIUM or "chromium", "--headless", "--no-sandbox", "--disable-gpu",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",
        f"--user-data-dir={trust.home / 'chromium'}",
        *(options or ("--host-resolver-rules=MAP *.test 127.0.0.1",)), "--dump-dom", url,
        env={}, cwd=trust.home,
    )  # fmt: skip
    if "ERR_" in document or not document.strip():
        raise Refused(errors + document)
    return document


CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
Ask = Callable[[str, Trust], str]


def missing(client: Ask) -> str:
    """What this machine lacks for a client; empty if all is there."""
    needs = {
        chromium: ("chromium", "certutil"), java: ("java", "javac"), node: ("node",),
        curl: ("curl",), openssl: ("openssl",),
    }[client]  # fmt: skip
    absent = [name for name in needs if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""
