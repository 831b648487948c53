"""The demo as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw

from tt_flux_kontext.cli import main
from tt_flux_kontext.metadata import EDITED, GENERATED, with_parameters

ROOT = Path(__file__).parents[2]


def demo(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "demo", "--device", "emulated", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def parameters_of(path: Path) -> str:
    picture = Image.open(path)
    if picture.format == "PNG":
        return picture.text["parameters"]
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")


def test_edits_a_picture(tmp_path):
    """A phone's: lying on its side, with a tag that says so. One result for each seed, and what it was made with."""
    source, out = tmp_path / "in.jpg", tmp_path / "results" / "edited.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (200, 300), "orange").save(source, exif=exif)
    result = demo("--image", str(source), "--out", str(out), "--steps", "2", "--seed", "3", "5", "3")
    assert result.returncode == 0, result.stdout
    assert "PCC with diffusers" in result.stdout and "vae decoder" in result.stdout
    assert "Warning" not in result.stdout + result.stderr
    names = ["edited_3.png", "edited_5.png", "edited_before_after.png"]
    assert sorted(path.name for path in out.parent.iterdir()) == names
    pictures = {}
    for seed in (3, 5):
        path = out.with_name(f"edited_{seed}.png")
        pictures[seed] = np.asarray(Image.open(path))
        assert pictures[seed].shape == (96, 144, 3)
        assert f"{path} (144 x 96, 2 steps, seed {seed}, " in result.stdout
        prompt, fields = parameters_of(path).split("\n")
        assert (
            prompt == "make the circle red"
            and f"Steps: 2, Sampler: Euler, Distilled CFG Scale: 2.5, Seed: {seed}, " in fields
        )
        assert (
            "Size: 144x96, Model: demo/tiny_kontext, Precision: bf16, Device: emulated, Software: tt_flux_kontext"
            in fields
        )
    assert not np.array_equal(pictures[3], pictures[5])
    again = tmp_path / "again.png"
    assert main(["edit", "--config-from", str(path), "--out", str(again)]) == 0
    assert np.array_equal(np.asarray(Image.open(again)), pictures[5])
    assert "demo/tiny_kontext in bf16, on the emulated device (WORMHOLE_B0, 1 x 1)" in result.stdout


@pytest.mark.slow
def test_a_smaller_result_is_of_the_whole_picture(tmp_path):
    source, out = tmp_path / "in.png", tmp_path / "edited.webp"
    picture = Image.new("RGB", (256, 256), (230, 210, 60))
    ImageDraw.Draw(picture).ellipse((98, 98, 178, 178), fill=(40, 80, 220))
    picture.save(source)
    size = ("--width", "128", "--height", "128")
    result = demo("--image", str(source), "--out", str(out), *size, "--steps", "8")
    assert result.returncode == 0, result.stdout
    pixels = np.asarray(Image.open(out)).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 150) & (pixels[..., 1] < 110) & (pixels[..., 2] < 110))
    assert abs(rows.mean() - 69) < 3 and abs(columns.mean() - 69) < 3 and len(rows) > 500
    assert "Seed: 0, Size: 128x128" in parameters_of(out)


def test_a_mask(tmp_path):
    """Of two circles one is edited, and the other stays as it is."""
    source, mask, out = (tmp_path / name for name in ("in.png", "mask.png", "edited.png"))
    picture = Image.new("RGB", (128, 128), (240, 240, 238))
    for left in (12, 72):
        ImageDraw.Draw(picture).ellipse((left, 42, left + 44, 86), fill=(40, 80, 220))
    picture.save(source)
    white = Image.new("RGB", (256, 256))
    white.paste("white", (0, 0, 128, 256))
    white.save(mask)
    result = demo("--image", str(source), "--mask", str(mask), "--out", str(out), "--steps", "8")
    assert result.returncode == 0, result.stdout
    assert "PCC with diffusers" in result.stdout and "Mask: yes" in parameters_of(out)
    before, after = np.asarray(picture).astype(int), np.asarray(Image.open(out)).astype(int)
    assert np.array_equal(before[:, 64:], after[:, 64:])
    red = (after[..., 0] > 150) & (after[..., 1:] < 110).all(axis=2)
    assert red[60:70, 30:40].all()


@pytest.mark.slow
def test_references(tmp_path):
    """More than diffusers takes."""
    out, circle = tmp_path / "edited.png", str(ROOT / "demo" / "pictures" / "circle.png")
    result = demo("--reference", circle, circle, "--reference", circle, "--out", str(out), "--steps", "2")
    assert result.returncode == 0, result.stdout
    assert "No comparison with diffusers, which has one reference." in result.stdout
    assert "References: 3" in parameters_of(out)


@pytest.mark.slow
def test_on_several_chips(tmp_path):
    out = tmp_path / "edited.png"
    result = demo("--device", "emulated:t3k", "--split", "2,4", "--out", str(out), "--steps", "2")
    assert result.returncode == 0, result.stdout
    assert "on the emulated:t3k device (WORMHOLE_B0, 2 x 4)" in result.stdout
    assert parameters_of(out).endswith("Device: emulated:t3k, Software: tt_flux_kontext, Split: 2x4")


@pytest.mark.slow
def test_a_flat_picture_is_no_failure(tmp_path):
    source, out = tmp_path / "in.png", tmp_path / "edited.png"
    Image.new("RGB", (128, 128), (240, 240, 238)).save(source)
    result = demo(
        "--image", str(source), "--out", str(out), "--prompt", "change the background to white", "--steps", "4"
    )
    assert result.returncode == 0, result.stdout
    assert np.asarray(Image.open(out)).std() < 8
    assert "RMSE from diffusers" in result.stdout and "PCC" not in result.stdout


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_parameters_of_any_letters(tmp_path, suffix):
    text, path = "mach den Kreis größer, 赤く ☃\nSteps: 2", tmp_path / f"a{suffix}"
    Image.new("RGB", (32, 32)).save(path, **with_parameters(suffix, text))
    assert parameters_of(path) == text


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("source", [EDITED, GENERATED])
def test_disclosure(tmp_path, suffix, source):
    """As Pillow and an XML parser read it, in a file that is still a picture."""
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (32, 32)).save(path, **with_parameters(suffix, "a", source))
    picture = Image.open(path)
    picture.load()
    xmp = picture.info["XML:com.adobe.xmp"] if suffix == ".png" else picture.info["xmp"]
    (description,) = ElementTree.fromstring(xmp).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    field = description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert field == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
WRONG = [
    (["--image", "no.png"], "--image no.png: there is no such file"),
    (["--image", "README.md"], "README.md: it can't be read as a picture"),
    (["--image", "HEIC"], "pip install pillow-heif"),
    (["--mask", "no.png"], "--mask no.png: there is no such file"),
    (["--mask", "README.md"], "README.md: it can't be read as a picture"),
    (["--mask", "BLACK", "--steps", "1"], "--mask leaves nothing to paint anew"),
    (["--reference", "demo/pictures/circle.png", "no.png"], "--reference no.png: there is no such file"),
    (["--device", "gpu"], "Unknown device 'gpu': it is one of silicon, emulated."),
    (["--device", "emulated:tk3"], "Unknown device 'emulated:tk3': it is silicon, emulated, or one of emulated:n150"),
    (["--split", "4x2"], "--split: two numbers of chips, such as 4,2, not '4x2'"),
    (["--split", "4,2"], "A mesh of 1 x 1 chips can't be split by (4, 2) for tokens and features, only by (1, 1)."),
    (["--steps", "0"], "--steps: a whole number of at least 1, not '0'"),
    (["--guidance", "nan"], "--guidance: a number, not 'nan'"),
    (["--seed", "1", "-2"], "--seed: a whole number from 0 to 18446744073709551615, not '-2'"),
    (["--width", "64"], "--width and --height go together."),
    (["--out", "edited.txt"], "the name must end in .png, .jpg, .jpeg or .webp."),
    (["--out", "edited.hdf"], "the name must end in .png, .jpg, .jpeg or .webp."),
    (["--out", "README.md/edited.png"], "README.md/edited.png: no file of that name can be written."),
    (["--weights", "/no/such/folder"], "'/no/such/folder' is neither a folder here nor a repository"),
]
# One process for all: it takes seconds to start.
RUN_ALL = (
    "import json, sys, pytest; [pytest.main(['demo', *a]) for a in json.loads(sys.argv[1]) if not print(end='\f')]"
)


def test_says_what_is_wrong(tmp_path):
    heic = tmp_path / "phone.heic"
    heic.write_bytes(HEIC)
    black = tmp_path / "black.png"
    Image.new("L", (8, 8)).save(black)
    files = {"HEIC": str(heic), "BLACK": str(black)}
    given = [[files.get(word, word) for word in arguments] for arguments, _ in WRONG]
    command = [sys.executable, "-u", "-c", RUN_ALL, json.dumps(given)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    _, *outputs = run.stdout.split("\f")
    assert len(outputs) == len(WRONG) and "Traceback" not in run.stdout
    for (_, message), output in zip(WRONG, outputs):
        assert message in output and "passed" not in output
