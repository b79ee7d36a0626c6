# SPDX-License-Identifier: Apache-2.0
"""The images of a folder in an order that does not depend on the file system, each real file once.

What systems leave behind is neither class nor image; links are followed, but never to what was seen already; pipes
and devices are left alone.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from torchvision.datasets.folder import IMG_EXTENSIONS

# Folders and files of macOS, Synology and QNAP, ext4, Windows and Python, in lower case; hidden ones come on top.
LEFT_BEHIND: Final = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "@recycle", "lost+found", "system volume information", "$recycle.bin"),
        *("recycler", "found.000", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"),
    }
)


@dataclass
class Found:
    """What a folder holds.

    Args:
        classes: names of its subfolders, sorted.
        files: paths below them, sorted within each, with the position of the subfolder.
        loose: files of the folder itself, sorted.
        left_out: what is no file of the user's, or was found already, relative to the folder.
    """

    classes: list[str] = field(default_factory=list)
    files: list[tuple[Path, int]] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def scan(root: Path) -> Found:
    """List a folder and what lies below it.

    A folder that is reached by a link is read once, and not at all where it is this one, above it, or was found as a
    folder; a file that is a link is left out where the file itself was found.

    Args:
        root: the folder.

    Raises:
        OSError: it cannot be listed.
    """
    found, real = Found(), os.path.realpath(root)
    folders, found.loose = _listed(root, root, found.left_out)
    found.classes = [folder.name for folder in folders]
    seen = {real, *map(str, Path(real).parents)}
    known: set[str] = set()  # files that are no links, by their real paths
    linked: list[tuple[Path, int, str]] = []
    waiting = [(folder, label) for label, folder in enumerate(folders)]
    for follow in (False, True):  # first all that lies here itself, then what links lead to
        links: list[tuple[Path, int]] = []
        while waiting:
            folder, label = waiting.pop(0)
            if folder.is_symlink() and not follow:
                links.append((folder, label))
                continue
            place = os.path.realpath(folder)
            if place in seen:
                found.left_out.append(f"{folder.relative_to(root)} (a link to a folder that is read already)")
                continue
            seen.add(place)
            try:
                below, files = _listed(folder, root, found.left_out)
            except OSError as error:
                found.left_out.append(f"{folder.relative_to(root)} ({error.strerror})")
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
            found.left_out.append(f"{file.relative_to(root)} (a link to a file that is read already)")
        else:
            found.files.append((file, label))
    found.files.sort(key=lambda entry: (entry[1], entry[0]))
    return found


def is_picture(path: Path) -> bool:
    """Whether a file is called like an image."""
    return path.suffix.lower() in IMG_EXTENSIONS


def _listed(folder: Path, root: Path, left_out: list[str]) -> tuple[list[Path], list[Path]]:
    """Subfolders and plain files of a folder, sorted; what is neither, or was left behind by a system, is named."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") and not is_picture(path):
                continue  # configuration; a hidden image is macOS's second half of a file, and worth a word
            try:
                mode = entry.stat().st_mode
            except OSError:  # a broken link
                mode = 0
            if entry.name.startswith(".") or entry.name.lower() in LEFT_BEHIND:
                left_out.append(str(path.relative_to(root)))
            elif stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                left_out.append(f"{path.relative_to(root)} (no plain file)")
    return sorted(folders), sorted(files)
