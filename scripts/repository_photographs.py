# SPDX-License-Identifier: Apache-2.0
r"""Extract the photographs from public GitHub repositories on which the bundled denoiser was trained.

    awk -F'\t' 'NR > 1 && $2 {print $1}' lightning_recon/priors/weights/photograph_sources.tsv |
        while read -r name; do git clone --bare "https://github.com/$name" "clones/$name"; done
    python scripts/repository_photographs.py clones/ photographs/

`lightning_recon/priors/weights/photograph_sources.tsv` lists the repositories, their commits, and where each states the
licences of its images. `photographs.tsv` beside it is the selection: the path of each photograph, its licence, and whom
to credit. All are CC0, in the public domain, or under CC BY. Licences and credits were read from the repositories once;
cut-outs, grey images, drawings, near-duplicates and images with a shorter side below 150 pixels were left out then.

The files are read from the objects of the commits, so that bare clones do, and any branch may be checked out. JPEG and
PNG files of at most 2048 pixels a side are written byte for byte; larger images and other formats become JPEG files.
OUTPUT also gets a copy of `photographs.tsv`. Its rows whose source has no commit come from scripts/photographs.py.
"""

import argparse
import csv
import io
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

WEIGHTS = Path(__file__).parent.parent / "lightning_recon" / "priors" / "weights"
PHOTOGRAPHS = WEIGHTS / "photographs.tsv"
SOURCES = WEIGHTS / "photograph_sources.tsv"
LONGEST_SIDE = 2048
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Photograph:
    """One row of photographs.tsv: where the file goes, whom to credit, and where it comes from under which licence."""

    file: str
    credit: str
    url: str
    source: str
    path: str
    licence: str


def read_photographs(table: Path) -> list[Photograph]:
    """All rows of a table such as photographs.tsv."""
    return [Photograph(**row) for row in _rows(table)]


def read_commits(table: Path) -> dict[str, str]:
    """The commit of each repository in a table such as photograph_sources.tsv; Debian packages have none."""
    return {row["source"]: row["commit"] for row in _rows(table) if row["commit"]}


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def extract(photographs: Iterable[Photograph], commits: dict[str, str], clones: Path, output: Path) -> int:
    """Write the photographs that come from repositories.

    Args:
        photographs: what to write; those whose source has no commit are skipped.
        commits: the commit of each repository.
        clones: folder of the clones, each at OWNER/NAME.
        output: where the files go.

    Returns:
        How many were written.

    Raises:
        SystemExit: a clone, a commit or a file is missing. Clones and commits are checked before anything is written.
    """
    wanted = [photograph for photograph in photographs if photograph.source in commits]
    for source in sorted({photograph.source for photograph in wanted}):
        _check_clone(clones / source, source, commits[source])
    for photograph in wanted:
        clone, commit = clones / photograph.source, commits[photograph.source]
        data = _git(clone, "cat-file", "blob", f"{commit}:{photograph.path}")
        if data is None:
            raise SystemExit(f"{clone}: commit {commit} has no file {photograph.path}")
        target = output / photograph.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(as_written(data))
    return len(wanted)


def as_written(data: bytes) -> bytes:
    """An image file as it is, or as a JPEG file where it is larger than `LONGEST_SIDE` or of another format."""
    picture = Image.open(io.BytesIO(data))
    if picture.format in ("JPEG", "PNG") and max(picture.size) <= LONGEST_SIDE:
        return data
    # A large JPEG file is decoded at the smallest scale that suffices; a no-op for other formats.
    picture.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
    converted = ImageOps.exif_transpose(picture).convert("RGB")
    converted.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    written = io.BytesIO()
    converted.save(written, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return written.getvalue()


def _check_clone(clone: Path, source: str, commit: str) -> None:
    if not clone.is_dir():
        raise SystemExit(f"{clone} is missing: git clone --bare https://github.com/{source} {clone}")
    if _git(clone, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise SystemExit(f"{clone} has no commit {commit}: git -C {clone} fetch origin {commit}")


def _git(clone: Path, *arguments: str) -> bytes | None:
    """What git prints; None if it fails."""
    done = subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True)
    return None if done.returncode else done.stdout


def main() -> None:
    """Write every photograph, and the table of credits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", type=Path, help="folder of the clones, each at OWNER/NAME")
    parser.add_argument("output", type=Path, help="where the photographs and photographs.tsv go")
    options = parser.parse_args()
    count = extract(read_photographs(PHOTOGRAPHS), read_commits(SOURCES), options.clones, options.output)
    shutil.copy(PHOTOGRAPHS, options.output)
    print(f"{count} photographs in {options.output}")


if __name__ == "__main__":
    main()
