"""A child process that may hang or crash."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE = 10  # seconds to give the device back in, before it is killed


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        words: None if well, else what went wrong, in a line.
        killed: whether it had to be.
    """

    words: str | None
    seconds: float
    killed: bool = False


def attempt(command: Sequence[str], limit: float | None, log: Path, env: dict[str, str] | None = None) -> Ending:
    """Runs a command with a process group of its own, for `limit` seconds at most if there is one.

    What it prints goes to `log`.
    """
    start = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=env, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(limit)
        except BaseException as error:  # the limit, or Ctrl-C
            _end(process)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return Ending(f"hung after {limit:g} s", time.monotonic() - start, killed=True)
    seconds = time.monotonic() - start
    if status < 0:
        return Ending(f"crashed with signal {-status} ({signal.Signals(-status).name})", seconds)
    return Ending(_last_line(log) if status else None, seconds)


def _end(process: subprocess.Popen) -> None:
    """The whole group: first asked, then killed. One that a driver holds on to is left behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it failed without a word")
