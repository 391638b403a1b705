from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from cryptography.x509 import load_pem_x509_certificate

from valetkey.cli.doctor.certificates import authority_in
from valetkey.cli.doctor.store_files import StoreFiles
from valetkey.cli.doctor.trust import Form, Holding, Place

CA = trustme.CA().cert_pem.bytes()
OTHER = trustme.CA().cert_pem.bytes()
DER = authority_in(CA).der


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with stores of all kinds."""
    (tmp_path / "bundle").write_bytes(OTHER + CA + CA)
    (tmp_path / "others").write_bytes(OTHER)
    (tmp_path / "empty").write_bytes(b"")
    hashed, plain = tmp_path / "hashed", tmp_path / "plain"
    for directory, name in ((hashed, "0a1b2c3d.0"), (plain, "valetkey.pem")):
        directory.mkdir()
        (directory / name).write_bytes(CA)
        (directory / "readme").write_text("no certificate")
        (directory / "broken").symlink_to("nowhere")
    store = pkcs12.serialize_java_truststore(
        [pkcs12.PKCS12Certificate(load_pem_x509_certificate(CA), b"valetkey")],
        BestAvailableEncryption(b"changeit"),
    )
    (tmp_path / "store.p12").write_bytes(store)
    (tmp_path / "store.jks").write_bytes(bytes.fromhex("feedfeed00000002") + DER + bytes(20))
    (tmp_path / "others.jks").write_bytes(bytes.fromhex("feedfeed00000002") + bytes(40))
    return tmp_path


NOTHING = Holding(readable=False)
READ: list[tuple[Form, str, str | None, Holding]] = [
    ("pem", "bundle", None, Holding(readable=True, holds_ca=True, count=2)),
    ("pem", "others", None, Holding(readable=True, holds_ca=False, count=1)),
    ("pem", "empty", None, NOTHING),
    ("pem", "missing", None, NOTHING),
    ("pem", "hashed", None, Holding(readable=True, holds_ca=True, count=1)),
    ("pem", "plain", None, NOTHING),
    ("hashed", "hashed", None, Holding(readable=True, holds_ca=True, count=1)),
    ("hashed", "plain", None, NOTHING),
    ("directory", "plain", None, Holding(readable=True, holds_ca=True, count=1)),
    ("directory", "missing", None, NOTHING),
    ("java", "store.p12", "changeit", Holding(readable=True, holds_ca=True, count=1)),
    ("java", "store.p12", None, NOTHING),
    ("java", "store.jks", None, Holding(readable=True, holds_ca=True)),
    ("java", "others.jks", None, Holding(readable=True, holds_ca=False)),
    ("java", "others", "changeit", NOTHING),
    ("built in", "", None, Holding(readable=True)),
]


@pytest.mark.parametrize(("form", "name", "password", "holding"), READ)
def test_what_a_place_holds(
    form: Form, name: str, password: str | None, holding: Holding, files: Path
) -> None:
    assert StoreFiles(DER).read(Place(form, str(files / name), "", password)) == holding


def test_a_place_is_read_once(files: Path) -> None:
    reader = StoreFiles(DER)
    place = Place("pem", str(files / "bundle"))
    first = reader.read(place)
    (files / "bundle").unlink()
    assert reader.read(place) is first
