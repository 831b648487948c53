"""Results made again: their parameters as options of the command line."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from tt_flux_kontext.cli.files import existing
from tt_flux_kontext.cli.usage import UsageError
from tt_flux_kontext.metadata import read_parameters
from tt_flux_kontext.parameters import File, Parameters


def recorded_options(source: str, given: Mapping, edits: bool, command: argparse.ArgumentParser) -> dict:
    """Options that a result was made with, but for what others in `given` take the place of.

    Args:
        source: the result, or the JSON beside it.
        edits: whether pictures are to be edited.
        command: a parser of the command that is at work.

    Raises `UsageError` where it can't be read, or names files that have changed since.
    """
    try:
        recorded = read_parameters(existing(source, "--config-from"))
    except ValueError as error:
        raise UsageError(f"--config-from {error}".rstrip(".")) from error
    if edits != bool(recorded.image):
        right, wrong = ("edit", "generate") if recorded.image else ("generate", "edit")
        raise UsageError(f"--config-from {source}: that was made by `{right}`", {wrong: right})
    values = {name: value for name, value in vars(command.parse_args(_words_of(recorded))).items() if value is not None}
    for name, other in (("prompt", "prompt_file"), ("seed", "auto_seeds")):
        if other in given:
            del values[name]
    files = {
        "pictures": [recorded.image],
        "mask": recorded.masks,
        "reference": recorded.references,
        "lora": [lora.file for lora in recorded.loras],
    }
    for name, those in files.items():
        for file in those:
            if file and name not in given and File.of(file.path) != file:
                gone = "has changed since" if Path(file.path).exists() else "is no more"
                raise UsageError(f"--config-from {source}: {file.path} {gone}; name it to use it as it is")
    return values


def _words_of(parameters: Parameters) -> list[str]:
    """The words of a command line that asks for these parameters."""
    named = {
        "prompt": parameters.prompt,
        "negative-prompt": parameters.negative_prompt,
        "true-cfg-scale": parameters.true_cfg_scale,
        "strength": parameters.strength if parameters.masks else None,
        "reference-method": parameters.reference_method,
        "width": parameters.width or "auto",
        "height": parameters.height or "auto",
        "steps": parameters.steps,
        "guidance": parameters.guidance,
        "seed": parameters.seed,
        "max-sequence-length": parameters.max_sequence_length,
        "weights": parameters.weights,
        "config": parameters.config,
        "precision": parameters.precision,
        "device": parameters.device,
        "split": parameters.split and ",".join(map(str, parameters.split)),
    }
    words = [f"--{name}={value}" for name, value in named.items() if value is not None]
    for name, files in (("mask", parameters.masks), ("reference", parameters.references)):
        words += [f"--{name}={file.path}" for file in files]
    for lora in parameters.loras:
        words += ["--lora", lora.file.path, str(lora.scale)]
    return [*words, "--", parameters.image.path] if parameters.image else words
