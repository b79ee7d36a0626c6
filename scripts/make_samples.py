# SPDX-License-Identifier: Apache-2.0
"""Make the bundled sample photographs and their provenance table from the packages that carry the originals.

    pip install scikit-image && apt-get download gcompris-qt-data    # Debian 12: version 3.1-2
    python scripts/make_samples.py gcompris-qt-data_3.1-2_all.deb lightning_recon/data/samples

Only CC0 and public-domain photographs are taken. For the pictures of GCompris the licence, the author and the source
are read again from the README files inside the package, so that a changed licence stops the script.
"""

import argparse
from pathlib import Path

from photographs import SAMPLES, from_gcompris, from_scikit_image
from PIL import Image

LONGEST_SIDE = 320
JPEG_QUALITY = 90


def main() -> None:
    """Write every sample and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gcompris", type=Path, help="Debian's gcompris-qt-data_*.deb")
    parser.add_argument("output", type=Path, help="where the class folders go")
    options = parser.parse_args()
    rows = {}
    for photograph in [*from_scikit_image(), *from_gcompris(options.gcompris)]:
        if photograph.name not in SAMPLES:
            continue
        path, title = SAMPLES[photograph.name]
        if photograph.folder != "cc0":
            raise SystemExit(f"{photograph.name}: licence is now {photograph.licence}, not CC0 or public domain")
        picture = photograph.picture.convert("RGB")
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        target = options.output / path
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, quality=JPEG_QUALITY, optimize=True)
        cells = (f"`{path}`", title or photograph.title, photograph.author, photograph.licence, photograph.source)
        rows[path] = f"| {' | '.join(cells)} |"
    if missing := {path for path, _ in SAMPLES.values()} - rows.keys():
        raise SystemExit(f"not in the packages, or with no stated licence: {', '.join(sorted(missing))}")
    header = (
        "# Sample photographs\n\n"
        f"Small copies (longest side at most {LONGEST_SIDE}, JPEG quality {JPEG_QUALITY}) made by "
        "`scripts/make_samples.py`.\nAll are CC0 or in the public domain; one class folder each.\n\n"
        "| file | title | author | licence as stated at the source | source |\n|---|---|---|---|---|\n"
    )
    (options.output / "README.md").write_text(header + "\n".join(rows[path] for path in sorted(rows)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
