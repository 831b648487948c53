"""Files that a command line names: pictures to read, and results to write."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from itertools import product
from pathlib import Path

from loguru import logger
from PIL import Image, ImageChops, UnidentifiedImageError

from tt_flux_kontext.cli.usage import UsageError, nearest
from tt_flux_kontext.metadata import SUFFIXES

_PHONES = (".heic", ".heif")  # read with a package of its own
_FIELD = re.compile(r"\{(name|seed)\}")


def existing(name: str, option: str = "") -> Path:
    """A file or folder that is there. Raises `UsageError`, with the nearest name in its folder."""
    path = Path(name)
    if path.exists():
        return path
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    right = nearest(path.name, beside)
    raise UsageError(f"{option} {name}: there is no such file".strip(), {name: right and str(path.with_name(right))})


def pictures_of(names: Sequence[str]) -> list[Path]:
    """Files as they are named, and in place of a folder the pictures in it. Raises `UsageError`."""
    pictures = []
    for path in map(existing, names):
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.is_file() and _looks_like_a_picture(file))
            if not found:
                raise UsageError(f"{path}: there are no pictures in this folder")
            pictures += found
        else:
            pictures.append(path)
    return list(dict.fromkeys(pictures))


def _looks_like_a_picture(file: Path) -> bool:
    suffix = file.suffix.lower()
    readable = Image.registered_extensions().get(suffix) in Image.OPEN or suffix in _PHONES
    return readable and not file.name.startswith(".")


def read_picture(path: str | Path) -> Image.Image:
    """Upright and whole in memory. Raises `ValueError`."""
    from tt_flux_kontext.pictures import upright

    with _opened(path) as picture:
        # in a phone's MPO and a PSD the others are no pictures of their own
        if getattr(picture, "n_frames", 1) > 1 and picture.format not in ("MPO", "PSD"):
            logger.warning(f"{path}: the first of its {picture.n_frames} pictures is used.")
        picture.load()
        return upright(picture, str(path))


def read_mask(paths: Sequence[str | Path]) -> Image.Image | None:
    """One that is white where any of these is, of the first one's size; None of none. Raises `ValueError`."""
    masks = [read_picture(path) for path in paths]
    if len(masks) < 2:
        return masks[0] if masks else None
    first, *others = (mask.convert("L") for mask in masks)
    return reduce(ImageChops.lighter, [other.resize(first.size) for other in others], first)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Raises `ValueError` for whatever goes wrong with a picture."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        hint = " HEIC is read with the package pillow-heif: pip install pillow-heif."
        hint = hint if Path(path).suffix.lower() in _PHONES else ""
        raise ValueError(f"{path}: it can't be read as a picture ({error}).{hint}") from error


def writable(name: str) -> Path:
    """A name for a result. Raises `ValueError` for one that ends in another way, or that can't be written."""
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{name}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{name}: no file of that name can be written.")
    return path


def result_names(out: str, pictures: Sequence[Path | None], seeds: Sequence[int], folders: Iterable[Path] = ()) -> str:
    """The name that all results have, with {name} of the picture and {seed} where they differ in these.

    Args:
        out: as it was given; what has no suffix is a folder.
        folders: that pictures are taken from.

    Raises `UsageError` for results that would be one file, a picture that is to be edited, or in one of the folders,
    whose results would be edited the next time.
    """
    path = Path(out)
    if not path.suffix or path.is_dir():
        path = path / "{name}.png"
    for several, field in ((len(pictures) > 1, "{name}"), (len(seeds) > 1, "{seed}")):
        if several and field not in str(path):
            path = path.with_stem(f"{path.stem}_{field}")
    try:
        writable(str(path))
    except ValueError as error:
        raise UsageError(f"--out {error}".rstrip(".")) from error
    edited = {picture.resolve() for picture in pictures if picture}
    taken = {folder.resolve() for folder in folders}
    results = {}
    for picture, seed in product(pictures, seeds):
        result = result_name(str(path), picture, seed)
        if result in results:
            raise UsageError(f"{results[result]} and {picture} would both be edited to {result}")
        if result.resolve() in edited:
            raise UsageError(f"--out would write over {result}, which is to be edited")
        if result.parent.resolve() in taken:
            raise UsageError(f"--out would put {result} into a folder that is edited: name another one")
        results[result] = picture
    return str(path)


def result_name(name: str, picture: Path | None, seed: int) -> Path:
    values = {"name": picture.stem if picture else "generated", "seed": str(seed)}
    return Path(_FIELD.sub(lambda field: values[field[1]], name))
