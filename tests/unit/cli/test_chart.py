"""The chart's README and schema: what is made of ``values.yaml``, and what it lets through."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from valetkey import __version__
from valetkey.cli import chart
from valetkey.contracts.errors import ConfigError

ROOT = Path(__file__).parents[3]
CHART = ROOT / chart.CHART
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FILES = sorted((CHART / "ci").glob("*-values.yaml"))


class _Loader(yaml.SafeLoader):
    """As Helm reads values: a time is a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=_Loader)  # a SafeLoader


def merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{name: merged(base.get(name), held) for name, held in over.items()}}
    return over


def wrong(values: Any) -> list[str]:
    """What the schema says of values, put over the defaults."""
    whole = merged(read(CHART / "values.yaml"), values)
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(whole)]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_examples_are_let_through(file: Path) -> None:
    assert wrong(read(file)) == []


def test_the_values_of_the_pages_are_let_through() -> None:
    shown = {}
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text()
        blocks = re.findall(r"^( +)# values\.yaml[^\n]*\n((?:\1.*\n|\n)+)", text, re.MULTILINE)
        shown[page.name] = len(blocks)
        for _, block in blocks:
            assert wrong(yaml.load(block, Loader=_Loader)) == [], page
    least = {"install.md": 3, "run-without-internet.md": 1}
    assert {name: shown[name] for name in least if shown[name] < least[name]} == {}


@pytest.mark.parametrize("program", sorted(chart.WRITTEN))
def test_whatever_a_program_reads_may_be_said_except_what_the_chart_writes(program: str) -> None:
    example = read(ROOT / f"config/{program}.yaml")
    written = {key: example.pop(key) for key in chart.WRITTEN[program] if key in example}
    assert wrong({program: {"settings": example}}) == []
    for key, value in written.items():
        assert key in str(wrong({program: {"settings": {**example, key: value}}}))


def test_all_grants_may_be_said() -> None:
    assert wrong({"broker": read(ROOT / "config/grants.yaml")}) == []


@pytest.mark.parametrize(
    "values",
    [
        {"brokr": {}},
        {"broker": {"replica": 2}},
        {"broker": {"replicas": 0}},
        {"broker": {"replicas": "2"}},
        {"broker": {"settings": {"issuerr": "x"}}},
        {"broker": {"settings": {"token_ttl": 120}}},
        {"broker": {"grants": [{"id": "a"}]}},
        {"broker": {"database": {"type": "mysql"}}},
        {"broker": {"resources": {"requests": {"cpus": "1"}}}},
        {"broker": {"files": {"../up": "x"}}},
        {"broker": {"masterKey": {"value": "secret"}}},
        {"collector": {"settings": {"database": "x"}}},
        {"image": {"digest": "sha256:1"}},
        {"pods": {"uid": 0}},
        {"pods": {"tolerations": [{"keys": "x"}]}},
        {"networkPolicy": {"brokerFrom": [{"podSelectors": {}}]}},
        {"networkPolicy": {"egressPorts": [70_000]}},
        {"metrics": {"serviceMonitor": {"interval": "30"}}},
        {"bindAddress": "127.0.0.1"},
    ],
    ids=json.dumps,
)
def test_what_is_refused(values: dict[str, Any]) -> None:
    assert wrong(values)


def objects_of(node: Any, path: str = "$") -> Any:
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for name, held in node.items():
            yield from objects_of(held, f"{path}.{name}")
    elif isinstance(node, list):
        for index, held in enumerate(node):
            yield from objects_of(held, f"{path}[{index}]")


def test_no_mapping_takes_what_nobody_named() -> None:
    """Closed, or a mapping from names to values of one kind."""
    open_ = [
        path
        for path, node in objects_of(SCHEMA)
        if node.get("additionalProperties") is not False
        and not isinstance(node.get("additionalProperties"), dict)
    ]
    assert open_ == ["$.properties.global"]


def test_what_the_templates_write_is_what_values_may_not_say() -> None:
    for program, names in chart.WRITTEN.items():
        text = (CHART / f"templates/{program}/_settings.tpl").read_text()
        filled = {"sidecar"} if program in chart.FILLED else set()
        assert set(re.findall(r'set \$settings "(\w+)"', text)) == {*names, *filled}


def test_each_value_has_a_case() -> None:
    """``set:`` of the suites, or for what is more than one value the settings beneath it."""
    said = {
        path
        for suite in (CHART / "tests").glob("*_test.yaml")
        for case in yaml.safe_load(suite.read_text())["tests"]
        for name, value in case.get("set", {}).items()
        for path in _paths(name, value)
    }
    known = chart.values((CHART / "values.yaml").read_text())
    missing = {
        path
        for value in known
        for path in [".".join(value.path)]
        if not any(one == path or one.startswith(f"{path}.") for one in said)
    }
    assert missing == set()


def _paths(name: str, value: Any) -> Any:
    yield name
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _paths(f"{name}.{key}", held)


def taken(place: str) -> set[str]:
    return {path.name for path in (CHART / place).glob("*")}


@pytest.mark.parametrize(("source", "pattern", "place"), chart.TAKEN)
def test_what_is_taken_along_is_all_that_there_is(source: str, pattern: str, place: str) -> None:
    assert taken(place) == {path.name for path in (ROOT / source).glob(pattern)}


def test_the_chart_is_of_this_version() -> None:
    assert read(CHART / "Chart.yaml")["appVersion"] == __version__


# --- the generator --------------------------------------------------------------------------------


def test_values_are_found_with_their_kind_and_text() -> None:
    text = '# -- (name) Whose.\na: ""\nb:\n  # -- Whether.\n  c: true\n  # -- (ports) Where.\n  d: [1]\n'
    assert chart.values(text) == [
        chart.Value(("a",), "name", "", "Whose."),
        chart.Value(("b", "c"), "flag", True, "Whether."),
        chart.Value(("b", "d"), "ports", [1], "Where."),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", r"values\.yaml:1: a has no `# --` above it"),
        ("b:\n  # said\n  a: 1\n", r"values\.yaml:3: b\.a has no `# --`"),
        ("# -- Which.\na: x\n", "a: say its kind"),
        ("- a\n", "no mapping"),
    ],
)
def test_a_value_that_is_not_explained_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chart.values(text)


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a: nmae is no kind"):
        chart.schema([chart.Value(("a",), "nmae", "", "Whose.")], {})


def test_the_readme_shows_defaults_as_they_are_written() -> None:
    page = chart.readme(
        [
            chart.Value(("a", "b"), "one of x, y", "x", "This | that."),
            chart.Value(("c",), "flag", False, "Whether."),
            chart.Value(("d",), "labels", {}, "Which."),
        ],
        "# Chart\n",
    )
    assert page.splitlines()[-3:] == [
        "| `a.b` | one of x, y | `x` | This &#124; that. |",
        "| `c` | flag | `false` | Whether. |",
        "| `d` | labels |  | Which. |",
    ]
