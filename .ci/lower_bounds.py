# SPDX-License-Identifier: Apache-2.0
"""Print pip constraints that pin the dependencies of pyproject.toml and its extras to their lower bounds.

Usage: python .ci/lower_bounds.py [NAME ...]; the packages with these names are left out.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version


def lower_bounds(project: dict[str, Any]) -> dict[str, Version]:
    """Read the lower bounds of a project.

    Args:
        project: the table `project` of pyproject.toml.

    Returns:
        For every package the highest `>=` bound that the dependencies and the extras name.

    Raises:
        SystemExit: a requirement has no lower bound.
    """
    bounds: dict[str, Version] = {}
    for lines in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in map(Requirement, lines):
            lowest = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
            if not lowest:
                raise SystemExit(f"{requirement} names no lower bound")
            bounds[requirement.name] = max(*lowest, bounds.get(requirement.name, lowest[0]))
    return bounds


def main(skipped: list[str]) -> None:
    """Print one constraint a line.

    Args:
        skipped: names of packages that are left out.
    """
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    for name, version in lower_bounds(pyproject["project"]).items():
        if name not in skipped:
            print(f"{name}=={version}")


if __name__ == "__main__":
    main(sys.argv[1:])
