"""The documentation keeps to the code: commands, settings, metrics, links, examples."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path

import click
import msgspec
import pytest

from valetkey.broker.core.grants import Call, GrantsFile, Policy, Target
from valetkey.broker.metrics import GrantTokens
from valetkey.broker.metrics import Metrics as BrokerMetrics
from valetkey.broker.mtls_settings import MtlsSettings
from valetkey.broker.settings import TargetSettings
from valetkey.cli import chart
from valetkey.cli.check import check_file
from valetkey.cli.doctor.findings import all_kinds
from valetkey.cli.main import main
from valetkey.cli.reference import FILES, PROGRAMS
from valetkey.cli.settings_table import sections
from valetkey.collector.api import read as collector_api
from valetkey.collector.metrics import make_metrics
from valetkey.contracts import codes, events, settings
from valetkey.contracts.codes import Code
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.oauth import HttpCallDetails
from valetkey.injector.metrics import make_metrics as injector_metrics
from valetkey.proxy.core.compilation import compile_snapshot
from valetkey.proxy.settings import ProxySettings, WorkloadSettings

ROOT = Path(__file__).parents[3]
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")})
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def test_the_readme_keeps_its_order() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert headings == [
        "Try it",
        "What it does not protect against",
        "Configuration",
        "Decision codes",
        "Benchmark",
        "Documentation",
        "Development",
    ]


def test_the_readme_s_two_commands_exist_and_run_in_ci() -> None:
    section = (ROOT / "README.md").read_text().partition("## Try it")[2].partition("## ")[0]
    commands = re.findall(r"^    (make [a-z]+)$", section, re.MULTILINE)
    assert commands == ["make demo", "make test"]
    run = set(
        re.findall(r"^(?:make|checked) ([a-z]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    )
    for command in (*commands, "make lint", "make compiled"):
        assert command.removeprefix("make ") in MAKE_TARGETS & run


def test_ci_demands_everything() -> None:
    ci = (ROOT / ".ci/run").read_text()
    assert "set -euo pipefail" in ci
    assert "export VALETKEY_REQUIRE=all" in ci
    assert ci.index("VALETKEY_REQUIRE=all") < ci.index("checked test")
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@EACH_PAGE
def test_each_make_target_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named <= MAKE_TARGETS


LINKED = (*PAGES, ROOT / "CHANGELOG.md", ROOT / chart.CHART / "README.md")
LINK = re.compile(r"\[([^][]*)\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Where a link may lead within a page: each heading, as forges name it, and each `id`."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        times = sum(each == name or each.startswith(f"{name}-") for each in found)
        found.add(name if name not in found else f"{name}-{times}")
    return found


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_link_leads_somewhere(page: Path) -> None:
    for _, target in LINK.findall(page.read_text()):
        path, _, anchor = target.partition("#")
        # What `make bench` writes is not there before its first run.
        if re.match(r"[a-z]+:", target) or "bench/results/" in target:
            continue
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('# The `feed`, and more\n\n## Two\n\n## Two\n\n```\n# none\n```\n<a id="x.y">')
    assert anchors(page) == {"the-feed-and-more", "two", "two-1", "x.y"}
    assert LINK.findall("see [a page](other.md#two) and `[x](`") == [("a page", "other.md#two")]


def test_each_page_of_the_docs_can_be_found_from_the_readme() -> None:
    """By links alone: what nobody leads to, nobody reads."""
    found, open_ = {ROOT / "README.md"}, [ROOT / "README.md"]
    while open_:
        page = open_.pop()
        for _, target in LINK.findall(page.read_text()):
            there = (page.parent / target.partition("#")[0]).resolve()
            if there.is_dir():
                new = set(there.glob("*.md"))
            else:
                new = {there} if there.suffix == ".md" and there.is_file() else set()
            open_ += new - found
            found |= new
    assert set(PAGES) - found == set()


def test_the_table_of_the_readme_has_each_page() -> None:
    """Decisions, and pages of alerts, have lists of their own."""
    section = (ROOT / "README.md").read_text().partition("## Documentation\n")[2]
    listed = {target for _, target in LINK.findall(section.partition("\n## ")[0])}
    pages = {str(page.relative_to(ROOT)) for page in PAGES}
    own = {page for page in pages if re.match(r"docs/(adr|runbooks)/", page)}
    assert pages - own - {"README.md"} <= listed, "add it to the table"


def test_the_threat_model_names_tests_that_there_are() -> None:
    """Each row of a boundary says what shows it, and a test that is named is in that file."""
    page = ROOT / "docs/explanation/threat-model.md"
    text = page.read_text()
    rows = re.findall(r"^\| [STRIDE] \| .*$", text, re.MULTILINE)
    assert len(rows) > 40
    for row in rows:
        cells = [cell.strip() for cell in row[1:-1].split("|")]
        assert len(cells) == 5, row
        _, _, stops, shown, _ = cells
        assert bool(stops) == bool(shown), row
        assert not stops or LINK.search(shown), row
    for name, target in LINK.findall(text):
        word = name.strip("`")
        if target.startswith("../../tests/"):
            file = (page.parent / target).resolve()
            assert word == file.name or re.search(
                rf"^(async )?def {word}\(", file.read_text(), re.MULTILINE
            ), (word, target)


# Written in `code`, with a dot: a key path, a code, a metric's neighbour… or one of these.
NO_SETTING = re.compile(
    r".*\.(yaml|json|jsonl|md|py|png|txt|db|key|pem|crt|token|template|lua|in|sh)$|[a-z]+\.test|\d"
)


@EACH_PAGE
def test_each_setting_that_is_named_exists(page: Path) -> None:
    keys = {
        path.replace("[]", "").replace("NAME", "name")
        for _, _, kind in (*PROGRAMS, *FILES)
        for section in sections(kind)
        for key in section.keys
        for path in [f"{section.path}.{key.name}" if section.path else key.name]
    }
    values = chart.values((ROOT / chart.CHART / "values.yaml").read_text())
    keys |= {".".join(value.path) for value in values}
    first = {path.partition(".")[0] for path in keys}
    for text in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: [^`]*)?`", page.read_text()):
        if text.partition(".")[0] in first and not NO_SETTING.match(text):
            assert text in keys or codes.by_name(text) is not None, text


@EACH_PAGE
def test_each_finding_that_is_named_exists(page: Path) -> None:
    known = {kind.name for kind in all_kinds()}
    assert set(re.findall(r"`(doctor\.[a-z_]+)`", page.read_text())) <= known


@EACH_PAGE
def test_each_code_that_is_named_exists(page: Path) -> None:
    if page.name == "events.md":  # its dotted names are members of an event
        return
    families = {code.family for code in (*codes.all_codes(), *codes.command_codes())}
    keys = {name for _, _, kind in PROGRAMS for name in kind.__struct_fields__}
    for text in re.findall(r"`([a-z]+\.[a-z_]+)`", page.read_text()):
        family = text.partition(".")[0]
        if family in families - keys and not NO_SETTING.match(text):
            known = (codes.by_name, codes.by_command_name, codes.by_settings_name)
            assert any(find(text) for find in known), text


def test_the_reference_has_the_codes_of_settings() -> None:
    page = (ROOT / "docs/reference/codes.md").read_text().partition("## Of settings")[2]
    shown = re.findall(
        r"^\| <a id=\S+</a>`([a-z_.]+)` \|", page.partition("\n## ")[0], re.MULTILINE
    )
    assert shown == [code.name for code in codes.settings_codes()]


def test_the_reference_has_the_codes_of_commands() -> None:
    page = (ROOT / "docs/reference/codes.md").read_text().partition("## Of commands")[2]
    assert re.findall(r"^\| <a id=\S+</a>`([a-z_.]+)` \|", page, re.MULTILINE) == [
        code.name for code in codes.command_codes()
    ]


def test_each_metric_of_the_services_is_documented_and_none_else() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    named = set(re.findall(r"valetkey_(?:broker|collector|injector)_[a-z_]+", page))
    registries = (BrokerMetrics().registry, make_metrics().registry, injector_metrics().registry)
    real = {
        metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
        for registry in registries
        for metric in registry.collect()
        if metric.name != "valetkey_build"
    }
    real.add(GrantTokens.NAME)  # in no registry
    assert named == real


@pytest.mark.parametrize("name", [name for name, _, _ in PROGRAMS])
def test_the_examples_load(name: str) -> None:
    """Files that they name need not exist here: settings are judged, not the machine."""
    check_file(name, ROOT / f"config/{name}.yaml", environ={})


def test_the_examples_of_two_layers_load_and_fit() -> None:
    operator, owner = ROOT / "config/operator.yaml", ROOT / "config/routes.yaml"
    check_file("operator", operator, environ={}, owner=owner)


def test_the_example_of_mcp_loads_and_its_grants_cover_its_routes() -> None:
    """What the sidecar will ask for, route by route, the grants of the page give."""
    check_file("proxy", ROOT / "config/mcp.yaml", environ={})
    proxy = settings.load(ProxySettings, ROOT / "config/mcp.yaml", program="proxy", environ={})
    [text] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/how-to/mcp.md").read_text(), re.DOTALL)
    grants = settings.parse(GrantsFile, textwrap.dedent(text), name="mcp.md", program="broker")
    audience = proxy.targets["issues"].audience
    target = Target("issues", audience, audience, "bearer", 120.0)
    issuers = frozenset(grant.issuer for grant in grants.grants)
    policy = Policy.compile(grants, [target], issuers=issuers)
    given = {}
    for route in compile_snapshot(proxy, thumbprint="").routes:
        details = msgspec.json.decode(route.details, type=list[HttpCallDetails])
        granted = policy.grant(
            target,
            issuer=next(iter(issuers)),
            workload=grants.grants[0].workload,
            for_user=False,
            scopes=route.scopes,
            calls=[call for detail in details for call in Call.all_of(detail)],
            now=0,
        )
        given[route.id] = granted.name if isinstance(granted, Code) else granted.scopes
    assert given == {
        "issues-session": ("issues:connect",),
        "issues-read": ("issues:read",),
        "issues-write": "grant.condition",  # per request: only create_issue is granted
        "issues-stream": ("issues:connect",),
    }


def test_the_examples_fit_together() -> None:
    """The broker takes the workload's token, the collector only the one made for it."""
    proxy, broker, collector, injector = (
        settings.load(kind, ROOT / f"config/{name}.yaml", program=name, environ={})
        for name, _, kind in PROGRAMS
    )
    assert proxy.broker.url == injector.sidecar.broker.url == broker.issuer
    assert proxy.collector.url == injector.sidecar.collector.url
    assert set(proxy.targets) == set(injector.sidecar.targets)
    assert proxy.collector.identity not in {None, proxy.workload.identity}
    for program, audience in ((broker, proxy.broker.url), (collector, proxy.collector.url)):
        assert {each.audience for each in program.issuers if each.use == "workload"} == {audience}
    grants = settings.load(GrantsFile, ROOT / "config/grants.yaml", program="broker", environ={})
    Policy.compile(
        grants,
        broker.compiled_targets(),
        issuers=broker.workload_issuers(),
        deployers=broker.deployment_issuers(),
    )
    assert {
        name: (target.audience, target.credential.kind) for name, target in proxy.targets.items()
    } == {name: (target.audience, target.credential) for name, target in broker.targets.items()}


def test_the_collector_s_parameters_are_those_of_its_page() -> None:
    page = (ROOT / "docs/reference/collector-api.md").read_text().partition("## ")[2]
    rows = re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z]+)", row)}
    assert named == collector_api.EVENTS


def test_the_example_events_are_events() -> None:
    page = (ROOT / "docs/reference/events.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    read = [events.read(json.dumps(json.loads(example)).encode()) for example in examples]
    decision, outcome = read
    assert [event.type for event in read] == [events.TYPE_DECISION, events.TYPE_OUTCOME]
    for event in read:
        assert events.data_of(event)["class_uid"] == events.OCSF_CLASS_API_ACTIVITY
    assert events.data_of(outcome)["unmapped"]["decision"] == decision.id
    assert outcome.seq == decision.seq + 1


def test_the_requirements_are_pinned_hashed_and_name_no_host() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert [path.name for path in files] == [
        "bench.txt",
        "build.txt",
        "clients.txt",
        "dev.txt",
        "image.txt",
        "ldap.txt",
        "mitmproxy.txt",
        "runtime.txt",
    ]
    for path in files:
        text = path.read_text()
        assert "://" not in text
        for requirement in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(r"[A-Za-z0-9._\[\],-]+==\S+", requirement), requirement
            assert "--hash=sha256:" in requirement, requirement


def test_the_dependencies_page_names_the_pinned_versions() -> None:
    page = (ROOT / "docs/adr/0003-dependencies.md").read_text()
    rows = re.findall(r"^\| ([A-Za-z][\w-]+) \| ([\d.]+) \|", page, re.MULTILINE)
    pins = dict(
        re.findall(
            r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE
        )
    )
    assert len(rows) > 10
    for name, version in rows:
        assert pins[name.lower()] == version, name


def commands(page: Path) -> list[str]:
    """Each ``valetkey …`` of a page's code blocks, with lines that go on put together."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^(?:    )?(?:\$ )?(?:\.venv/bin/)?(valetkey [a-z].*)$", text, re.MULTILINE)


@EACH_PAGE
def test_each_command_is_one(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As click reads it, down the groups; files that it names need not be here."""
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, _param, _ctx: Path(value))
    # What the admin API's commands are told once and for all.
    monkeypatch.setenv("VALETKEY_BROKER_URL", "https://broker.example")
    monkeypatch.setenv("VALETKEY_TOKEN_FILE", "token")
    monkeypatch.setattr(click.File, "convert", lambda _self, value, _param, _ctx: value)
    for line in commands(page):
        words = shlex.split(re.split(r"\s[|>&]", line)[0], comments=True)[1:]
        command: click.Command = main
        parent = None
        while True:
            try:
                context = command.make_context(command.name, list(words), parent=parent)
                if not isinstance(command, click.Group):
                    break
                rest = [*context._protected_args, *context.args]
                _, found, words = command.resolve_command(context, rest)
            except click.exceptions.Exit:  # --help
                break
            except click.ClickException as error:
                pytest.fail(f"{line}: {error.format_message()}")
            assert found is not None
            command, parent = found, context
        if command.name == "tail":
            given = context.params
            places = [given[name] for name in ("db", "collector", "spool")]
            assert sum(place is not None for place in places) == 1, line
            assert given["collector"] is None or given["token_file"], line


@EACH_PAGE
def test_each_command_that_is_named_in_the_text_is_one(page: Path) -> None:
    """Without what it is about, as texts name it: its words and its options are there."""
    for line in re.findall(r"`(?:\.venv/bin/)?valetkey ([a-z][^`]*)`", page.read_text()):
        command: click.Command = main
        words = shlex.split(line)
        while words and isinstance(command, click.Group):
            found = command.commands.get(words[0])
            if found is None:
                assert words[0].isupper() or words[0].startswith("-"), line
                break
            command, words = found, words[1:]
        options = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, line


def test_commands_are_found() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 20


def test_the_settings_of_the_how_to_load() -> None:
    """Each block that is whole; some go on with what another one began."""

    class Blocks(settings.Settings, frozen=True, kw_only=True):
        issuers: tuple[IssuerSettings, ...] = ()
        mtls: MtlsSettings | None = None
        workload: WorkloadSettings | None = None
        targets: dict[str, TargetSettings] = msgspec.field(default_factory=dict)

    page = (ROOT / "docs/how-to/trust-issuers.md").read_text()
    blocks = re.findall(r"((?:^    .*\n)+)", page, re.MULTILINE)
    loaded = [
        settings.parse(Blocks, textwrap.dedent(block), name="how-to", program="broker")
        for block in blocks
        if re.match(r"    (issuers|mtls|workload):\n", block)
    ]
    kinds = {issuer.kind for block in loaded for issuer in block.issuers}
    assert kinds == {"kubernetes", "oidc", "spiffe", "x509"}
    assert [block.mtls.terminator for block in loaded if block.mtls] == ["", "loopback"]
    sources = [block.workload.identity for block in loaded if block.workload]
    assert [source.spiffe is not None for source in sources] == [True]


# What opens connections, by the file that does, and the row of the page on air gaps that says where to.
CONNECTS = re.compile(
    r"ClientSession\(|create_connection\(|open_connection\(|smtplib\.SMTP|HTTPConnection\(|"
    r"ldap\.initialize|create_async_engine\(url|\.WorkloadApiClient\(|urlopen|_client\.connect\("
)
CONNECTIONS = {
    "broker/directory/ldap.py": "directory.ldap.url",
    "broker/incidents/polling.py": "incidents.transmitters.name.poll.url",
    "broker/notify/email.py": "approvals.notices.email.host",
    "broker/notify/webhook.py": "approvals.notices.webhooks.url",
    "broker/push.py": "feed.receivers.push",
    "broker/store/database.py": "database",
    "collector/sinks/jetstream.py": "nats.servers",
    "contracts/fetch.py": "issuers.jwks_url",
    "injector/wait.py": "",  # the sidecar beside it, on loopback
    "proxy/audit/shipper.py": "collector.url",
    "proxy/credentials/exchange.py": "broker.url",
    "proxy/feed_client.py": "broker.url",
    "proxy/http1/dial.py": "targets.name.url",
    "proxy/identity/workload_api.py": "workload.identity.spiffe.socket",
    "sql/postgres.py": "database",
}


def test_the_page_on_air_gaps_names_what_connects() -> None:
    package = ROOT / "valetkey"
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if CONNECTS.search(file.read_text())
    }
    programs = {name for name in found if not name.startswith("cli/")}
    assert programs == set(CONNECTIONS), "say on the page where it connects to"
    page = (ROOT / "docs/how-to/run-without-internet.md").read_text()
    named = set(re.findall(r"`([a-z_.]+)`", page.partition("## Bring it in")[0]))
    assert set(CONNECTIONS.values()) - {""} <= named


def test_no_program_takes_a_proxy_of_the_environment() -> None:
    for file in (ROOT / "valetkey").rglob("*.py"):
        if file.is_relative_to(ROOT / "valetkey/cli"):
            continue
        text = file.read_text()
        sessions = re.findall(r"ClientSession\(((?:[^()]|\([^()]*\))*)\)", text)
        assert len(sessions) == text.count("ClientSession("), file
        for arguments in sessions:
            assert "trust_env=False" in arguments, file
        assert "trust_env=True" not in text
        assert "allow_redirects=True" not in text
