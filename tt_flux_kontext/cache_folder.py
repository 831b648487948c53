"""Where the weight cache is, and what is in it; `weight_cache` fills it, and says how it is laid out."""

import json
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "TT_FLUX_KONTEXT_CACHE"  # environment variable: the folder; "off", "0" or "" for no cache
MANIFEST = "manifest.json"
HASHES = "hashes"
FILLING = ".filling"  # ends the name of what isn't whole yet, or is on its way out
STALE = 600  # seconds without a new tensor after which an entry in the making is taken for abandoned

_ENTRY = re.compile(r"[a-z0-9-]+-[0-9a-f]{32}")
_UNFINISHED = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(FILLING)}")
_FILES = re.compile(r"manifest\.json|\d{5,}\.tensorbin")


def cache_folder() -> Path | None:
    """Where the cache is, by the environment; None when it is off or there is no home to put it in."""
    folder = os.environ.get(VARIABLE)
    if folder is not None:
        return None if folder in ("", "0", "off") else Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tt_flux_kontext"
    except RuntimeError:
        return None


@dataclass(frozen=True)
class Entry:
    """What one model has on the device in one precision.

    Attributes:
        model: its name, with dashes.
        made_with: what tells it from other entries of the model, for people.
        size: bytes.
        made: seconds since 1970.
    """

    path: Path
    model: str
    made_with: str
    size: int
    made: float

    def remove(self) -> None:
        """At once under this name, so that nobody finds half of it."""
        trash = self.path.with_name(f".{uuid.uuid4().hex}{FILLING}")
        self.path.rename(trash)
        shutil.rmtree(trash)


def entries(folder: Path) -> list[Entry]:
    """Those that are whole, or were abandoned in the making, oldest first; nothing that could be somebody else's."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):  # others may empty the cache too
            if entry := _entry(path):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.made)


def _entry(path: Path) -> Entry | None:
    whole, unfinished = _ENTRY.fullmatch(path.name), _UNFINISHED.fullmatch(path.name)
    if not (whole or unfinished) or path.is_symlink() or not path.is_dir():
        return None
    files = [file for file in path.rglob("*") if not file.is_dir()]
    if not all(_FILES.fullmatch(file.name) and not file.is_symlink() for file in files):
        return None
    size = sum(file.stat().st_size for file in files)
    made = path.stat().st_mtime
    if unfinished:
        return Entry(path, "abandoned in the making", "", size, made) if time.time() - made > STALE else None
    if not (path / MANIFEST).is_file():
        return None
    return Entry(path, path.name[:-33], _made_with(path / MANIFEST), size, made)


def _made_with(manifest: Path) -> str:
    try:
        key = json.loads(manifest.read_text())["key"]
        return f"{key['precision']['linear_weights']}, {key['backend']} {key['arch']}"
    except (ValueError, KeyError, TypeError):
        return "damaged"


def forget_hashes(folder: Path) -> None:
    """Removes what is remembered of checkpoints' files."""
    for path in (folder / HASHES).glob("*"):
        if re.fullmatch("[0-9a-f]{64}", path.name):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or it has other files
        (folder / HASHES).rmdir()
