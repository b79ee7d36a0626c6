# SPDX-License-Identifier: Apache-2.0
"""Check an installed wheel: requirements are met, modules can be imported, and no import is missing in pyproject.toml.

Usage: PYTHON .ci/check_imports.py SITE_PACKAGES, with the interpreter of the environment that holds the wheel.
"""

import ast
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import requires, version
from pathlib import Path
from pkgutil import walk_packages

from packaging.requirements import Requirement

import lightning_recon
from lightning_recon.errors import UserError

# Packages whose import name is not the name of their distribution.
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}


def declared() -> tuple[set[str], set[str]]:
    """Read what the wheel requires, and check the versions that are installed.

    Returns:
        Names of the direct requirements, and of those that only extras install, as they are imported.
    """
    required, optional = set[str](), set[str]()
    for requirement in map(Requirement, requires("lightning_recon") or []):
        name = re.sub("-", "_", requirement.name)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            assert version(requirement.name) in requirement.specifier, requirement
            required.add(name)
        else:
            optional.add(name)
    return required, optional - required


def imported(package: Path) -> Iterator[tuple[Path, str]]:
    """Find all imports, those inside of functions too.

    Args:
        package: folder of the package.

    Yields:
        A file, and the name of a package that it imports.
    """
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield path, node.module.partition(".")[0]


def main(site_packages: Path) -> None:
    """Check the wheel.

    Args:
        site_packages: folder in which the wheel must lie.

    Raises:
        SystemExit: an import is not declared, or fails.
    """
    package = Path(lightning_recon.__file__).parent
    assert package.parent == site_packages, package
    required, optional = declared()
    known = required | optional | sys.stdlib_module_names | {"lightning_recon"}
    problems = [
        f"{path} imports {name}, which pyproject.toml does not name"
        for path, name in imported(package)
        if re.sub("-", "_", DISTRIBUTIONS.get(name, name)) not in known
    ]
    skipped = []
    for module in walk_packages([str(package)], "lightning_recon."):
        if module.name.endswith(".__main__"):
            continue
        try:
            import_module(module.name)
        except (ModuleNotFoundError, UserError) as error:
            # A module that needs an extra says so by a UserError.
            missing = getattr(error.__cause__ or error, "name", None)
            if missing not in optional:
                problems.append(f"{module.name} cannot be imported: {error}")
            skipped.append(f"{module.name} needs {missing}")
    if problems:
        raise SystemExit("\n".join(problems))
    print("every module can be imported", *skipped, sep="; ")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
