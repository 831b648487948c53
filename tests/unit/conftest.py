"""Fixtures of unit tests."""

from collections.abc import Iterator

import pytest
from loguru import logger


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """Messages of the log from warnings on."""
    messages = []
    sink = logger.add(lambda message: messages.append(message.record["message"]), level="WARNING")
    yield messages
    logger.remove(sink)


@pytest.fixture
def reported() -> Iterator[list[str]]:
    """All messages of the log."""
    messages = []
    sink = logger.add(lambda message: messages.append(message.record["message"]))
    yield messages
    logger.remove(sink)
