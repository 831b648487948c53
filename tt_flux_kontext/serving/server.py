"""uvicorn, as an application with a device needs it."""

import signal
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0  # for the head of a request
CONNECTIONS = 256


class Connection(H11Protocol):
    """One that is closed if it sends no whole head in time."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def _await_head(self) -> None:
        before = self.cycle

        def close_if_none_came() -> None:
            if self.cycle is before:
                self.transport.close()

        self.loop.call_later(HEAD_SECONDS, close_if_none_came)


class Server(uvicorn.Server):
    """Ends what runs when it is told to stop, and then returns.

    Args:
        app: ASGI application.
        on_stop: called at once, while connections are still open.
    """

    def __init__(self, app, host: str, port: int, on_stop: Callable[[], None]):
        config = uvicorn.Config(
            app, host, port, http=Connection, ws="none", limit_concurrency=CONNECTIONS, server_header=False
        )
        super().__init__(config)
        self._on_stop = on_stop

    def stop(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame) -> None:
        self._on_stop()
        super().handle_exit(sig, frame)

    def run(self) -> None:
        """uvicorn raises the signal again when it has ended; to have been told to is no error."""
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: None)
        super().run()
