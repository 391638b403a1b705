from __future__ import annotations

import pytest

from bench.loads import parse_report
from bench.processes import NotRun


def test_the_report_is_the_last_line_of_json() -> None:
    output = 'Running 1s test\n  1 threads\n{"requests":1}\n{"requests":2,"not_2xx":0}\n'
    assert parse_report(output) == {"requests": 2, "not_2xx": 0}


def test_a_load_without_report_tells_its_reason() -> None:
    with pytest.raises(NotRun, match="unable to connect"):
        parse_report("unable to connect to 127.0.0.1")
