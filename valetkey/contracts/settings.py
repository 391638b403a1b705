"""Strict settings: one YAML file and ``VALETKEY_<PROGRAM>__<KEY>__<KEY>`` variables, one snapshot.

Invariants:

- An unknown key, a duplicate key, a value of another type, an unknown variable: each stops the
  load with a `ConfigError` that names file, line and key path (or the variable).
- A load is all or nothing: it gives one immutable value or raises.
- Durations and sizes carry their unit (``250ms``, ``16KiB``); a bare number is refused, so that
  nobody has to remember which unit a key is in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml

from valetkey.contracts.errors import ConfigError

T = TypeVar("T")

# Variables that are not settings of one program: the file to load, and the tests' strictness.
_RESERVED: Final = frozenset({
    "VALETKEY_CONFIG", "VALETKEY_REQUIRE",
    # How the command line reaches a broker (valetkey/cli/remote.py).
    "VALETKEY_BROKER_URL", "VALETKEY_TOKEN_FILE", "VALETKEY_TOKEN", "VALETKEY_CA_FILE",
})  # fmt: skip
_PROGRAMS: Final = ("PROXY", "BROKER", "COLLECTOR", "INJECTOR")
# What the kubelet sets for each Service of a namespace (``enableServiceLinks``), here for one whose
# name begins with ``valetkey``.
_SERVICE_LINK: Final = re.compile(
    r"VALETKEY(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|"
    r"PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"(\d+)(B|KiB|MiB|GiB)")
_SIZE_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


# A thousand routes are 20,000 keys and values. Anchors of anchors can stand for any number.
_MOST_NODES: Final = 500_000


class Duration(float):
    """Seconds, written with a unit in settings: ``250ms``, ``30s``, ``5m``, ``1h``, ``1d``."""

    __slots__ = ()


class Size(int):
    """Bytes, written with a unit in settings: ``512B``, ``16KiB``, ``64MiB``, ``1GiB``."""

    __slots__ = ()


def duration(seconds: float) -> Any:
    """A field's default of that many seconds (a factory: msgspec can't show it in a schema)."""
    return msgspec.field(default_factory=lambda: Duration(seconds))


def size(octets: int) -> Any:
    """A field's default of that many bytes."""
    return msgspec.field(default_factory=lambda: Size(octets))


def pattern(expression: str) -> Any:
    r"""What a text must match as a whole: metadata for ``Annotated[str, …]``.

    Python's ``$`` would also match before a newline at the end; ``\Z`` does not.
    """
    whole = f"(?:{expression})" if "|" in expression else expression
    return msgspec.Meta(pattern=rf"^{whole}\Z")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every settings section: immutable, no unknown keys.

    Subclasses repeat ``frozen=True, kw_only=True``: type checkers do not inherit those.
    """


def load(kind: type[T], path: Path, *, program: str, environ: Mapping[str, str]) -> T:
    """Read ``path`` and the program's variables into one ``kind``.

    ``program`` is ``proxy``, ``broker``, ``collector`` or ``injector``. Raises `ConfigError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    return parse(kind, text, name=str(path), program=program, environ=environ)


def parse(
    kind: type[T], text: str, *, name: str, program: str, environ: Mapping[str, str] | None = None
) -> T:
    """`load` for a text already at hand; ``name`` stands for the file in messages."""
    tree, lines = _compose(text, name)
    from_env = _apply_environment(tree, program, environ or {})
    try:
        return msgspec.convert(tree, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `")
        keys = _key_path(where.removesuffix("`"))
        place = ".".join(str(key) for key in keys) or "(top level)"
        # An unknown field is reported at the object that holds it: point at the field itself.
        unknown = re.search(r"unknown field `([^`]*)`", message)
        if unknown:
            message = "unknown key"
            candidates = (
                path for path in lines if path[: len(keys)] == keys and path[-1:] == (unknown[1],)
            )
            keys = next(candidates, (*keys, unknown[1]))
            place = ".".join(str(key) for key in keys)
        variable = next((var for var, path in from_env.items() if keys[: len(path)] == path), None)
        if variable:
            raise ConfigError(f"{variable}: {place}: {message}") from error
        line = next((lines[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in lines), 1)
        raise ConfigError(f"{name}:{line}: {place}: {message}") from error


def parse_yaml(text: str, name: str) -> Any:
    """YAML with the loader's strictness (safe types only, no duplicate keys), as plain data."""
    return _compose(text, name)[0]


def convert(kind: type[T], tree: Any) -> T:
    """Plain data (of JSON or YAML) as one ``kind``. Raises `msgspec.ValidationError`."""
    return msgspec.convert(tree, kind, dec_hook=_decode)


def plain(value: Settings) -> dict[str, Any]:
    """A settings value as plain data that `convert` reads back."""
    made: dict[str, Any] = msgspec.to_builtins(value, enc_hook=_encode)
    return made


def spelled(value: Duration | Size) -> str:
    """A duration or size as the loader reads it: in the largest unit that leaves a whole number."""
    of_kind: Mapping[str, float] = _DURATION_UNITS if isinstance(value, Duration) else _SIZE_UNITS
    units = list(of_kind.items())  # the smallest first
    for unit, factor in reversed(units):
        count = value / factor
        if count >= 1 and abs(count - round(count)) < 1e-9:
            return f"{round(count)}{unit}"
    unit = "s" if isinstance(value, Duration) else "B"
    return (f"{value:.9f}".rstrip("0").rstrip(".") or "0") + unit


def schema(kind: type[Any]) -> dict[str, Any]:
    """JSON Schema (2020-12) of a settings type."""
    made = msgspec.json.schema(kind, schema_hook=_schema_of)
    _use_ecma_patterns(made)
    return made


def _use_ecma_patterns(node: Any) -> None:
    r"""Patterns in JSON Schema are of ECMA 262: no ``\Z``, and ``$`` means what it does here."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "pattern" and isinstance(value, str) and value.endswith(r"\Z"):
                node[key] = value.removesuffix(r"\Z") + "$"
            else:
                _use_ecma_patterns(value)
    elif isinstance(node, list):
        for value in node:
            _use_ecma_patterns(value)


Keys = tuple[str | int, ...]


class _Loader(yaml.CSafeLoader):
    """libyaml's parser (a thousand routes load in a tenth of the time), safe types only."""


def _compose(text: str, name: str) -> tuple[Any, dict[Keys, int]]:
    loader = _Loader(text)
    lines: dict[Keys, int] = {}
    try:
        root = loader.get_single_node()
        if root is None:
            return {}, {(): 1}
        return _construct(root, (), lines, name, loader), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{name}:{line}: not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}:{line}: not YAML: {error.reason}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}:1: nested too deeply, or an anchor holds itself") from error
    finally:
        loader.dispose()


def _construct(
    node: yaml.Node, path: Keys, lines: dict[Keys, int], name: str, loader: _Loader
) -> Any:
    lines[path] = node.start_mark.line + 1
    if len(lines) > _MOST_NODES:
        raise ConfigError(f"{name}:{lines[path]}: too much (do anchors repeat each other?)")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{name}:{line}: a key must be a plain string")
            key = key_node.value
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(f"{name}:{line}: merge keys (<<) are not supported")
            if key in mapping:
                raise ConfigError(f"{name}:{line}: duplicate key {key!r}")
            mapping[key] = _construct(value_node, (*path, key), lines, name, loader)
            lines[(*path, key)] = line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(item, (*path, index), lines, name, loader)
            for index, item in enumerate(node.value)
        ]
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        line = node.start_mark.line + 1
        raise ConfigError(f"{name}:{line}: unusable value {node.value!r}") from error


def _apply_environment(tree: Any, program: str, environ: Mapping[str, str]) -> dict[str, Keys]:
    """Overlay the program's variables on the tree; says which variable set which key path."""
    prefix = f"VALETKEY_{program.upper()}__"
    applied: dict[str, Keys] = {}
    for variable in sorted(environ):
        if not variable.startswith("VALETKEY_") or variable in _RESERVED:
            continue
        if _SERVICE_LINK.fullmatch(variable):
            continue
        if not variable.startswith(prefix):
            if any(variable.startswith(f"VALETKEY_{other}__") for other in _PROGRAMS):
                continue  # another program's: that program judges it
            raise ConfigError(f"{variable}: unknown variable (settings are {prefix}<KEY>__<KEY>)")
        keys = tuple(part.lower() for part in variable.removeprefix(prefix).split("__"))
        try:
            value = yaml.safe_load(environ[variable])
        except yaml.YAMLError as error:
            raise ConfigError(f"{variable}: the value is not YAML") from error
        node = tree
        for key in keys[:-1]:
            if not isinstance(node, dict):
                break
            node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{variable}: {'.'.join(keys)} is not reachable through mappings")
        node[keys[-1]] = value
        applied[variable] = keys
    return applied


def _key_path(where: str) -> Keys:
    """``$.routes[2].match`` as ``("routes", 2, "match")``; ``[...]`` (any element) ends it."""
    keys: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", where):
        if index == "...":
            break
        keys.append(int(index) if index else name)
    return tuple(keys)


def _encode(value: Any) -> Any:
    if isinstance(value, Duration | Size):
        return spelled(value)
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Duration:
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if not match:
            raise ValueError("expected a duration with a unit, such as 250ms, 30s or 5m")
        return Duration(float(match[1]) * _DURATION_UNITS[match[2]])
    if kind is Size:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if not match:
            raise ValueError("expected a size with a unit, such as 512B, 16KiB or 64MiB")
        return Size(int(match[1]) * _SIZE_UNITS[match[2]])
    if kind is Path:
        if not isinstance(value, str) or not value:
            raise ValueError("expected a file path")
        return Path(value)
    raise NotImplementedError(kind)


def _schema_of(kind: type[Any]) -> dict[str, Any]:
    if kind is Duration:
        return {"type": "string", "pattern": f"^{_DURATION.pattern}$"}
    if kind is Size:
        return {"type": "string", "pattern": f"^{_SIZE.pattern}$"}
    if kind is Path:
        return {"type": "string", "minLength": 1, "description": "a file path"}
    raise NotImplementedError(kind)
