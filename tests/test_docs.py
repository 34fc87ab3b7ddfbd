"""What the documentation says is what the code does: settings, events, fields, deviations, commands."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pymx.admin.ctl import NOUNS
from pymx.checks.build import build_pipeline
from pymx.config import document
from pymx.config.load import load, parse
from pymx.config.model import Checks, Config, Dns, Rspamd
from pymx.resolver.resolver import Resolver

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pymx"
OPERATIONS = ROOT / "docs" / "operations.md"
RFC = ROOT / "docs" / "rfc.md"

LOG_METHODS = {"debug", "info", "warning", "error", "exception"}
EVENT = re.compile(r"[a-z]+(?:_[a-z]+)+\Z")


def test_settings_page_is_what_the_model_says() -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs" / "settings.md").read_text() == document.settings_page()


def test_sample_configuration_is_what_the_model_says() -> None:
    """`make docs` writes it."""
    assert (ROOT / "config" / "pymx.toml").read_text() == document.toml()


def test_sample_configuration_loads() -> None:
    """As it is, and with every key taken out of its comment, which changes no value."""
    sample = load(ROOT / "config" / "pymx.toml")
    text = (ROOT / "config" / "pymx.toml").read_text()
    keys = {setting.key for _, struct in document.sections() for setting in document.settings(struct)}
    keys |= {setting.key for setting in document.settings(Config)}
    everything = re.sub(r"^#(\w+) = ", lambda m: m[0][1:] if m[1] in keys else m[0], text, flags=re.MULTILINE)
    assert parse(everything) == sample
    given = tomllib.loads(everything)
    for name, struct in document.sections():
        assert list(given[name]) == [s.key for s in document.settings(struct, name)]


def test_every_setting_is_described() -> None:
    """A key without a description, or a number without a unit in its name or meaning, is not a setting yet."""
    for _, struct in document.sections():
        for setting in document.settings(struct):
            assert setting.meaning.strip(), setting


@dataclass
class Logged:
    """What the code writes: event and field names, with the files they come from."""

    events: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    unnamed: list[str] = field(default_factory=list)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_log_call(call: ast.Call) -> bool:
    """`log.info(…)`, `self._log.error(…)`, `log.get("ms").bind(…).warning(…)`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in LOG_METHODS | {"bind"}:
        return False
    receiver: ast.expr = call.func.value
    while isinstance(receiver, ast.Call) and isinstance(receiver.func, ast.Attribute):
        receiver = receiver.func.value
    return _name(receiver).lower().strip("_") == "log"


def _log_aliases(tree: ast.AST) -> set[str]:
    """Names bound to a log method: `write = _log.info if good else _log.warning`."""
    return {
        _name(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and not isinstance(node.value, ast.Call)
        and any(
            isinstance(part, ast.Attribute) and part.attr in LOG_METHODS and _name(part.value).strip("_") == "log"
            for part in ast.walk(node.value)
        )
    }


def _takes_event(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Functions with a parameter called `event`, and its position among a call's arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            if "event" in names:
                yield node.name, names.index("event")


def logged(package: Path) -> Logged:
    """Everything that can stand in the log, read from the code."""
    trees = {f: ast.parse(f.read_text()) for f in sorted(package.rglob("*.py")) if f.name != "log.py"}
    passing_on = {name: position for tree in trees.values() for name, position in _takes_event(tree)}
    found = Logged()
    for file, tree in trees.items():
        where = file.relative_to(package).as_posix()
        aliases = _log_aliases(tree)
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            name = _name(call.func)
            logs = _is_log_call(call) or name in aliases
            if logs:
                position = 0 if name != "bind" else None
            elif name in passing_on and name not in LOG_METHODS:
                position = passing_on[name]
            elif name == "Command" and where.startswith("smtpd/"):
                position = 1
            else:
                continue
            argument = call.args[position] if position is not None and len(call.args) > position else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.events.setdefault(argument.value, where)
            elif argument is not None and logs and _name(argument) != "event":
                found.unnamed.append(f"{where}:{call.lineno}")
            if position is None or logs or isinstance(argument, ast.Constant):
                for keyword in call.keywords:
                    if keyword.arg and keyword.arg != "exc_info" and name != "Command":
                        found.fields.setdefault(keyword.arg, where)
        if where.startswith("smtpd/"):  # events that a refusal names through a constant
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith("_refused"):
                    found.events.setdefault(node.value, where)
    return found


def _first_cells(page: str, heading: str) -> list[str]:
    """First column of the tables in the section under `heading`, code quotes removed; several names in a cell count."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_every_event_is_explained() -> None:
    """The person on call finds each event of the log in docs/operations.md, and nothing there is made up."""
    found = logged(PACKAGE)
    documented = _first_cells(OPERATIONS.read_text(), "Log events")
    assert len(documented) == len(set(documented))
    code = found.events | {"log_records_dropped": "log.py"}
    assert {e: w for e, w in code.items() if e not in documented} == {}
    assert set(documented) - code.keys() == set()
    assert found.unnamed == []


def test_every_event_has_a_proper_name() -> None:
    """Lower case words joined by underscores: what one greps for."""
    assert [e for e in logged(PACKAGE).events if not EVENT.match(e)] == []


def test_every_field_is_explained() -> None:
    """The same for fields."""
    documented = _first_cells(OPERATIONS.read_text(), "Log fields")
    assert len(documented) == len(set(documented))
    fields = logged(PACKAGE).fields
    assert {f: w for f, w in fields.items() if f not in documented} == {}


def test_every_check_has_its_section(tmp_path: Path) -> None:
    """docs/checks.md says of each what it does, what holds when it can't run, and how to turn it off."""
    everything = Config(
        hostname="mx.example.test",
        data_dir=str(tmp_path),
        checks=Checks(dnsbl=["bl.example"], dnswl=["wl.example"], greylist=True),
        rspamd=Rspamd(url="http://127.0.0.1:1"),
    )
    pipeline = build_pipeline(everything, Resolver(Dns(nameservers=["127.0.0.1:1"])))
    assert pipeline is not None
    page = (ROOT / "docs" / "checks.md").read_text().partition("\n## The checks\n")[2].partition("\n## ")[0]
    sections: dict[str, str] = {}
    for section in page.split("\n### ")[1:]:
        heading, _, text = section.partition("\n")
        assert heading.partition(": ")[2], heading
        sections |= dict.fromkeys(heading.partition(":")[0].split(", "), text)
    assert sections.keys() == {check.name for check in pipeline.checks}
    for name, text in sections.items():
        assert re.search(r"\bCan(?:'t| always) run\b", text), name
        assert re.search(r"\b[Oo]ff\b", text), name


def test_undocumented_event_would_be_found(tmp_path: Path) -> None:
    """The reader of the code sees events in all the ways they are written."""
    (tmp_path / "x.py").write_text(
        "log.get('x').bind(session=1).info('one_event', a=1)\n"
        "class C:\n"
        "    def refuse(self, error, event, **fields): self._log.warning(event, b=2, **fields)\n"
        "    def f(self): self.refuse(e, 'two_event', c=3)\n"
        "    def g(self): self.log.error(f'three')\n"
        "    def h(self, good):\n"
        "        write = _log.info if good else _log.warning\n"
        "        write('four_event', d=4)\n"
    )
    found = logged(tmp_path)
    assert set(found.events) == {"one_event", "two_event", "four_event"}
    assert set(found.fields) == {"session", "a", "b", "c", "d"}
    assert found.unnamed == ["x.py:5"]


def test_every_deviation_from_an_rfc_is_listed() -> None:
    """`Deviation:` in the code and a row in docs/rfc.md that names the file, and the other way round."""
    marked = []
    for file in sorted(PACKAGE.rglob("*.py")):
        marked += [file.relative_to(ROOT).as_posix()] * file.read_text().count("Deviation:")
    section = RFC.read_text().partition("\n## Deviations\n")[2]
    listed = re.findall(r"^\|.*`(pymx/[^`]+)` \|$", section, re.MULTILINE)
    assert sorted(listed) == sorted(marked)


@pytest.mark.parametrize("page", ["README.md", *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md"))])
def test_commands_in_the_text_exist(page: str) -> None:
    """make targets, and nouns and verbs of pymxctl."""
    text = (ROOT / page).read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = "\n".join(re.findall(r"`([^`\n]+)`", text) + re.findall(r"^    (.*)$", text, re.MULTILINE))
    for block in re.findall(r"^```(?:sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        commands += "\n" + block
    for target in re.findall(r"(?:^|[ \t(])make ([a-z-]+)", commands, re.MULTILINE):
        assert target in targets, f"make {target}"
    for noun in re.findall(r"pymxctl (?:--config \S+ )?(?:--json )?([a-z][a-z-]*)", commands):
        assert noun in NOUNS, f"pymxctl {noun}"


@pytest.mark.parametrize("page", ["README.md", *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md"))])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    """Relative links only; the network is not asked."""
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target
