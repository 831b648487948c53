"""The command: help, wrong usage, what pictures say, and the cache."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tt_flux_kontext.cache_folder import STALE, VARIABLE
from tt_flux_kontext.cli import COMMANDS, main
from tt_flux_kontext.cli.options import REFERENCE_METHODS
from tt_flux_kontext.metadata import read_parameters, save_result
from tt_flux_kontext.parameters import File, Lora, Parameters
from tt_flux_kontext.resolution import REFERENCE_METHODS as METHODS

SLOW = {"torch", "diffusers", "transformers", "huggingface_hub", "safetensors", "ttnn", "numba", "scipy", "matplotlib"}
HELP = """
import sys
from tt_flux_kontext.cli import main
for words in sys.argv[1:]:
    try:
        main(words.split())
    except SystemExit as end:
        assert end.code == 0, words
print(*sys.modules, sep="\\n")
"""


def test_help_imports_nothing_slow():
    """What is slow takes more than a second; all commands' helps together import a few hundred modules."""
    helps = ["--help", "--version", *(f"{command} --help" for command in COMMANDS)]
    command = [sys.executable, "-c", HELP, *helps]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "100"})
    for command, (_, summary) in COMMANDS.items():
        assert command in run.stdout and summary in run.stdout
    assert "130 interrupted" in run.stdout
    modules = {line for line in run.stdout.splitlines() if line.replace(".", "").replace("_", "").isalnum()}
    assert not SLOW & modules and "tt_flux_kontext.cli.edit" in modules and len(modules) < 600


def test_choices_are_the_packages():
    assert REFERENCE_METHODS == METHODS


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current one, with a picture, a folder of none and one of two."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo", "b", "a", "a1"):
        Image.new("RGB", (32, 32)).save(f"{name}.jpg")
    Path("p.png").symlink_to("photo.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / name)
    return tmp_path


EDIT = ["edit", "photo.jpg", "--prompt", "make it winter"]
WRONG = [
    ([], "the following arguments are required: COMMAND", None),
    (["edti", "photo.jpg"], "invalid choice: 'edti'", "edit photo.jpg"),
    (["edit", "photo.jpg", "--promt", "a b"], "unrecognized arguments: --promt", "edit photo.jpg --prompt 'a b'"),
    (
        [*EDIT, "--precision", "bf61"],
        "invalid choice: 'bf61'",
        "edit photo.jpg --prompt 'make it winter' --precision bf16",
    ),
    ([*EDIT, "--device", "emulated:tk3"], "invalid choice: 'emulated:tk3'", "emulated:t3k"),
    (["edit", "phto.jpg", "--prompt", "a"], "phto.jpg: there is no such file", "edit photo.jpg --prompt a"),
    ([*EDIT, "--mask=phto.jpg"], "--mask phto.jpg: there is no such file", "--mask=photo.jpg"),
    ([*EDIT, "--reference", "nothing.png"], "--reference nothing.png: there is no such file", None),
    ([*EDIT, "--lora", "style.safetensors"], "--lora style.safetensors: there is no such file", None),
    ([*EDIT, "--lora", "a", "b"], "--lora takes a PATH and a SCALE, not 'a b'", None),
    (["edit", "photo.jpg"], "a --prompt is needed", None),
    (["edit", "photo.jpg", "--prompt", "a", "--prompt-file", "b"], "not allowed with argument", None),
    (["edit", "--prompt", "a"], "there is no picture to edit", None),
    (["edit", "empty", "--prompt", "a"], "empty: there are no pictures in this folder", None),
    ([*EDIT, "--strength", "0.5"], "--strength is of edits with --mask", None),
    ([*EDIT, "--strength", "1.5"], "--strength: a number from 0 to 1, not '1.5'", None),
    ([*EDIT, "--steps", "0"], "--steps: a whole number of at least 1, not '0'", None),
    ([*EDIT, "--width", "8"], "--width: pixels from 16 on, auto, or times the picture's such as 2x, not '8'", None),
    ([*EDIT, "--split", "4x2"], "--split: two numbers of chips, such as 4,2, not '4x2'", None),
    ([*EDIT, "--stepwise", "steps", "0"], "--stepwise takes a FOLDER and a number of steps, not 'steps 0'", None),
    ([*EDIT, "--stepwise", "steps", "28"], "of 28 there are none", None),
    (
        [*EDIT, "--steps", "4", "--mask", "photo.jpg", "--strength", "0.5", "--stepwise", "steps"],
        "of 2 there are",
        None,
    ),
    ([*EDIT, "--stepwise", "photo.jpg"], "--stepwise photo.jpg/step.png: no file of that name can be written", None),
    (
        ["edit", "photo.jpg", "b.jpg", "--prompt", "a", "--stepwise", "steps", "--out", "{name}/a.png"],
        "folders",
        None,
    ),
    ([*EDIT, "--config", "folder"], "--config goes with --weights that are a .safetensors or .gguf file", None),
    ([*EDIT, "--out", "a.txt"], "--out a.txt: the name must end in .png, .jpg, .jpeg or .webp", None),
    ([*EDIT, "--out", "photo.jpg/a.png"], "no file of that name can be written", None),
    ([*EDIT, "--out", "{name}.jpg"], "--out would write over photo.jpg", None),
    ([*EDIT, "--out", "p.png"], "--out would write over p.png", None),
    (["edit", "p.png", "--prompt", "a", "--out", "photo.jpg"], "--out would write over photo.jpg", None),
    (
        ["edit", "a.jpg", "a1.jpg", "--prompt", "a", "--seed", "11", "1", "--out", "{name}{seed}.png"],
        "a.jpg and a1.jpg would both be edited to a11.png",
        None,
    ),
    (
        ["edit", "pictures/..", "--prompt", "a", "--out", "{name}_a.png"],
        "a_a.png into a folder that is edited",
        None,
    ),
    (["edit", "pictures", "--prompt", "a"], "a.jpg and pictures/a.png would both be edited to", None),
    ([*EDIT, "--config-from", "photo.jpg"], "photo.jpg: it has no parameters of tt_flux_kontext in it", None),
    (["generate", "--prompt", "a", "--width", "2x"], "--width and --height in x are of a picture", None),
    (["info", "photo.jgp"], "photo.jgp: there is no such file", "info photo.jpg"),
    (["cache", "claer"], "invalid choice: 'claer'", "cache clear"),
]


@pytest.mark.parametrize("words,message,correction", WRONG)
def test_wrong_usage(folder, capsys, words, message, correction):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err
    first, second = said.err.splitlines()
    assert first.startswith("tt-flux-kontext")
    if correction:
        assert second.startswith("Did you mean: tt-flux-kontext ") and correction in second
    else:
        assert second.startswith("See tt-flux-kontext")


MADE = Parameters(
    prompt="mach den Kreis größer, 赤く ☃\nSteps: 2",
    negative_prompt="",
    image=File("a.png", "1" * 64),
    references=(File("b.png", "2" * 64), File("c.png", "3" * 64)),
    loras=(Lora(File("owner/style", "owner/style"), 0.8),),
    width=32,
    height=48,
    seed=2**64 - 1,
    guidance=0.1,
    weights="folder",
    device="emulated:t3k",
    split=(4, 2),
)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_a_picture_tells_what_it_was_made_with(tmp_path, capsys, suffix):
    path = tmp_path / f"a{suffix}"
    save_result(Image.new("RGB", (32, 48)), path, MADE, beside=True)
    assert read_parameters(path) == read_parameters(path.with_suffix(".json")) == MADE
    assert {each.name for each in tmp_path.iterdir()} == {"a.json", f"a{suffix}"}
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    for part in ("赤く", "18446744073709551615", "owner/style 0.8", "32 x 48", "4, 2", "b.png, c.png"):
        assert part in said
    assert main(["info", str(path), "--json"]) == 0
    assert Parameters.from_json(capsys.readouterr().out) == MADE


@pytest.mark.parametrize(
    "text,reason",
    [
        ("no JSON", "Expecting value"),
        ("[]", "not what this program writes"),
        ('{"prompt": "a"}', "not what this program writes"),
        ('{"prompt": "a", "weights": "b", "device": "c", "sed": 1}', "it has sed, which is no parameter"),
        ('{"prompt": "a", "weights": "b", "device": "c", "image": "d"}', "not what this program writes"),
    ],
)
def test_other_json(tmp_path, capsys, text, reason):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert main(["info", str(path)]) == 1
    assert reason in capsys.readouterr().err


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Two entries, of which one is ten days old, what was left in the making, and what isn't the cache's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(VARIABLE, str(folder))
    key = {"precision": {"linear_weights": "bfloat8_b"}, "backend": "silicon", "arch": "wormhole_b0"}
    for name, days in (("t5-" + "0" * 32, 10), ("vae-encoder-" + "1" * 32, 0)):
        entry = folder / name
        entry.mkdir(parents=True)
        (entry / "manifest.json").write_text(json.dumps({"key": key, "tensors": []}))
        (entry / "00000.tensorbin").write_bytes(bytes(2 * 10**7))
        os.utime(entry, (time.time() - days * 86400,) * 2)
    (folder / "hashes").mkdir()
    (folder / "hashes" / ("2" * 64)).write_text("")
    for name, age in (("." + "3" * 32 + ".filling", STALE + 1), ("." + "4" * 32 + ".filling", 0)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - age,) * 2)
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("")
    foreign = folder / ("t5-" + "5" * 32)
    foreign.mkdir()
    for name in ("manifest.json", "notes.txt"):
        (foreign / name).write_text("")
    (folder / ("clip-" + "6" * 32)).symlink_to(folder / "mine")
    return folder


OTHERS = {"mine", "." + "4" * 32 + ".filling", "t5-" + "5" * 32, "clip-" + "6" * 32}


def test_the_cache_is_listed(cache, capsys):
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3:2]] == [
        ["t5", "bfloat8_b,", "silicon", "wormhole_b0", "0.02", "GB", "10.0", "days"],
        ["vae-encoder", "bfloat8_b,", "silicon", "wormhole_b0", "0.02", "GB", "0.0", "days"],
    ]
    assert lines[1].startswith("abandoned in the making")
    assert lines[3:] == [f"3 entries, 0.04 GB, in {cache}"]
    assert main(["cache", "list", "--older-than", "5"]) == 0
    assert capsys.readouterr().out.endswith(f"1 entries, 0.02 GB, in {cache}\n")


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_the_cache_is_not_emptied_without_an_answer(cache, monkeypatch, answer):
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert main(["cache", "clear"]) == 2  # nobody to ask
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["cache", "clear"]) == 1
    assert len(list(cache.glob("*-*"))) == 4


def test_the_cache_is_emptied_and_nothing_else(cache, monkeypatch):
    assert main(["cache", "clear", "--older-than", "5", "--yes"]) == 0
    names = {path.name for path in cache.iterdir()}
    assert names == OTHERS | {"vae-encoder-" + "1" * 32, "." + "3" * 32 + ".filling", "hashes"}
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["cache", "clear"]) == 0
    assert {path.name for path in cache.iterdir()} == OTHERS and (cache / "mine" / "notes.txt").exists()


def test_the_cache_may_be_off_or_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "off")
    assert main(["cache"]) == 0 and capsys.readouterr().out == "The cache is off.\n"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    assert main(["cache", "clear", "--yes"]) == 0 and not (tmp_path / "none").exists()
