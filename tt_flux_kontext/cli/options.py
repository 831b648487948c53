"""Options of `edit` and `generate`, and what they ask for."""

import argparse
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

from loguru import logger

from tt_flux_kontext.backend import DEVICES, choose
from tt_flux_kontext.cli.files import existing, pictures_of, result_name, result_names, writable
from tt_flux_kontext.cli.loading import KONTEXT_DEV, MULTIPLE, in_a_file
from tt_flux_kontext.cli.replay import recorded_options
from tt_flux_kontext.cli.usage import UsageError, finite, split, whole
from tt_flux_kontext.credentials import Credentials
from tt_flux_kontext.metadata import software
from tt_flux_kontext.parameters import File, Lora, Parameters
from tt_flux_kontext.precision import PRECISIONS

REFERENCE_METHODS = ("offset", "index", "stitch")  # `resolution` has them too, but takes seconds to import
SEEDS = 2**32  # that --auto-seeds draws from

Edge = int | float | str
"""Of a result: pixels, or, as a float, times the picture's own edge; "auto" for what goes with the other one."""


@dataclass(frozen=True)
class Options:
    """What a command line asks for.

    Attributes:
        parameters: of all results, which may differ in picture, size, seed and, with a `prompt_file`, prompt.
        pictures: to edit; None alone for pictures from text.
        size: (width, height) of results.
        prompt_file: read anew for each result.
        out: name of results, with {name} of the picture and {seed}.
        metadata: whether parameters are also written beside each result.
        overwrite: whether results of other parameters are.
        stepwise: folder for previews, and the number of steps from one to the next.
        credentials: to sign results with; None for none.
    """

    parameters: Parameters
    pictures: tuple[Path | None, ...]
    size: tuple[Edge, Edge]
    seeds: tuple[int, ...]
    prompt_file: Path | None
    out: str
    metadata: bool
    overwrite: bool
    stepwise: tuple[Path, int] | None
    credentials: Credentials | None


def add_making_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """All options of the commands that make pictures. `out`: the default of --out."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    prompts = parser.add_argument_group("what to make").add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="what to change, or what to see")
    prompts.add_argument("--prompt-file", metavar="FILE", help="the prompt; read anew for each result")
    make = parser.add_argument_group("how to make it")
    make.add_argument("--negative-prompt", metavar="TEXT", help="what to avoid, with --true-cfg-scale")
    make.add_argument("--true-cfg-scale", type=finite(), metavar="S", help="above 1 it doubles the time (default: 1)")
    make.add_argument("--reference", nargs="+", action="extend", metavar="FILE", help="more pictures to look at")
    make.add_argument("--reference-method", choices=REFERENCE_METHODS, help="how they are shown (default: offset)")
    make.add_argument("--width", type=_edge, metavar="W", help="pixels, auto, or 2x for twice the picture's")
    make.add_argument("--height", type=_edge, metavar="H", help="(default for both: the picture's trained size)")
    make.add_argument("--steps", type=whole(1), metavar="N", help="of denoising (default: 28)")
    make.add_argument("--guidance", type=finite(), metavar="S", help="guidance scale (default: 2.5)")
    make.add_argument("--max-sequence-length", type=whole(1, 512), metavar="N", help="of T5's tokens (default: 512)")
    seeds = make.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seed", type=whole(0, 2**64 - 1), nargs="+", action="extend", metavar="N", help="a result each (default: 0)"
    )
    seeds.add_argument("--auto-seeds", type=whole(1), metavar="N", help="as many, drawn at random")
    model = parser.add_argument_group("with what")
    model.add_argument(
        "--weights", metavar="W", help=f"folder, hub id, or a .safetensors or .gguf file (default: {KONTEXT_DEV})"
    )
    model.add_argument("--config", metavar="C", help=f"folder or hub id beside a file (default: {KONTEXT_DEV})")
    model.add_argument("--lora", nargs="+", action="append", metavar=("PATH", "SCALE"), help="an adapter; repeatable")
    model.add_argument("--precision", choices=PRECISIONS, help="default: the most accurate that fits")
    model.add_argument(
        "--device", choices=DEVICES, metavar="D", help="silicon, emulated, emulated:t3k, ... (default: a card if any)"
    )
    model.add_argument("--split", type=split, metavar="SP,TP", help="chips for tokens and for features, such as 4,2")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--out",
        metavar="FILE",
        help="name of the result, or a folder; {name} is the picture's, {seed} the seed, and they are added where "
        f"there are several (default: {out})",
    )
    files.add_argument("--metadata", action="store_true", help="also write the parameters as JSON beside each result")
    files.add_argument("--overwrite", action="store_true", help="also results of other parameters")
    files.add_argument(
        "--config-from", metavar="FILE", help="a result, or the JSON beside it, whose parameters are the defaults"
    )
    files.add_argument(
        "--stepwise",
        nargs="+",
        metavar=("FOLDER", "N"),
        help="also write what the result looked like after every N-th step (default: each), by what the model took it "
        "for then; from the second step on",
    )
    add_signing_arguments(parser, "each result")
    parser.set_defaults(default_out=out)


def add_signing_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    group = parser.add_argument_group("Content Credentials (C2PA)")
    group.add_argument(
        "--c2pa-certificate", metavar="FILE", help=f"sign {what}: a certificate in PEM, then those of its issuers"
    )
    group.add_argument("--c2pa-key", metavar="FILE", help="the certificate's private key, in PEM")


def add_edit_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of edits alone."""
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="files, or folders of them")
    group = parser.add_argument_group("masks")
    group.add_argument(
        "--mask", action="append", metavar="FILE", help="white where to edit; all else stays as it is; repeatable"
    )
    group.add_argument(
        "--strength", type=finite(0, 1), metavar="S", help="below 1, begin with the picture (default: 1)"
    )


def options_of(arguments: argparse.Namespace, command: argparse.ArgumentParser) -> Options:
    """What is asked for, checked as far as that takes no model. `command`: a parser of the same arguments.

    Raises `UsageError`, and `ValueError` or `RuntimeError` for a device that can't be had.
    """
    edits = hasattr(arguments, "pictures")
    given = {name: value for name, value in vars(arguments).items() if value not in (None, [])}
    if arguments.config_from:
        given = recorded_options(arguments.config_from, given, edits, command) | given
    prompt = given.get("prompt", "")
    prompt_file = existing(given["prompt_file"], "--prompt-file") if "prompt_file" in given else None
    if not (prompt_file or prompt.strip()):
        raise UsageError("a --prompt is needed, or a --prompt-file")
    pictures = pictures_of(given.get("pictures", ())) if edits else [None]
    if not pictures:
        raise UsageError("there is no picture to edit; `tt-flux-kontext generate` makes one from text")
    if "mask" not in given and given.get("strength", 1) != 1:
        raise UsageError("--strength is of edits with --mask")
    size = given.get("width", "auto"), given.get("height", "auto")
    if not edits and any(isinstance(edge, float) for edge in size):
        raise UsageError("--width and --height in x are of a picture, which there isn't: give pixels")
    for name, edge in zip(("width", "height"), size):
        if isinstance(edge, int) and edge % MULTIPLE:
            whole_tokens = edge // MULTIPLE * MULTIPLE
            logger.warning(f"--{name} {edge} becomes {whole_tokens}: edges are multiples of {MULTIPLE} pixels.")
    if "config" in given and not in_a_file(given.get("weights", KONTEXT_DEV)):
        if arguments.config:
            raise UsageError("--config goes with --weights that are a .safetensors or .gguf file")
        del given["config"]
    seeds = tuple(dict.fromkeys(given.get("seed", [0])))
    if "auto_seeds" in given:
        seeds = tuple(secrets.randbelow(SEEDS) for _ in range(given["auto_seeds"]))
    names = {each.name for each in fields(Parameters)} & given.keys() - {"width", "height", "seed"}
    parameters = Parameters(
        **{name: given[name] for name in names}
        | {
            "prompt": prompt,
            "masks": tuple(File.of(existing(name, "--mask")) for name in given.get("mask", ())),
            "references": tuple(File.of(existing(name, "--reference")) for name in given.get("reference", ())),
            "loras": tuple(map(read_lora, given.get("lora", ()))),
            "weights": given.get("weights", KONTEXT_DEV),
            "device": given.get("device") or choose(),
            "software": software(),
        }
    )
    choose(parameters.device.partition(":")[0])
    folders = [path for path in map(Path, given.get("pictures", ())) if path.is_dir()]
    out = result_names(given.get("out", arguments.default_out), pictures, seeds, folders)
    stepwise = None
    if "stepwise" in given:
        stems = [result_name(out, picture, seed).stem for picture, seed in product(pictures, seeds)]
        stepwise = _stepwise(given["stepwise"], math.ceil(parameters.steps * parameters.strength), stems)
    return Options(
        parameters=parameters,
        pictures=tuple(pictures),
        size=size,
        seeds=seeds,
        prompt_file=prompt_file,
        out=out,
        metadata=arguments.metadata,
        overwrite=arguments.overwrite,
        stepwise=stepwise,
        credentials=read_credentials(arguments),
    )


def read_lora(words: Sequence[str]) -> Lora:
    """Of the option's PATH and SCALE. Raises `UsageError`."""
    path, *scales = words
    try:
        (scale,) = map(finite(), scales or ["1"])
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UsageError(f"--lora takes a PATH and a SCALE, not '{' '.join(words)}'") from error
    if path.endswith(".safetensors"):
        existing(path, "--lora")
    return Lora(File.of(path), scale)


def read_credentials(arguments: argparse.Namespace) -> Credentials | None:
    """Of the options for signing. Raises `UsageError`, and `ValueError` for files that can't sign."""
    certificate, key = arguments.c2pa_certificate, arguments.c2pa_key
    if (certificate is None) != (key is None):
        raise UsageError("--c2pa-certificate and --c2pa-key go together")
    if certificate is None:
        return None
    return Credentials(existing(certificate, "--c2pa-certificate"), existing(key, "--c2pa-key"))


def _stepwise(words: Sequence[str], steps: int, names: Sequence[str]) -> tuple[Path, int]:
    """Of the option's FOLDER and N. Raises `UsageError`.

    Args:
        steps: of each edit.
        names: of the results, which previews begin with.
    """
    folder, *numbers = words
    try:
        (every,) = map(whole(1), numbers or ["1"])
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UsageError(f"--stepwise takes a FOLDER and a number of steps, not '{' '.join(words)}'") from error
    if max(every, 2) >= steps:
        raise UsageError(
            f"--stepwise shows steps from the second one on and before the last: of {steps} there are none"
        )
    if len(set(names)) < len(names):
        raise UsageError("--stepwise takes results that differ in more than their folders: it has one for all")
    try:
        writable(str(Path(folder) / "step.png"))
    except ValueError as error:
        raise UsageError(f"--stepwise {error}".rstrip(".")) from error
    return Path(folder), every


def _edge(text: str) -> Edge:
    """A type of argparse's."""
    if text == "auto":
        return text
    try:
        edge = float(text[:-1]) if text.endswith("x") else whole(16)(text)
    except (ValueError, argparse.ArgumentTypeError):
        edge = 0
    if not 0 < edge < math.inf:
        raise argparse.ArgumentTypeError(f"pixels from 16 on, auto, or times the picture's such as 2x, not '{text}'")
    return edge
