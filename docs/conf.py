# SPDX-License-Identifier: Apache-2.0
"""How the pages are built: `sphinx-build -W -n -b html docs OUT`, without the network."""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "lightning_recon"
author = copyright = "The lightning_recon authors"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generated_pages",
    "record_fields",
    "results_table",
]
exclude_patterns = ["_ext", "examples"]
source_suffix = {".md": "myst-nb"}

# Anchors of headings down to this level, so that `page.md#heading` is checked like a page.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]

# Tutorials are executed; a cell that fails stops the build.
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["reference/*", "explanation/*"]
nb_merge_streams = True
suppress_warnings = ["myst-nb.lexer"]  # of notebooks that were not executed

default_role = "literal"  # `name` in a docstring
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
nitpicky = True
# Names of other libraries cannot be resolved without the network.
nitpick_ignore_regex = [("py:.*", r"(?!lightning_recon\.).*"), ("py:class", r".*\.[A-Z]")]  # and type variables

# Links inside the documentation alone are checked: there is no network where it is built.
linkcheck_ignore = [r"https?://.*"]

html_theme = "furo"
html_title = "lightning_recon"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]


def literal(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape what docstrings write without markup and reStructuredText would read as such: |x|, a * b, name_."""
    code = False
    for index, line in enumerate(lines):
        code = line.startswith((" ", ">>>")) if code and line.strip() else code
        if line.lstrip().startswith((">>>", "...")) or code:
            continue
        parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
        escaped = [re.sub(r"(?<!\\)([*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
        lines[index] = "".join(one for pair in zip(escaped, [*parts[1::2], ""], strict=True) for one in pair)
        code = line.rstrip().endswith("::")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handler before napoleon's."""
    app.connect("autodoc-process-docstring", literal, priority=100)
    return {"parallel_read_safe": True}
