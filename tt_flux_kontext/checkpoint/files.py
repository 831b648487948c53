"""The small files of a checkpoint: whatever is wrong with one is said in a sentence that names it."""

import errno
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

WHOLE = range(1, 2**31)
LAYERS = range(0, 1001)  # a model may have none of a kind; one with millions would be counted for hours


class CheckpointError(ValueError):
    """A checkpoint can't be used. The message names the file, key or field and what to do."""


def present(path: Path) -> bool:
    """Whether there is a file of that name.

    Raises `CheckpointError` for one that is there and can't be read: a folder, a named pipe, a link to nothing, a file
    without permission.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link to a file that is not there. Fetch it again.") from None
        return False
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is no regular file.")
    if not os.access(path, os.R_OK):
        raise CheckpointError(f"{path} can't be read: {os.strerror(errno.EACCES)}.")
    return True


def is_folder(path: Path) -> bool:
    """Whether there is a folder of that name; `CheckpointError` where that can't be told."""
    try:
        return path.is_dir()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; `CheckpointError` where it can't be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror}.") from error


def read_json(path: Path) -> dict:
    """The object in a JSON file."""
    if not present(path):
        raise CheckpointError(f"{path} is missing.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {_shown(value)} where an object with fields belongs.")
    return value


def check_fields(file: str | Path, config: Mapping, kinds: Mapping[str, object]) -> None:
    """Raises `CheckpointError` for the first field of `config` that is not of its kind; absent ones have defaults.

    Args:
        file: that the fields come from.
        kinds: by name: int (from 1 on) or a range, float (finite), bool, str, tuple[kind, ...] (of one or more), or
            some of these with `|`.
    """
    for name, kind in kinds.items():
        if name in config and not _fits(config[name], kind):
            raise CheckpointError(f"{file}: {name} is {_shown(config[name])}, but it must be {_described(kind)}.")


def listing(items: list[str], most: int = 8) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def transformers_config(config_class: type, file: str, config: Mapping, kinds: Mapping[str, object]):
    """An object of a config class of transformers, which checks fields too, in errors of many classes."""
    check_fields(file, config, kinds)
    try:
        return config_class.from_dict(dict(config))
    except Exception as error:
        raise CheckpointError(f"{file} can't be read as a {config_class.__name__}: {error}") from error


def _fits(value, kind) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if kind is type(None):
        return value is None
    if kind is int or isinstance(kind, range):
        return isinstance(value, int) and not isinstance(value, bool) and value in (WHOLE if kind is int else kind)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if get_origin(kind) is tuple:
        item_kind, _ = get_args(kind)
        return isinstance(value, (list, tuple)) and len(value) > 0 and all(_fits(item, item_kind) for item in value)
    return isinstance(value, kind)


def _described(kind) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(map(_described, get_args(kind)))
    if isinstance(kind, range):
        return f"a whole number from {kind[0]} to {kind[-1]}"
    if get_origin(kind) is tuple:
        return f"a list of one or more, each {_described(get_args(kind)[0])}"
    return {
        int: "a whole number from 1 on",
        float: "a number",
        bool: "true or false",
        str: "a string",
        type(None): "null",
    }[kind]


def _shown(value) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
