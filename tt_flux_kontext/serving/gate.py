"""What stands before the application: who asks, how much he sends, and how slowly."""

import asyncio
import base64
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tt_flux_kontext.serving.errors import ApiError
from tt_flux_kontext.serving.settings import PAGE, Settings

OPEN = ("/health", "/v1/health")  # without a key
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing


class Gate:
    """Middleware. What is wrong with a head is answered before the body is read, and the body only as far as it may go.

    An `ApiError` about the body comes out of the application's `receive`, so that the application answers it.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        on_page = path == PAGE or path.startswith(f"{PAGE}/")
        try:
            if scope["method"] not in SAFE:
                _check_site(headers)
            if path not in OPEN:
                self._check_key(headers.get("authorization", ""), "basic" if on_page else "bearer")
            self._check_size(headers.get("content-length", "0"))
        except ApiError as error:
            response = error.response()
            if error.status == 401 and on_page:  # browsers ask for a name and a password then
                response.headers["www-authenticate"] = 'Basic realm="the server\'s key is the password"'
            await response(scope, receive, send)
            return
        await self.app(scope, self._limited(receive), send)

    def _check_key(self, authorization: str, wanted: str) -> None:
        """The comparison takes as long for a wrong key that begins like the right one."""
        key = self.settings.api_key
        if key is None:
            return
        scheme, _, given = authorization.partition(" ")
        given = given.strip().encode()
        if wanted == "basic":
            given = _password(given)
        if scheme.lower() != wanted or not hmac.compare_digest(given, key.encode()):
            raise ApiError(401, "The header `Authorization: Bearer KEY` has no right key.", code="invalid_api_key")

    def _check_size(self, length: str | int) -> None:
        most = self.settings.upload_bytes
        if int(length) > most:
            raise ApiError(413, f"The request is larger than {most / 2**20:g} MB.", code="request_too_large")

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that raises `ApiError` for a body that is too large, or that takes too long."""
        clock = asyncio.get_running_loop().time
        end, size, ended = clock() + self.settings.upload_seconds, 0, False

        async def limited():
            nonlocal size, ended
            if ended:  # what is left to hear of is that the client leaves
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), end - clock())
            except asyncio.TimeoutError:
                most = self.settings.upload_seconds
                raise ApiError(408, f"The request did not come within {most:g} s.", code="upload_timeout") from None
            size += len(message.get("body", b""))
            self._check_size(size)
            ended = not message.get("more_body", False)
            return message

        return limited


def _check_site(headers: Headers) -> None:
    """Raises `ApiError` for what a browser was told to send by another site: it adds what it knows of this one."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    own = site in ("same-origin", "none") if site else not origin or urlsplit(origin).netloc == headers.get("host")
    if not own:
        raise ApiError(403, "Another site sent this request.", code="cross_site")


def _password(credentials: bytes) -> bytes:
    """Of "name:password" in base64; empty where it is none."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""
