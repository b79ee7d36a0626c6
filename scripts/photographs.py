# SPDX-License-Identifier: Apache-2.0
"""Gather freely usable photographs from packages that carry them: what public statistics and denoisers are fitted on.

    pip install scikit-image && apt-get download gcompris-qt-data lomiri-wallpapers-16.04   # Debian 12
    python scripts/photographs.py gcompris-qt-data_3.1-2_all.deb lomiri-wallpapers-16.04_20.04.0-2_all.deb photographs/

Photographs that their source states to be CC0 or in the public domain go to OUTPUT/cc0, those under CC-BY to OUTPUT/by;
all others are left out, and so are the ones that lightning_recon bundles and attacks in its examples. Authors, licences
and sources are read from the packages and written to OUTPUT/README.md.
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
from urllib.parse import unquote

import skimage
from PIL import Image

LONGEST_SIDE = 2048
SHORTEST_SIDE = 160
JPEG_QUALITY = 95
# Activities of GCompris with photographs, and what to take of each: no cut-outs, tools on white, paintings or planets.
GCOMPRIS = {
    "categorization": r"images/(renewable|monuments|fishes)/",
    "clickgame": r"sea\d",
    "erase": "",
    "explore_farm_animals": "",
    "explore_monuments": "",
    "explore_world_animals": "",
    "explore_world_music": "",
}

# The photographs that the package bundles, by name: where each goes, and its title if not that of the original.
SAMPLES = {
    "skimage/chelsea": ("cat/chelsea.jpg", None),
    "skimage/coffee": ("cup/coffee.jpg", None),
    "skimage/astronaut": ("astronaut/astronaut.jpg", None),
    "skimage/rocket": ("rocket/rocket.jpg", None),
    "explore_world_animals/animals/bison": ("bison/bison.jpg", "American bison"),
    "explore_monuments/germany/neuschwansteinCastle": ("castle/neuschwanstein.jpg", "Neuschwanstein"),
    "erase/crab": ("crab/crab.jpg", "Sally Lightfoot crab"),
    "explore_farm_animals/animals/duck": ("duck/duck.jpg", "Aylesbury duck"),
    "explore_farm_animals/animals/horse": ("horse/horses.jpg", "Nokota horses"),
    "explore_world_animals/animals/jaguar": ("jaguar/jaguars.jpg", "Two jaguar sisters"),
    "erase/kingfisher": ("kingfisher/kingfisher.jpg", "Kingfisher"),
    "explore_world_animals/animals/lemur": ("lemur/lemurs.jpg", "Ring-tailed lemurs"),
    "explore_world_animals/animals/scarlet_macaw": ("macaw/macaw.jpg", "Scarlet macaw"),
    "explore_monuments/egypt/greatPyramidOfGiza": ("pyramid/pyramid.jpg", "Great Pyramid of Giza"),
    "erase/red_panda": ("red_panda/red_panda.jpg", "Red panda"),
    "explore_farm_animals/animals/sheep": ("sheep/sheep.jpg", "Sheep"),
}


@dataclass(frozen=True)
class Photograph:
    """One photograph: its name in the package, its author, and under which licence it comes from where."""

    name: str
    title: str
    author: str
    licence: str
    source: str
    picture: Image.Image

    @property
    def folder(self) -> str | None:
        """Where it belongs: "cc0", "by", or nowhere if the licence asks for more than attribution."""
        licence = self.licence.lower().replace("-", " ")
        if licence.startswith(("cc0", "public domain")):
            return "cc0"
        return "by" if re.fullmatch(r"cc by [\d.]+", licence) else None

    @property
    def original(self) -> str:
        """What tells whether two are the same picture."""
        return self.source if self.source.startswith("<") else self.name


def from_scikit_image() -> Iterator[Photograph]:
    """The colour photographs inside scikit-image's wheel; licences as its documentation of `skimage.data` states."""
    stated = [
        ("chelsea.png", "Chelsea the cat", "Stéfan van der Walt", "CC0-1.0"),
        ("coffee.png", "Coffee cup (Pikolo Espresso Bar)", "Rachel Michetti", "CC0-1.0"),
        ("astronaut.png", "Astronaut Eileen Collins", "NASA", "public domain (NASA)"),
        ("rocket.jpg", "Launch of DSCOVR on Falcon 9", "SpaceX", "public domain (SpaceX)"),
    ]
    for file, title, author, licence in stated:
        stem = Path(file).stem
        picture = Image.open(Path(skimage.__file__).parent / "data" / file)
        source = f"scikit-image {skimage.__version__}, skimage.data.{stem}"
        yield Photograph(f"skimage/{stem}", title, author, licence, source, picture)


def from_gcompris(package: Path) -> Iterator[Photograph]:
    """Photographs inside Debian's package gcompris-qt-data whose licence its README files state."""
    with tempfile.TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg-deb", "-x", str(package), unpacked], check=True)
        for activity, wanted in GCOMPRIS.items():
            content = dict(read_rcc(next(Path(unpacked).rglob(f"rcc/{activity}.rcc"))))
            for path, data in content.items():
                inside = path.partition("/resource/")[2]
                if not inside.endswith(".webp") or not re.match(wanted, inside):
                    continue
                above = [folder.as_posix() for folder in PurePosixPath(path).parents]
                folder = next(folder for folder in above if f"{folder}/README" in content)
                entry = entry_of(content[f"{folder}/README"].decode(), path.removeprefix(f"{folder}/"))
                if "Source" not in entry:
                    continue
                yield Photograph(
                    name=f"{activity}/{inside.removesuffix('.webp')}",
                    title=PurePosixPath(unquote(entry["Source"])).stem.removeprefix("File:").replace("_", " "),
                    author=entry["Copyright"],
                    licence=entry["License"],
                    source=f"<{entry['Source']}>, by way of {_version(package)}",
                    picture=Image.open(io.BytesIO(data)),
                )


def from_lomiri(package: Path) -> Iterator[Photograph]:
    """Photographs inside Debian's package lomiri-wallpapers-16.04, as its copyright file states them."""
    with tempfile.TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg-deb", "-x", str(package), unpacked], check=True)
        stated = next(Path(unpacked).rglob("copyright")).read_text(encoding="utf-8")
        for path in sorted(Path(unpacked).rglob("*.jpg")):
            entry = entry_of(stated, f"16.04/{path.name}")
            title = path.stem.partition("_by_")[0].replace("_", " ")
            picture = Image.open(path)
            picture.load()
            yield Photograph(
                f"lomiri/{path.stem}", title, entry["Copyright"], entry["License"], _version(package), picture
            )


def entry_of(stated: str, file: str) -> dict[str, str]:
    """Copyright, License and Source in the paragraph that lists `file`; empty if there is none."""
    for paragraph in re.split(r"\n\s*\n", stated):
        if file in paragraph.split():
            return dict(re.findall(r"^(Copyright|License|Source): *(.+)$", paragraph, re.MULTILINE))
    return {}


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


def _version(package: Path) -> str:
    return package.name.rsplit("_", 1)[0].replace("_", " ")


def main() -> None:
    """Write every photograph and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gcompris", type=Path, help="Debian's gcompris-qt-data_*.deb")
    parser.add_argument("lomiri", type=Path, help="Debian's lomiri-wallpapers-16.04_*.deb")
    parser.add_argument("output", type=Path, help="where cc0/, by/ and README.md go")
    options = parser.parse_args()
    found = [*from_scikit_image(), *from_gcompris(options.gcompris), *from_lomiri(options.lomiri)]
    # Some originals appear in two sizes: the larger one is taken.
    found.sort(key=lambda photograph: -photograph.picture.width)
    sources = {photograph.original for photograph in found if photograph.name in SAMPLES}
    rows = []
    for photograph in found:
        folder, original = photograph.folder, photograph.original
        if folder is None or original in sources or min(photograph.picture.size) < SHORTEST_SIDE:
            continue
        sources.add(original)
        picture = photograph.picture.convert("RGB")
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        target = options.output / folder / f"{photograph.name.replace('/', '_')}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, quality=JPEG_QUALITY, subsampling=0, optimize=True)
        cells = (f"{folder}/{target.name}", photograph.title, photograph.author, photograph.licence, photograph.source)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    header = (
        "# Photographs\n\n"
        f"Gathered by `scripts/photographs.py`; longest side at most {LONGEST_SIDE}, JPEG quality {JPEG_QUALITY}.\n\n"
        "| file | title | author | licence as stated at the source | source |\n|---|---|---|---|---|\n"
    )
    (options.output / "README.md").write_text(header + "\n".join(sorted(rows)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
