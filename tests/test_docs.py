"""The papers say what is so: links lead somewhere, tables are fresh, commands exist, policies load, names are there."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml
from prometheus_client import CollectorRegistry

from addons.exchange import Exchange
from addons.metrics import Metrics
from addons.policymetrics import PolicyMetrics
from addons.sessions import Sessions
from addons.telemetry import Telemetry
from addons.upstream import Upstream
from docs.alerts import ALERTS
from proxy import cli
from proxy.core.decisions import Denied
from proxy.core.fields.entries import FieldEntry
from proxy.core.fields.selectors import parse_selector
from proxy.core.fields.shapes import Shape
from proxy.core.jose.keys import Alg, KeySet, new_key
from proxy.core.jose.keywriting import to_pem
from proxy.core.pins import PinSet, mismatch_facts
from proxy.core.reasons import Reason
from proxy.core.rules.policy import Mode, Policy
from proxy.policyfile.load import load_policy

ROOT = Path(__file__).resolve().parents[1]
PAPERS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(paper.relative_to(ROOT)) for paper in PAPERS]

FENCE = re.compile(r"^```(?P<language>\S*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
POLICY = re.compile(r"^<!-- policy -->\n```yaml\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
WEB = ("http://", "https://")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """Return docs/generate.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(paper: Path) -> str:
    """Return a paper without its code blocks."""
    return FENCE.sub("", paper.read_text("utf-8"))


def anchors(paper: Path) -> set[str]:
    """Return the anchors that GitHub gives a paper's headings."""
    headings = re.findall(r"^#+ +(.+)$", prose(paper), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_generated_tables_are_what_the_code_says_now(
    generate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    status = generate.main(["--check"])
    assert (status, capsys.readouterr().err) == (0, "")


def test_a_stale_table_is_named_and_then_written_anew(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for paper in (ROOT / "docs").glob("*.md"):
        (tmp_path / paper.name).write_text(paper.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    reasons = tmp_path / "reasons.md"
    fresh = reasons.read_text("utf-8")
    reasons.write_text(fresh.replace("| `pin_mismatch` | 502", "| `pin_mismatch` | 200"), "utf-8")
    assert generate.main(["--check"]) == 1
    assert "docs/reasons.md" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert reasons.read_text("utf-8") == fresh


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("reasons.md", "no table at all"),
        ("reasons.md", "<!-- generated: reasons -->\nnever closed"),
        ("reasons.md", "<!-- generated: reasons -->\n<!-- end -->\n<!-- generated: reasons -->\n<!-- end -->"),
        ("reasons.md", "<!-- generated: metrics -->\n<!-- end -->"),
        ("reasons.md", "<!-- generated: reasons -->\n<!-- end -->\n<!-- end -->"),
    ],
    ids=["missing", "not closed", "twice", "of another file", "closed twice"],
)
def test_markers_that_fit_no_table_are_refused(generate: ModuleType, file: str, text: str) -> None:
    with pytest.raises(generate.BadMarkers, match=r"docs/reasons\.md"):
        generate.renewed(file, text)


def test_the_reasons_table_has_every_reason(generate: ModuleType) -> None:
    table = generate.reasons_table()
    assert re.findall(r"^\| (?:`(\w+)`)?", table, re.M)[2:] == [r.code for r in Reason]  # "" for a row without a code


def test_the_metrics_table_has_the_names_that_a_scrape_shows(generate: ModuleType) -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    registry.register(PolicyMetrics("1", Policy, 0))
    families = {family.name for family in registry.collect()}
    named = set(re.findall(r"`(overcoat_\w+)`", generate.metrics_table()))
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named} == families
    assert "overcoat_requests_total" in named


@pytest.mark.parametrize("paper", PAPERS, ids=NAMES)
def test_every_relative_link_leads_to_something_that_is_there(paper: Path) -> None:
    broken = []
    for target in LINK.findall(prose(paper)):
        if target.startswith(WEB):
            continue
        path, _, anchor = target.partition("#")
        file = (paper.parent / path).resolve() if path else paper
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def commands_in(paper: Path) -> Iterator[list[str]]:
    """Yield the words behind each `overcoat` that a paper would have its reader type."""
    text = paper.read_text("utf-8")
    pieces = [code for language, code in FENCE.findall(text) if language in ("sh", "console", "bash")]
    pieces += re.findall(r"^(?: {4,}|\t)(overcoat .*)$", FENCE.sub("", text), re.MULTILINE)
    pieces += [code for code in INLINE.findall(FENCE.sub("", text)) if code.startswith("overcoat ")]
    for piece in pieces:
        for line in piece.replace("\\\n", " ").splitlines():
            for words in simple_commands(line):
                if words[:1] == ["overcoat"]:
                    yield words[1:]
                elif words[:2] == ["docker", "compose"] and "run" in words and "overcoat" in words:
                    yield words[words.index("overcoat") + 1 :]


def simple_commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell line, without what is redirected."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word[0] in ">|<&;":
            yield words
            words = []
        else:
            words.append(word)
    yield words


def problems_of(words: list[str]) -> str | None:
    """Return what is wrong with a command line, or None."""
    context = click.Context(cli.main, info_name="overcoat")
    command: click.Command = cli.main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in command.list_commands(context):
            return f"no command {words[0]}"
        found = command.get_command(context, words[0])
        assert found is not None
        command, words = found, words[1:]
    known = {name for parameter in command.get_params(context) for name in parameter.opts}
    if "--" in words:  # what follows is another program's
        words = words[: words.index("--")]
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
    return f"no options {unknown} of {command.name}" if unknown else None


@pytest.mark.parametrize("paper", PAPERS, ids=NAMES)
def test_every_overcoat_command_in_the_papers_exists_with_its_options(paper: Path) -> None:
    wrong = {" ".join(words): problem for words in commands_in(paper) if (problem := problems_of(words))}
    assert wrong == {}


def test_the_check_of_commands_finds_what_does_not_exist() -> None:
    assert problems_of(["serve", "--policy", "x"]) is None
    assert problems_of(["run", "-q", "--", "curl", "-x"]) is None
    assert problems_of(["run", "-x", "--", "curl"]) == "no options ['-x'] of run"
    assert problems_of(["sevre"]) == "no command sevre"
    assert problems_of(["keys", "brew"]) == "no command brew"
    assert problems_of(["serve", "--daemon"]) == "no options ['--daemon'] of serve"


def test_the_readme_lists_every_command() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    listed = {tuple(words.split()[:2]) for words in re.findall(r"^\| `overcoat ([a-z ]+?)(?: [A-Z]+)?` \|", text, re.M)}
    context = click.Context(cli.main)
    expected: set[tuple[str, ...]] = set()
    for name in cli.main.list_commands(context):
        command = cli.main.get_command(context, name)
        if isinstance(command, click.Group):
            expected |= {(name, below) for below in command.list_commands(context)}
        if not isinstance(command, click.Group) or command.invoke_without_command:
            expected.add((name,))
    assert listed == expected


def policies() -> list[tuple[str, str]]:
    """Return the papers' policies, with the paper that each is from."""
    return [
        (name, code) for paper, name in zip(PAPERS, NAMES, strict=True) for code in POLICY.findall(paper.read_text())
    ]


@pytest.mark.parametrize(("paper", "policy"), policies(), ids=[name for name, _ in policies()])
def test_every_policy_in_the_papers_loads(paper: str, policy: str, tmp_path: Path) -> None:
    for file in re.findall(r"file: ([\w./-]+\.pub\.pem)", policy):
        (tmp_path / file).write_bytes(to_pem(new_key(Alg.ECDH_ES_A256KW), private=False))
    path = tmp_path / "overcoat.yaml"
    path.write_text(policy, "utf-8")
    assert load_policy(path, {}).rules


def test_the_first_policy_of_the_readme_has_eleven_lines() -> None:
    first = next(code for name, code in policies() if name == "README.md")
    assert len(first.splitlines()) == 11


def test_the_first_screen_of_the_readme_has_the_commands_the_policy_and_the_compose_snippet() -> None:
    before_picture, _, _ = (ROOT / "README.md").read_text("utf-8").partition("![make demo](docs/demo.png)")
    assert len(before_picture.splitlines()) <= 50
    for wanted in ("make demo", "make test", "<!-- policy -->", "services:"):
        assert wanted in before_picture


@pytest.mark.parametrize("paper", PAPERS, ids=NAMES)
def test_every_json_block_of_the_papers_is_json(paper: Path) -> None:
    for language, code in FENCE.findall(paper.read_text("utf-8")):
        if language == "json":
            json.loads(code)


def test_the_decision_line_table_has_exactly_the_fields_of_a_line() -> None:
    lines: list[str] = []
    telemetry = Telemetry(Sessions(), Metrics(CollectorRegistry()), lines.append)
    exchange = Exchange(Policy(mode=Mode.OBSERVE), "127.0.0.1")
    entry = FieldEntry((parse_selector("$.a"),), KeySet("k", Alg.A256KW, new_key(Alg.A256KW)), name="request[0]")
    exchange.note_reason(Denied(Reason.NOT_HTTP, "a detail"))
    exchange.looks_secret = {"$.token": Shape.TOKEN}
    exchange.count_fields([entry], [1])
    exchange.count_failure(entry.name, Reason.SIGNED_BODY)
    exchange.upstream = Upstream(exchange.policy, None)
    exchange.upstream.noted = Denied(Reason.PIN_MISMATCH, "a detail", facts=mismatch_facts(PinSet(()), []))
    telemetry.finish(exchange, None, None)
    paper = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    section = paper.partition("## Decision lines")[2].partition("## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    in_other_lines_only = ["event", "fields"]
    assert sorted(documented) == sorted([*json.loads(lines[0]), *in_other_lines_only])


def where_rows() -> list[tuple[str, str, str]]:
    """Return the rows of the index of decisions: the question, the names that decide, and the files that have them."""
    text = (ROOT / "docs" / "where.md").read_text("utf-8")
    return re.findall(r"^\| ([^|]+) \| ([^|]*`[^|]+) \| (\[.+\)) \|$", text, re.MULTILINE)


def defined_in(file: Path) -> set[str]:
    """Return the names of a source's functions and classes, of methods also as `Class.method`, and of its constants."""
    tree = ast.parse(file.read_text("utf-8"))
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    defined = {node.name for node in ast.walk(tree) if isinstance(node, functions | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            defined |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, functions)}
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return defined


@pytest.mark.parametrize(("question", "names", "files"), where_rows())
def test_each_name_in_the_index_of_decisions_is_defined_in_its_files(question: str, names: str, files: str) -> None:
    found = [defined_in(ROOT / "docs" / file) for file in LINK.findall(files)]
    assert set(INLINE.findall(names)) <= set().union(*found), question


def test_the_index_of_decisions_answers_what_a_newcomer_asks_first() -> None:
    rows = {question: names for question, names, _ in where_rows()}
    assert len(rows) > 70
    for asked, name in {
        "Where is a pin decided": "check_pins",
        "take a connection from the pool": "Pool",
        "where would another be added": "Encoding",
        "What happens when a hook raises": "Dispatcher",
        "Where does a policy error get its line and column from": "Document.mark",
    }.items():
        assert any(asked in question and f"`{name}`" in names for question, names in rows.items()), asked


def steps_of_a_request() -> list[tuple[str, str]]:
    """Return the names and files in the picture of a request's way."""
    picture = (ROOT / "ARCHITECTURE.md").read_text("utf-8").partition("```text\n")[2].partition("```")[0]
    return re.findall(r"([A-Za-z_.0-9]+) +((?:proxy|addons)/[\w/]+\.py)", picture)


@pytest.mark.parametrize(("name", "file"), steps_of_a_request())
def test_each_step_in_the_picture_is_defined_in_its_file(name: str, file: str) -> None:
    assert name in defined_in(ROOT / file)


def test_the_picture_was_found() -> None:
    assert ("Gate", "addons/gate.py") in steps_of_a_request()
    assert len(steps_of_a_request()) > 15


def test_rules_are_cited_by_numbers_that_there_are() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rules = re.findall(r"^(\d)\. \*\*", text.partition("## The rules")[2].partition("## ")[0], re.MULTILINE)
    assert rules == list("12345678")
    cited = re.compile(r"ARCHITECTURE(?:\.md,|'s) +rules? +(\d+)")
    sources = [path for folder in ("proxy", "addons", "tests") for path in (ROOT / folder).rglob("*.py")]
    numbers = {found for path in sources for found in cited.findall(path.read_text("utf-8"))}
    assert numbers <= set(rules)
    assert len(numbers) > 4


def test_the_names_in_explanations_are_those_of_the_sources() -> None:
    """A constant or a class that is spoken of is there; one method of a class by `Class.method`."""
    sources = [path.read_text("utf-8") for folder in ("proxy", "addons") for path in (ROOT / folder).rglob("*.py")]
    words = set(re.findall(r"\w+", "\n".join(sources))) | {"TlsConfig"}  # mitmproxy's
    papers = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "engine.md", *decisions()]
    named = {name for paper in papers for name in INLINE.findall(prose(paper))}
    names = {
        name for name in named if re.fullmatch(r"[A-Z]\w*[a-z]\w*[A-Z]\w*(\.\w+)?|[A-Z]+_[A-Z_]+|\w+\.\w+\(?", name)
    }
    assert len(names) > 20
    wrong = {
        name for name in names if not set(name.split(".")) <= words and not re.search(r"\.(md|py|toml|lock)$", name)
    }
    assert wrong == set()


def decisions() -> list[Path]:
    """Return the files of decisions."""
    return sorted(path for path in (ROOT / "docs" / "decisions").glob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("paper", decisions(), ids=lambda path: path.stem)
def test_each_decision_says_what_was_weighed_and_what_would_change_it(paper: Path) -> None:
    text = paper.read_text("utf-8")
    assert re.findall(r"^(?:# |\*\*)([^*\n]+?)(?:\.\*\* |$)", text, re.MULTILINE)[1:] == [
        "Context",
        "What we do",
        "What was weighed",
        "What would change our mind",
    ]


def test_the_index_of_decisions_has_each_by_its_title() -> None:
    text = (paper := ROOT / "docs" / "decisions" / "README.md").read_text("utf-8")
    listed = dict(re.findall(r"^- \[(.+)\]\(([\w-]+\.md)\)$", text, re.MULTILINE))
    assert listed == {path.read_text("utf-8").splitlines()[0][2:]: path.name for path in decisions()}, paper


def test_every_page_of_docs_is_in_their_index() -> None:
    listed = set(LINK.findall((ROOT / "docs" / "README.md").read_text("utf-8")))
    pages = {path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"}
    assert pages | {"decisions/README.md"} <= listed


def trouble(section: str) -> str:
    """Return a section of the page that starts from what a person sees."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    found = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    assert found, section
    return found


def test_every_reason_is_found_from_the_status_that_an_app_gets() -> None:
    rows = re.findall(r"^\| (\d+|–) \| (`[^|]+`) \|", trouble("The app gets a status"), re.MULTILINE)
    found = {(code, status) for status, codes in rows for code in INLINE.findall(codes)}
    assert found == {(r.code, "–" if r is Reason.APP_TLS_FAILED else str(r.status)) for r in Reason}


def test_every_alert_is_found_from_its_name() -> None:
    found = INLINE.findall("".join(re.findall(r"^\| ([^|]+) \|", trouble("An alert fires"), re.MULTILINE)))
    assert found == [alert.name for alert in ALERTS]


def test_every_message_in_the_page_of_troubles_is_one_that_there_is() -> None:
    """A message has `…` where something else may stand; what is between these is in the sources as it stands."""
    sections = ("A command ends with an error", "A message in the log", "A container is unhealthy, or not ready")
    messages = re.findall(r"^\| `([^`|]*…[^`|]*)` \|", "".join(trouble(each) for each in sections), re.MULTILINE)
    assert len(messages) > 20
    said = list(said_in_the_sources())
    wrong: list[tuple[str, list[str]]] = []
    for message in messages:
        pieces = [piece for piece in re.split("…|^error:|^[a-z.]+:3:7: mode:", message) if len(piece) > 4]
        missing = [piece for piece in pieces if not any(piece.strip() in each for each in said)]
        wrong += [(message, missing)] if missing else []
    assert wrong == []


def said_in_the_sources() -> Iterator[str]:
    """Yield each text of the sources, with a line feed where something else is put in."""
    for path in [*(ROOT / "proxy").rglob("*.py"), *(ROOT / "addons").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(each.value) if isinstance(each, ast.Constant) else "\n" for each in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[sd]", "\n", node.value)


def test_every_file_that_contributors_are_sent_to_is_there() -> None:
    text = prose(ROOT / "CONTRIBUTING.md")
    paths = {path for path in INLINE.findall(text) if re.fullmatch(r"[\w./-]+/[\w./-]+", path)}
    assert len(paths) > 20
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_each_test_that_contributors_are_told_to_run_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    runs = re.findall(r"^\.venv/bin/pytest (\S+)(?: -k (\w+))?", text, re.MULTILINE)
    assert [name for _, name in runs if name]
    for path, name in runs:
        tests = [each for each in re.findall(r"def (test_\w+)\(", (ROOT / path).read_text("utf-8")) if name in each]
        assert tests, (path, name)


def compose_snippets() -> list[tuple[str, str]]:
    """Return the papers' compose files, and ours, with the file that each is from."""
    found = [
        (name, code)
        for paper, name in zip(PAPERS, NAMES, strict=True)
        for language, code in FENCE.findall(paper.read_text("utf-8"))
        if language == "yaml" and code.startswith("services:")
    ]
    return [*found, ("docker-compose.yml", (ROOT / "docker-compose.yml").read_text("utf-8"))]


@pytest.mark.parametrize(("file", "text"), compose_snippets(), ids=[file for file, _ in compose_snippets()])
def test_an_app_in_compose_is_told_of_its_proxy_and_of_what_is_beside_it(file: str, text: str) -> None:
    environment = yaml.safe_load(text)["services"]["app"]["environment"]
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        assert (environment[name], environment[name.lower()]) == ("http://overcoat:8080",) * 2
    assert environment["NO_PROXY"] == environment["no_proxy"]
    assert environment["NO_PROXY"].split(",")[:3] == ["localhost", "127.0.0.1", "::1"]


def test_the_compose_snippets_were_found() -> None:
    assert [file for file, _ in compose_snippets()] == ["README.md", "docs/apps.md", "docker-compose.yml"]
