"""One edit at a time: a device does one thing after the other, and so do its pipeline's scheduler and tokenizers."""

from collections.abc import Callable
from functools import wraps
from threading import Lock, get_ident


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
