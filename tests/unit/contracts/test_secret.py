"""A secret shows only where it is revealed."""

from __future__ import annotations

import copy
import json
import logging
import pickle

import pytest

from valetkey.contracts.secret import Secret

VALUE = "correct-horse-battery-staple"


@pytest.mark.parametrize(
    "shown",
    [
        repr(Secret(VALUE)),
        str(Secret(VALUE)),
        f"{Secret(VALUE)}",
        f"{Secret(VALUE):>40}",
        "%s %r" % (Secret(VALUE), Secret(VALUE)),  # noqa: UP031 - logging formats this way
        repr({"token": Secret(VALUE)}),
        repr([Secret(VALUE)]),
        str(ValueError(Secret(VALUE))),
    ],
)
def test_no_rendering_shows_it(shown: str) -> None:
    assert VALUE not in shown
    assert "Secret(…)" in shown


def test_reveal_is_the_way_to_it() -> None:
    assert Secret(VALUE).reveal() == VALUE


def test_a_log_record_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").error("token %s", Secret(VALUE))
    assert VALUE not in caplog.text


@pytest.mark.parametrize("serialise", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps])
def test_it_is_not_serialised(serialise) -> None:
    with pytest.raises(TypeError):
        serialise(Secret(VALUE))


def test_equality_is_by_value_and_only_among_secrets() -> None:
    assert Secret(VALUE) == Secret(VALUE)
    assert hash(Secret(VALUE)) == hash(Secret(VALUE))
    assert Secret(VALUE) != Secret(VALUE + "x")
    assert Secret(VALUE) != VALUE
    assert Secret("ä") != Secret("a")


def test_emptiness_can_be_asked_without_revealing() -> None:
    assert Secret(VALUE)
    assert not Secret("")


def test_it_holds_nothing_else() -> None:
    with pytest.raises(AttributeError):
        Secret(VALUE).note = "x"  # type: ignore[attr-defined]
