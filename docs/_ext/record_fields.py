# SPDX-License-Identifier: Apache-2.0
"""Directive `record-fields`: the fields of a section of `results.json`, their types read from the pydantic schema.

    ```{record-fields} VictimRecord
    client, index: which victim
    ```

Each line of the body explains one field or several. A field of the schema that no line explains is an error.
"""

from typing import Any

from docutils import nodes
from pydantic import TypeAdapter
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from lightning_recon.files.results_schema import ResultsRecord

WORDS = {"number": "number", "integer": "integer", "boolean": "true or false", "string": "text", "null": "null"}


def kind(schema: dict[str, Any], top: str = "") -> str:
    """A JSON schema in words.

    Args:
        schema: of one field.
        top: title of what contains it, so that sections are named.
    """
    if "$ref" in schema:
        return "object"
    if "enum" in schema or "const" in schema:
        return " or ".join(str(one) for one in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(one) for one in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}s".replace("texts", "text").replace("ys", "ies")
    return WORDS.get(schema.get("type", ""), "object")


def fields_of(section: str) -> dict[str, str]:
    """Names and types of the fields that the schema checks.

    Args:
        section: name of the TypedDict.
    """
    schema = TypeAdapter(ResultsRecord).json_schema()
    record = schema if section == "ResultsRecord" else schema["$defs"][section]
    return {name: kind(one) for name, one in record["properties"].items()}


class RecordFields(SphinxDirective):
    """See the head of this file."""

    has_content = True
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A definition list: fields, their type, their meaning."""
        known = fields_of(self.arguments[0]) if self.arguments else {}
        explained = [(line.partition(": ")[0].split(", "), line.partition(": ")[2]) for line in self.content if line]
        missing = set(known) - {name for names, _ in explained for name in names}
        if missing:
            raise self.error(f"{self.arguments[0]}: nothing explains {', '.join(sorted(missing))}")
        parts = []
        for names, meaning in explained:
            kinds = dict.fromkeys(known[name] for name in names if name in known)
            types = f" *({'; '.join(kinds)})*" if kinds else ""
            parts.append(", ".join(f"`{name}`" for name in names) + f"{types}\n: {meaning}\n")
        return self.parse_text_to_nodes("\n".join(parts))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("record-fields", RecordFields)
    return {"parallel_read_safe": True}
