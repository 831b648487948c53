"""Filters of what is asked for and of what comes of it, as FLUX.1 [dev]'s licence wants them."""

import asyncio
import importlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from loguru import logger
from PIL import Image

from tt_flux_kontext.serving.errors import ApiError, refused

FUNCTION = "refuse"


class Filter:
    """A function (prompts, pictures) -> why they are refused, or None, that is called by one thread at a time.

    It gets all that the sender says in words with the pictures that he sends, and later with those that he would get.
    """

    def __init__(self, refuse: Callable[[Sequence[str], Sequence[Image.Image]], str | None]):
        self._refuse = refuse
        self._thread = ThreadPoolExecutor(1, "filter")

    async def __call__(self, prompts: Sequence[str], pictures: Sequence[Image.Image]) -> None:
        """Raises `ApiError` with the reason; and where the filter fails, since nothing passes then."""
        try:
            loop = asyncio.get_running_loop()
            reason = await loop.run_in_executor(self._thread, self._refuse, prompts, pictures)
        except Exception as error:
            logger.exception("The filter failed")
            raise ApiError(500, "The filter failed, and without it nothing is made.", code="filter_failed") from error
        if reason is not None:
            raise refused(f"Refused by the server's filter: {reason}", code="moderation_blocked")


def load_filter(module: str) -> Filter:
    """Of the function `refuse` of a module, which may be in the working folder. Raises `ValueError` for none."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), FUNCTION)
    except (ImportError, AttributeError) as error:
        message = f"'{module}' is no filter: a module with a function {FUNCTION}(prompts, pictures) is one ({error})."
        raise ValueError(message) from error
    return Filter(function)


async def unfiltered(prompts: Sequence[str], pictures: Sequence[Image.Image]) -> None:
    """Where somebody looks at the results, or the weights are a toy's."""
