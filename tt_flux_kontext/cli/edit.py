"""tt-flux-kontext edit: pictures, by an instruction."""

import argparse

from tt_flux_kontext.cli.making import make
from tt_flux_kontext.cli.options import add_edit_arguments, add_making_arguments, options_of
from tt_flux_kontext.cli.usage import Parser

EXAMPLES = """examples:
  tt-flux-kontext edit photo.jpg --prompt "make it winter"
  tt-flux-kontext edit holidays --prompt "make it winter" --out winter    a folder; a second time, what is missing
  tt-flux-kontext edit photo.jpg --prompt-file p.txt --seed 1 2 3 --lora style.safetensors 0.8
  tt-flux-kontext edit --config-from out/photo_edited.png --seed 4 --out other.png    the same but for the seed"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_edit_arguments(parser)
    add_making_arguments(parser, "out/{name}_edited.png")
    parser.epilog = f"{EXAMPLES}\n\n{parser.epilog}"


def run(arguments: argparse.Namespace) -> int:
    again = Parser()
    add_arguments(again)
    return make(options_of(arguments, again))
