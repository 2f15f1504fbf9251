"""Reads a policy file into a `Policy`, or reports every error of the file in one run, each with its position and with
what would be right. The commands call it at the start, and `proxy.processes.reload` each time the policy is read again.

Rules of this module:

- There are three steps: the text (`proxy.policyfile.yamltext`), the model (`proxy.policyfile.model`), and then checks
  that need several values or other files (`proxy.policyfile.build`). Each step goes on with whatever the one before
  could use, so that one run finds as many errors as possible.
- A wrong value is never replaced by a default: a policy is complete and right, or it is refused.
- Environment variables override the file, and flags override both; their values are checked in the same way.
- Key material is read once, here, and no message quotes it.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from proxy.core.fields.selectors import BadSelector
from proxy.core.rules.policy import Listener, Mode, Policy
from proxy.disk.reading import read_regular
from proxy.policyfile.build import Builder
from proxy.policyfile.listening import listener_problems
from proxy.policyfile.model.addresses import parse_admin, parse_listener
from proxy.policyfile.model.fields import DecryptEntry, EncryptEntry
from proxy.policyfile.model.section import Section
from proxy.policyfile.model.selectortext import BadEntry
from proxy.policyfile.model.whole import MARKERS, PolicyFile
from proxy.policyfile.nearby import looks_like_name, what_lies_there, whose
from proxy.policyfile.refusal import PolicyError, PolicyErrors, shown
from proxy.policyfile.yamltext import ANY_INDEX, MAX_BYTES, UNUSABLE, Document, Problem, Steps, path_text, read_yaml

NULLABLE: frozenset[Steps] = frozenset(
    {("admin",), ("probes",), ("limits", "response_seconds"), ("rules", ANY_INDEX, "limits", "response_seconds")}
)
OVERRIDES = ("listen", "admin", "probes", "mode")  # keys that flags and OVERCOAT_… variables may set

_OF_MARKERS: dict[str | int, type[Section]] = {"[encrypt]": EncryptEntry, "[decrypt]": DecryptEntry}

_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a number"),
    (date, "a date"),
    (str, "text"),
    (list, "a list"),
    (dict, "a mapping"),
)
_MOST_PLACES = 2  # of a key that stands in the wrong one
_SHOWN_WHOLE = 60  # characters: longer text is shown in part
_WITH_UNIT = re.compile(r"[0-9]+(?:\.[0-9]+)? ?[A-Za-z]+")
_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def load_policy(
    path: Path | None,
    env: Mapping[str, str],
    overrides: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    *,
    is_without_secrets: bool = False,
) -> Policy:
    """Read a policy file, and every key and pin file that it names.

    Args:
        path: the file, or None for the built-in default (the content of config/default.yaml).
        env: the environment: `OVERCOAT_LISTEN` and so on for each of `OVERRIDES`; and the variables that `{env: NAME}`
            means, unless `secrets` is given.
        overrides: the values of `OVERRIDES` from the command line, which win over the environment.
        secrets: the variables that `{env: NAME}` means, by name; see `proxy.processes.secrecy`.
        is_without_secrets: whether keys, passwords and credentials that are not there are no error; the policy says
            which (`unchecked`), and must not be served.

    Returns:
        The complete policy.

    Raises:
        PolicyErrors: the file cannot be read, or something in it is wrong.
    """
    file = "" if path is None else str(path)
    text = b"" if path is None else _read(path)
    document = Document(data={"version": 1}) if path is None else read_yaml(text, NULLABLE)
    problems = list(document.problems)
    texts, refused = _override_texts(env, overrides or {}), list[PolicyError]()
    listen = _listen_override(texts, refused)
    policy: Policy | None = None
    if document.data is not UNUSABLE:
        problems += _model_problems(document)
        builder = Builder(
            document,
            path.parent if path else Path(),
            env if secrets is None else secrets,
            listen=listen,
            is_without_secrets=is_without_secrets,
        )
        builder.note(text)
        builder.files += [path] if path else []
        policy = replace(builder.build(), source=str(path) if path else "built-in")
        problems += builder.problems
    problems.sort(key=lambda problem: (problem.line, problem.column))
    errors = [PolicyError(file, p.line, p.column, path_text(p.steps), p.message) for p in problems]
    if policy is None:
        raise PolicyErrors(errors)
    errors += refused
    policy = _overridden(policy, texts, errors)
    errors += _listener_errors(policy, builder.mirrors.problems, texts, document, file)
    if errors:
        raise PolicyErrors(errors)
    return policy


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)[0]
    except OSError as error:
        message = f"the policy cannot be read: {error.strerror}{what_lies_there(path)}{whose(path, error)}"
        raise PolicyErrors([PolicyError(str(path), 0, 0, "", message)]) from None


def _override_texts(env: Mapping[str, str], overrides: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the overrides: for each key of `OVERRIDES`, its source (a variable or flag) and its text."""
    texts = {}
    for name in OVERRIDES:
        variable = f"OVERCOAT_{name.upper()}"
        if name in overrides:
            texts[name] = (f"--{name}", overrides[name])
        elif variable in env:
            texts[name] = (variable, env[variable])
    return texts


def _listen_override(texts: Mapping[str, tuple[str, str]], errors: list[PolicyError]) -> tuple[Listener, ...] | None:
    """Return the listeners that take the place of the file's, None if none do; what is wrong with them is appended to
    the list, and then there are none.
    """
    if "listen" not in texts:
        return None
    label, text = texts["listen"]
    try:
        return tuple(parse_listener(part.strip()) for part in text.split(","))
    except ValueError as error:
        errors.append(PolicyError("", 0, 0, label, str(error)))
        return ()


def _overridden(policy: Policy, texts: Mapping[str, tuple[str, str]], errors: list[PolicyError]) -> Policy:
    """Apply the overrides besides `listen`; append their errors to the list."""
    for name, (label, text) in texts.items():
        try:
            if name == "mode":
                policy = replace(policy, mode=_parse_mode(text))
            elif name != "listen":
                where = None if text == "off" else _parse_admin(text)
                policy = replace(policy, admin=where) if name == "admin" else replace(policy, probes=where)
        except ValueError as error:
            errors.append(PolicyError("", 0, 0, label, str(error)))
    return policy


def _listener_errors(
    policy: Policy,
    known: Iterable[tuple[int, str]],
    texts: Mapping[str, tuple[str, str]],
    document: Document,
    file: str,
) -> Iterator[PolicyError]:
    """Yield what is wrong with listeners, at their place in the file, or with the flag or variable that overrides it.

    Args:
        policy: the policy, with its overrides.
        known: errors of single listeners, by number.
        texts: the overrides.
        document: the file.
        file: its name; "" for none.
    """
    clients = document.data.get("clients") if isinstance(document.data, dict) else None
    said = frozenset(map(str, clients)) if isinstance(clients, dict) else frozenset[str]()
    of_one = [(("listen", number), message) for number, message in known]
    for steps, message in (*of_one, *listener_problems(policy, said, is_from_file=bool(file))):
        if steps[0] in texts:
            yield PolicyError("", 0, 0, texts[str(steps[0])][0], message)
        else:
            mark = document.mark(steps)
            position = (mark.line, mark.column) if file else (0, 0)
            yield PolicyError(file, *position, path_text(steps), message)


def _parse_admin(text: str) -> Listener:
    if not text:
        raise ValueError("this is empty: write HOST:PORT, or off for no such listener")
    return parse_admin(text)


def _parse_mode(text: str) -> Mode:
    if text not in list(Mode):
        raise ValueError(_not_one_of(text, [mode.value for mode in Mode]))
    return Mode(text)


def _not_one_of(text: str, allowed: list[str]) -> str:
    return f"must be {_either(allowed)}, not {shown(text)}{_did_you_mean(text, allowed)}"


def _either(allowed: list[str]) -> str:
    return f"{', '.join(allowed[:-1])} or {allowed[-1]}" if len(allowed) > 1 else allowed[0]


def _did_you_mean(text: str, allowed: Iterable[str]) -> str:
    by_lower = {each.lower(): each for each in allowed}
    plain = text[:100].lower()
    found = [plain] if plain in by_lower else difflib.get_close_matches(plain, by_lower, n=2)
    near = [by_lower[each] for each in found]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _elsewhere(key: str) -> str:
    """Return where a key belongs that is unknown where it stands, as the end of a message; "" if that is not clear."""
    found = [path for path, section in _sections() if key in section.model_fields]
    return f"; it belongs {' or '.join(found)}" if 0 < len(found) <= _MOST_PLACES else ""


@functools.cache
def _sections() -> tuple[tuple[str, type[Section]], ...]:
    """Return each mapping of the policy file, and where it is, in words."""
    found: list[tuple[str, type[Section]]] = []
    left: list[tuple[str, type[Section]]] = [("", PolicyFile)]
    while left:
        path, section = left.pop(0)
        found.append((f"into {path}" if path else "to the top of the file", section))
        for name, field in section.model_fields.items():
            inner = _section_in(field.annotation)
            if inner is not None and inner not in [each for _, each in found]:
                left.append((f"{path}.{name}" if path else name, inner))
    return tuple(found)


def _model_problems(document: Document) -> list[Problem]:
    try:
        PolicyFile.model_validate(document.data)
    except ValidationError as error:
        problems = [_model_problem(document, details) for details in error.errors(include_url=False)]
        return [problem for problem in problems if problem is not None]
    return []


def _model_problem(document: Document, details: ErrorDetails) -> Problem | None:
    """Return a model error in the policy file's terms; None if the text has reported a problem there already."""
    kind = details["type"]
    said: Steps = details["loc"]
    of_key = kind == "extra_forbidden" or said[-1:] == ("[key]",)
    if said[-1:] == ("[key]",):
        said = said[:-1]
    steps = tuple(step for step in said if step not in MARKERS)
    judged = steps[:-1] if kind == "missing" else steps
    raw = _value_at(document.data, judged)
    if raw is UNUSABLE or (judged and raw in ({}, [])):
        return None
    mark = document.mark(steps, of_key=of_key)
    message = _message(details, kind, said, raw, mark.text)
    error = details.get("ctx", {}).get("error")
    if isinstance(error, BadEntry):
        mark, error = document.mark((*steps, error.number)), error.error
    column = mark.column_of(error.position) if isinstance(error, BadSelector) else mark.column
    return Problem(steps, mark.line, column, message)


def _value_at(data: Any, steps: Steps) -> object:
    for step in steps:
        data = data[step]
    return data


def _message(details: ErrorDetails, kind: str, steps: Steps, raw: object, text: str) -> str:
    context: dict[str, Any] = details.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = list(_section_at(steps[:-1]).model_fields)
        key = str(steps[-1])
        hint = _elsewhere(key) or _did_you_mean(key, allowed)
        return f"unknown key {shown(key)}{hint} (known here: {', '.join(allowed)})"
    if kind == "missing":
        description = _section_at(steps[:-1]).model_fields[str(steps[-1])].description
        return f"this key is missing{': write version: 1' if steps == ('version',) else ''}. {description}"
    if kind in ("enum", "literal_error"):
        allowed = re.findall(r"'([^']*)'", context["expected"])
        if isinstance(raw, str):
            return _not_one_of(raw, allowed)
        return f"must be {_either(allowed)}, not {_kind_of(raw)}{_quotes_hint(raw, text, is_meant=text in allowed)}"
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
        hint = ""
        if expected == "text" and isinstance(raw, bool | int | date):
            refusal = _refusal_of(steps, text)  # do not advise quotes if the text is wrong with them, too
            hint = _quotes_hint(raw, text) if refusal is None else f"; {refusal}"
        if expected == "a list" and text:
            refusal = _refusal_of((*steps, 0), text)
            hint = f": write {_list_of(text)}" if refusal is None else f"; {_as_list(refusal)}"
        if expected == "a list" and isinstance(raw, dict) and _takes_mappings(steps):
            hint = ': put a "- " before its first key, or [ ] round its { }'
        if expected in ("a whole number", "true or false") and isinstance(raw, str):
            hint = _no_quotes_hint(steps, text, may_have_unit=kind == "int_type")
        if kind == "model_type":
            hint = _only_key_hint(steps, raw)
        return f"must be {expected}, not {_kind_of(raw)}{hint}"
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']}, not {raw}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']}, not {raw}"
    if kind == "value_error":
        return str(context["error"])
    return details["msg"]  # a kind of error that the model does not raise today


def _kind_of(raw: object) -> str:
    return next((name for kind, name in _KINDS if isinstance(raw, kind)), "nothing")


def _quotes_hint(raw: object, text: str, *, is_meant: bool = True) -> str:
    if not isinstance(raw, bool | int | date):
        return ""
    return f": YAML reads {text} as that" + (f'; put it in quotes, "{text}", if text is meant' if is_meant else "")


def _no_quotes_hint(steps: Steps, text: str, *, may_have_unit: bool) -> str:
    """Return the advice for text where a number, or true or false, is expected."""
    value = read_yaml(text.encode("utf-8", "replace")).data
    if isinstance(value, bool | int) and _refusal_of(steps, value) is None:
        return f": write {text}, without quotes"
    return "; it stands here alone, without a unit" if may_have_unit and _WITH_UNIT.fullmatch(text) else ""


def _takes_mappings(steps: Steps) -> bool:
    field = _section_at(steps[:-1]).model_fields[str(steps[-1])]
    return _section_in(field.annotation) is not None


def _only_key_hint(steps: Steps, raw: object) -> str:
    """Return the advice for a value where a mapping is expected, if it would be right as the value of its only key."""
    if isinstance(raw, bool):  # true or false does not tell which key is meant
        return ""
    section = _section_at(steps)
    names = []
    for name in section.model_fields:
        with contextlib.suppress(ValidationError):
            section.model_validate({name: raw})
            names.append(name)
    if len(names) != 1:
        return ""
    shown_whole = isinstance(raw, str) and len(raw) <= _SHOWN_WHOLE
    if isinstance(raw, str) and names[0] == "file" and not looks_like_name(raw):  # it may be the key itself
        shown_whole = False
    value = _list_of(str(raw))[1:-1] if shown_whole else "[…]" if isinstance(raw, list) else "…"
    return f": write {{{names[0]}: {value}}}"


def _refusal_of(steps: Steps, value: object) -> str | None:
    """Return the error for another value at these steps; None if that value would be accepted."""
    while isinstance(steps[-1], int):
        value, steps = [value], steps[:-1]
    try:
        _taker(_section_at(steps[:-1]), str(steps[-1])).validate_python([value])
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        expected = _EXPECTED.get(details["type"])
        cause = details.get("ctx", {}).get("error")
        return str(cause) if cause is not None else f"it must hold {expected}" if expected else details["msg"]
    return None


@functools.cache
def _taker(section: type[Section], name: str) -> TypeAdapter[Any]:
    """Return the validator of lists of one key's values; pydantic applies its settings only to types that are no
    classes.
    """
    field = section.model_fields[name]
    kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(GenericAlias(list, (kind,)), config=ConfigDict(strict=True, arbitrary_types_allowed=True))


def _as_list(refusal: str) -> str:
    """Return the error of an item, worded for a value that should have been a list."""
    return re.sub(r"write (\S+)\Z", lambda found: f"write {_list_of(found[1])}", refusal)


def _list_of(text: str) -> str:
    """Return a list with this text as its only item, as YAML; with quotes only if it needs them."""
    plain = f"[{text}]"
    return (
        plain
        if read_yaml(plain.encode("utf-8", "replace")).data == [text]
        else f"[{json.dumps(text, ensure_ascii=False)}]"
    )


def _section_at(steps: Steps) -> type[Section]:
    """Return the model of the mapping at these steps, among which a marker says which of several it is."""
    section: type[Section] = PolicyFile
    is_name = False  # whether the next step is a name that the file's author chose
    for step in steps:
        if step in _OF_MARKERS:
            section = _OF_MARKERS[step]
            continue
        if isinstance(step, int) or is_name:
            is_name = False
            continue
        annotation = section.model_fields[step].annotation
        is_name = get_origin(annotation) is dict
        section = _section_in(annotation) or section
    return section


def _section_in(annotation: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
