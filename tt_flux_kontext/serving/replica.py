"""A process of several under Ray Serve: the server's application, on a card of its own."""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator

import ray
from loguru import logger
from starlette.types import Message

from tt_flux_kontext.serving import cards
from tt_flux_kontext.serving.command import make_service
from tt_flux_kontext.serving.settings import Settings


class Replica:
    """Ray Serve sends it requests when the weights are loaded."""

    async def __init__(self, arguments: argparse.Namespace, settings: Settings):
        group, self._card = cards.take(cards.groups())
        os.environ["TT_VISIBLE_DEVICES"] = group  # before ttnn is imported
        from tt_flux_kontext.serving.app import create_app

        service = make_service(arguments, settings)
        self._name = f"{ray.util.get_node_ip_address()}:{group}"
        self._metrics, self._worker, self._app = service.metrics, service.worker, create_app(service)
        self._worker.start()
        await self._worker.opened()

    def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        if self._worker.state == "broken":
            raise RuntimeError(str(self._worker.error or "Edits fail on the device."))

    async def answer(self, scope: dict, body: bytes) -> AsyncIterator[list[Message]]:
        """What the application sends for a request. The first list is empty: the request has come."""
        yield []
        sent, gone = asyncio.Queue(), asyncio.Event()
        unread, head = [{"type": "http.request", "body": body}], []

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            """Keeps the head until there is more: as long as nothing was sent, the status can be another."""
            head.append(message)
            if message["type"] != "http.response.start":
                sent.put_nowait(head.copy())
                head.clear()

        async def run() -> None:
            try:
                await self._app(scope, receive, send)
            except Exception:  # it has answered 500 before
                logger.exception("The application failed")
            sent.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            while messages := await sent.get():
                yield messages
        finally:  # the client may have left
            gone.set()
            await running

    def metrics(self) -> tuple[str, str]:
        """Machine and card, and Prometheus' text."""
        return self._name, self._metrics.text().decode()

    def __del__(self):
        """Called by Ray Serve when the last request is answered."""
        self._worker.stop()
        self._worker.join()
