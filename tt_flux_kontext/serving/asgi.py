"""The application for servers that start one themselves, such as `tt serve`'s: `tt_flux_kontext.serving.asgi:app`.

What it serves is in the environment variable TT_FLUX_KONTEXT_SERVE: the arguments of `tt-flux-kontext serve`. It has
started when the weights are loaded, which is what such servers take "Application startup complete" for.
"""

import argparse
import os
import shlex

from tt_flux_kontext.serving.app import create_app
from tt_flux_kontext.serving.command import add_arguments, make_service, make_settings

VARIABLE = "TT_FLUX_KONTEXT_SERVE"

_parser = argparse.ArgumentParser(prog=VARIABLE)
add_arguments(_parser)
_arguments = _parser.parse_args(shlex.split(os.environ.get(VARIABLE, "")))
app = create_app(make_service(_arguments, make_settings(_arguments)), page=_arguments.page, waits=True)
