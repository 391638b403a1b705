"""Settings types as tables: which keys there are, of what type, with which default.

Everything is read off the types that the loader uses, so that the reference can't say what the
programs don't do.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import inspect as types

from valetkey.contracts.settings import Duration, Size, spelled

_CUSTOM: Final = {"Duration": "duration", "Size": "size", "Path": "file"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key. ``default`` is empty where there is none to show."""

    name: str
    type: str
    default: str
    required: bool
    is_section: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of the file: its path, what its docstring says, its keys."""

    path: str
    about: str
    keys: tuple[Key, ...]


def sections(kind: type[Any]) -> list[Section]:
    """All sections of a settings type, outermost first, in the order of definition."""
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    return list(_walk(info, ""))


def defaults(kind: type[Any]) -> dict[tuple[str, str], str]:
    """Defaults with a unit, by (name of the section's type, key)."""
    found: dict[tuple[str, str], str] = {}
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    _collect_defaults(info, found)
    return found


def _collect_defaults(info: types.StructType, found: dict[tuple[str, str], str]) -> None:
    for field in info.fields:
        value = _value(field)
        if isinstance(value, Duration | Size):
            found[info.cls.__name__, field.encode_name] = _show(value)
        for inner, _ in _inner(field.type):
            if isinstance(inner, types.StructType):
                _collect_defaults(inner, found)


def _walk(info: types.StructType, path: str) -> Iterator[Section]:
    about = inspect.cleandoc(info.cls.__doc__ or "")
    yield Section(path, about, tuple(_key(field) for field in info.fields))
    for field in info.fields:
        below = f"{path}.{field.encode_name}" if path else field.encode_name
        for inner, suffix in _inner(field.type):
            if isinstance(inner, types.StructType):
                yield from _walk(inner, below + suffix)


def _inner(info: types.Type) -> list[tuple[types.Type, str]]:
    """What lies in a type, with what the path to it gets appended."""
    match info:
        case types.Metadata():
            return _inner(info.type)
        case types.UnionType():
            return [pair for each in info.types for pair in _inner(each)]
        case types.VarTupleType() | types.ListType():
            return [(inner, "[]" + suffix) for inner, suffix in _inner(info.item_type)]
        case types.DictType():
            return [(inner, ".NAME" + suffix) for inner, suffix in _inner(info.value_type)]
        case _:
            return [(info, "")]


def _key(field: types.Field) -> Key:
    is_section = any(isinstance(inner, types.StructType) for inner, _ in _inner(field.type))
    value = _value(field)
    return Key(
        field.encode_name,
        _name(field.type),
        "" if value is None or isinstance(value, msgspec.Struct) else _show(value),
        field.required,
        is_section,
    )


def _value(field: types.Field) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return None if field.default is msgspec.NODEFAULT else field.default


def _show(value: Any) -> str:
    match value:
        case Duration() | Size():
            return spelled(value)
        case bool():
            return str(value).lower()
        case tuple() | list():
            return f"[{', '.join(map(_show, value))}]"
        case dict():
            return "{}"
        case _:
            return str(value)


def _name(info: types.Type) -> str:
    match info:
        case types.Metadata():
            return _name(info.type)
        case types.CustomType():
            return _CUSTOM[info.cls.__name__]
        case types.BoolType():
            return "`true` or `false`"
        case types.IntType():
            return f"integer{_bounds(info.ge, info.le)}"
        case types.StrType():
            return "text"
        case types.DateTimeType():
            return "time (RFC 3339)"
        case types.LiteralType():
            return " or ".join(f"`{value}`" for value in info.values)
        case types.UnionType():
            return " or ".join(
                _name(each) for each in info.types if not isinstance(each, types.NoneType)
            )
        case types.VarTupleType() | types.ListType():
            return f"list of {_name(info.item_type)}"
        case types.DictType():
            return f"map of {_name(info.value_type)}"
        case types.StructType():
            return "section"
        case _:
            raise NotImplementedError(info)


def _bounds(least: float | None, most: float | None) -> str:
    if least is None and most is None:
        return ""
    if most is None:
        return f", {least} or more"
    return f", {least} to {most}"
