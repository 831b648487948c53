"""Whose turn it is: of the edits that one device is asked for, and of several devices that one thread works with.

A device does one thing after the other, and so do its pipeline's scheduler and tokenizers.
"""

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from threading import Lock, get_ident

from loguru import logger


class Turn:
    """A lock that knows who holds it, so that nobody waits for himself. Raises `RuntimeError` for who would."""

    def __init__(self):
        self._lock = Lock()
        self._holder = None

    def __enter__(self) -> None:
        if self._holder == get_ident():
            raise RuntimeError("A callback can't call the pipeline that is calling it: its edit has to end first.")
        self._lock.acquire()
        self._holder = get_ident()

    def __exit__(self, *error) -> None:
        self._holder = None
        self._lock.release()


def one_at_a_time(method: Callable) -> Callable:
    """A method of an object with a `turn`: threads that share it wait for each other."""

    @wraps(method)
    def in_turn(self, *args, **kwargs):
        with self.turn:
            return method(self, *args, **kwargs)

    return in_turn


def finish(work: Iterator):
    """Runs a generator to its end, and returns what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def side_by_side(pipes: Sequence, calls: Sequence[Mapping]) -> list:
    """Makes several edits at once: each pipeline takes the next call as soon as it is free.

    The devices get their work in turn, and one is waited for when all have some. The results are those of the calls
    one by one. A pipeline's `timings` include its waiting for the others' turns.

    Args:
        pipes: pipelines, each with a device of its own, such as a part of a mesh (`submeshes`).
        calls: keyword arguments of each call.

    Returns what each call returns, in their order; for one that failed its exception, which is logged too.

    Raises `ValueError` for no pipelines, or one that is there twice.
    """
    if not pipes or len(set(pipes)) < len(pipes):
        raise ValueError("`pipes` must be different pipelines, at least one.")
    waiting = deque(enumerate(calls))
    results = [None] * len(calls)

    def edits(pipe) -> Iterator:
        while waiting:
            index, arguments = waiting.popleft()
            try:
                with pipe.turn:
                    results[index] = yield from pipe.dispatch(**arguments)
            except Exception as error:
                logger.error(f"Edit {index + 1} of {len(calls)} failed: {error}")
                traceback.clear_frames(error.__traceback__)  # their tensors take the device's memory
                results[index] = error

    at_work = list(map(edits, pipes))
    while at_work:
        at_work = [each for each in at_work if next(each, None)]
    return results
