"""What is generated from the model: the JSON Schema, and the reference table in docs/policy.md."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from proxy.policyfile.model.whole import PolicyFile


class _SchemaWithoutNull(GenerateJsonSchema):
    """A field that may be left out is not one that may be null: an empty `pins:` must not mean "no pins"."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if "default" in schema and schema["default"] is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def policy_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the policy file."""
    schema = PolicyFile.model_json_schema(schema_generator=_SchemaWithoutNull)
    for definition in schema["$defs"].values():
        del definition["title"]  # it is the name of a Python class
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Overcoat policy"}


def schema_text() -> str:
    """Return the JSON Schema as text, as it is printed and committed."""
    return json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n"


def policy_table() -> str:
    """Return the reference table of all keys of the policy file, in Markdown."""
    schema = policy_schema()
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for path, node, required in _rows(schema, schema["$defs"], ""):
        default = "required" if required else f"`{json.dumps(node['default'])}`" if "default" in node else "–"
        description = node.get("description", "").replace("|", "\\|")
        lines.append(f"| `{path}` | {_type_text(node, schema['$defs'])} | {default} | {description} |")
    return "\n".join(lines) + "\n"


def _resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    return {**definitions[node["$ref"].rpartition("/")[2]], **node}


def _rows(node: dict[str, Any], definitions: dict[str, Any], prefix: str) -> list[tuple[str, dict[str, Any], bool]]:
    rows = []
    for name, unresolved in node["properties"].items():
        field = _resolved(unresolved, definitions)
        path = f"{prefix}{name}"
        rows.append((path, field, name in node.get("required", ())))
        item, below = field, path
        if field.get("type") == "array":
            item, below = _resolved(field["items"], definitions), f"{path}[]"
        elif "patternProperties" in field:
            (value,) = field["patternProperties"].values()
            item, below = _resolved(value, definitions), f"{path}.NAME"
        if "properties" in item and "description" in item:  # one of two short forms has no description
            rows += _rows(item, definitions, f"{below}.")
        elif "oneOf" in item:
            rows += _rows_of_any([_resolved(each, definitions) for each in item["oneOf"]], definitions, f"{below}.")
    return rows


def _rows_of_any(
    forms: list[dict[str, Any]], definitions: dict[str, Any], prefix: str
) -> list[tuple[str, dict[str, Any], bool]]:
    """Return the rows of a mapping with several forms: the keys of the first one, and of each other one the key that
    tells it.
    """
    usual, *others = forms
    is_needed = set(usual["required"]).intersection(*(form["required"] for form in others))
    rows = [(path, node, path.removeprefix(prefix) in is_needed) for path, node, _ in _rows(usual, definitions, prefix)]
    told = next(iter(usual["properties"]))
    for form in others:
        name, node = next(iter(form["properties"].items()))
        where = f"In place of `{told}`, where a mirror listener stands for the hosts; see `{name}` of the other list."
        rows.append((f"{prefix}{name}", {**node, "description": where}, False))
    return rows


def _type_text(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    node = _resolved(node, definitions)
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "oneOf" in node:
        return "mapping"
    if "anyOf" in node:
        return " or ".join(_type_text(choice, definitions) for choice in node["anyOf"])
    if node["type"] == "array":
        return f"list of {_type_text(node['items'], definitions)}"
    if node["type"] == "string":
        return "date" if node.get("format") == "date" else "text"
    return {"integer": "number", "boolean": "`true` \\| `false`", "object": "mapping", "null": "`null`"}[node["type"]]
