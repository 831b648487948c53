"""A request for pictures, from its fields to the answer."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import torch
from loguru import logger
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tt_flux_kontext.credentials import Claim, Credentials
from tt_flux_kontext.edit import Phase
from tt_flux_kontext.resolution import DEFAULT_AREA, output_size, reference_size
from tt_flux_kontext.serving.errors import LEFT, ApiError, refused, unexpected
from tt_flux_kontext.serving.metrics import Metrics
from tt_flux_kontext.serving.options import EDGE, Options, read_size
from tt_flux_kontext.serving.order import Kind, Order
from tt_flux_kontext.serving.settings import Settings
from tt_flux_kontext.serving.worker import Done, Event, Failed, Job, Partial, Worker

PING = 15.0  # seconds after which a stream says that it is still there: proxies close silent ones


@dataclass(frozen=True)
class Shown:
    """Files of pictures that may be shown: the results, or of a guess on the way."""

    event: Done | Partial
    pictures: list[Image.Image]
    files: list[bytes]


class Service:
    """Answers requests with a worker's pictures.

    Args:
        review: (prompts, pictures), raises `ApiError` for what is not to be made or shown.
        credentials: to sign pictures with.
    """

    def __init__(
        self,
        settings: Settings,
        worker: Worker,
        metrics: Metrics,
        review: Callable[[Sequence[str], Sequence[Image.Image]], Awaitable[None]],
        credentials: Credentials | None = None,
    ):
        self.settings = settings
        self.worker = worker
        self.metrics = metrics
        self._review = review
        self._credentials = credentials

    def claim(self, *files: BinaryIO) -> Claim | None:
        """What is to be signed of an edit's results, where something is. `files`: of the pictures that were sent."""
        if self._credentials is None:
            return None
        parent, *references = files or [None]
        return self._credentials.claim(parent, *references)

    async def answer(
        self,
        request: Request,
        kind: Kind,
        options: Options,
        claim: Claim | None,
        pictures: Sequence[Image.Image] = (),
        mask: Image.Image | None = None,
    ) -> Response:
        """Pictures, or with `stream` their events; raises `ApiError` for what comes before the edit begins."""
        order, events = await self.begin(kind, options, claim, pictures, mask, partial(_until_gone, request))
        if options.stream:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies pass on what comes at once
            return StreamingResponse(self._stream(order, events), media_type="text/event-stream", headers=headers)
        async with aclosing(events):
            done = [event async for event in events if isinstance(event, Shown)][-1]
        data = [{"b64_json": _base64(file), "seed": order.seed + i} for i, file in enumerate(done.files)]
        self.metrics.answered(kind.route, time.perf_counter() - order.begun)
        answer = {"created": int(time.time()), "data": data, "usage": _usage(order, done.event)}
        return JSONResponse(answer | order.described(done.pictures[0]))

    async def begin(
        self,
        kind: Kind,
        options: Options,
        claim: Claim | None,
        pictures: Sequence[Image.Image],
        mask: Image.Image | None,
        gone: Callable[[], Awaitable],
    ) -> tuple[Order, AsyncIterator[Phase | Shown | None]]:
        """What is to be made, when the device has it, and what happens to it: the last of that are the results.

        `gone` returns when nobody waits for it any more. Raises `ApiError` for what comes before the edit begins; the
        iterator does for what comes later, and cancels the edit where it is closed before its end.
        """
        await self._review(options.prompts, pictures)
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        order = Order(kind, options, self._size(options, pictures), seed, claim, time.perf_counter())
        arguments = await asyncio.to_thread(self._arguments, order, pictures, mask)
        events = self._follow(gone, Job(arguments, options.partial_images))
        await anext(events)  # `Begun`, or the first ping
        return order, self._shown(order, events)

    def _size(self, options: Options, pictures: Sequence[Image.Image]) -> tuple[int, int]:
        """(height, width): what was asked for, or that of the first picture's bucket. Raises `ApiError`."""
        size = read_size(options.size, self.settings)
        if size:
            return size
        try:
            own = reference_size(*pictures[0].size[::-1], EDGE) if pictures else (None, None)
            return output_size(*own, self.settings.max_area, EDGE)
        except ValueError as error:
            raise refused(str(error), "image") from None

    def _arguments(self, order: Order, pictures: Sequence[Image.Image], mask: Image.Image | None) -> dict:
        """Of the pipeline's call."""
        height, width = order.size
        seeds = range(order.seed, order.seed + order.options.n)
        arguments = order.options.arguments() | {
            "height": height,
            "width": width,
            "max_area": height * width,
            "num_images_per_prompt": order.options.n,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        }
        references = list(pictures[1:])
        if self.settings.max_area != DEFAULT_AREA:  # no size of FLUX.1's buckets
            arguments["_auto_resize"] = False
            references = [_shrunk(picture, self.settings.max_area) for picture in references]
        if pictures:
            arguments["image"] = pictures[0]
        if references:
            arguments["reference_images"] = references
        if mask is not None:
            arguments["mask_image"] = mask
        return arguments

    async def _shown(self, order: Order, events: AsyncIterator) -> AsyncIterator[Phase | Shown | None]:
        """The events, with files of their pictures once these are reviewed."""
        colours = self.worker.engine.colours
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Partial):
                    picture = await asyncio.to_thread(colours.picture, event.latents, order.size)
                    yield await self._reviewed(order, event, [picture])
                elif isinstance(event, Done):
                    yield await self._reviewed(order, event, event.pictures)
                else:
                    yield event

    async def _follow(self, gone: Callable[[], Awaitable], job: Job) -> AsyncIterator[Event | None]:
        """What the worker tells of a job, and None after some seconds of silence.

        Raises `ApiError` when it fails or is late, or the client leaves; then, and when nobody listens any more, the
        job is cancelled.
        """
        loop = asyncio.get_running_loop()
        end, told = loop.time() + self.settings.seconds, asyncio.Queue()
        self.worker.submit(job, lambda event: loop.call_soon_threadsafe(told.put_nowait, event))
        gone, news = asyncio.ensure_future(gone()), None
        try:
            while True:
                news = news or asyncio.ensure_future(told.get())
                left = end - loop.time()
                await asyncio.wait((news, gone), timeout=min(left, PING), return_when=asyncio.FIRST_COMPLETED)
                if news.done():
                    event, news = news.result(), None
                    if isinstance(event, Failed):
                        raise event.error
                    yield event
                    if isinstance(event, Done):
                        return
                elif gone.done():
                    raise ApiError(LEFT, "The client left.")
                elif left <= PING:
                    most = self.settings.seconds
                    raise ApiError(504, f"The edit was not done within {most:g} s.", code="time_limit")
                else:
                    yield None
        finally:
            self.worker.cancel(job)
            gone.cancel()
            if news:
                news.cancel()

    async def _stream(self, order: Order, events: AsyncIterator) -> AsyncIterator[str]:
        """Server-sent events in OpenAI's form, the last of them with the results, or with an error."""
        route, kind = order.kind.route, order.kind.event
        try:
            async with aclosing(events):
                async for event in events:
                    if not isinstance(event, Shown):
                        yield ": at work\n\n"
                        continue
                    what, more = "partial_image", order.described(event.pictures[0])
                    if isinstance(event.event, Partial):
                        more |= {"partial_image_index": event.event.index}
                    else:
                        what, more = "completed", more | {"usage": _usage(order, event.event)}
                    for file in event.files:
                        yield _event(f"{kind}.{what}", file, more)
            self.metrics.answered(route, time.perf_counter() - order.begun)
            return
        except asyncio.CancelledError:
            self.metrics.failed(route, ApiError(LEFT, "The client left."))
            raise
        except ApiError as expected:
            error = expected
        except Exception:
            logger.exception("A stream failed")
            error = unexpected()
        self.metrics.failed(route, error)
        yield f"event: error\ndata: {json.dumps(error.body)}\n\n"

    async def _reviewed(self, order: Order, event: Done | Partial, pictures: list[Image.Image]) -> Shown:
        await self._review(order.options.prompts, pictures)

        def files() -> list[bytes]:
            return [order.file(picture, i, self.settings.model) for i, picture in enumerate(pictures)]

        return Shown(event, pictures, await asyncio.to_thread(files))


def _event(name: str, file: bytes, more: dict) -> str:
    data = {"type": name, "b64_json": _base64(file), "created_at": int(time.time()), "quality": "auto"} | more
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _base64(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _usage(order: Order, done: Done) -> dict:
    """In tokens of the transformer: it sees the results' own in each step, with the text and the pictures sent."""
    height, width = order.size
    result = (height // EDGE) * (width // EDGE)
    seen, made = done.image_tokens - result, result * order.options.n
    return {
        "input_tokens": done.text_tokens + seen,
        "input_tokens_details": {"text_tokens": done.text_tokens, "image_tokens": seen},
        "output_tokens": made,
        "total_tokens": done.text_tokens + seen + made,
    }


def _shrunk(picture: Image.Image, area: int) -> Image.Image:
    """To at most that many pixels."""
    scale = (area / (picture.width * picture.height)) ** 0.5
    if scale >= 1:
        return picture
    return picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))


async def _until_gone(request: Request) -> None:
    """Until the client closes the connection. The request has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
