"""Cedar policies as the broker holds them (the decision is in tests/integration)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from valetkey.broker import cedar_files
from valetkey.broker.cedar_files import CedarFiles
from valetkey.broker.core.places import TargetFacts
from valetkey.broker.metrics import Metrics
from valetkey.contracts.errors import ConfigError

GOOD = '@id("a") permit (principal, action, resource in Target::"tickets");\n'
MORE = '@id("b") forbid (principal, action, resource);\n'


def files(path: Path | None, metrics: Metrics | None = None) -> CedarFiles:
    return CedarFiles(path, [TargetFacts("tickets")], metrics=metrics or Metrics())


async def write(path: Path, text: str) -> None:
    await asyncio.to_thread(path.write_text, text)


def ids(held: CedarFiles) -> list[str]:
    return [policy.id for policy in held.current.written]


async def test_without_a_path_the_built_in_policy_is_in_force() -> None:
    held = files(None)
    await held.load()
    assert ids(held) == ["grants-decide"]
    await held.reload(force=True)
    assert not held.error


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing", None, r"p\.cedar: can't be read"),
        ("syntax", GOOD + "\npermit (principal", r"p\.cedar:3: "),
        ("type", GOOD + MORE.replace("resource)", "resource) when { context.x }"), r"p\.cedar:2: "),
        ("target", GOOD.replace("tickets", "tickts"), r'p\.cedar:1: Target::"tickts"'),
        ("empty", "", r"p\.cedar:1: no policies"),
    ],
)
async def test_the_first_load_raises_with_the_place(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / "p.cedar"
    if text is not None:
        await write(path, text)
    with pytest.raises(ConfigError, match=message):
        await files(path).load()


async def test_a_directory_is_all_its_policies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.cedar files"):
        await files(tmp_path).load()
    await write(tmp_path / "b.cedar", MORE)
    await write(tmp_path / "a.cedar", GOOD)
    await write(tmp_path / "notes.txt", "not a policy")
    held = files(tmp_path)
    await held.load()
    assert ids(held) == ["a", "b"]
    digest = held.current.digest
    await asyncio.to_thread((tmp_path / "b.cedar").unlink)
    await held.reload()
    assert ids(held) == ["a"]
    assert held.current.digest != digest


async def test_a_bad_state_keeps_the_last_good_one(tmp_path: Path) -> None:
    metrics = Metrics()
    await write(tmp_path / "a.cedar", GOOD)
    held = files(tmp_path, metrics)
    await held.load()
    first = held.current
    await held.reload()
    assert held.current is first, "unchanged: not read again"
    await write(tmp_path / "b.cedar", "permit (")
    await held.reload()
    assert held.current is first
    assert f"{tmp_path / 'b.cedar'}:1: " in held.error
    assert metrics.policies_failing._value.get() == 1
    await write(tmp_path / "b.cedar", MORE)
    await held.reload()
    assert ids(held) == ["a", "b"]
    assert (held.error, metrics.policies_failing._value.get()) == ("", 0)


@pytest.mark.parametrize("terms", [400, 600, 5000])
async def test_a_policy_that_is_nested_too_deeply_is_a_bad_one(tmp_path: Path, terms: int) -> None:
    await write(tmp_path / "a.cedar", GOOD)
    held = files(tmp_path)
    await held.load()
    deep = " && ".join(f'context.scope != "s{number}"' for number in range(terms))
    await write(tmp_path / "b.cedar", f"\n{MORE[:-2]} when {{ {deep} }};")
    await held.reload()
    assert ids(held) == ["a"]
    assert f"{tmp_path / 'b.cedar'}:2: nested too deeply" in held.error
    wide = ", ".join(f'"s{number}"' for number in range(terms))
    await write(tmp_path / "b.cedar", f"{MORE[:-2]} when {{ [{wide}].contains(context.scope) }};")
    await held.reload()
    assert (ids(held), held.error) == (["a", "b"], "")


async def test_what_nobody_foresaw_keeps_the_last_good_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(tmp_path / "a.cedar", GOOD)
    held = files(tmp_path)
    await held.load()
    first = held.current

    def fail(*_: object) -> None:
        raise RecursionError("too deep")

    with monkeypatch.context() as patch:
        patch.setattr(cedar_files.Policies, "compile", fail)
        await held.reload(force=True)
        assert held.current is first
        assert "RecursionError: too deep" in held.error
    await held.reload(force=True)
    assert (ids(held), held.error) == (["a"], "")


async def test_what_nobody_wrote_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cedar_files, "MAX_SIZE", 100)
    await write(tmp_path / "a.cedar", GOOD + "//" + " " * 100)
    with pytest.raises(ConfigError, match="larger than"):
        await files(tmp_path / "a.cedar").load()
