# SPDX-License-Identifier: Apache-2.0
"""The audit card: a page of Markdown in the manner of a model card."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lightning_recon.audit.formatting import number
from lightning_recon.printable import printable

_MARKUP = re.compile(r"([\\`*_\[\]<>|#~&$])")


def card_of(content: Mapping[str, Any], page: str, annex_file: str) -> str:
    """The card as Markdown.

    Args:
        content: Of the report, see `content_of`.
        page: Name of the report's file.
        annex_file: Name of the annex's file.
    """
    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
    )  # fmt: skip
    environment.filters |= {"number": number, "plain": _plain}
    annex = content["annex"]
    classes = annex["attack_classes"]
    card = environment.get_template("audit-card.md.j2").render(
        executive=content["executive"],
        summary=content["summary"],
        annex=annex,
        attacks=list(dict.fromkeys(name for one in classes for name in one["attacks"])),
        data=list(dict.fromkeys(one["data"] or "unknown source" for one in annex["mechanisms"])),
        left_out=[f"{one['name']} ({one['status']})" for one in classes if one["status"] != "executed"],
        page=_code(page),
        annex_file=_code(annex_file),
    )
    return card.strip() + "\n"


def _plain(text: str) -> str:
    """A text in which nothing is Markdown or HTML."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(text.split())))


def _code(name: str) -> str:
    """The name of a file between backticks."""
    return printable(name).replace("`", "'")
