# SPDX-License-Identifier: Apache-2.0
"""List the images of a folder, in an order that does not depend on the file system, and each file only once.

Files and folders that operating systems create are ignored. Links are followed, but not to files or folders that were
listed already. Pipes and devices are never opened.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from torchvision.datasets.folder import IMG_EXTENSIONS

# Those of torchvision's image folders, AVIF and GIF.
EXTENSIONS: Final = (*IMG_EXTENSIONS, ".avif", ".gif")
# Folders and files that macOS, Synology, QNAP, ext4, Windows and Python create, in lower case. Hidden files are ignored
# as well.
SYSTEM_FILES: Final = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "@recycle", "lost+found", "system volume information", "$recycle.bin"),
        *("recycler", "found.000", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"),
    }
)


@dataclass
class Found:
    """The content of an image folder.

    Args:
        classes: names of its subfolders, sorted.
        files: files below the subfolders, sorted within each, with the index of their subfolder.
        loose: files of the folder itself, sorted.
        ignored: entries that are ignored, relative to the folder, with the reason where it is not obvious.
    """

    classes: list[str] = field(default_factory=list)
    files: list[tuple[Path, int]] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def scan(root: Path) -> Found:
    """List a folder and everything below it.

    A folder that is reached through a link is read once, and not at all if it is `root`, contains it, or was listed as
    a folder. A link to a file is ignored if the file itself was listed.

    Args:
        root: the folder.

    Raises:
        OSError: the folder cannot be listed.
    """
    found, real = Found(), os.path.realpath(root)
    folders, found.loose = _listed(root, root, found.ignored)
    found.classes = [folder.name for folder in folders]
    seen = {real, *map(str, Path(real).parents)}
    known: set[str] = set()  # real paths of files that are not links
    linked: list[tuple[Path, int, str]] = []
    waiting = [(folder, label) for label, folder in enumerate(folders)]
    for follow in (False, True):  # first everything below the folder itself, then the targets of links
        links: list[tuple[Path, int]] = []
        while waiting:
            folder, label = waiting.pop(0)
            if folder.is_symlink() and not follow:
                links.append((folder, label))
                continue
            place = os.path.realpath(folder)
            if place in seen:
                found.ignored.append(f"{folder.relative_to(root)} (a link to a folder that is read already)")
                continue
            seen.add(place)
            try:
                below, files = _listed(folder, root, found.ignored)
            except OSError as error:
                found.ignored.append(f"{folder.relative_to(root)} ({error.strerror})")
                continue
            waiting[:0] = [(one, label) for one in below]
            for file in files:
                if file.is_symlink():
                    linked.append((file, label, os.path.realpath(file)))
                else:
                    known.add(os.path.join(place, file.name))
                    found.files.append((file, label))
        waiting = links
    for file, label, target in linked:
        if target in known:
            found.ignored.append(f"{file.relative_to(root)} (a link to a file that is read already)")
        else:
            found.files.append((file, label))
    found.files.sort(key=lambda entry: (entry[1], entry[0]))
    return found


def is_image(path: Path) -> bool:
    """Whether a file has the extension of an image."""
    return path.suffix.lower() in EXTENSIONS


def _listed(folder: Path, root: Path, ignored: list[str]) -> tuple[list[Path], list[Path]]:
    """Sorted subfolders and regular files of a folder; other entries and system files are added to `ignored`."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") and not is_image(path):
                continue  # configuration files; hidden images, as macOS creates them, are reported
            try:
                mode = entry.stat().st_mode
            except OSError:  # a broken link
                mode = 0
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES:
                ignored.append(str(path.relative_to(root)))
            elif stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                ignored.append(f"{path.relative_to(root)} (not a regular file)")
    return sorted(folders), sorted(files)
