"""The results that a command line asks for, one by one, and what became of them."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from loguru import logger
from tqdm import tqdm

from tt_flux_kontext.cli.files import read_picture, result_name
from tt_flux_kontext.cli.loading import MULTIPLE
from tt_flux_kontext.cli.options import Edge, Options
from tt_flux_kontext.cli.usage import DONE, FAILED, in_options
from tt_flux_kontext.credentials import Credentials
from tt_flux_kontext.metadata import check_room, read_parameters
from tt_flux_kontext.parameters import File, Parameters


@dataclass(frozen=True)
class Job:
    """A result to make.

    Attributes:
        picture: to edit; None for one from text.
        metadata: whether its parameters are to be beside it too.
    """

    picture: Path | None
    out: Path
    parameters: Parameters
    metadata: bool = False

    def is_there(self, credentials: Credentials | None) -> bool:
        """Whether all of it has been made before, and signed if it is to be.

        Raises `ValueError` where something else has a name of its.
        """
        files = [self.out, self.out.with_suffix(".json")] if self.metadata else [self.out]
        there = all([self._is_in(file) for file in files])  # a list: each of them is looked at
        if credentials and self.out.exists() and not credentials.has_signed(self.out):
            raise ValueError(f"{self.out} is there, not signed: --overwrite, or another --out")
        return there

    def _is_in(self, file: Path) -> bool:
        if not file.exists():
            return False
        try:
            made = read_parameters(file)
        except ValueError as error:
            raise ValueError(f"{file} is there, and not by this program: --overwrite, or another --out") from error
        if self.parameters.precision is None:
            made = replace(made, precision=None)
        if made != self.parameters:
            raise ValueError(f"{file} is there, made with other parameters: --overwrite, or another --out")
        return True


@dataclass
class Report:
    """What became of `total` results that were asked for."""

    total: int
    made: int = 0
    there: int = 0
    failed: list[str] = field(default_factory=list)

    def fail(self, what: Path | str, why: Exception) -> None:
        sentence = in_options(str(why))
        self.failed.append(sentence if sentence.startswith(str(what)) else f"{what}: {sentence}")

    def close(self, timings: Mapping[str, float]) -> int:
        """Says it, with the seconds of each phase, and returns the exit code."""
        lines = [f"{name:<20}{seconds:>8.2f} s" for name, seconds in timings.items()]
        left = self.total - self.made - self.there - len(self.failed)
        counts = {"made": self.made, "there already": self.there, "failed": len(self.failed), "left": left}
        lines.append(", ".join(f"{count} {what}" for what, count in counts.items() if count))
        for line in (*lines, *self.failed):
            tqdm.write(line, file=sys.stderr)
        return FAILED if self.failed else DONE


def jobs_of(options: Options, report: Report) -> Iterator[Job]:
    """Those that are still to be done. The others go into the report: those that were, and those that can't be."""
    for picture in options.pictures:
        for seed in options.seeds:
            try:
                job = _job(options, picture, seed)
                if not options.overwrite and job.is_there(options.credentials):
                    if options.stepwise and not report.there:
                        logger.warning("--stepwise writes nothing of results that are there; with --overwrite it does.")
                    report.there += 1
                    continue
            except (OSError, ValueError) as error:
                report.fail(picture or options.out, error)
                continue
            yield job


def _job(options: Options, picture: Path | None, seed: int) -> Job:
    prompt = options.parameters.prompt
    if options.prompt_file:
        prompt = _prompt_in(options.prompt_file)
    width, height = _pixels(options.size, picture)
    image = File.of(picture) if picture else None
    parameters = replace(options.parameters, prompt=prompt, image=image, seed=seed, width=width, height=height)
    out = result_name(options.out, picture, seed)
    check_room(out, parameters)
    return Job(picture, out, parameters, options.metadata)


def _prompt_in(file: Path) -> str:
    """Of a text file in UTF-8, with or without a byte order mark."""
    try:
        prompt = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8") from error
    if not prompt:
        raise ValueError(f"{file} is empty")
    return prompt


def _pixels(size: tuple[Edge, Edge], picture: Path | None) -> tuple[int, int] | tuple[None, None]:
    """(width, height) of a result; None where the pipeline chooses."""
    if size == ("auto", "auto"):
        return None, None
    known = picture is None or all(isinstance(edge, int) for edge in size)
    own = (1, 1) if known else read_picture(picture).size
    exact = [edge * pixels if isinstance(edge, float) else edge for edge, pixels in zip(size, own)]
    width, height = exact
    if width == "auto":
        width = height * own[0] / own[1]
    if height == "auto":
        height = width * own[1] / own[0]
    return _whole_tokens(width), _whole_tokens(height)


def _whole_tokens(edge: float) -> int:
    return max(1, round(edge) // MULTIPLE) * MULTIPLE  # 1.15 times 1600 is a little under 1840
