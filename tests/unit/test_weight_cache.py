"""The cache of converted weights: the same edit, sooner, and whatever happens to it never the worse for it."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import T5Config, T5EncoderModel

from reference import benchmark_loading
from tt_flux_kontext import FluxKontextPipeline, emulator, residency, weight_cache
from tt_flux_kontext.backend import watch
from tt_flux_kontext.cache_folder import STALE, VARIABLE, cache_folder
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.planner.kontext_dev import full_size_editor
from tt_flux_kontext.planner.mock_device import run
from tt_flux_kontext.precision import BF16, COMPACT, FULL, Policy
from tt_flux_kontext.residency import Models
from tt_flux_kontext.weight_cache import WeightCache

ROOT = Path(__file__).parents[2]
MODELS = ["clip", "t5", "vae encoder", "modulation", "transformer", "vae decoder"]
FAST = {
    "prompt": "a",
    "max_area": 64 * 64,
    "max_sequence_length": 32,
    "num_inference_steps": 1,
    "output_type": "pt",
    "_auto_resize": False,
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder, which isn't there yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


class Calls:
    """Within `with Calls() as calls`, the names of TT-NN's functions that are called, in order."""

    def __enter__(self) -> list[str]:
        names = []

        def note(name, function, *args, **kwargs):
            names.append(name)
            return function(*args, **kwargs)

        self._watch = watch(note)
        self._watch.__enter__()
        return names

    def __exit__(self, *error):
        self._watch.__exit__(*error)


def load(checkpoint, device, *names: str, precision=BF16) -> list[torch.Tensor]:
    """Loads models (CLIP) in a start of its own, and gives their values in the order in which they were placed."""
    placed = []

    def note(function_name, function, *args, **kwargs):
        result = function(*args, **kwargs)
        if function_name in ("from_torch", "to_device"):
            placed.append(result.values)
        return result

    with watch(note):
        models = Models(Checkpoint(checkpoint), device, precision)
        for name in names or ("clip",):
            models[name]
    return placed


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def entries(cache) -> list[str]:
    """The names of all that lies in the cache but hashes, without their digests."""
    return sorted(path.name.rpartition("-")[0] or path.name for path in cache.iterdir() if path.name != "hashes")


def edit(checkpoint, device):
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, precision="bfp8")
    pipe.set_progress_bar_config(disable=True)
    return pipe(generator=torch.Generator().manual_seed(0), image=torch.full((1, 3, 64, 64), 0.5), **FAST).images


def test_a_second_start_converts_nothing_and_edits_the_same(
    tiny_checkpoint, mesh_device, cache, monkeypatch, warned, tmp_path
):
    first = edit(tiny_checkpoint, mesh_device)
    assert entries(cache) == sorted(name.replace(" ", "-") for name in MODELS)
    moved = shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere")  # its content is the same
    with Calls() as calls:
        second = edit(moved, mesh_device)
    assert "dump_tensor" not in calls
    kept = sum(len(json.loads(path.read_text())["tensors"]) for path in cache.glob("*/manifest.json"))
    assert calls.count("load_tensor") == kept > 100
    monkeypatch.setenv(VARIABLE, "off")
    with Calls() as calls:
        uncached = edit(tiny_checkpoint, mesh_device)
    assert not {"dump_tensor", "load_tensor"} & set(calls)
    assert torch.equal(first, second) and torch.equal(first, uncached)
    assert warned == []


def test_what_differs_in_anything_has_an_entry_of_its_own(tiny_checkpoint, mesh_device, cache, tmp_path, monkeypatch):
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    file = other / "text_encoder/model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("fc1.weight"))
    tensors[key][0, 0] += 1
    save_file(tensors, file)
    load(tiny_checkpoint, mesh_device)
    load(other, mesh_device)
    for precision in (COMPACT, dataclasses.replace(FULL, math_fidelity="HiFi2")):
        load(tiny_checkpoint, mesh_device, precision=Policy("other", {"clip": precision}))
    monkeypatch.setattr(weight_cache, "FORMAT", weight_cache.FORMAT + 1)
    load(tiny_checkpoint, mesh_device)
    assert entries(cache) == ["clip"] * 5


@pytest.mark.parametrize("ahead", [1, 100_000])
def test_checksums_are_little_ahead(tiny_checkpoint, mesh_device, cache, monkeypatch, ahead):
    """Where an entry is larger than what may be read ahead of the device."""
    cold = load(tiny_checkpoint, mesh_device)
    monkeypatch.setattr(weight_cache, "_AHEAD", ahead)
    assert same(load(tiny_checkpoint, mesh_device), cold)
    monkeypatch.setattr(weight_cache, "_crc32", lambda file: 0)  # of every file, the last ones too
    with monkeypatch.context() as patch:
        patch.setattr(weight_cache.WeightCache, "_fill", lambda *_: pytest.fail("damaged"))
        with pytest.raises(pytest.fail.Exception, match="damaged"):
            load(tiny_checkpoint, mesh_device)


def test_files_are_hashed_once(tiny_checkpoint, mesh_device, cache, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    file = folder / "text_encoder/model.safetensors"
    monkeypatch.setattr(weight_cache, "SMALL", 0)
    hashed = []
    pieces = weight_cache._pieces
    monkeypatch.setattr(weight_cache, "_pieces", lambda path: [hashed.append(path.name), *pieces(path)][1:])
    for _ in range(2):
        load(folder, mesh_device)
        assert hashed.count(file.name) == 1
    os.utime(file)
    load(folder, mesh_device)
    assert hashed.count(file.name) == 2 and entries(cache) == ["clip"]
    for memo in (cache / "hashes").iterdir():
        memo.write_text("?")
    load(folder, mesh_device)
    assert hashed.count(file.name) == 3 and entries(cache) == ["clip"]


def test_checksums_are_computed_once_in_a_process(tiny_checkpoint, mesh_device, cache, monkeypatch):
    """The files' first reader is who writes them; later ones trust what they know, unless a file has changed."""
    monkeypatch.setattr(weight_cache, "SMALL", 0)  # the checkpoint's file is read once
    read = []
    pieces = weight_cache._pieces
    monkeypatch.setattr(weight_cache, "_pieces", lambda path: [read.append(path.name), *pieces(path)][1:])
    good = load(tiny_checkpoint, mesh_device)
    files = sorted(path.name for path in cache.glob("clip-*/*.tensorbin"))
    assert sorted(read) == [*files, "model.safetensors"]
    read.clear()
    assert same(load(tiny_checkpoint, mesh_device), good) and read == []
    monkeypatch.setattr(weight_cache, "_known", {})  # as in another process
    assert same(load(tiny_checkpoint, mesh_device), good) and sorted(read) == files
    read.clear()
    os.utime(next(cache.glob(f"clip-*/{files[3]}")), (0, 0))
    assert same(load(tiny_checkpoint, mesh_device), good) and read == [files[3]]


def truncate(entry):
    file = max(entry.glob("*.tensorbin"))
    file.write_bytes(file.read_bytes()[:-1])
    return rf"{file.name} has \d+ bytes, not \d+"


def flip(entry):
    file = max(entry.glob("*.tensorbin"))
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
    os.utime(file, (0, 0))  # another time than before, however coarse the clock is
    return f"{file.name} has other bytes than were written"


def lose_a_tensor(entry):
    file = min(entry.glob("*.tensorbin"))
    file.unlink()
    return f"{file.name} has 0 bytes, not"


def lose_the_manifest(entry):
    (entry / "manifest.json").unlink()
    return "its manifest can't be read"


def cut_the_manifest(entry):
    file = entry / "manifest.json"
    file.write_text(file.read_text()[:-20])
    return "its manifest can't be read"


def change(entry, **fields):
    file = entry / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def make_it_another_model(entry):
    change(entry, key={"model": "transformer"})
    return "its manifest is of something else"


def make_it_a_list(entry):
    (entry / "manifest.json").write_text("[]")
    return "its manifest can't be read"


def swap_tensors(entry):
    first, second, *rest = json.loads((entry / "manifest.json").read_text())["tensors"]
    change(entry, tensors=[second, first, *rest])
    return "it has .* where the model has"


def end_early(entry):
    change(entry, tensors=json.loads((entry / "manifest.json").read_text())["tensors"][:-1])
    return "it has nothing where the model has"


def put_a_file_there(entry):
    shutil.rmtree(entry)
    entry.write_text("")
    return "its manifest can't be read"


DAMAGE = [
    truncate,
    flip,
    lose_a_tensor,
    lose_the_manifest,
    cut_the_manifest,
    make_it_another_model,
    make_it_a_list,
    swap_tensors,
    end_early,
    put_a_file_there,
]


def contents(entry) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in entry.iterdir()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_rebuilt(tiny_checkpoint, mesh_device, cache, warned, damage):
    good = load(tiny_checkpoint, mesh_device)
    (entry,) = cache.glob("clip-*")
    whole = contents(entry)
    why = damage(entry)
    rebuilt = load(tiny_checkpoint, mesh_device)
    assert same(rebuilt[-len(good) :], good)  # before them come those of the try that failed
    (line,) = warned
    assert re.fullmatch(f"{entry}, the cached weights of clip, is rebuilt: .*{why}.*", line)
    assert contents(entry) == whole and entries(cache) == ["clip"]
    assert same(load(tiny_checkpoint, mesh_device), good) and warned == [line]


def test_a_half_built_model_gives_its_memory_back(tiny_checkpoint, mesh_device, cache, monkeypatch):
    """Before the rebuilt one takes its own."""
    load(tiny_checkpoint, mesh_device, "transformer")
    flip(next(cache.glob("transformer-*")))
    free = []
    fill = WeightCache._fill
    monkeypatch.setattr(WeightCache, "_fill", lambda *args: [free.append(dram_bytes(mesh_device)), fill(*args)][1])
    load(tiny_checkpoint, mesh_device, "transformer")
    ((left, total),) = free
    assert left == total


def cannot(number: int, failing, of: Path):
    """`failing`, for paths within `of` an OSError of that number."""

    def function(path, *args, **kwargs):
        if Path(path).is_relative_to(of):
            raise OSError(number, os.strerror(number), str(path))
        return failing(path, *args, **kwargs)

    return function


def in_place_of_the_folder(cache, monkeypatch):
    cache.write_text("a file")
    return "File exists"


def below_a_file(cache, monkeypatch):
    cache.write_text("a file")
    monkeypatch.setenv(VARIABLE, str(cache / "below"))
    return "Not a directory"


def read_only(cache, monkeypatch):
    cache.mkdir()
    if os.geteuid():
        cache.chmod(0o500)
        return "Permission denied"
    monkeypatch.setattr(Path, "mkdir", cannot(errno.EROFS, Path.mkdir, cache))  # nothing is read-only for root
    return "Read-only file system"


def nearly_full(cache, monkeypatch):
    monkeypatch.setattr(weight_cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    return "No space left on device"


def full_at_the_third(cache, monkeypatch, error=None):
    dump = emulator.dump_tensor
    error = error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(file, tensor):
        if file.name == "00002.tensorbin":
            raise error
        dump(file, tensor)

    monkeypatch.setattr(emulator, "dump_tensor", fail)
    return "No space left on device"


def full_in_the_words_of_ttnn(cache, monkeypatch):
    words = "TT_FATAL @ file.cpp:47: written == bytes\ninfo:\nFailed to write tensor data"
    full_at_the_third(cache, monkeypatch, RuntimeError(words))
    return "written == bytes info: Failed to write tensor data"


def full_at_the_manifest(cache, monkeypatch):
    monkeypatch.setattr(Path, "write_text", cannot(errno.ENOSPC, Path.write_text, cache))
    return "No space left on device"


UNWRITABLE = [
    in_place_of_the_folder,
    below_a_file,
    read_only,
    nearly_full,
    full_at_the_third,
    full_in_the_words_of_ttnn,
    full_at_the_manifest,
]


@pytest.mark.parametrize("trouble", UNWRITABLE)
def test_a_folder_that_can_not_be_written_costs_only_the_caching(
    tiny_checkpoint, mesh_device, cache, warned, monkeypatch, trouble
):
    """One line for all models of an edit, and nothing is left behind."""
    with monkeypatch.context() as context:
        context.setenv(VARIABLE, "off")
        uncached = load(tiny_checkpoint, mesh_device, *MODELS)
    with monkeypatch.context() as context:
        reason = trouble(cache, context)
        assert same(load(tiny_checkpoint, mesh_device, *MODELS), uncached)
    (line,) = warned
    assert line.startswith("Weights can't be cached in ") and f"{reason})" in line
    assert cache.is_file() or entries(cache) == []


def test_a_read_only_folder_is_read(tiny_checkpoint, mesh_device, cache, warned, monkeypatch):
    load(tiny_checkpoint, mesh_device, "transformer")
    read_only_again = cannot(errno.EROFS, Path.mkdir, cache)
    with monkeypatch.context() as context, Calls() as calls:
        context.setattr(Path, "mkdir", lambda path, *args, exist_ok=False, **kwargs: exist_ok or read_only_again(path))
        edit_models = Models(Checkpoint(tiny_checkpoint), mesh_device, BF16)
        edit_models["clip"]  # isn't there, and can't be kept
        assert len(warned) == 1
        calls.clear()
        edit_models["transformer"]
        assert "load_tensor" in calls and "from_torch" not in calls
    assert len(warned) == 1 and entries(cache) == ["transformer"]


FILL = """
import os, signal, sys, time
from pathlib import Path
from tt_flux_kontext import emulator
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.device import open_device
from tt_flux_kontext.precision import BF16
from tt_flux_kontext.residency import Models

checkpoint, deadly, gate = sys.argv[1:]
dump = emulator.dump_tensor
def wait_or_die(file, tensor):
    dump(file, tensor)
    if file.name == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    if gate and file.name == "00000.tensorbin":  # until the other one is as far
        Path(gate, str(os.getpid())).touch()
        while len(os.listdir(gate)) < 2:
            time.sleep(0.01)
emulator.dump_tensor = wait_or_die
with open_device("emulated") as device:
    models = Models(Checkpoint(checkpoint), device, BF16)
    for name in ("clip", "transformer"):
        models[name]
"""


def fill(checkpoint, deadly="", gate="") -> subprocess.Popen:
    """A process that fills the cache, and is killed when it has written the file of the name `deadly`."""
    command = [sys.executable, "-c", FILL, str(checkpoint), deadly, str(gate)]
    environment = os.environ | {"TQDM_DISABLE": "1"}  # a busy machine would show a bar
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_nothing_that_counts(tiny_checkpoint, mesh_device, cache, warned):
    process = fill(tiny_checkpoint, deadly="00005.tensorbin")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = cache.glob(".*.filling")
    assert len(list(left.iterdir())) == 6 and entries(cache) == [left.name]
    first = load(tiny_checkpoint, mesh_device)
    assert same(load(tiny_checkpoint, mesh_device), first) and warned == []
    assert left.exists()  # it might still be at work
    os.utime(left, (time.time() - STALE - 1,) * 2)
    load(tiny_checkpoint, mesh_device, "t5")
    assert entries(cache) == ["clip", "t5"]


def test_two_processes_fill_at_once(tiny_checkpoint, mesh_device, cache, warned, tmp_path):
    gate = tmp_path / "gate"
    gate.mkdir()
    processes = [fill(tiny_checkpoint, gate=gate) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and errors == ""
    assert entries(cache) == ["clip", "transformer"]
    with Calls() as calls:
        Models(Checkpoint(tiny_checkpoint), mesh_device, BF16)["transformer"]
    assert "load_tensor" in calls and "from_torch" not in calls and warned == []


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for off in ("", "0", "off"):
        monkeypatch.setenv(VARIABLE, off)
        assert cache_folder() is None
    monkeypatch.delenv(VARIABLE)
    assert cache_folder() == tmp_path / ".cache/tt_flux_kontext"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/tt_flux_kontext"


def test_a_plan_keeps_nothing(mesh_device, cache):
    full_size_editor(mesh_device, "bfp8").models["clip"]
    assert not cache.exists()


class Bars(list):
    """Stands in for tqdm, and keeps what it made."""

    def __call__(self, **arguments):
        self.append(bar := SimpleNamespace(n=0, **arguments))
        bar.update = lambda size: setattr(bar, "n", bar.n + size)
        return nullcontext(bar)


def test_bars_say_how_far_a_model_is(tiny_checkpoint, mesh_device, cache, monkeypatch):
    monkeypatch.setattr(residency, "tqdm", bars := Bars())
    for start in ("cold", "warm"):
        bars.clear()
        edit(tiny_checkpoint, mesh_device)
        weights = [bar for bar in bars if bar.desc.endswith(" weights")]
        assert [bar.desc for bar in weights] == [f"{name} weights" for name in MODELS], start
        assert all(bar.n == bar.total > 0 and bar.disable and bar.unit == "B" for bar in weights), start
        assert all(bar.n == bar.total for bar in bars if bar.desc == "text_encoder sha256")


def test_bars_show_only_when_it_takes_long(tiny_checkpoint, mesh_device, monkeypatch, capsys):
    load(tiny_checkpoint, mesh_device)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(residency, "tqdm", lambda **arguments: tqdm(**arguments | {"delay": 0, "mininterval": 0}))
    load(tiny_checkpoint, mesh_device)
    assert re.search(r"clip weights: +\d+%.*B/s", capsys.readouterr().err)


@pytest.mark.parametrize("system", ["n150", "n300"])
def test_real_ttnn_writes_and_reads_them(needs_ttnn, tiny_checkpoint, cache, system):
    (calls,) = run(system, "tests.mock.load_twice", {"checkpoint": str(tiny_checkpoint)})
    cold, warm = calls["cold"], calls["warm"]
    assert cold["dump_tensor"] == cold["from_torch"] == warm["load_tensor"] == warm["to_device"] > 20
    assert "from_torch" not in warm and calls["same"]
    assert len(entries(cache)) == 2 * len(calls["models"])


MEMORY = """
import json, sys
from pathlib import Path
from tqdm import tqdm
from tt_flux_kontext.checkpoint import TensorFiles
from tt_flux_kontext.device import open_device
from tt_flux_kontext.mesh import Mesh, Parallel
from tt_flux_kontext.models.t5 import T5Encoder, t5_config
from tt_flux_kontext.models.weights import Weights, survey
from tt_flux_kontext.precision import FULL
from tt_flux_kontext.cache_folder import cache_folder
from tt_flux_kontext.weight_cache import WeightCache

def memory(of):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(of))

config = t5_config(json.load(open(sys.argv[1] + "/config.json")))
tensors = TensorFiles(Path(sys.argv[1]))
with open_device("emulated") as device:
    parallel = Parallel(Mesh(device))
    (size,) = survey([(T5Encoder, config, FULL, parallel)], tensors)
    def build(keep):
        return T5Encoder(config, Weights(tensors, FULL, parallel, keep=keep))
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins here
    before = memory("VmRSS")
    bar = lambda what, size: tqdm(disable=True)
    model = WeightCache(cache_folder()).build("t5", tensors, FULL, parallel, size, build, bar)
    print(json.dumps({"size": size, "beyond": memory("VmHWM") - before - size}))
"""


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=["bf16", "f32"]
)
def test_host_memory_is_that_of_a_few_tensors(tmp_path, cache, dtype):
    """Beyond the device's, with a T5 of 300 MB of which the largest tensor, the table, has 66 MB in bfloat16.

    In proportion, T5-XXL's table of 263 MB keeps the real models below 2 GB.
    """
    config = T5Config(d_model=1024, d_ff=2816, num_layers=8, num_heads=16, feed_forward_proj="gated-gelu")
    folder = tmp_path / "t5"
    T5EncoderModel(config).to(dtype).save_pretrained(folder)
    largest = 32128 * 1024 * dtype.itemsize
    for start in ("cold", "warm"):
        command = [sys.executable, "-c", MEMORY, str(folder)]
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        measured = json.loads(out)
        assert measured["size"] > 200e6
        assert measured["beyond"] < 3 * largest, (start, measured)


def test_benchmark(tiny_checkpoint, cache, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_loading", str(tiny_checkpoint)])
    benchmark_loading.main()
    lines = capsys.readouterr().out.splitlines()
    starts = ["checkpoint, plain read", "start without a cache", "cold start", "cache, plain read", "warm start"]
    starts += ["second load in a process", "memory, plain copy"]
    assert [line[:24].strip() for line in lines] == starts
    assert all(re.fullmatch(r" *0.0\d GB *\d+\.\d\d s *\d+\.\d\d GB/s", line[24:]) for line in lines)
    assert sorted(path.name for path in tiny_checkpoint.parent.iterdir()) == ["tiny"]


class TestFiles:
    """dump_tensor and load_tensor of the emulator."""

    @pytest.mark.parametrize("dtype", ["BFLOAT16", "FLOAT32", "BFLOAT8_B", "UINT32"])
    @pytest.mark.parametrize("on_device", [True, False])
    def test_what_comes_back_is_what_went_in(self, tmp_path, mesh_device, dtype, on_device):
        values = torch.arange(3 * 40 * 50).reshape(3, 40, 50)
        values = values if dtype == "UINT32" else values / 7
        layout = emulator.TILE_LAYOUT if dtype == "BFLOAT8_B" else emulator.ROW_MAJOR_LAYOUT
        device = mesh_device if on_device else None
        tensor = emulator.from_torch(values, getattr(emulator.DataType, dtype), layout=layout, device=device)
        emulator.dump_tensor(tmp_path / "x.tensorbin", tensor)
        back = emulator.load_tensor(str(tmp_path / "x.tensorbin"), device=device)
        assert torch.equal(back.values, tensor.values) and back.shape == tensor.shape
        assert (back.dtype, back.layout, back.device()) == (tensor.dtype, tensor.layout, device)
        assert [path.name for path in tmp_path.iterdir()] == ["x.tensorbin"]

    def test_refusals(self, tmp_path):
        tensor = emulator.from_torch(torch.ones(64, 64))
        file = tmp_path / "x.tensorbin"
        for function in (emulator.load_tensor, lambda path: emulator.dump_tensor(path, tensor)):
            with pytest.raises(RuntimeError, match="must have .tensorbin extension"):
                function(tmp_path / "x.bin")
        with pytest.raises(RuntimeError, match="no file"):
            emulator.load_tensor(file)
        with pytest.raises(RuntimeError, match="can't write .*No such file or directory"):
            emulator.dump_tensor(tmp_path / "no" / "x.tensorbin", tensor)
        emulator.dump_tensor(file, tensor)
        whole = file.read_bytes()
        for content in (whole[:-1], whole + b"1", whole.replace(b"shape", b"shade"), whole[:40]):
            file.write_bytes(content)
            with pytest.raises(RuntimeError, match="truncated or corrupt"):
                emulator.load_tensor(file)
        file.write_bytes(b"\xff" * 1000)
        with pytest.raises(RuntimeError, match="is no file of a tensor"):
            emulator.load_tensor(file)
