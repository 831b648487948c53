"""Options of the demo, checked before anything is loaded, and its report at the end."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from reference.pipeline import TINY_KONTEXT
from tt_flux_kontext.cli.files import existing, read_mask, read_picture, writable
from tt_flux_kontext.cli.options import read_lora
from tt_flux_kontext.cli.usage import UsageError, finite, split, whole
from tt_flux_kontext.device import choose_device
from tt_flux_kontext.metadata import software
from tt_flux_kontext.parameters import File, Parameters
from tt_flux_kontext.pictures import to_rgb
from tt_flux_kontext.resolution import output_size

PICTURES = Path(__file__).parent / "pictures"
TINY = os.path.relpath(TINY_KONTEXT)
TINY_AREA = 128 * 128  # pixels
TINY_TEXT = 64  # tokens
MULTIPLE = 16


@dataclass(frozen=True)
class Options:
    """What the command line asks for. `parameters` are of all results, but for the seed."""

    parameters: Parameters
    image: Image.Image
    mask: Image.Image | None  # white where the picture is painted anew
    references: tuple[Image.Image, ...]
    seeds: tuple[int, ...]
    out: Path

    @property
    def tiny(self) -> bool:
        return self.parameters.weights == TINY

    def out_of(self, seed: int) -> Path:
        """Where a seed's result goes: each of several has its seed in the name."""
        return self.out if len(self.seeds) == 1 else self.out.with_stem(f"{self.out.stem}_{seed}")


def pytest_addoption(parser):
    group = parser.getgroup("FLUX.1 Kontext demo")
    group.addoption("--prompt", default="make the circle red", help="what to change (default: %(default)s)")
    group.addoption("--image", default=str(PICTURES / "circle.png"), help="picture to edit (default: a bundled one)")
    group.addoption(
        "--mask",
        metavar="FILE",
        action="append",
        help="picture that is white where to edit; all else stays as it is; repeatable",
    )
    group.addoption(
        "--reference", metavar="FILE", nargs="+", action="extend", help="more pictures for the model to look at"
    )
    group.addoption("--out", default="out/edited.png", help="where the result goes (default: %(default)s)")
    group.addoption("--weights", default=TINY, help="checkpoint folder or hub id (default: %(default)s)")
    group.addoption("--lora", nargs="+", action="append", metavar=("PATH", "SCALE"), help="an adapter; repeatable")
    group.addoption("--device", help="silicon, emulated, emulated:t3k, ... (default: a card where there is one)")
    group.addoption(
        "--split", type=split, help="chips for tokens and for features, as 4,2 (default: the longer axis for tokens)"
    )
    group.addoption("--steps", type=whole(1), default=28, help="denoising steps (default: %(default)s)")
    group.addoption("--guidance", type=finite(), default=2.5, help="guidance scale (default: %(default)s)")
    group.addoption(
        "--seed",
        type=whole(0, 2**64 - 1),
        nargs="+",
        action="extend",
        help="of the starting noise; a result for each (default: 0)",
    )
    group.addoption("--width", type=whole(16), help="of the result, with --height (default: the picture's bucket)")
    group.addoption("--height", type=whole(16), help="of the result, with --width")


def pytest_configure(config):
    try:
        device, _ = choose_device(config.option.device)
        config.stash[_OPTIONS] = _options(config.option, config.option.device or device)
    except (UsageError, ValueError, RuntimeError) as error:
        raise pytest.UsageError(str(error)) from error


def _options(given, device: str) -> Options:
    if not given.prompt.strip():
        raise ValueError("--prompt is empty: say what to change.")
    if (given.width is None) != (given.height is None):
        raise ValueError("--width and --height go together.")
    image = read_picture(existing(given.image, "--image"))
    mask = read_mask([existing(name, "--mask") for name in given.mask or ()])
    references = [read_picture(existing(name, "--reference")) for name in given.reference or ()]
    width, height = given.width, given.height
    if width:  # in whole tokens
        height, width = output_size(height, width, height * width, MULTIPLE)
    elif given.weights == TINY:  # of its own small size
        height, width = output_size(image.height, image.width, TINY_AREA, MULTIPLE)
    parameters = Parameters(
        prompt=given.prompt,
        image=File.of(given.image),
        masks=tuple(map(File.of, given.mask or ())),
        references=tuple(map(File.of, given.reference or ())),
        width=width,
        height=height,
        steps=given.steps,
        guidance=given.guidance,
        loras=tuple(map(read_lora, given.lora or ())),
        max_sequence_length=TINY_TEXT if given.weights == TINY else 512,
        weights=given.weights,
        device=device,
        split=given.split,
        software=software(),
    )
    return Options(
        parameters=parameters,
        image=to_rgb(image),
        mask=mask,
        references=tuple(map(to_rgb, references)),
        seeds=tuple(dict.fromkeys(given.seed or [0])),
        out=writable(given.out),
    )


@pytest.fixture
def options(request) -> Options:
    return request.config.stash[_OPTIONS]


@pytest.fixture
def device_params(request) -> dict:
    return {"name": request.config.option.device}


@pytest.fixture
def report(request) -> list[str]:
    """Lines to print when all is done."""
    return request.config.stash.setdefault(_REPORT, [])


_OPTIONS = pytest.StashKey[Options]()
_REPORT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(_REPORT, [])
    if lines:
        terminalreporter.section("FLUX.1 Kontext demo")
        for line in lines:
            terminalreporter.line(line)
