"""What stands before replicas under Ray Serve, which itself answers 500, or nothing, where one ends under a request."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

from loguru import logger
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from tt_flux_kontext.serving.errors import ApiError
from tt_flux_kontext.serving.gate import Gate
from tt_flux_kontext.serving.settings import Settings

WAIT = 30  # seconds for a replica to take a request
# What a request's scope is made of, without what Ray and Starlette add.
_SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")


class Front:
    """Reads requests and has each answered by a replica with room; where that can't be done, it says so."""

    def __init__(self, settings: Settings, replicas: DeploymentHandle):
        self._settings = settings
        self._replicas = replicas
        self._answer = replicas.options(stream=True).answer
        self._turn = asyncio.Lock()

    def __serve_build_asgi_app__(self) -> Starlette:
        routes = [Route("/metrics", self._metrics), Mount("/", self._pass_on)]
        return Starlette(routes=routes, middleware=[Middleware(Gate, settings=self._settings)])

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async for messages in self._answered(scope, receive):
                for message in messages:
                    await send(message)
                    begun = True
        except ApiError as error:
            if begun:  # only events are sent in parts
                event = f"event: error\ndata: {json.dumps(error.body)}\n\n"
                await send({"type": "http.response.body", "body": event.encode()})
            else:
                await error.response()(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive) -> AsyncIterator[list[Message]]:
        """What a replica sends. Raises `ApiError` where none takes the request, and where one ends under it."""
        body = await Request(scope, receive).body()
        head = {name: scope[name] for name in _SCOPE if name in scope}
        try:
            async for messages in await asyncio.wait_for(self._taken(head, body), WAIT):
                yield messages
        except asyncio.TimeoutError:
            message = f"No card could take the request within {WAIT} s."
            raise ApiError(503, message, code="no_card", retry_after=WAIT) from None
        except (RayError, RayServeException) as error:
            logger.warning(f"A replica ended under a request: {error}")
            message = "The card that had the request was lost; another may make the edit."
            raise ApiError(503, message, code="card_lost", retry_after=1) from None

    async def _taken(self, head: dict, body: bytes) -> AsyncIterator[list[Message]]:
        """The answer of a replica that has taken the request, from the first message on.

        One request is given away after the other: two at once would both go where the queue is short.
        """
        async with self._turn:
            answer = self._answer.remote(head, body)
            try:
                await anext(answer)
            except asyncio.CancelledError:
                answer.cancel()
                raise
            return answer

    async def _metrics(self, request: Request) -> Response:
        """Of all replicas, each with the label `card`: its machine's address and its cards."""
        texts = await self._replicas.broadcast("metrics").results_async(timeout_s=WAIT, return_exceptions=True)
        text = merged(dict(each for each in texts if not isinstance(each, BaseException)))
        return Response(text, media_type="text/plain; version=0.0.4")


def merged(texts: dict[str, str]) -> bytes:
    """Prometheus' texts of several cards as one."""
    families = {}
    for card, text in texts.items():
        for family in text_string_to_metric_families(text):
            common = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                common.add_sample(sample.name, {**sample.labels, "card": card}, sample.value)
    return generate_latest(SimpleNamespace(collect=families.values))
