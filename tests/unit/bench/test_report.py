from __future__ import annotations

import msgspec

from bench.measurements import Measurements
from bench.report import markdown
from tests.unit.bench.test_aims import latency, throughput

MACHINE = {
    "cpu": "Some CPU",
    "cores": 2,
    "memory_gib": 8,
    "kernel": "6.1",
    "spool_file_system": "ext4",
    "tcp_congestion_control": "cubic",
    "load_average": 0.1,
    "versions": {"python": "3.11"},
    "commit": "abc1234",
}
METHOD = {"rounds": 2, "seconds": 5.0, "connections": 32, "rate": 1000.0}


def measured() -> Measurements:
    return Measurements(
        date="2026-01-01 00:00 UTC",
        machine=MACHINE,
        method=METHOD,
        throughput=[
            throughput("direct", 50_000),
            throughput("nginx", 40_000, 1),
            throughput("nginx", 44_000, 2, not_2xx=3),
            throughput("tls-direct", 30_000, tls="TLS_ONE"),
            throughput("tls-nginx", 20_000, tls="TLS_OTHER"),
            throughput("download-nginx", 1_200, 1, cpu_us_per_request=500.0),
            throughput("download-nginx", 1_400, 2, cpu_us_per_request=700.0),
        ],
        latency=[latency("direct", 0.1, 0.2), latency("nginx", 0.3, 0.5)],
        not_run={"mitmproxy": "mitmdump is missing"},
    )


def test_rows_show_medians_spread_and_errors() -> None:
    text = markdown(measured())
    assert "| nginx, static header | 42,000 | 40,000–44,000 | 1.00 | 2.00 | 30.0 | 50.0 " in text
    assert "| 0.30 | 3 |" in text
    assert "| nginx, static header | 0.300 | 0.500 | +0.200 | +0.300 | 30.0 | 0.100 | 0 |" in text


def test_interception_shows_what_was_negotiated() -> None:
    text = markdown(measured())
    direct = "| direct, no proxy: TLS once | 30,000 | 30,000–30,000 | 1.00 | 2.00 |  |  |  | TLS_ONE | 0 |"
    assert direct in text
    assert "| nginx, static header and certificate | 20,000 | 20,000–20,000 |" in text
    assert "| TLS_OTHER | 0 |" in text
    assert "| Valetkey, tunnels intercepted, 1,000 routes | not run: not asked for |" in text


def test_large_bodies_show_what_went_through() -> None:
    row = "| answers: nginx, unbuffered | 1,300 | 1,200–1,400 | 1,300 | 1.00 | 2.00 | 600.0 | 50.0 "
    assert row in markdown(measured())


def test_rows_that_were_not_run_say_why() -> None:
    text = markdown(measured())
    assert "| mitmproxy, reverse mode | not run: mitmdump is missing |" in text
    assert "| Valetkey, 1,000 routes | not run: not asked for |" in text


def test_all_rows_of_a_table_have_as_many_cells() -> None:
    tables = [part for part in markdown(measured()).split("\n\n") if part.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_record_can_be_read_back() -> None:
    encoded = msgspec.json.encode(measured())
    assert msgspec.json.decode(encoded, type=Measurements) == measured()
