# SPDX-License-Identifier: Apache-2.0
"""Link what an installed wheel requires, without its extras, from this environment into the environment of the wheel.

Usage: python .ci/link_dependencies.py SITE_PACKAGES, where SITE_PACKAGES holds the wheel. To install the dependencies
anew would take gigabytes; to share the whole environment would hide a dependency that only the extra `dev` installs.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement


def requirements_of(package: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    """List what a distribution requires on this platform.

    Args:
        package: an installed distribution.
        extras: its extras that are wanted.

    Yields:
        Its direct requirements.
    """
    for requirement in map(Requirement, package.requires or []):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": name}) for name in {"", *extras}):
            yield requirement


def main(site_packages: Path) -> None:
    """Link all direct and indirect requirements.

    Args:
        site_packages: folder of the environment that holds the wheel.
    """
    (wheel,) = distributions(name="lightning_recon", path=[str(site_packages)])
    waiting, seen, linked = list(requirements_of(wheel, frozenset())), set[tuple[str, frozenset[str]]](), set[Path]()
    while waiting:
        requirement = waiting.pop()
        key = requirement.name, frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement} is not installed in the environment of {sys.executable}") from None
        waiting += requirements_of(package, key[1])
        # A file outside site-packages, such as a console script, begins with "..".
        linked |= {Path(package.locate_file(file.parts[0])) for file in package.files or [] if file.parts[0] != ".."}
    for source in sorted(linked):
        target = site_packages / source.name
        if source.name != "__pycache__" and not target.exists():
            target.symlink_to(source)
    print(f"{len({name for name, _ in seen})} distributions are linked")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
