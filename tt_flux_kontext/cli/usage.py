"""Command lines that are wrong, and what was probably meant; values of options."""

import argparse
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""
_OPTIONS = {  # by the arguments of the pipeline's calls
    "guidance_scale": "--guidance",
    "height": "--height",
    "mask_image": "--mask",
    "max_sequence_length": "--max-sequence-length",
    "negative_prompt": "--negative-prompt",
    "num_inference_steps": "--steps",
    "reference_images": "--reference",
    "strength": "--strength",
    "true_cfg_scale": "--true-cfg-scale",
    "width": "--width",
}


class UsageError(Exception):
    """A command line that can't be. `corrections`: words, and what was probably meant by them."""

    def __init__(self, message: str, corrections: Mapping[str, str | None] | None = None):
        super().__init__(message)
        self.corrections = {wrong: right for wrong, right in (corrections or {}).items() if right}


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` where argparse would print and exit; takes options by their whole names only."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise UsageError(message)


def corrected(parser: argparse.ArgumentParser, words: Sequence[str], error: UsageError) -> str | None:
    """The command line as it was probably meant, quoted for a shell; None where nobody can tell."""
    corrections = error.corrections or _typos(parser, words)
    right = [_corrected(word, corrections) for word in words]
    return shlex.join(right) if right != list(words) else None


def _corrected(word: str, corrections: Mapping[str, str]) -> str:
    option, equals, value = word.partition("=")
    return corrections.get(word) or option + equals + corrections.get(value, value)


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that looks like `word`."""
    return next(iter(get_close_matches(word, list(words), 1)), None)


def _typos(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, str]:
    """Words that look like an option, or like a choice in the place where they stand."""
    options = {name: action for action in parser._actions for name in action.option_strings}
    typos, action = {}, next((each for each in parser._actions if each.choices and not each.option_strings), None)
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--"):
            action = options.get(name)
            if not action and (right := nearest(name, options)):
                typos[word] = word.replace(name, right, 1)
                action = options[right]
        elif action and action.choices and word not in action.choices and (right := nearest(word, action.choices)):
            typos[word] = right
    return typos


def in_options(message: str) -> str:
    """What the pipeline says of its arguments, such as `mask_image`, with the options that they come from."""
    return re.sub(r"`(\w+)`", lambda name: _OPTIONS.get(name[1], name[0]), message)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type of argparse's: whole numbers from `least` to `most`."""
    upper = f"from {least} to {most}" if most else f"of at least {least}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least or (most and number > most):
            raise argparse.ArgumentTypeError(f"a whole number {upper}, not '{text}'")
        return number

    return parse


def finite(least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """A type of argparse's: numbers from `least` to `most`."""
    bounds = f" from {least:g} to {most:g}" if math.isfinite(most) else ""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"a number{bounds}, not '{text}'")
        return number

    return parse


def split(text: str) -> tuple[int, int]:
    """A type of argparse's: chips for tokens and for features."""
    try:
        tokens, features = (int(part) for part in text.split(","))
    except ValueError:
        tokens = features = 0
    if tokens < 1 or features < 1:
        raise argparse.ArgumentTypeError(f"two numbers of chips, such as 4,2, not '{text}'")
    return tokens, features
