"""Weights that stay in this machine's memory: the same edit, without the disk and without another conversion."""

import os
from pathlib import Path

import pytest
import torch

from tests.unit.test_residency import leave_no_room
from tests.unit.test_weight_cache import FAST, Calls
from tt_flux_kontext import FluxKontextPipeline, emulator, host_memory, residency
from tt_flux_kontext.backend import watch
from tt_flux_kontext.cache_folder import VARIABLE
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.precision import BF16
from tt_flux_kontext.residency import Models

TOTAL = 10**12


@pytest.fixture(params=["cached", "off"])
def cache(request, tmp_path, monkeypatch):
    """Weights come from the cache, or there is none."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache") if request.param == "cached" else "off")


@pytest.fixture
def available(monkeypatch) -> list[int]:
    """What this machine has left, to be changed."""
    memory = [TOTAL]
    monkeypatch.setattr(host_memory, "host_memory", lambda: (memory[0], TOTAL))
    return memory


def edits(checkpoint, device, count: int) -> list[tuple[torch.Tensor, list[str]]]:
    """The same edit so many times: its result, and the functions of TT-NN that it called."""
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, precision="bf16")
    pipe.set_progress_bar_config(disable=True)
    done = []
    for _ in range(count):
        with Calls() as calls:
            done.append((pipe(generator=torch.Generator().manual_seed(0), **FAST).images, calls))
    return done


def conversions(calls: list[str]) -> int:
    return calls.count("from_torch") + calls.count("load_tensor")


def test_a_second_edit_reads_and_converts_no_weights(tiny_checkpoint, mesh_device, cache, available, monkeypatch):
    """Where models make room for each other. Some inputs are left, and the weights of convolutions."""
    leave_no_room(monkeypatch)
    (first, loading), (second, calls) = edits(tiny_checkpoint, mesh_device, 2)
    assert torch.equal(first, second)
    parameters = calls.count("to_device") - loading.count("to_device")
    assert parameters > 100 and conversions(calls) <= conversions(loading) - parameters
    assert "load_tensor" not in calls


def test_where_there_is_no_room_they_are_loaded_again(tiny_checkpoint, mesh_device, cache, available, monkeypatch):
    leave_no_room(monkeypatch)
    available[0] = int(host_memory.SHARE * TOTAL)
    results = edits(tiny_checkpoint, mesh_device, 3)
    assert all(torch.equal(results[0][0], images) for images, _ in results)
    assert "from_device" not in results[0][1] and conversions(results[1][1]) == conversions(results[2][1]) > 100


def test_what_is_kept_goes_before_a_load_runs_out_of_memory(tiny_checkpoint, mesh_device, cache, available):
    models = Models(Checkpoint(tiny_checkpoint), mesh_device, BF16)

    def loads(name: str) -> bool:
        with Calls() as calls:
            models[name]
            models.release(name)
        return conversions(calls) > 0

    assert loads("clip") and loads("t5") and not loads("clip") and not loads("t5")
    available[0] = 0
    assert loads("transformer")
    available[0] = TOTAL
    assert loads("clip") and loads("t5") and loads("transformer") and not loads("clip")


def test_what_the_device_writes_does_not_reach_them(tiny_checkpoint, mesh_device, cache, available):
    """TT-NN's tensors on a device are other memory than those on the host, though the emulator may hold both once."""
    models = Models(Checkpoint(tiny_checkpoint), mesh_device, BF16)

    def placed(name: str = "clip") -> list:
        tensors = []

        def note(function, call, *args, **kwargs):
            tensor = call(*args, **kwargs)
            if function in ("from_torch", "to_device") and tensor.device():
                tensors.append(tensor)
            return tensor

        with watch(note):
            models[name]
        models.release(name)
        return tensors

    first = [tensor for tensor in placed()]
    values = [tensor.values.clone() for tensor in first]
    for tensor in first:
        zeros = emulator.zeros(tensor.shape, dtype=tensor.dtype, layout=tensor.layout)
        emulator.copy_host_to_device_tensor(zeros, tensor)
        emulator.deallocate(tensor)
    again = placed()
    assert len(values) > 10 and all(torch.equal(a, b.values) for a, b in zip(values, again, strict=True))


def test_the_memory_of_this_machine():
    available, total = host_memory.host_memory()
    assert 0 < available < total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("limit,expected", [("3000", (3000 - 1000 + 300, 3000)), ("max", None), (str(2**63), None)])
def test_a_containers_limit_counts(tmp_path, monkeypatch, limit, expected):
    plain = host_memory.host_memory()
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 700\nfile 300\nactive_file 100\ninactive_file 200\n")
    groups = [(tmp_path, "memory.max", "memory.current"), (Path("/nowhere"), "memory.max", "memory.current")]
    monkeypatch.setattr(host_memory, "_CGROUPS", groups)
    available, total = host_memory.host_memory()
    assert (available, total) == expected if expected else total == plain[1]


def test_what_no_machine_holds_is_refused(monkeypatch):
    monkeypatch.setattr(residency, "host_memory", lambda: (0, 10**9))
    residency.check_host_memory(10**9, "An edit")
    with pytest.raises(residency.DoesNotFit, match="An edit would take about 2 GB .*, which has 1 GB"):
        residency.check_host_memory(2 * 10**9, "An edit")
