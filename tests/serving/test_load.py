"""What the figures of serving/README.md are made with."""

import pytest

from reference.load_server import load, running, stop


@pytest.mark.slow
def test_load():
    """200 requests from 16 clients, bad ones among them, and SIGTERM while all ask: each gets the answer it should."""
    with running() as server:
        load(server, requests=200, clients=16)
        stop(server, clients=16)
