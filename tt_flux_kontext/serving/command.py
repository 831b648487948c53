"""tt-flux-kontext serve: edits over HTTP."""

import argparse
import ipaddress
import os
import sys
from functools import partial
from pathlib import Path

from tt_flux_kontext.backend import DEVICES, choose
from tt_flux_kontext.cli.loading import KONTEXT_DEV
from tt_flux_kontext.cli.options import add_signing_arguments, read_credentials, read_lora
from tt_flux_kontext.cli.usage import DONE, FAILED, finite, split, whole
from tt_flux_kontext.parameters import Parameters
from tt_flux_kontext.precision import PRECISIONS
from tt_flux_kontext.serving.settings import PAGE, Settings

API_KEY = "TT_FLUX_KONTEXT_API_KEY"  # environment variable: all users of a machine can read its command lines
_LIMITS = {
    "max_area": "pixels of a result where a request names no size; it may name one of 1.5 times as many",
    "max_steps": "denoising steps of a request",
    "queue": "requests that wait",
    "together": "requests, of those that wait, that run phase by phase together",
    "seconds": "of a request, from the end of its upload to its result",
    "upload_bytes": "of a request",
    "upload_pixels": "of all pictures of a request",
    "upload_seconds": "until a request has come",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("with what")
    model.add_argument(
        "--weights",
        default=KONTEXT_DEV,
        metavar="W",
        help="folder, hub id, or a .safetensors or .gguf file (default: %(default)s)",
    )
    model.add_argument("--config", metavar="C", help=f"folder or hub id beside a file (default: {KONTEXT_DEV})")
    model.add_argument(
        "--lora",
        nargs="+",
        action="append",
        default=[],
        metavar=("PATH", "SCALE"),
        help="an adapter for all requests; repeatable",
    )
    model.add_argument("--precision", choices=PRECISIONS, help="default: the most accurate that fits")
    model.add_argument(
        "--device", choices=DEVICES, metavar="D", help="silicon, emulated, emulated:t3k, ... (default: a card if any)"
    )
    model.add_argument("--split", type=split, metavar="SP,TP", help="chips for tokens and for features, such as 4,2")
    watch = parser.add_mutually_exclusive_group()
    watch.add_argument(
        "--filter", metavar="MODULE", help="of a function refuse(prompts, pictures), which gives a reason or None"
    )
    watch.add_argument("--reviewed", action="store_true", help="somebody looks at all results before they are shown")
    add_signing_arguments(parser, "all pictures")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="default: %(default)s")
    parser.add_argument("--page", action="store_true", help=f"for people, under {PAGE}; takes the extra `page`")
    parser.add_argument("--model-name", help="by which clients ask for it (default: that of the weights)")
    defaults = Settings(model="")
    for name, what in _LIMITS.items():
        default = getattr(defaults, name)
        option, kind = f"--{name.replace('_', '-')}", whole(1) if isinstance(default, int) else finite(1)
        parser.add_argument(option, type=kind, default=default, metavar="N", help=f"{what} (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to stop, and returns the exit code. Raises `ValueError` where it can't start."""
    try:
        from tt_flux_kontext.serving.app import create_app  # these take seconds
        from tt_flux_kontext.serving.server import Server

        service = make_service(arguments, make_settings(arguments))
        app = create_app(service, page=arguments.page)
    except ModuleNotFoundError as error:
        extra = "page" if arguments.page else "serve"
        raise ValueError(f"{error}: pip install 'tt-flux-kontext[{extra}]' has what the server needs.") from error
    if service.settings.api_key is None and not _is_local(arguments.host):
        print(f"Whoever can reach {arguments.host} may use this server. {API_KEY} sets a key.", file=sys.stderr)
    worker = service.worker
    server = Server(app, arguments.host, arguments.port, on_stop=worker.stop)
    worker.on_end = server.stop
    server.run()
    return FAILED if worker.error else DONE  # the log says why


def make_settings(arguments: argparse.Namespace) -> Settings:
    """Those that the arguments and the environment describe."""
    weights = arguments.weights
    model = arguments.model_name or (Path(weights).resolve().name if Path(weights).is_dir() else weights)
    limits = {name: getattr(arguments, name) for name in _LIMITS}
    return Settings(model=model, api_key=os.environ.get(API_KEY) or None, **limits)


def make_service(arguments: argparse.Namespace, settings: Settings):
    """The `Service` that the arguments describe.

    Raises `UsageError`, `ValueError` for a filter that is none or a certificate that can't sign, and `RuntimeError` for
    a device that can't be had.
    """
    from tt_flux_kontext.serving.engine import open_engine
    from tt_flux_kontext.serving.metrics import Metrics
    from tt_flux_kontext.serving.review import load_filter, unfiltered
    from tt_flux_kontext.serving.service import Service
    from tt_flux_kontext.serving.worker import Worker

    device = arguments.device or choose()
    choose(device.partition(":")[0])
    review = load_filter(arguments.filter) if arguments.filter else unfiltered
    credentials = read_credentials(arguments)
    parameters = Parameters(
        prompt="",
        weights=arguments.weights,
        config=arguments.config,
        loras=tuple(map(read_lora, arguments.lora)),
        precision=arguments.precision,
        device=device,
        split=arguments.split,
    )
    watched = bool(arguments.filter) or arguments.reviewed
    opening = partial(open_engine, parameters, settings, watched=watched)
    metrics = Metrics()
    return Service(settings, Worker(opening, settings, metrics), metrics, review, credentials)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
