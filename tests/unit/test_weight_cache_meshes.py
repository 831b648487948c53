"""The cache of converted weights, of models that are split over chips."""

import pytest
import torch

from tt_flux_kontext import FluxKontextPipeline, emulator, open_device
from tt_flux_kontext.backend import watch
from tt_flux_kontext.cache_folder import VARIABLE
from tt_flux_kontext.checkpoint import Checkpoint
from tt_flux_kontext.precision import BF16
from tt_flux_kontext.residency import Models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def load_transformer(checkpoint, mesh, split) -> tuple[list[list[torch.Tensor]], set[str]]:
    """The values on each chip of all parameters, in order, and the functions of TT-NN that were called."""
    placed, called = [], set()

    def note(name, function, *args, **kwargs):
        called.add(name)
        result = function(*args, **kwargs)
        if name in ("from_torch", "to_device"):
            placed.append([shard.values for shard in emulator.get_device_tensors(result)])
        return result

    with watch(note):
        Models(Checkpoint(checkpoint), mesh, BF16, split)["transformer"]
    return placed, called


def equal(ours: list[list[torch.Tensor]], theirs: list[list[torch.Tensor]]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(*shards) for pair in zip(ours, theirs) for shards in zip(*pair, strict=True)
    )


def test_splits_have_entries_of_their_own(tiny_checkpoint, cache):
    with open_device("emulated:t3k") as mesh:
        cold = {split: load_transformer(tiny_checkpoint, mesh, split) for split in ((4, 2), (2, 4))}
        warm = {split: load_transformer(tiny_checkpoint, mesh, split) for split in cold}
    assert len(list(cache.glob("transformer-*"))) == 2
    for (placed, filled), (read, called) in zip(cold.values(), warm.values(), strict=True):
        assert "dump_tensor" in filled and "load_tensor" in called and not {"dump_tensor", "from_torch"} & called
        assert len(placed) > 50 and equal(placed, read)
    assert not equal(*(placed for placed, _ in cold.values()))


@pytest.mark.parametrize("split", [(2, 1), (1, 2)])
def test_a_warm_start_edits_the_same(tiny_checkpoint, cache, monkeypatch, split):
    def edit(mesh) -> torch.Tensor:
        pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh, split=split)
        pipe.set_progress_bar_config(disable=True)
        size = {"max_area": 32 * 32, "max_sequence_length": 32, "num_inference_steps": 1}
        return pipe(prompt="a", generator=torch.Generator().manual_seed(0), output_type="latent", **size).images

    with open_device("emulated:n300") as mesh:
        cold, warm = edit(mesh), edit(mesh)
        monkeypatch.setenv(VARIABLE, "off")
        assert torch.equal(cold, warm) and torch.equal(cold, edit(mesh))
    assert len(list(cache.glob("transformer-*"))) == 1
