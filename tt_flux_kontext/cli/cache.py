"""tt-flux-kontext cache: the weights that are kept as the device has them."""

import argparse
import sys
import time

from tt_flux_kontext.cache_folder import Entry, cache_folder, entries, forget_hashes
from tt_flux_kontext.cli.usage import DONE, FAILED, UsageError, finite

DAY = 24 * 60 * 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list", help="(default: list)")
    parser.add_argument("--older-than", type=finite(0), metavar="DAYS", help="of entries, those made before that")
    parser.add_argument("--yes", action="store_true", help="clear without a question")


def run(arguments: argparse.Namespace) -> int:
    folder = cache_folder()
    if folder is None:
        print("The cache is off.")
        return DONE
    found = entries(folder)
    if arguments.older_than is not None:
        found = [entry for entry in found if time.time() - entry.made > arguments.older_than * DAY]
    for entry in found:
        print(_line(entry))
    total = f"{len(found)} entries, {_gigabytes(sum(entry.size for entry in found))}, in {folder}"
    if arguments.action == "list" or not found:
        print(total)
        return DONE
    if not arguments.yes and not _agreed(f"Remove {total}?"):
        print("Nothing was removed.")
        return FAILED
    for entry in found:
        entry.remove()
    if arguments.older_than is None:
        forget_hashes(folder)
    print(f"Removed {total}.")
    return DONE


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("to clear without being asked takes --yes")
    print(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _line(entry: Entry) -> str:
    age = (time.time() - entry.made) / DAY
    return f"{entry.model:<24}{entry.made_with:<36}{_gigabytes(entry.size):>10}{age:>8.1f} days"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
