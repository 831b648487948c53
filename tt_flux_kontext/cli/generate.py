"""tt-flux-kontext generate: pictures from text."""

import argparse

from tt_flux_kontext.cli.making import make
from tt_flux_kontext.cli.options import add_making_arguments, options_of
from tt_flux_kontext.cli.usage import Parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_making_arguments(parser, "out/generated.png")


def run(arguments: argparse.Namespace) -> int:
    again = Parser()
    add_arguments(again)
    return make(options_of(arguments, again))
