"""The command tt-flux-kontext.

Each of its commands is a module with `add_arguments(parser)`, and `run(arguments)`, which returns the exit code. Only
the one that is called is imported, and none imports torch or TT-NN before it has something to do with them.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from loguru import logger
from tqdm import tqdm

from tt_flux_kontext.cli.usage import DONE, FAILED, INTERRUPTED, WRONG_USAGE, Parser, UsageError, corrected, in_options
from tt_flux_kontext.metadata import software

PROGRAM = "tt-flux-kontext"
COMMANDS = {
    "edit": ("tt_flux_kontext.cli.edit", "Edits pictures by an instruction."),
    "generate": ("tt_flux_kontext.cli.generate", "Makes pictures from text."),
    "info": ("tt_flux_kontext.cli.info", "Says what a picture was made with."),
    "serve": ("tt_flux_kontext.serving.command", "Makes pictures over HTTP, in the form of OpenAI's images API."),
    "cache": ("tt_flux_kontext.cli.cache", "Lists or empties the cache of weights as the device has them."),
    "plan": ("tt_flux_kontext.cli.plan", "Asks real TT-NN, without a card, for memory and time of an edit."),
}
EPILOG = (
    f"Exit codes: {DONE} done, {FAILED} refused, or failed in part, {WRONG_USAGE} wrong usage, "
    f"{INTERRUPTED} interrupted."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, and returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser, run = _parser_of(words)
    try:
        arguments = parser.parse_args(words[1:] if run else words)
        with _plain_log():
            return run(arguments) or DONE
    except UsageError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        right = corrected(parser, words, error)
        print(f"Did you mean: {PROGRAM} {right}" if right else f"See {parser.prog} --help.", file=sys.stderr)
        return WRONG_USAGE
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{parser.prog}: {in_options(str(error))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser_of(words: Sequence[str]) -> tuple[Parser, Callable | None]:
    """Of the command that the first word names, with what runs it; or of all, for the other words."""
    if words and words[0] in COMMANDS:
        module, summary = COMMANDS[words[0]]
        command = importlib.import_module(module)
        parser = Parser(prog=f"{PROGRAM} {words[0]}", description=summary, epilog=EPILOG)
        command.add_arguments(parser)
        return parser, command.run
    parser = Parser(prog=PROGRAM, description="FLUX.1 Kontext [dev] on Tenstorrent's TT-NN.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=software())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    return parser, None


@contextmanager
def _plain_log() -> Iterator[None]:
    """What the package logs as sentences, above the bars; but for `edits` that failed, which commands report."""
    with suppress(ValueError):
        logger.remove(0)  # the one that writes times and lines of code
    sink = logger.add(
        _write_line, format="{message}", level="INFO", filter=lambda record: record["function"] != "edits"
    )
    try:
        yield
    finally:
        logger.remove(sink)


def _write_line(line: str) -> None:
    tqdm.write(in_options(line), file=sys.stderr, end="")
