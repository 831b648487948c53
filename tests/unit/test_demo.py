"""The demo as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def demo(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "demo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_edits_a_picture(tmp_path):
    source, out = tmp_path / "in.png", tmp_path / "results" / "edited.png"
    Image.new("RGB", (300, 200), "orange").save(source)
    result = demo("--image", str(source), "--out", str(out), "--steps", "2", "--device", "emulated")
    assert result.returncode == 0, result.stdout
    assert "PCC with diffusers" in result.stdout and "vae decoder" in result.stdout
    assert "Warning" not in result.stdout + result.stderr
    assert Image.open(out).size == (144, 96)
    assert sorted(path.name for path in out.parent.iterdir()) == ["edited.png", "edited_before_after.png"]


WRONG = [
    (["--image", "no.png"], "--image no.png: there is no such file."),
    (["--image", "README.md"], "--image README.md: it can't be read as a picture"),
    (["--device", "gpu"], "Unknown device 'gpu': it is one of silicon, emulated."),
    (["--steps", "0"], "--steps 0: at least one step is needed."),
    (["--width", "64"], "--width and --height go together."),
    (["--out", "edited.txt"], "the name must end like a picture's"),
    (["--weights", "/no/such/folder"], "'/no/such/folder' is neither a folder here nor a repository"),
]
# One process for all: it takes seconds to start.
RUN_ALL = (
    "import json, sys, pytest; [pytest.main(['demo', *a]) for a in json.loads(sys.argv[1]) if not print(end='\f')]"
)


def test_says_what_is_wrong():
    command = [sys.executable, "-u", "-c", RUN_ALL, json.dumps([arguments for arguments, _ in WRONG])]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    _, *outputs = run.stdout.split("\f")
    assert len(outputs) == len(WRONG) and "Traceback" not in run.stdout
    for (_, message), output in zip(WRONG, outputs):
        assert message in output and "passed" not in output
