"""What an operator decides."""

from dataclasses import dataclass

PAGE = "/page"  # path of the page for people


@dataclass(frozen=True)
class Settings:
    """How a server takes requests.

    Attributes:
        model: name by which clients ask for it.
        api_key: that they have to show; None for no key.
        max_area: pixels of a result where the client names no size; no size may have more than 1.5 times as many.
        max_steps: denoising steps of a request.
        queue: requests that wait; more are sent away, and so are those that would be late by what others took.
        together: requests, of those that wait, that run phase by phase together.
        seconds: of a request, from the end of its upload to its result.
        upload_bytes, upload_pixels, upload_seconds: of all files of a request, and until they have come.
    """

    model: str
    api_key: str | None = None
    max_area: int = 1024**2
    max_steps: int = 100
    queue: int = 16
    together: int = 4
    seconds: float = 600.0
    upload_bytes: int = 64 * 2**20
    upload_pixels: int = 32 * 10**6
    upload_seconds: float = 60.0

    @property
    def largest(self) -> int:
        """Pixels of a result: 1536 x 1024 for FLUX.1, which OpenAI's clients ask for."""
        return self.max_area * 3 // 2
