"""Which of a machine's cards a process has."""

import fcntl
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tt_flux_kontext.backend import NODES

GROUPS = "TT_FLUX_KONTEXT_CARDS"  # environment variable, such as "0,1 2,3": what each process gets


def groups() -> list[str]:
    """Values for TT_VISIBLE_DEVICES, one a process: those of the environment, or each card that the driver shows.

    Raises `RuntimeError` where there are none.
    """
    named = os.environ.get(GROUPS)
    found = named.split() if named else sorted((node.name for node in NODES.glob("[0-9]*")), key=int)
    if not found:
        raise RuntimeError(f"There is no card under {NODES}, and {GROUPS} names none, such as '0,1 2,3'.")
    return found


def take(groups: Sequence[str], folder: Path | None = None, seconds: float = 60.0) -> tuple[str, ExitStack]:
    """The first group whose cards no other process has, and what holds it: until that is closed, or the process ends.

    The kernel lets go of a card with the process that holds it, however that ends. In the card's file in `folder` (by
    default the one for temporary files) stands the number of that process.

    Raises `RuntimeError` if none becomes free within `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        for group in groups:
            held = _hold(group.split(","), Path(folder or tempfile.gettempdir()))
            if held:
                return group, held
        if time.monotonic() > end:
            raise RuntimeError(f"Other processes have all cards of this machine ({' '.join(groups)}).")
        time.sleep(0.2)


def _hold(cards: Sequence[str], folder: Path) -> ExitStack | None:
    """All of these cards, or None where another process has one."""
    with ExitStack() as held:
        for card in cards:
            file = held.enter_context((folder / f"tt_flux_kontext_card_{card}.lock").open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            file.truncate(0)
            print(os.getpid(), file=file, flush=True)
        return held.pop_all()
