"""tt-flux-kontext info: what a picture was made with."""

import argparse

from tt_flux_kontext.cli.files import existing
from tt_flux_kontext.cli.usage import DONE
from tt_flux_kontext.metadata import read_parameters
from tt_flux_kontext.parameters import Parameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", metavar="PICTURE", help="a result, or the JSON beside it")
    parser.add_argument("--json", action="store_true", help="as `edit --config-from` takes it")


def run(arguments: argparse.Namespace) -> int:
    parameters = read_parameters(existing(arguments.picture))
    print(parameters.as_json() if arguments.json else _for_people(parameters))
    return DONE


def _for_people(made: Parameters) -> str:
    size = f"{made.width} x {made.height}" if made.width else None
    lines = {
        "prompt": made.prompt,
        "negative prompt": made.negative_prompt,
        "true CFG scale": made.true_cfg_scale if made.negative_prompt is not None else None,
        "picture": made.image and made.image.path,
        "masks": ", ".join(each.path for each in made.masks) or None,
        "strength": made.strength if made.masks else None,
        "references": ", ".join(each.path for each in made.references) or None,
        "reference method": made.reference_method if made.references else None,
        "size": size or ("the picture's" if made.image else None),
        "steps": made.steps,
        "guidance": made.guidance,
        "seed": made.seed,
        "weights": made.weights,
        "config": made.config,
        "adapters": ", ".join(f"{lora.file.path} {lora.scale:g}" for lora in made.loras) or None,
        "precision": made.precision,
        "device": made.device,
        "split": made.split and ", ".join(map(str, made.split)),
        "made by": made.software,
    }
    return "\n".join(f"{name:<18}{value}" for name, value in lines.items() if value is not None)
