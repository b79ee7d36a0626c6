# SPDX-License-Identifier: Apache-2.0
"""Pages that are written when the documentation is built: the API by package, the commands, and every config key.

Keys, types, defaults and explanations come from the parser of the command line, so none of them is typed by hand.
"""

import ast
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config_keys import audit_page, config_pages, run_page
from sphinx.application import Sphinx
from sphinx.config import Config

import lightning_recon
from lightning_recon.command_line.commands import COMMANDS, help_of
from lightning_recon.command_line.shipped_configs import shipped

# The quickstart in a few seconds, on top of an example's command.
SMALL = r"""\
    --data.image_size 48 --data.masks lightning_recon.data.NoMasks --model.client.network convnet \
    --comparison.structure null --comparison.noise_factor null --trainer.accelerator cpu --quiet"""
HIDDEN = {"__main__", "cli", "deprecated", "victim"}  # entry points and aliases: nothing to import from


def api_pages(whole: bool) -> Iterator[tuple[str, str]]:
    """Name and text of each page of the API: one for the public functions, one for each package.

    Args:
        whole: whether to document the modules of the packages; otherwise only their headings are written.
    """
    rooms = [one for one in pkgutil.iter_modules(lightning_recon.__path__) if one.name not in HIDDEN]
    names = [room.name for room in rooms if room.ispkg]
    toctree = "\n".join(["public", *names, "modules"])
    yield (
        "index",
        f"""# Python API

Start with [the public functions](public.md). They are stable: names are not changed without a deprecation period.
The other pages document the packages behind the command line, for those who extend the project.

```{{toctree}}
:maxdepth: 1

{toctree}
```
""",
    )
    yield "public", _page("Public functions", "lightning_recon.api", ["lightning_recon.api"])
    for name in names:
        package = f"lightning_recon.{name}"
        found = pkgutil.walk_packages([f"{path}/{name}" for path in lightning_recon.__path__], f"{package}.")
        modules = sorted(one.name for one in found)
        if name != "api":  # the page of the public functions documents that package itself
            modules.insert(0, package)
        yield name, _page(f"lightning_recon.{name}", package, modules, whole)
    single = [f"lightning_recon.{room.name}" for room in rooms if not room.ispkg]
    yield "modules", _page("Modules at the top level", "", single, whole)


def _page(title: str, package: str, modules: list[str], whole: bool = True) -> str:
    parts = [f"# {title}\n"]
    for module in modules:
        if module != package:
            parts.append(f"## {module.removeprefix(package + '.').removeprefix('lightning_recon.')}\n")
        if not whole:
            continue
        # What a package re-exports is documented in the module that defines it.
        parts.append(f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n   :member-order: bysource\n```\n")
    return "\n".join(parts)


def command_page() -> str:
    """Every command with its help."""
    head = "# Command line\n\nEach section is what `recon COMMAND --help` prints. "
    head += "[The configuration keys](configuration/index.md) lists every option.\n"
    return head + "".join(f"\n## recon {name}\n\n```text\n{help_of(name).strip()}\n```\n" for name in COMMANDS)


def shipped_page() -> str:
    """Every config that ships with the package, with its comments."""
    parts = [
        "# Shipped configs\n",
        "`recon configs` lists these files, `recon configs NAME` prints one, and `--config NAME` finds it from any "
        "folder.\n",
    ]
    for name in shipped():
        parts.append(f"## {name}\n\n```{{literalinclude}} ../../../configs/{name}\n:language: yaml\n```\n")
    return "\n".join(parts)


def gallery_page(example: Path) -> str:
    """Notebook that shows an example and runs the command of its docstring on small images.

    Args:
        example: Python file.
    """
    docstring = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or ""
    title, *rest = docstring.splitlines()
    command = next(line.strip() for line in rest if line.startswith("    "))
    # An L1 clip leaves a number of the update much less than a Euclidean one.
    noise = "1e-4" if "privacy.mechanism" in command else "0.003"
    text = "\n".join(line for line in rest if not line.startswith("    ")).strip()
    return f"""---
file_format: mystnb
kernelspec:
  name: python3
---

# {title.removesuffix(".")}

{text}

```bash
{command}
```

```{{literalinclude}} ../../examples/{example.name}
:language: python
```

Here it attacks small images, and noise of z = {noise} makes the differences visible:

```{{code-cell}} python
import os
import tempfile
from pathlib import Path

import lightning_recon

folder = Path(tempfile.mkdtemp())
examples = Path(lightning_recon.__file__).parents[1] / "docs" / "examples"
os.environ["PYTHONPATH"] = os.pathsep.join([str(examples), os.environ.get("PYTHONPATH", "")])
```

```{{code-cell}} python
%%bash -s "$folder"
{command} {SMALL} \\
    --model.client.privacy.noise_multiplier {noise} --trainer.default_root_dir $1
```

```{{code-cell}} python
from IPython.display import Image

Image(folder / "comparison.png", width=480)
```
"""


def write_pages(app: Sphinx) -> None:
    """Write all pages; those that did not change keep their time, so that they are not built again."""
    source = Path(app.srcdir)
    pages = {f"reference/api/{name}.md": text for name, text in api_pages(app.config.whole_api)}
    pages["reference/command-line.md"] = command_page()
    pages |= {f"reference/configuration/{name}.md": text for name, text in config_pages()}
    pages["reference/configuration/run.md"] = run_page()
    pages["reference/configuration/audit.md"] = audit_page()
    pages["reference/configuration/shipped.md"] = shipped_page()
    pages |= {f"gallery/run/{one.stem}.md": gallery_page(one) for one in sorted((source / "examples").glob("*.py"))}
    for folder in ("reference/api", "reference/configuration", "gallery/run"):
        (source / folder).mkdir(exist_ok=True)
        for path in (source / folder).glob("*.md"):
            if f"{folder}/{path.name}" not in pages:
                path.unlink()
    for name, text in pages.items():
        path = source / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def forgive(app: Sphinx, config: Config) -> None:
    """Without the modules of the packages, references to them lead nowhere."""
    if not config.whole_api:
        config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, ("py:.*", ".*")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for them."""
    # `-D whole_api=0` for a quick look: the modules take most of the time of a build.
    app.add_config_value("whole_api", default=True, rebuild="env", types=[bool])
    app.connect("config-inited", forgive)
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
