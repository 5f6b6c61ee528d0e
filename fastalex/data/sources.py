"""What people have: folders of pictures. A source lists them; `fastalex.data.prepare` reads them.

Two layouts, classes sorted by name:

    ROOT/train/CLASS/...  and  ROOT/val/CLASS/...       used as they are
    ROOT/CLASS/...                                      split by `image_folder`

Every file counts but hidden ones; whether it is an image is found out when it is read, by content.
`digits` (in _digits.py) writes the built-in folder of the first layout, for demos and tests.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastalex.errors import UsageError


class Image(NamedTuple):
    """One file that should hold a picture."""

    path: Path
    name: str
    """Path below the source's root, with forward slashes."""
    label: int
    """Index into the source's classes."""


@dataclass(frozen=True, slots=True)
class Source:
    """Pictures and their classes; no image is in both halves."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[Image, ...]
    val: tuple[Image, ...]


def image_folder(root: Path, val_fraction: float = 0.1) -> Source:
    """Lists the pictures below `root`; reads none.

    Without train/ and val/, an image goes to val when the SHA-256 of its name, as a fraction of
    2^64, is below `val_fraction`: the split does not depend on the order of listing, and adding
    images moves none of the others, save that a class of two or more has one on each side.

    Raises:
        UsageError: `root` is not a folder in one of this module's layouts, or has one class only.
    """
    root = Path(root)
    if not root.exists():
        raise UsageError(f"image folder: {root} does not exist; check the path")
    if not root.is_dir():
        raise UsageError(f"image folder: {root} is a file; give the folder that holds the images")
    folders = _subfolders(root)
    if not folders:
        raise UsageError(_no_class_folders(root))
    halves = {"train", "val"} & set(folders)
    if len(halves) == 1:
        (have,) = halves
        lack = "val" if have == "train" else "train"
        raise UsageError(
            f"image folder: {root} has {have}/ but no {lack}/; add {root / lack}, or give "
            f"{root / have} alone and 10% of it will be set apart for validation"
        )
    classes = tuple(_subfolders(root / "train") if halves else folders)
    _check_classes(root / "train" if halves else root, classes)
    if halves:
        train = _list_images(root, "train", classes)
        val = _list_images(root, "val", _val_classes(root, classes), classes)
    else:
        train, val = _split(_list_images(root, "", classes), len(classes), val_fraction)
    if not val:
        raise UsageError(
            f"image folder: {root} leaves no image for validation; "
            "a class needs two images or more to have one set apart"
        )
    return Source(root, classes, train, val)


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _no_class_folders(folder: Path) -> str:
    if any(not name.startswith(".") for name in os.listdir(folder)):
        what = f"{folder} holds files but no class folders"
    else:
        what = f"{folder} is empty"
    return (
        f"image folder: {what}; expected {folder}/CLASS/image.jpg with a folder for each class, "
        f"or {folder}/train/CLASS/image.jpg and {folder}/val/CLASS/image.jpg"
    )


def _check_classes(folder: Path, classes: tuple[str, ...]) -> None:
    if not classes:
        raise UsageError(_no_class_folders(folder))
    if len(classes) == 1:
        raise UsageError(
            f"image folder: {folder} has one class folder only ({classes[0]}); "
            "classification needs two or more"
        )


def _val_classes(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(_subfolders(root / "val"))
    if not found:
        raise UsageError(_no_class_folders(root / "val"))
    unknown = [name for name in found if name not in set(classes)]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise UsageError(
            f"image folder: {root / 'val'} has classes that {root / 'train'} has not ({shown}); "
            "name the class folders alike in both"
        )
    return found


def _list_images(
    root: Path, half: str, folders: tuple[str, ...], classes: tuple[str, ...] | None = None
) -> tuple[Image, ...]:
    label_of = {name: label for label, name in enumerate(classes or folders)}
    images: list[Image] = []
    for folder in folders:
        paths = list(_files(root / half / folder, root.resolve()))
        if not paths:
            raise UsageError(
                f"image folder: class folder {root / half / folder} holds no file; "
                "fill it or remove it"
            )
        label = label_of[folder]
        images += [Image(path, path.relative_to(root).as_posix(), label) for path in paths]
    return tuple(images)


def _files(folder: Path, root: Path) -> Iterator[Path]:
    """Files below `folder`, sorted, hidden ones left out.

    Links to folders are followed once, and not at all where they lead back into the source `root`:
    they would bring in one class's images as another's.
    """
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not _leads_back(Path(here, name), root)
        )
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            path = Path(here, name)
            if not name.startswith(".") and (path.is_file() or path.is_symlink()):
                yield path


def _leads_back(folder: Path, root: Path) -> bool:
    return folder.is_symlink() and folder.resolve().is_relative_to(root)


def _raise(error: OSError) -> None:
    raise error


def _split(
    images: tuple[Image, ...], num_classes: int, val_fraction: float
) -> tuple[tuple[Image, ...], tuple[Image, ...]]:
    by_class: list[list[tuple[int, Image]]] = [[] for _ in range(num_classes)]
    for image in images:
        digest = hashlib.sha256(os.fsencode(image.name)).digest()
        by_class[image.label].append((int.from_bytes(digest[:8], "little"), image))
    threshold = int(val_fraction * 2**64)
    train: list[Image] = []
    val: list[Image] = []
    for hashed in by_class:
        hashed.sort()
        below = sum(value < threshold for value, _ in hashed)
        cut = min(max(below, 1), len(hashed) - 1)
        val += [image for _, image in hashed[:cut]]
        train += [image for _, image in hashed[cut:]]
    return tuple(sorted(train, key=_name)), tuple(sorted(val, key=_name))


def _name(image: Image) -> str:
    return image.name
