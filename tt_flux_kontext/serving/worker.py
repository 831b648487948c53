"""The thread that has the device, and the queue before it."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from loguru import logger
from PIL import Image

from tt_flux_kontext.call import Call, read_call
from tt_flux_kontext.edit import Phase
from tt_flux_kontext.residency import DoesNotFit
from tt_flux_kontext.serving.engine import Engine, run
from tt_flux_kontext.serving.errors import LEFT, ApiError, refused
from tt_flux_kontext.serving.metrics import Metrics
from tt_flux_kontext.serving.preview import Course
from tt_flux_kontext.serving.settings import Settings

BROKEN = 3  # edits in a row that fail on the device, after which it is taken for broken
RECENT = 16  # edits whose time says how long others will take


@dataclass(frozen=True)
class Begun:
    """The arguments are right, and the edit is on the device."""


@dataclass(frozen=True)
class Partial:
    """What the latents [1, N, 4 C] will be, by a guess."""

    latents: torch.Tensor
    index: int


@dataclass(frozen=True)
class Done:
    """Pictures, and tokens that the transformer attended to."""

    pictures: list[Image.Image]
    text_tokens: int
    image_tokens: int


@dataclass(frozen=True)
class Failed:
    error: ApiError


Event = Begun | Phase | Partial | Done | Failed


class Job:
    """An edit that was asked for.

    Args:
        arguments: of the pipeline's call.
        partial_images: guesses that are wanted on the way.

    Attributes:
        tell: called from the device's thread with `Begun`; each `Phase` when the device has done it, and `Partial`;
            and last `Done` or `Failed`.
    """

    def __init__(self, arguments: dict, partial_images: int = 0):
        self.arguments = arguments
        self.course = Course(partial_images) if partial_images else None
        self.partials = 0
        self.tell: Callable[[Event], None] = lambda event: None
        self.cancelled = False


class Worker:
    """Runs jobs on a device, in the order in which they came, several at a time phase by phase.

    Args:
        open_engine: gives the engine, in the thread that it is then used in.

    Attributes:
        engine: None until it is ready.
        error: for which it couldn't be opened.
        on_end: called when the thread ends.
    """

    def __init__(
        self,
        open_engine: Callable[[], AbstractContextManager[Engine]],
        settings: Settings,
        metrics: Metrics,
    ):
        self.engine: Engine | None = None
        self.error: Exception | None = None
        self.on_end: Callable[[], None] = lambda: None
        self._open_engine = open_engine
        self._settings = settings
        self._metrics = metrics
        self._change = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._at_work = 0
        self._stopping = False
        self._failures = 0
        self._seconds: deque[float] = deque(maxlen=RECENT)  # of recent edits
        self._thread = threading.Thread(target=self._work, name="device")
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.at_work.set_function(lambda: self._at_work)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Takes no more jobs and sends away those that wait. The thread ends after those at work.

        A handler of signals may call it: the lock lets a thread in that has it already.
        """
        with self._change:
            self._stopping = True
            waiting, self._waiting = self._waiting, deque()
            self._change.notify()
        for job in waiting:
            job.tell(Failed(_stopping()))

    def join(self) -> None:
        self._thread.join()

    @property
    def state(self) -> str:
        """`loading`, `ready`, `stopping`, or `broken`."""
        if self.error or self._failures >= BROKEN:
            return "broken"
        if self._stopping:
            return "stopping"
        return "ready" if self.engine else "loading"

    async def opened(self) -> None:
        """Returns when the engine is ready. Raises `RuntimeError` where it can't be opened."""
        while self.state == "loading":
            await asyncio.sleep(0.1)
        if self.error:
            raise RuntimeError(str(self.error)) from self.error

    def check(self) -> None:
        """Raises `ApiError` where a job wouldn't be taken now."""
        if self._stopping:
            raise _stopping()
        if self.engine is None:
            raise ApiError(503, "The weights are being loaded.", code="loading", retry_after=10)
        before = len(self._waiting) + self._at_work
        late = before and (before + 1) * self._usual_seconds > self._settings.seconds
        if late or len(self._waiting) >= self._settings.queue:
            message = f"There are {before} requests before this one."
            raise ApiError(429, message, code="queue_full", retry_after=self._soon())

    def submit(self, job: Job, tell: Callable[[Event], None]) -> None:
        """`tell` gets what there is to say of the job. Raises `ApiError` where it isn't taken."""
        job.tell = tell
        with self._change:
            self.check()
            self._waiting.append(job)
            self._change.notify()

    def cancel(self, job: Job) -> None:
        """Of no use to anyone any more: it leaves the queue, or the device after the step at work."""
        with self._change:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    @property
    def _usual_seconds(self) -> float:
        """Of an edit, by the recent ones."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else 1.0

    def _soon(self) -> int:
        """Seconds until a place in the queue is likely to be free, when those at work are done."""
        return ceil(self._usual_seconds * max(1, self._at_work))

    def _work(self) -> None:
        try:
            with self._open_engine() as engine:
                self.engine = engine
                while jobs := self._next():
                    self._run(jobs)
                    del jobs  # their pictures would be kept until the next ones come
        except Exception as error:
            logger.opt(exception=error).debug("The device's thread ended")
            logger.error(error)
            self.error = error
        finally:
            self.stop()
            self.on_end()

    def _next(self) -> list[Job]:
        """The jobs to run together; none when it is time to stop."""
        with self._change:
            while not self._stopping and not self._waiting:
                self._change.wait()
            if self._stopping:
                return []
            count = min(self._settings.together, len(self._waiting))
            self._at_work = count
            return [self._waiting.popleft() for _ in range(count)]

    def _run(self, jobs: list[Job]) -> None:
        pipe, begun = self.engine.pipe, time.perf_counter()
        with pipe.turn:
            read = [(job, call) for job in jobs if (call := self._read(job))]
            self._at_work = len(read)
            if read:
                calls = [call for _, call in read]

                def done(phase: Phase, seconds: float) -> None:
                    self._metrics.phase(phase, seconds)
                    read[phase.edit][0].tell(phase)

                try:
                    results = run(pipe.dispatch_calls(calls), self.engine.wait, done)
                except Exception as error:  # of all of them
                    results = [error] * len(calls)
                for (job, call), result in zip(read, results, strict=True):
                    job.tell(self._outcome(job, call, result))
                self._seconds += [(time.perf_counter() - begun) / len(read)] * len(read)
        self._at_work = 0

    def _read(self, job: Job) -> Call | None:
        """The job's call, or None where it can't be made, as the job is told."""
        if job.cancelled:
            return None
        after_step = partial(self._after_step, job)
        how = {
            "callback_on_step_end": after_step,
            "callback_on_step_end_tensor_inputs": ["latents"] if job.course else [],
        }
        try:
            call = read_call(self.engine.pipe, **job.arguments, **how)
        except (ValueError, TypeError, DoesNotFit) as error:
            job.tell(Failed(refused(str(error))))
            return None
        except Exception as error:
            job.tell(self._outcome(job, None, error))
            return None
        job.tell(Begun())
        return call

    def _after_step(self, job: Job, pipe, step: int, timestep: torch.Tensor, tensors: dict) -> None:
        """The pipeline's callback. What it raises ends this edit alone."""
        if job.cancelled:
            raise ApiError(LEFT, "The client left.")
        if job.course:
            steps = pipe.num_timesteps
            guess = job.course.after_step(step, steps, float(timestep) / 1000, tensors["latents"])
            if guess is not None:
                job.tell(Partial(guess, job.partials))
                job.partials += 1

    def _outcome(self, job: Job, call: Call | None, result) -> Done | Failed:
        """What a job is told at its end."""
        if isinstance(result, ApiError):
            return Failed(result)
        if isinstance(result, FloatingPointError):  # by what was asked for, such as a guidance of 10**9
            return Failed(ApiError(500, str(result), code="not_finite"))
        if isinstance(result, Exception):
            self._failures += 1
            logger.opt(exception=result).error(f"An edit failed: {result}")
            message = "The edit failed on the device; the server's log says more."
            return Failed(ApiError(500, message, code="edit_failed"))
        self._failures = 0
        return Done(result.images, call.size.text_tokens, call.size.image_tokens)


def _stopping() -> ApiError:
    return ApiError(503, "The server is stopping.", code="stopping", retry_after=30)
