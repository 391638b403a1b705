"""What is generated is up to date, and what the generator says is what the loader does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest

from valetkey.cli import reference
from valetkey.cli.chart import CHART
from valetkey.cli.doctor.clients import CLIENTS
from valetkey.cli.doctor.findings import all_kinds
from valetkey.cli.reference import PROGRAMS
from valetkey.cli.settings_table import defaults, sections
from valetkey.contracts import codes, settings

ROOT = Path(__file__).parents[3]
SCALING = Path("docs/explanation/scaling.md")


def test_nothing_generated_is_out_of_date() -> None:
    stale = [
        str(path)
        for path, content in reference.generate(ROOT).items()
        if (ROOT / path).read_text() != content
    ]
    assert stale == [], "run `make generate`"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / CHART).mkdir(parents=True)
    shutil.copy(ROOT / CHART / "values.yaml", tmp_path / CHART)
    (tmp_path / SCALING).parent.mkdir(parents=True)
    shutil.copy(ROOT / SCALING, tmp_path / SCALING)
    assert reference.main(["--root", str(tmp_path)]) == 0
    return tmp_path


def test_check_is_content_with_what_was_written(checkout: Path) -> None:
    assert reference.main(["--check", "--root", str(checkout)]) == 0


@pytest.mark.parametrize(
    "path", ["README.md", "config/proxy.schema.json", "docs/reference/codes.md"]
)
def test_check_names_what_differs(
    checkout: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = (checkout / path).read_text().replace("route", "rout")
    (checkout / path).write_text(changed)
    assert reference.main(["--check", "--root", str(checkout)]) == 1
    assert f"{path}: out of date" in capsys.readouterr().err
    assert (checkout / path).read_text() == changed


@pytest.mark.parametrize(
    ("page", "results"), [("README.md", "latest.md"), (str(SCALING), "fleet.md")]
)
def test_a_benchmark_goes_into_its_page(checkout: Path, page: str, results: str) -> None:
    assert "Not measured yet" in (checkout / page).read_text()
    (checkout / "bench/results").mkdir(parents=True)
    (checkout / "bench/results" / results).write_text("### Throughput\n\n| a |\n|---|\n| 1 |\n")
    assert reference.main(["--root", str(checkout)]) == 0
    assert "| 1 |" in (checkout / page).read_text()
    assert "Not measured yet" not in (checkout / page).read_text()


@pytest.mark.parametrize("readme", [None, "# Valetkey\n"], ids=["no README", "no markers"])
def test_elsewhere_it_does_nothing(tmp_path: Path, readme: str | None) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert reference.main(["--root", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == (["README.md"] if readme else [])


def test_each_code_is_in_the_readme_and_in_the_reference() -> None:
    readme = (ROOT / "README.md").read_text()
    page = (ROOT / "docs/reference/codes.md").read_text()
    for code in codes.all_codes():
        assert f"| `{code.name}` | {code.status} |" in readme
        assert f'<a id="{code.name}"></a>' in page


def test_each_finding_and_each_client_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/doctor.md").read_text()
    for kind in all_kinds():
        assert f'<a id="{kind.name}"></a>`{kind.name}` | {kind.level} | {kind.meaning} |' in page
    assert "{" not in page.partition("## Common clients")[0]
    rows = re.findall(r"^\| [A-Z.cw][^|]* \|(?: [^|]+ \|){3}$", page, re.MULTILINE)
    assert len(rows) >= len(CLIENTS)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, _, kind in PROGRAMS])
def test_a_default_that_is_shown_is_the_one_that_is_loaded(name: str, kind: type) -> None:
    """Each default with a unit, read by the loader, gives the value of the type."""
    known = defaults(kind)
    assert known
    schema = json.loads((ROOT / f"config/{name}.schema.json").read_text())
    for (title, key), text in known.items():
        assert schema["$defs"][title]["properties"][key]["default"] == text
    shown = {
        (section.path, key.name): key.default for section in sections(kind) for key in section.keys
    }
    assert len(shown) == sum(len(section.keys) for section in sections(kind))


def test_units_are_written_as_the_loader_reads_them() -> None:
    class Sample(settings.Settings, frozen=True, kw_only=True):
        a: settings.Duration = settings.duration(0.005)
        b: settings.Duration = settings.duration(90)
        c: settings.Duration = settings.duration(86_400)
        d: settings.Duration = settings.duration(0)
        e: settings.Size = settings.size(32 << 10)
        f: settings.Size = settings.size(100)

    (section,) = sections(Sample)
    shown = {key.name: key.default for key in section.keys}
    assert shown == {"a": "5ms", "b": "90s", "c": "1d", "d": "0s", "e": "32KiB", "f": "100B"}
    text = msgspec.json.encode(shown).decode()
    loaded = settings.parse(Sample, text, name="s", program="proxy")
    assert loaded == Sample()
