"""Settings: what loads, and for each thing that does not, the exact message with its place."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.settings import Duration, Settings, Size, duration, pattern, size


class Pool(Settings, frozen=True, kw_only=True):
    idle: Duration = duration(30)
    size: Annotated[int, Meta(ge=1, le=10)] = 4


class Route(Settings, frozen=True, kw_only=True):
    id: str
    methods: Annotated[tuple[str, ...], Meta(min_length=1)]
    audit: Literal["buffered", "durable"] = "buffered"


class Sample(Settings, frozen=True, kw_only=True):
    file: Path
    bind: str = "127.0.0.1:7070"
    limit: Size = size(16 << 10)
    pool: Pool = msgspec.field(default_factory=Pool)
    routes: tuple[Route, ...] = ()
    targets: dict[str, Pool] = msgspec.field(default_factory=dict)
    note: str | None = None
    name: Annotated[str, pattern(r"[a-z]+|[0-9]+")] = "a"


def parse(text: str, **environ: str) -> Sample:
    return settings.parse(Sample, text, name="s.yaml", program="proxy", environ=environ)


GOOD = """\
file: /a
pool:
  idle: 250ms
routes:
  - id: r1
    methods: [GET]
targets:
  t1: {size: 2}
"""


def test_a_good_file_gives_one_immutable_value() -> None:
    loaded = parse(GOOD)
    assert loaded == Sample(
        file=Path("/a"),
        pool=Pool(idle=Duration(0.25)),
        routes=(Route(id="r1", methods=("GET",)),),
        targets={"t1": Pool(size=2)},
    )
    assert loaded.limit == 16384
    with pytest.raises(AttributeError):
        loaded.bind = "0.0.0.0:1"  # type: ignore[misc]


BAD = {
    "unknown key at the top": ("file: /a\nfil: /b\n", "s.yaml:2: fil: unknown key"),
    "unknown key in a section": (
        "file: /a\npool:\n  size: 2\n  idel: 3s\n",
        "s.yaml:4: pool.idel: unknown key",
    ),
    "unknown key in a list": (
        "file: /a\nroutes:\n  - id: a\n    methods: [GET]\n  - id: b\n    methods: [GET]\n    x: 1\n",
        "s.yaml:7: routes.1.x: unknown key",
    ),
    "unknown key in a table": (
        "file: /a\ntargets:\n  t1:\n    size: 2\n    sizes: 3\n",
        "s.yaml:5: targets.t1.sizes: unknown key",
    ),
    "a required key is missing": (
        "bind: x\n",
        "s.yaml:1: (top level): Object missing required field `file`",
    ),
    "a required key of a list element is missing": (
        "file: /a\nroutes:\n  - methods: [GET]\n",
        "s.yaml:3: routes.0: Object missing required field `id`",
    ),
    "empty file": ("", "s.yaml:1: (top level): Object missing required field `file`"),
    "only a comment": ("# x\n", "s.yaml:1: (top level): Object missing required field `file`"),
    "a list at the top": ("- a\n", "s.yaml:1: (top level): Expected `object`, got `array`"),
    "a text at the top": ("hello\n", "s.yaml:1: (top level): Expected `object`, got `str`"),
    "duplicate key": ("file: /a\nfile: /b\n", "s.yaml:2: duplicate key 'file'"),
    "duplicate key below": (
        "file: /a\npool:\n  size: 2\n  size: 3\n",
        "s.yaml:4: duplicate key 'size'",
    ),
    "number for a text": ("file: /a\nbind: 7070\n", "s.yaml:2: bind: Expected `str`, got `int`"),
    "text for a number": (
        "file: /a\npool: {size: many}\n",
        "s.yaml:2: pool.size: Expected `int`, got `str`",
    ),
    "number out of range": (
        "file: /a\npool:\n  size: 11\n",
        "s.yaml:3: pool.size: Expected `int` <= 10",
    ),
    "unknown word": (
        "file: /a\nroutes:\n  - {id: a, methods: [GET], audit: later}\n",
        "s.yaml:3: routes.0.audit: Invalid enum value 'later'",
    ),
    "empty list": (
        "file: /a\nroutes:\n  - id: a\n    methods: []\n",
        "s.yaml:4: routes.0.methods: Expected `array` of length >= 1",
    ),
    "bare number for a duration": (
        "file: /a\npool: {idle: 30}\n",
        "s.yaml:2: pool.idle: expected a duration with a unit, such as 250ms, 30s or 5m",
    ),
    "duration in unknown unit": (
        "file: /a\npool: {idle: 30w}\n",
        "s.yaml:2: pool.idle: expected a duration with a unit, such as 250ms, 30s or 5m",
    ),
    "negative duration": (
        "file: /a\npool: {idle: -3s}\n",
        "s.yaml:2: pool.idle: expected a duration with a unit, such as 250ms, 30s or 5m",
    ),
    "decimal size unit": (
        "file: /a\nlimit: 16KB\n",
        "s.yaml:2: limit: expected a size with a unit, such as 512B, 16KiB or 64MiB",
    ),
    "bare number for a size": (
        "file: /a\nlimit: 16384\n",
        "s.yaml:2: limit: expected a size with a unit, such as 512B, 16KiB or 64MiB",
    ),
    "empty path": ('file: ""\n', "s.yaml:1: file: expected a file path"),
    "null for a path": ("file:\n", "s.yaml:1: file: expected a file path"),
    "not YAML": ("file: [\n", "s.yaml:2: not YAML: did not find expected node content"),
    "a tab": ("file: /a\n\tbind: x\n", "s.yaml:2: not YAML: found a tab character that violates indentation"),
    "a control character": (
        "file: /a\nbind: a\0b\n",
        "s.yaml:2: not YAML: control characters are not allowed",
    ),
    "an anchor that holds itself": (
        "file: &a [*a]\n",
        "s.yaml:1: nested too deeply, or an anchor holds itself",
    ),
    "nested too deeply": (
        "file: " + "[" * 5000 + "]" * 5000 + "\n",
        "s.yaml:1: nested too deeply, or an anchor holds itself",
    ),
    "an undefined alias": ("file: *x\n", "s.yaml:1: not YAML: found undefined alias"),
    "a merge key": (
        "file: /a\npool: &p {size: 2}\ntargets:\n  t1:\n    <<: *p\n",
        "s.yaml:5: merge keys (<<) are not supported",
    ),
    "a key that is a list": ("? [a]\n: b\n", "s.yaml:1: a key must be a plain string"),
    "a Python object": (
        "file: !!python/object/apply:os.system ['true']\n",
        None,
    ),
    "a name with something before it": (
        "file: /a\nname: A1\n",
        r"s.yaml:2: name: Expected `str` matching regex '^(?:[a-z]+|[0-9]+)\\Z'",
    ),
    "a name with something behind it": (
        "file: /a\nname: 1a\n",
        r"s.yaml:2: name: Expected `str` matching regex '^(?:[a-z]+|[0-9]+)\\Z'",
    ),
    "a name with a newline behind it": (
        'file: /a\nname: "a\\n"\n',
        r"s.yaml:2: name: Expected `str` matching regex '^(?:[a-z]+|[0-9]+)\\Z'",
    ),
    "an impossible date": ("file: /a\nnote: 2026-13-99\n", "s.yaml:2: unusable value '2026-13-99'"),
    "two documents": ("file: /a\n---\nfile: /b\n", "s.yaml:2: not YAML: but found another document"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_does_not_load(text: str, message: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    if message is None:  # the wording is the YAML library's; the place is ours
        assert str(caught.value).startswith("s.yaml:1: ")
    else:
        assert str(caught.value) == message


def test_environment_variables_replace_keys() -> None:
    loaded = parse(
        GOOD,
        VALETKEY_PROXY__BIND="127.0.0.1:9",
        VALETKEY_PROXY__POOL__SIZE="7",
        VALETKEY_PROXY__TARGETS__T2="{size: 1}",
        VALETKEY_BROKER__ANYTHING="the broker judges this",
        VALETKEY_CONFIG="/etc/x",
        VALETKEY_REQUIRE="all",
        PATH="/bin",
    )
    assert (loaded.bind, loaded.pool.size, loaded.pool.idle) == ("127.0.0.1:9", 7, 0.25)
    assert loaded.targets == {"t1": Pool(size=2), "t2": Pool(size=1)}


BAD_VARIABLES = {
    "unknown key": ({"VALETKEY_PROXY__FIL": "/a"}, "VALETKEY_PROXY__FIL: fil: unknown key"),
    "unknown variable": (
        {"VALETKEY_BIND": "x"},
        "VALETKEY_BIND: unknown variable (settings are VALETKEY_PROXY__<KEY>__<KEY>)",
    ),
    "another case": (
        {"VALETKEY_proxy__bind": "x"},
        "VALETKEY_proxy__bind: unknown variable (settings are VALETKEY_PROXY__<KEY>__<KEY>)",
    ),
    "another type": (
        {"VALETKEY_PROXY__POOL__SIZE": "many"},
        "VALETKEY_PROXY__POOL__SIZE: pool.size: Expected `int`, got `str`",
    ),
    "below a text": (
        {"VALETKEY_PROXY__FILE__X": "1"},
        "VALETKEY_PROXY__FILE__X: file.x is not reachable through mappings",
    ),
    "into a list": (
        {"VALETKEY_PROXY__ROUTES__0__ID": "x"},
        "VALETKEY_PROXY__ROUTES__0__ID: routes.0.id is not reachable through mappings",
    ),
    "not YAML": ({"VALETKEY_PROXY__BIND": "["}, "VALETKEY_PROXY__BIND: the value is not YAML"),
}


@pytest.mark.parametrize(("environ", "message"), BAD_VARIABLES.values(), ids=BAD_VARIABLES)
def test_variables_that_do_not_load(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(GOOD, **environ)
    assert str(caught.value) == message


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD)
    loaded = settings.load(Sample, tmp_path / "s.yaml", program="proxy", environ={})
    assert loaded.file == Path("/a")


@pytest.mark.parametrize("content", [None, b"file: \xff\n"], ids=["missing", "not UTF-8"])
def test_a_file_that_can_not_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"s\.yaml: can't be read: "):
        settings.load(Sample, path, program="proxy", environ={})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1.5s", 1.5), ("5m", 300), ("2h", 7200), ("1d", 86400), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse(f"file: /a\npool: {{idle: {text}}}\n").pool.idle == seconds


@pytest.mark.parametrize(
    ("text", "octets"), [("512B", 512), ("16KiB", 16384), ("64MiB", 1 << 26), ("1GiB", 1 << 30)]
)
def test_sizes(text: str, octets: int) -> None:
    assert parse(f"file: /a\nlimit: {text}\n").limit == octets


def test_the_schema_is_as_strict_as_the_loader() -> None:
    schema = settings.schema(Sample)
    sample = schema["$defs"]["Sample"]
    assert sample["additionalProperties"] is False
    assert sample["required"] == ["file"]
    assert sample["properties"]["limit"]["pattern"] == r"^(\d+)(B|KiB|MiB|GiB)$"
    # ECMA 262 knows no \Z, and its $ means what Python's \Z does.
    assert sample["properties"]["name"]["pattern"] == r"^(?:[a-z]+|[0-9]+)$"


@given(st.text(max_size=200))
def test_any_text_loads_or_is_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(parse(text), Sample)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(JSON_LIKE)
def test_no_value_of_another_type_slips_in(value: Any) -> None:
    document = msgspec.json.encode({"file": "/a", "pool": value}).decode()
    try:
        loaded = parse(document)
    except ConfigError:
        return
    assert isinstance(value, dict)
    assert value.keys() <= {"idle", "size"}
    assert isinstance(loaded.pool, Pool)
