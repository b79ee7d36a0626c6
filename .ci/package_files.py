# SPDX-License-Identifier: Apache-2.0
"""Check that a wheel and an sdist hold every file of the package and of `configs` that git tracks, and nothing else.

Usage: python .ci/package_files.py WHEEL SDIST
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

DATA = {
    "lightning_recon/audit/templates/report.html.j2",
    "lightning_recon/priors/image_statistics.json",
    "lightning_recon/priors/weights/denoiser.safetensors",
    "lightning_recon/priors/weights/large_denoiser.safetensors",
    "lightning_recon/priors/weights/photograph_sources.tsv",
    "lightning_recon/priors/weights/photographs.tsv",
    "lightning_recon/data/samples/README.md",
    "lightning_recon/data/samples_grey16/README.md",
    "lightning_recon/configs/quickstart.yaml",
    "lightning_recon/py.typed",
}


def main(wheel: Path, sdist: Path) -> None:
    """Compare the names in both archives with those that git tracks.

    Args:
        wheel: the built wheel.
        sdist: the built source distribution.

    Raises:
        SystemExit: a file is missing, or one is there that git does not track.
    """
    listed = subprocess.run(
        ["git", "ls-files", "lightning_recon", "configs"], capture_output=True, text=True, check=True
    )
    tracked = set(listed.stdout.splitlines())
    # The wheel holds the configs inside the package.
    expected = {f"lightning_recon/{name}" if name.startswith("configs/") else name for name in tracked}
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        sources = {member.name.partition("/")[2] for member in archive if member.isfile()}
    problems = [f"the wheel lacks {name}" for name in sorted((expected | DATA) - installed)]
    problems += [f"the wheel holds {name}, which git does not track" for name in sorted(installed - expected)]
    problems += [f"the sdist lacks {name}" for name in sorted((tracked | {"README.md", "LICENSE"}) - sources)]
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"the wheel holds {len(installed)} files, the sdist {len(sources)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
