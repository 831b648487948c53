"""`edit` and `generate`: results are those of the pipeline's calls, made once, made again, and never lost."""

import json
import re
import signal
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from c2pa import Reader
from loguru import logger
from PIL import Image
from safetensors.torch import save_file

from tests.certificates import write_chain
from tests.unit.lora_files import pairs, peft
from tt_flux_kontext import FluxKontextPipeline, open_device
from tt_flux_kontext.cli import jobs, main
from tt_flux_kontext.cli.files import read_picture, result_name
from tt_flux_kontext.cli.interruption import Interruption
from tt_flux_kontext.cli.previews import Previews
from tt_flux_kontext.metadata import read_parameters, save_result

SIZE = {"width": 32, "height": 32, "max_area": 32 * 32, "_auto_resize": False}
PHASES = ["clip", "t5", "vae encoder", "modulation", "transformer weights", "step", "transformer weights", "step"]
PHASES += ["vae decoder"]
SHORT = {"num_inference_steps": 2, "max_sequence_length": 32, "guidance_scale": 2.5}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current one, with pictures of other sizes than results have."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number, size in enumerate([(64, 64), (48, 80), (96, 64)]):
        Image.radial_gradient("L").resize(size).rotate(90 * number).convert("RGB").save(f"in/{number}.png")
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 8, 4))
    mask.save("mask.png")
    return tmp_path


@pytest.fixture
def run(folder, tiny_checkpoint, monkeypatch):
    """Runs a command line on the tiny weights, at a small size; the exit code."""
    short = ["--steps", "2", "--max-sequence-length", "32", "--width", "32", "--height", "32", "--device", "emulated"]
    return lambda *words: main([*words, "--weights", str(tiny_checkpoint), *short])


@pytest.fixture
def pipe(tiny_checkpoint):
    with open_device("emulated") as device:
        pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=device)
        pipe.set_progress_bar_config(disable=True)
        yield pipe


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(path: str, picture: Image.Image) -> bool:
    return np.array_equal(np.asarray(Image.open(path)), np.asarray(picture))


def test_results_are_the_pipelines(run, pipe, capsys):
    """More pictures and seeds than are made together."""
    assert run("edit", "in/0.png", "in/1.png", "in/2.png", "--prompt", "a b", "--seed", "3", "5", "--out", "o.png") == 0
    said = capsys.readouterr()
    names = [f"o_{number}_{seed}.png" for number in range(3) for seed in (3, 5)]
    assert said.out.split() == names and "vae decoder" in said.err and "6 made\n" in said.err
    for number in (0, 2):
        for seed in (3, 5):
            image = Image.open(f"in/{number}.png")
            result = pipe(image=image, prompt="a b", generator=seeded(seed), **SIZE, **SHORT).images[0]
            assert same(f"o_{number}_{seed}.png", result)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_phase_at_work_is_shown(run, capsys, monkeypatch, terminal):
    """On a terminal, in the order of work; elsewhere there is nothing but what became of it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert run("edit", "in/0.png", "in/1.png", "--prompt", "a", "--out", "o.png") == 0
    said = capsys.readouterr()
    assert said.out.split() == ["o_0.png", "o_1.png"]
    shown = re.findall(r"([a-z0-9 ]+): +(\d+)%", said.err)
    names = [name for name, _ in groupby(name for name, _ in shown)]
    assert names == (PHASES if terminal else [])
    if terminal:
        assert ("vae decoder", "100") in shown
        assert said.err.index("vae decoder: 100%") < said.err.index("2 made")
    else:
        assert "%" not in said.err and said.err.startswith("clip ")


def test_all_options_reach_the_pipeline(run, pipe, folder, capsys):
    save_file(peft(pairs({"transformer_blocks.0.attn.to_q": (128, 128)}), "transformer."), "style.safetensors")
    more = Image.new("1", (16, 16))
    more.paste(1, (0, 0, 4, 16))
    more.save("more.png")
    united = Image.open("mask.png")
    united.paste(255, (0, 0, 2, 8))
    words = ["--mask", "mask.png", "--mask", "more.png", "--strength", "0.5", "--reference", "in/1.png", "in/2.png"]
    words += ["--reference-method", "index", "--negative-prompt", "c", "--true-cfg-scale", "2", "--lora"]
    words += ["style.safetensors", "0.5", "--guidance", "3"]
    assert run("edit", "in/0.png", "--prompt", "a", *words, "--out", "o.png") == 0
    pipe.load_lora_weights("style.safetensors", adapter_name="style")
    pipe.set_adapters("style", 0.5)
    asked = {
        "image": Image.open("in/0.png"),
        "mask_image": united,
        "strength": 0.5,
        # of as many pixels as the result, in whole tokens
        "reference_images": [
            Image.open(f"in/{number}.png").resize(size, Image.Resampling.LANCZOS)
            for number, size in ((1, (16, 32)), (2, (32, 16)))
        ],
        "reference_method": "index",
        "negative_prompt": "c",
        "true_cfg_scale": 2.0,
        "guidance_scale": 3.0,
    }
    result = pipe(prompt="a", generator=seeded(0), **(SIZE | SHORT | asked)).images[0]
    assert same("o.png", result)
    assert main(["info", "o.png"]) == 0
    said = capsys.readouterr().out
    assert "mask.png, more.png" in said and "in/1.png, in/2.png" in said and "style.safetensors 0.5" in said
    assert main(["edit", "--config-from", "o.png", "--out", "again.png"]) == 0
    assert same("again.png", result)


def test_pictures_from_text(run, pipe):
    assert run("generate", "--prompt", "a", "--out", "new/folder") == 0
    result = pipe(prompt="a", generator=seeded(0), **SIZE, **SHORT).images[0]
    assert same("new/folder/generated.png", result)
    assert main(["generate", "--config-from", "new/folder/generated.png", "--out", "again.png"]) == 0
    assert same("again.png", result)
    assert main(["edit", "--config-from", "again.png"]) == 2


def test_results_are_made_again_to_the_bit(run, pipe):
    assert run("edit", "in/0.png", "--prompt", "a", "--seed", "7", "--metadata", "--out", "o.jpg") == 0
    assert run("edit", "in/0.png", "--prompt", "b", "--seed", "8", "--out", "other.jpg") == 0
    assert main(["edit", "--config-from", "o.jpg", "--out", "from_picture.jpg"]) == 0
    assert main(["edit", "--config-from", "o.json", "--out", "from_json.jpg"]) == 0
    bytes_of = {name: Path(f"{name}.jpg").read_bytes() for name in ("o", "from_picture", "from_json")}
    assert len(set(bytes_of.values())) == 1
    explicit = ["--seed", "8", "--prompt", "b", "--out", "explicit.jpg"]
    assert main(["edit", "--config-from", "o.json", *explicit]) == 0
    assert Path("explicit.jpg").read_bytes() == Path("other.jpg").read_bytes()


def test_signed_results(run, folder, capsys):
    """Are made again without a signature, and a result that isn't signed isn't taken for one that is."""
    files = write_chain(folder)
    signing = ["--c2pa-certificate", str(files.chain), "--c2pa-key", str(files.key)]
    command = ["edit", "in/0.png", "--prompt", "a", "--reference", "in/1.png", "--out", "o.jpg"]
    assert run(*command) == 0
    plain = Path("o.jpg").read_bytes()
    capsys.readouterr()
    assert run(*command, *signing) == 1
    assert "o.jpg is there, not signed: --overwrite, or another --out" in capsys.readouterr().err
    assert run(*command, *signing, "--overwrite") == 0
    with Reader("o.jpg") as read:
        assert read.get_validation_state() == "Valid"
        ingredients = read.get_active_manifest()["ingredients"]
    assert [(each["title"], each["relationship"]) for each in ingredients] == [
        ("0.png", "parentOf"),
        ("1.png", "inputTo"),
    ]
    assert run(*command, *signing) == 0 and "1 there already" in capsys.readouterr().err
    assert main(["edit", "--config-from", "o.jpg", "--out", "again.jpg"]) == 0
    assert Path("again.jpg").read_bytes() == plain


def test_names_like_options(run):
    for name, source in (("-0.png", "in/0.png"), ("-1.png", "in/1.png"), ("--mask", "mask.png")):
        Path(name).write_bytes(Path(source).read_bytes())
    words = ["--mask=--mask", "--reference=-1.png", "--reference=in/2.png", "--prompt", "a", "--out", "o.png"]
    assert run("edit", "./-0.png", *words) == 0
    assert main(["edit", "--config-from", "o.png", "--out", "again.png"]) == 0
    assert same("again.png", Image.open("o.png")) and read_parameters("again.png") == read_parameters("o.png")


@pytest.mark.parametrize("split", [[4], [4, 2, 1]])
def test_a_split_that_is_none(folder, capsys, split):
    made = {"prompt": "a", "weights": "b", "device": "emulated", "split": split}
    Path("made.json").write_text(json.dumps(made))
    assert main(["info", "made.json"]) == 0
    assert main(["generate", "--config-from", "made.json"]) == 2
    assert "--split: two numbers of chips" in capsys.readouterr().err


def test_pictures_that_changed_are_not_made_again(run, capsys):
    assert run("edit", "in/0.png", "--prompt", "a", "--out", "o.png") == 0
    Path("in/0.png").write_bytes(Path("in/1.png").read_bytes())
    assert main(["edit", "--config-from", "o.png", "--out", "again.png"]) == 2
    assert "in/0.png has changed since" in capsys.readouterr().err
    Path("in/0.png").unlink()
    assert main(["edit", "--config-from", "o.png", "--out", "again.png"]) == 2
    assert "in/0.png is no more" in capsys.readouterr().err


def test_a_folder_goes_on_where_it_stopped(run, capsys):
    """And one picture that can't be read, or results of something else, don't stop the others."""
    Path("in/broken.png").write_bytes(Path("in/0.png").read_bytes()[:60])
    Path("in/notes.txt").write_text("")
    Path("out").mkdir()
    Path("out/2.png").write_bytes(b"mine")
    command = ["edit", "in", "--prompt", "a", "--out", "out"]
    assert run(*command) == 1
    said = capsys.readouterr()
    assert said.out.split() == ["out/0.png", "out/1.png"]
    assert "2 made, 2 failed\n" in said.err and "in/broken.png: it can't be read as a picture" in said.err
    assert "in/2.png: out/2.png is there, and not by this program" in said.err
    Path("out/2.png").unlink()
    Path("in/broken.png").unlink()
    before = Path("out/0.png").stat().st_mtime_ns
    assert run(*command) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["out/2.png"] and "1 made, 2 there already\n" in said.err
    assert run(*command[:3], "b", *command[4:]) == 1
    said = capsys.readouterr()
    assert "3 failed\n" in said.err and "out/0.png is there, made with other parameters" in said.err
    assert Path("out/0.png").stat().st_mtime_ns == before
    assert run(*command[:3], "b", *command[4:], "--overwrite") == 0
    assert read_parameters("out/0.png").prompt == "b"


def test_an_edit_that_fails_is_reported_once(run, capsys):
    """With the names of options, and so are warnings."""
    Image.new("L", (8, 8)).save("black.png")
    assert run("edit", "in/0.png", "--prompt", "a", "--mask", "black.png", "--negative-prompt", "b") == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count(": --mask leaves nothing to paint anew") == 1 and "1 failed\n" in said.err
    assert "The negative prompt has no effect: --true-cfg-scale is 1.0" in said.err


def test_prompt_files_are_read_for_each_result(run, folder, monkeypatch):
    """As it is when the result's turn comes."""
    Path("prompt.txt").write_text("first\n")
    seen = []
    monkeypatch.setattr("tt_flux_kontext.cli.edit.make", lambda options: seen.append(options) or 0)
    assert run("edit", "in/0.png", "--prompt-file", "prompt.txt", "--auto-seeds", "2") == 0
    (options,) = seen
    report = jobs.Report(2)
    asked = jobs.jobs_of(options, report)
    first = next(asked)
    Path("prompt.txt").write_text("second")
    second = next(asked)
    assert (first.parameters.prompt, second.parameters.prompt) == ("first", "second")
    assert first.out != second.out and str(first.parameters.seed) in first.out.name
    Path("prompt.txt").write_bytes("\ufeffthird\r\n\r\nline\r\n".encode())
    (third, _) = jobs.jobs_of(options, report)
    assert third.parameters.prompt == "third\n\nline"
    Path("prompt.txt").write_bytes("fourth".encode("utf-16"))
    assert not list(jobs.jobs_of(options, report)) and "prompt.txt is no text in UTF-8" in report.failed.pop()
    report.failed.clear()
    Path("prompt.txt").write_text(" ")
    assert not list(jobs.jobs_of(options, report)) and "prompt.txt is empty" in report.failed[0]


@pytest.mark.parametrize("letters,fits", [(15_000, True), (32_000, False)])
def test_prompts_that_a_jpeg_has_no_room_for(run, letters, fits, capsys, monkeypatch):
    """Are refused before the edit; what is not can be saved."""
    made = []

    def make(options):
        made.extend(jobs.jobs_of(options, jobs.Report(1)))
        return 0

    monkeypatch.setattr("tt_flux_kontext.cli.edit.make", make)
    run("edit", "in/0.png", "--prompt", "a" * letters, "--out", "o.jpg")
    assert len(made) == fits
    for job in made:
        save_result(Image.new("RGB", (1024, 1024)), job.out, job.parameters)


@pytest.mark.parametrize(
    "words,size",
    [
        ([], (None, None)),
        (["--width", "auto"], (None, None)),
        (["--width", "2x", "--height", "1.5x"], (192, 96)),
        (["--width", "50"], (48, 32)),
        (["--height", "2x"], (192, 128)),
        (["--width", "0.01x"], (16, 16)),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_sizes(folder, monkeypatch, capsys, words, size, suffix):
    """Of a picture of 96 x 64 pixels that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 96)).save(f"lying.{suffix}", exif=exif)
    seen = []
    monkeypatch.setattr("tt_flux_kontext.cli.edit.make", lambda options: seen.append(options) or 0)
    assert main(["edit", f"lying.{suffix}", "--prompt", "a", "--device", "emulated", *words]) == 0
    assert ("--width 50 becomes 48" in capsys.readouterr().err) == ("50" in words)
    (job,) = jobs.jobs_of(seen[0], jobs.Report(1))
    assert (job.parameters.width, job.parameters.height) == size


def test_a_size_is_not_a_token_short(folder):
    """In floats 1.15 times 1600 is a little less than 1840."""
    Image.new("L", (1600, 80)).save("wide.png")
    assert jobs._pixels((1.15, "auto"), Path("wide.png")) == (1840, 80)


def test_of_several_pictures_the_first_is_used(folder):
    pages = [Image.new("L", (16, 16), value) for value in (10, 20, 30)]
    pages[0].save("moving.gif", save_all=True, append_images=pages[1:])
    warned = []
    sink = logger.add(warned.append, level="WARNING")
    assert read_picture("moving.gif").convert("L").getpixel((0, 0)) == 10
    read_picture("in/0.png")
    logger.remove(sink)
    assert len(warned) == 1 and "moving.gif: the first of its 3 pictures is used" in warned[0]


def test_braces_in_the_name_of_a_picture():
    assert result_name("o/{name}_{seed}.png", Path("a{seed}{name}.png"), 3) == Path("o/a{seed}{name}_3.png")


def test_what_is_there_lacks_its_parameters_beside_it(run, capsys):
    """Then it is made with them, but not in the place of what is not the program's."""
    command = ["edit", "in/0.png", "--prompt", "a", "--out", "o.png", "--metadata"]
    Path("o.json").write_text("{}")
    assert run(*command) == 1 and not Path("o.png").exists()
    assert "o.json is there, and not by this program" in capsys.readouterr().err
    Path("o.json").unlink()
    assert run(*command[:-1]) == 0 and not Path("o.json").exists()
    assert run(*command) == 0 and read_parameters("o.json") == read_parameters("o.png")
    capsys.readouterr()
    assert run(*command) == 0 and "1 there already" in capsys.readouterr().err


def test_previews_are_where_the_way_leads(tmp_path):
    """Of latents that go straight to a picture, the picture, whatever noise is left."""
    levels, picture, noise = [1.0, 0.8, 0.5, 0.2, 0.0], torch.rand(1, 4, 64), torch.rand(1, 4, 64)
    decoded = []

    class Decoder:
        def decode(self, latents, height, width):
            decoded.append(latents)
            return [Image.new("RGB", (width, height))]

    previews = Previews(tmp_path, 1)
    for step, (level, after) in enumerate(zip(levels, levels[1:])):
        previews.after_step(step, level, (1 - after) * picture + after * noise)
    previews.save(Decoder(), (32, 48), "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_step_002.png", "a_step_003.png"]
    assert Image.open(tmp_path / "a_step_002.png").size == (32, 48)
    for latents in decoded:
        torch.testing.assert_close(latents, picture)


def test_stepwise(run, pipe, capsys):
    """The step before the last one leads nearly to the result, and nothing changes that."""
    steps = ["--steps", "6", "--stepwise", "steps", "2"]
    words = ["in/0.png", "--prompt", "a", "--width", "32", "--height", "32", "--max-sequence-length", "32"]
    assert run("edit", *words, "--out", "o.png") == 0
    assert main(["edit", "--config-from", "o.png", *steps, "--out", "s.png"]) == 0
    assert sorted(path.name for path in Path("steps").iterdir()) == ["s_step_002.png", "s_step_004.png"]
    result = pipe(
        image=Image.open("in/0.png"),
        prompt="a",
        generator=seeded(0),
        **(SIZE | SHORT | {"num_inference_steps": 6}),
    ).images[0]
    assert same("s.png", result)
    assert main(["edit", "--config-from", "s.png", *steps, "--out", "s.png"]) == 0
    assert "--stepwise writes nothing of results that are there" in capsys.readouterr().err


def interrupt_after(monkeypatch, complete: int) -> None:
    """Ctrl-C as soon as so many edits of a group have all their steps."""
    after_step = Interruption.after_step

    def interrupted(self, *, last: bool) -> None:
        after_step(self, last=last)
        if last and self._complete == complete:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Interruption, "after_step", interrupted)


def test_what_is_complete_is_not_lost(run, capsys, monkeypatch):
    command = ["edit", "in", "--prompt", "a", "--out", "out"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert run(*command) == 130
    said = capsys.readouterr()
    assert said.out.split() == ["out/0.png", "out/1.png"] and "2 made, 1 left\n" in said.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(*command) == 0
    assert capsys.readouterr().out.split() == ["out/2.png"]


COMMAND = "import sys; from tt_flux_kontext.cli import main; sys.exit(main())"


def test_ctrl_c(folder, tiny_checkpoint):
    """In the middle of a folder: what was written is whole, and nothing else is left."""
    for number in range(3, 12):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(f"in/{number}.png")
    words = ["edit", "in", "--prompt", "a", "--out", "out", "--steps", "4", "--width", "32", "--height", "32"]
    words += ["--device", "emulated", "--max-sequence-length", "32", "--weights", str(tiny_checkpoint)]
    command = [sys.executable, "-c", COMMAND, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    written = list(Path("out").iterdir())
    assert 1 <= len(written) < 12 and all(path.suffix == ".png" for path in written)
    assert "Traceback" not in errors and f"{len(written)} made, {12 - len(written)} left" in errors
    for path in written:
        Image.open(path).load()
        assert read_parameters(path).prompt == "a"
