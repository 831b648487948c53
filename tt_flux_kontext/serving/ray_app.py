"""Many cards behind one address, with Ray Serve: `serve run tt_flux_kontext.serving.ray_app:build serve="..."`.

Each card, or group of cards, has a `Replica`, and before them is a `Front`.
"""

import argparse
import shlex

from pydantic import BaseModel, ConfigDict, PositiveInt
from ray import serve

from tt_flux_kontext.serving.command import add_arguments, make_settings
from tt_flux_kontext.serving.front import Front
from tt_flux_kontext.serving.replica import Replica

CARD = "tt_card"  # Ray's resource: a card or group of cards, for one replica
SPARE = 8  # requests that a replica takes beside the edits that it can hold: it can answer them at once
OPEN = 256  # requests in the front
# Ray Serve forgets after 10 s how long a queue is, and then prefers one that it knows. Edits take longer, and the front
# counts right: it alone sends requests.
_COUNTS_STAY = {"env_vars": {"RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "1e9"}}


class Arguments(BaseModel):
    """`serve`: the arguments of `tt-flux-kontext serve`, of which host and port are Ray Serve's here."""

    model_config = ConfigDict(extra="forbid")

    serve: str
    replicas: PositiveInt = 1


def build(args: Arguments) -> serve.Application:
    """The application for `serve run` and `serve deploy`, with the key that clients show for all replicas.

    Ray may run this on any of the machines, so that each has to have the key in its environment.
    """
    parser = argparse.ArgumentParser(prog="serve")
    add_arguments(parser)
    arguments = parser.parse_args(shlex.split(args.serve))
    settings = make_settings(arguments)
    replicas = serve.deployment(
        Replica,
        num_replicas=args.replicas,
        ray_actor_options={"resources": {CARD: 1}},
        max_ongoing_requests=settings.queue + settings.together + SPARE,
        max_constructor_retry_count=3,
        graceful_shutdown_timeout_s=settings.seconds,
    )
    front = serve.deployment(
        serve.ingress()(Front),
        ray_actor_options={"runtime_env": _COUNTS_STAY},
        max_ongoing_requests=OPEN,
        max_queued_requests=OPEN,
    )
    return front.bind(settings, replicas.bind(arguments, settings))
