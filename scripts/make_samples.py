# SPDX-License-Identifier: Apache-2.0
"""Make the bundled sample photographs and their provenance table from the packages that carry the originals.

    pip install scikit-image && apt-get download gcompris-qt-data    # Debian 12: version 3.1-2
    python scripts/make_samples.py gcompris-qt-data_3.1-2_all.deb lightning_recon/data/samples

Only CC0 and public-domain photographs are taken. For the pictures of GCompris the licence, the author and the source
are read again from the README files inside the package, so that a changed licence stops the script.
"""

import argparse
import io
import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import skimage
from PIL import Image

LONGEST_SIDE = 320
JPEG_QUALITY = 90
CC0 = "CC0-1.0"


@dataclass(frozen=True)
class Sample:
    """One photograph: what it is called, where it comes from and under which licence."""

    path: str
    title: str
    author: str
    licence: str
    source: str
    picture: Image.Image


def from_scikit_image() -> Iterator[Sample]:
    """The photographs inside scikit-image's wheel; licences as its documentation of `skimage.data` states them."""
    stated = [
        ("cat/chelsea.jpg", "chelsea.png", "Chelsea the cat", "Stéfan van der Walt", CC0),
        ("cup/coffee.jpg", "coffee.png", "Coffee cup (Pikolo Espresso Bar)", "Rachel Michetti", CC0),
        ("astronaut/astronaut.jpg", "astronaut.png", "Astronaut Eileen Collins", "NASA", "public domain (NASA)"),
        ("rocket/rocket.jpg", "rocket.jpg", "Launch of DSCOVR on Falcon 9", "SpaceX", "public domain (SpaceX)"),
    ]
    folder = Path(skimage.__file__).parent / "data"
    for path, file, title, author, licence in stated:
        source = f"scikit-image {skimage.__version__}, skimage.data.{Path(file).stem}"
        yield Sample(path, title, author, licence, source, Image.open(folder / file))


def from_gcompris(package: Path) -> Iterator[Sample]:
    """CC0 photographs inside Debian's package gcompris-qt-data."""
    wanted = [
        ("bison/bison.jpg", "explore_world_animals", "animals/bison.webp", "American bison"),
        ("castle/neuschwanstein.jpg", "explore_monuments", "germany/neuschwansteinCastle.webp", "Neuschwanstein"),
        ("crab/crab.jpg", "erase", "crab.webp", "Sally Lightfoot crab"),
        ("duck/duck.jpg", "explore_farm_animals", "animals/duck.webp", "Aylesbury duck"),
        ("horse/horses.jpg", "explore_farm_animals", "animals/horse.webp", "Nokota horses"),
        ("jaguar/jaguars.jpg", "explore_world_animals", "animals/jaguar.webp", "Two jaguar sisters"),
        ("kingfisher/kingfisher.jpg", "erase", "kingfisher.webp", "Kingfisher"),
        ("lemur/lemurs.jpg", "explore_world_animals", "animals/lemur.webp", "Ring-tailed lemurs"),
        ("macaw/macaw.jpg", "explore_world_animals", "animals/scarlet_macaw.webp", "Scarlet macaw"),
        ("pyramid/pyramid.jpg", "explore_monuments", "egypt/greatPyramidOfGiza.webp", "Great Pyramid of Giza"),
        ("red_panda/red_panda.jpg", "erase", "red_panda.webp", "Red panda"),
        ("sheep/sheep.jpg", "explore_farm_animals", "animals/sheep.webp", "Sheep"),
    ]
    with tempfile.TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg-deb", "-x", str(package), unpacked], check=True)
        for path, activity, file, title in wanted:
            content = dict(read_rcc(next(Path(unpacked).rglob(f"rcc/{activity}.rcc"))))
            picture = next(name for name in content if name.endswith("/resource/" + file))
            above = [folder.as_posix() for folder in PurePosixPath(picture).parents]
            folder = next(folder for folder in above if f"{folder}/README" in content)
            entry = entry_of(content[f"{folder}/README"].decode(), picture.removeprefix(f"{folder}/"))
            if entry["License"] != CC0:
                raise SystemExit(f"{picture}: licence is now {entry['License']}, not {CC0}")
            source = f"<{entry['Source']}>, by way of {package.name.rsplit('_', 1)[0].replace('_', ' ')}"
            yield Sample(path, title, entry["Copyright"], CC0, source, Image.open(io.BytesIO(content[picture])))


def entry_of(readme: str, file: str) -> dict[str, str]:
    """The README paragraph (Copyright, License, Source) that lists `file`."""
    for paragraph in re.split(r"\n\s*\n", readme):
        if file in paragraph.split():
            return dict(re.findall(r"^(Copyright|License|Source): *(.+)$", paragraph, re.MULTILINE))
    raise SystemExit(f"{file}: its licence is not stated in the package")


def read_rcc(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a Qt resource collection.

    Source: format of `rcc --binary`, as in Qt's qresource.cpp: a tree of 22-byte nodes, a name table, the data.
    """
    data = path.read_bytes()
    magic, version, tree, blobs, names = struct.unpack(">4s4I", data[:20])
    if magic != b"qres" or version < 2:
        raise SystemExit(f"{path}: not a Qt resource file of version 2 or later")

    def walk(index: int, parent: str) -> Iterator[tuple[str, bytes]]:
        node = tree + 22 * index
        name_at, flags, first, second = struct.unpack(">IHII", data[node : node + 14])
        length = struct.unpack(">H", data[names + name_at : names + name_at + 2])[0] if index else 0
        name = data[names + name_at + 6 : names + name_at + 6 + 2 * length].decode("utf-16-be")
        here = f"{parent}/{name}" if index else ""
        if flags & 2:  # a folder: `first` children from node `second` on
            for child in range(second, second + first):
                yield from walk(child, here)
        elif not flags & 4:  # a file (those compressed with zstd are left out); `second` is where its bytes lie
            start = blobs + second + 4
            content = data[start : start + struct.unpack(">I", data[start - 4 : start])[0]]
            yield here, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


def main() -> None:
    """Write every sample and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gcompris", type=Path, help="Debian's gcompris-qt-data_*.deb")
    parser.add_argument("output", type=Path, help="where the class folders go")
    options = parser.parse_args()
    rows = []
    for sample in sorted([*from_scikit_image(), *from_gcompris(options.gcompris)], key=lambda sample: sample.path):
        picture = sample.picture.convert("RGB")
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        target = options.output / sample.path
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, quality=JPEG_QUALITY, optimize=True)
        rows.append(f"| `{sample.path}` | {sample.title} | {sample.author} | {sample.licence} | {sample.source} |")
    header = (
        "# Sample photographs\n\n"
        f"Small copies (longest side at most {LONGEST_SIDE}, JPEG quality {JPEG_QUALITY}) made by "
        "`scripts/make_samples.py`.\nAll are CC0 or in the public domain; one class folder each.\n\n"
        "| file | title | author | licence as stated at the source | source |\n|---|---|---|---|---|\n"
    )
    (options.output / "README.md").write_text(header + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
