"""A real LDAP server for the tests: OpenLDAP's slapd on loopback, with a configuration of its own.

Debian: ``apt-get install slapd`` (a server that the package may have started is left alone). It
runs as whoever runs the tests, in a directory that is gone afterwards.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import trustme

from tests.support.ports import free_port

_DEADLINE = 20.0
BASE = "dc=demo,dc=example"
BIND_DN = f"cn=valetkey,{BASE}"

_CONFIG = """
modulepath /usr/lib/ldap
moduleload back_mdb
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
pidfile {directory}/slapd.pid
TLSCACertificateFile {directory}/ca.pem
TLSCertificateFile {directory}/server.pem
TLSCertificateKeyFile {directory}/server.key
security simple_bind=128
database mdb
suffix "{base}"
directory {directory}/data
rootdn "{bind_dn}"
rootpw {password}
index uid,member eq
"""


def program() -> str | None:
    return shutil.which("slapd", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin")


class Slapd:
    """A server with the entries of an LDIF text. Binds without TLS are refused."""

    def __init__(self, directory: Path, ldif: str, *, password: str) -> None:
        found = program()
        if found is None:
            pytest.skip("slapd is not installed (Debian: apt-get install slapd)")
        self._program = found
        self._directory = directory
        (directory / "data").mkdir(parents=True)
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        self.ca_file = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        certificate.cert_chain_pems[0].write_to_path(directory / "server.pem")
        certificate.private_key_pem.write_to_path(directory / "server.key")
        self._config = directory / "slapd.conf"
        self._config.write_text(
            _CONFIG.format(directory=directory, base=BASE, bind_dn=BIND_DN, password=password)
        )
        entries = directory / "entries.ldif"
        entries.write_text(ldif)
        added = subprocess.run(
            [found, "-T", "add", "-f", self._config, "-l", entries],
            capture_output=True, check=False, text=True,
        )  # fmt: skip
        assert added.returncode == 0, added.stderr
        self.plain, self.tls = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def ldaps(self) -> str:
        return f"ldaps://127.0.0.1:{self.tls}"

    @property
    def ldap(self) -> str:
        return f"ldap://127.0.0.1:{self.plain}"

    def start(self) -> None:
        urls = f"ldap://127.0.0.1:{self.plain} ldaps://127.0.0.1:{self.tls}"
        log = (self._directory / "log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [self._program, "-f", self._config, "-h", urls, "-d", "none"],
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _DEADLINE
        for port in (self.plain, self.tls):
            while not _answers(port):
                assert self._process.poll() is None, (self._directory / "log").read_text()
                assert time.monotonic() < deadline, "slapd did not start"
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_DEADLINE)
            self._process = None


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
