"""Ctrl-C, without the loss of what is as good as done."""

import signal
import sys

from tqdm import tqdm


class EditInterrupted(Exception):
    """An edit had steps to do when it was interrupted."""


class Interruption:
    """Ctrl-C while a group of edits is at work.

    Where some have done all their steps, it ends the others and lets these be decoded and written. Where none have, and
    the second time, it ends all at once.
    """

    def __init__(self):
        self.asked = False
        self._complete = 0

    def __enter__(self) -> "Interruption":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error) -> None:
        signal.signal(signal.SIGINT, self._before)

    def after_step(self, *, last: bool) -> None:
        """Raises `EditInterrupted` for an edit that is to end."""
        if last:
            self._complete += 1
        elif self.asked:
            raise EditInterrupted("interrupted")

    def _ask(self, *signal_and_frame) -> None:
        if self.asked or not self._complete:
            raise KeyboardInterrupt
        self.asked = True
        tqdm.write(f"Stopping: {self._complete} are complete. Ctrl-C once more stops at once.", file=sys.stderr)
