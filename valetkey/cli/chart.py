"""What is made of the chart's ``values.yaml``: its README and its JSON Schema.

Above each value stands ``# -- (kind) text``; without a kind the value's own type says it. A kind is
one of `KINDS` (or ``one of A, B``). Every mapping that is not a kind's is closed: a misspelt value
is refused by Helm. Settings of the programs are taken from the types that their loaders use, so
that what Helm lets through is what they read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from valetkey.contracts.errors import ConfigError

CHART: Final = Path("helm/valetkey")
# What the chart takes along, and from where: Helm reads no file outside of it.
TAKEN: Final = (
    ("config/grafana", "*.json", "files/dashboards"),
    ("config/prometheus", "*.rules.yaml", "files/rules"),
)
# Settings that the chart's templates write.
WRITTEN: Final = {
    "broker": (
        "bind", "tls", "mtls", "database", "master_key_file", "grants_file", "policies",
    ),
    "collector": ("bind", "tls", "database"),
    "injector": ("webhook",),
}  # fmt: skip

# What they write where values don't say it: type, key.
FILLED: Final = {"injector": (("InjectedSidecarSettings", "image"),)}

Json = dict[str, Any]

_ABOVE: Final = re.compile(r"# -- (?:\(([^)]+)\) )?(.+)")
# RFC 1123, as Kubernetes has it.
_NAME: Final = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_QUANTITY: Final = r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?"


def _closed(properties: Json, required: tuple[str, ...] = ()) -> Json:
    made: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    return made | ({"required": list(required)} if required else {})


def _text(pattern: str) -> Json:
    return {"type": "string", "pattern": f"^({pattern})$"}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_STRINGS: Final[Json] = {"type": "object", "additionalProperties": {"type": "string"}}
_AMOUNTS: Final[Json] = _closed({
    # YAML reads `cpu: 1` as a number.
    name: {"anyOf": [_text(_QUANTITY), {"type": "number", "exclusiveMinimum": 0}]}
    for name in ("cpu", "memory", "ephemeral-storage")
})  # fmt: skip
# meta/v1 LabelSelector, networking.k8s.io/v1 NetworkPolicyPeer, core/v1 Toleration
_SELECTOR: Final[Json] = _closed({
    "matchLabels": _STRINGS,
    "matchExpressions": _list(
        _closed(
            {
                "key": {"type": "string", "minLength": 1},
                "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                "values": _list({"type": "string"}),
            },
            ("key", "operator"),
        )
    ),
})  # fmt: skip
_PEER: Final[Json] = _closed({
    "podSelector": _SELECTOR,
    "namespaceSelector": _SELECTOR,
    "ipBlock": _closed(
        {"cidr": {"type": "string", "minLength": 1}, "except": _list({"type": "string"})}, ("cidr",)
    ),
})  # fmt: skip
_TOLERATION: Final[Json] = _closed({
    "key": {"type": "string"},
    "operator": {"enum": ["Exists", "Equal"]},
    "value": {"type": "string"},
    "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
    "tolerationSeconds": {"type": "integer"},
})  # fmt: skip
_OPERATOR: Final = "#/$defs/operator.OperatorFileSettings"
_PORT: Final[Json] = {"type": "integer", "minimum": 1, "maximum": 65535}

KINDS: Final[dict[str, Json]] = {
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
    "count": {"type": "integer", "minimum": 1},
    "percent": {"type": "integer", "minimum": 1, "maximum": 100},
    "port": _PORT,
    "ports": _list(_PORT),
    "uid": {"type": "integer", "minimum": 1, "maximum": 2_147_483_647},
    "name": _text(f"|{_NAME}"),
    "names": _list(_text(_NAME)),
    "file name": _text(r"|[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}"),
    "digest": _text("|sha256:[0-9a-f]{64}"),
    "quantity": _text(_QUANTITY),
    "duration": _text(r"([0-9]+(ms|[hms]))+"),
    "labels": _STRINGS,
    "files": {**_STRINGS, "propertyNames": _text(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}")},
    "resources": _closed({"requests": _AMOUNTS, "limits": _AMOUNTS}),
    "tolerations": _list(_TOLERATION),
    "peers": _list(_PEER),
    "broker settings": {"$ref": "#/$defs/broker.BrokerSettings"},
    "collector settings": {"$ref": "#/$defs/collector.CollectorSettings"},
    "injector settings": {"$ref": "#/$defs/injector.InjectorSettings"},
    "operator file": {
        "anyOf": [_closed({}), {"$ref": _OPERATOR}],
    },
    "grants": {"$ref": "#/$defs/grants.GrantsFile/properties/grants"},
    # Other charts' business: Helm hands it to every chart beneath.
    "global": {"type": "object"},
}


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the chart: where, of what kind, by default, what for."""

    path: tuple[str, ...]
    kind: str
    default: Any
    about: str


def values(text: str) -> list[Value]:
    """The values of a ``values.yaml``, in its order. Raises `ConfigError`."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("values.yaml is no mapping")
    return list(_values(root, (), text.splitlines()))


def _values(node: yaml.MappingNode, path: tuple[str, ...], lines: list[str]) -> Iterator[Value]:
    for key, inner in node.value:
        here = (*path, key.value)
        line = key.start_mark.line
        above = _ABOVE.fullmatch(lines[line - 1].strip()) if line else None
        if above is not None:
            default = yaml.safe_load(yaml.serialize(inner, Dumper=yaml.SafeDumper))
            yield Value(here, above[1] or _kind_of(default, here), default, above[2])
        elif isinstance(inner, yaml.MappingNode) and inner.value:
            yield from _values(inner, here, lines)
        else:
            raise ConfigError(f"values.yaml:{line + 1}: {'.'.join(here)} has no `# --` above it")


def _kind_of(default: Any, path: tuple[str, ...]) -> str:
    if isinstance(default, bool):
        return "flag"
    raise ConfigError(f"values.yaml: {'.'.join(path)}: say its kind: `# -- (kind) text`")


def schema(known: list[Value], programs: dict[str, Json]) -> Json:
    """JSON Schema of the values. ``programs`` are the schemas of settings, by program.

    Raises `ConfigError` for a kind that there is not.
    """
    root = _closed({})
    for value in known:
        place = root
        for key in value.path[:-1]:
            place = place["properties"].setdefault(key, _closed({}))
        place["properties"][value.path[-1]] = {"description": value.about, **_of_kind(value)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the Valetkey chart",
        **root,
        "$defs": {
            f"{program}.{name}": definition
            for program, whole in programs.items()
            for name, definition in _definitions(program, whole).items()
        },
    }


def _of_kind(value: Value) -> Json:
    if value.kind.startswith("one of "):
        return {"enum": value.kind.removeprefix("one of ").split(", ")}
    if value.kind not in KINDS:
        raise ConfigError(f"values.yaml: {'.'.join(value.path)}: {value.kind} is no kind")
    return KINDS[value.kind]


def _definitions(program: str, whole: Json) -> Json:
    """A program's definitions under names of its own, without what the chart writes."""
    found: Json = _renamed(whole["$defs"], program)
    written = WRITTEN.get(program, ())
    main = found[whole["$ref"].rpartition("/")[2]]
    main["properties"] = {
        name: held for name, held in main["properties"].items() if name not in written
    }
    main["required"] = [name for name in main["required"] if name not in written]
    for name, key in FILLED.get(program, ()):
        found[name]["required"].remove(key)
    return found


def _renamed(node: Any, program: str) -> Any:
    if isinstance(node, dict):
        return {
            key: held.replace("#/$defs/", f"#/$defs/{program}.")
            if key == "$ref" and isinstance(held, str)
            else _renamed(held, program)
            for key, held in node.items()
        }
    return [_renamed(held, program) for held in node] if isinstance(node, list) else node


def readme(known: list[Value], about: str) -> str:
    """The chart's README: ``about``, then a table of all values."""
    rows = "".join(
        f"| `{'.'.join(value.path)}` | {value.kind} | {_shown(value.default)} | "
        f"{value.about.replace('|', '&#124;')} |\n"
        for value in known
    )
    return f"{about}\n| Value | Kind | Default | What for |\n|---|---|---|---|\n{rows}"


def _shown(default: Any) -> str:
    if not default and default is not False:
        return ""
    flow = yaml.safe_dump(default, default_flow_style=True, sort_keys=False, width=10_000)
    return f"`{flow.removesuffix('...' + chr(10)).strip()}`"
