"""Opening devices of several chips, and cutting them into parts."""

import re

import pytest

from tt_flux_kontext import FluxKontextPipeline, emulator, open_device, submeshes
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.models.transformer import Transformer, TransformerConfig


@pytest.mark.parametrize(
    "system,mesh_shape,parts",
    [
        ("n150", None, {1: (1, 1)}),
        ("n300", None, {1: (1, 2), 2: (1, 1)}),
        ("t3k", None, {2: (1, 4), 4: (2, 1), 8: (1, 1)}),
        ("t3k", (1, 8), {2: (1, 4), 4: (1, 2), 8: (1, 1)}),
        ("galaxy", None, {2: (8, 2), 4: (8, 1), 8: (1, 4), 32: (1, 1)}),
        ("galaxy", (4, 8), {2: (2, 8), 4: (1, 8), 8: (4, 1), 32: (1, 1)}),
        ("p300", None, {2: (1, 1)}),
        ("p150x4", None, {2: (1, 2), 4: (1, 1)}),
    ],
)
def test_parts_keep_their_longest_axis_whole(system, mesh_shape, parts):
    with open_device(f"emulated:{system}", mesh_shape) as mesh:
        for count, shape in parts.items():
            cut = submeshes(mesh, count)
            assert [tuple(part.shape) for part in cut] == count * [shape]
            assert sorted(chip for part in cut for chip in part.get_device_ids()) == sorted(mesh.get_device_ids())


@pytest.mark.parametrize("count", [0, 3, 16, 2.5, "2"])
def test_no_such_parts(count):
    with open_device("emulated:t3k") as mesh:
        with pytest.raises(
            ValueError, match=f"2 x 4 chips can't be cut into {count} equal parts, only into 1, 2, 4, 8."
        ):
            submeshes(mesh, count)


@pytest.mark.parametrize(
    "mesh_shape,written", [((4, 2), "4 x 2"), ((2, 2), "2 x 2"), ((8,), "8"), ((1, 2, 4), "1 x 2 x 4")]
)
def test_no_such_mesh(mesh_shape, written):
    message = f"This system's chips are no mesh of {written}: it is 2 x 4 or 1 x 8 or 1 x 1."
    with pytest.raises(ValueError, match=message), open_device("emulated:t3k", mesh_shape):
        pass


@pytest.mark.parametrize("split", [(8, 1), (2, 2), (4,), (2, 4, 1)])
def test_no_such_split(tiny_checkpoint, split):
    message = f"A mesh of 2 x 4 chips can't be split by {split} for tokens and features, only by (4, 2) or (2, 4)."
    with open_device("emulated:t3k") as mesh:
        with pytest.raises(ValueError, match=re.escape(message)):
            FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh, split=split)
        assert dram_bytes(mesh)[0] == dram_bytes(mesh)[1]


def test_more_chips_than_features():
    """Heads can always be filled up with zeros."""
    blocks = {"num_attention_heads": 1, "num_layers": 1, "num_single_layers": 1}
    config = TransformerConfig(attention_head_dim=32, axes_dims_rope=(8, 12, 12), **blocks)
    Transformer.check_split(config, tp=4)
    with pytest.raises(ValueError, match="can't be split over 8 chips by features: 128 of its feed-forward"):
        Transformer.check_split(config, tp=8)


def test_chips_that_stay_idle_are_told_of(monkeypatch, warned):
    """TT-NN takes a T3K without some of its cables for an N300."""
    monkeypatch.setattr(emulator, "get_num_devices", lambda: 8)
    with open_device("emulated:n300", (1, 1)):
        assert not warned
    with open_device("emulated:n300") as mesh:
        assert tuple(mesh.shape) == (1, 2)
    (message,) = warned
    assert message.startswith("Of the 8 chips that TT-NN finds 2 will be used: it calls the system N300.")


def test_chips_that_can_not_be_opened(monkeypatch):
    def refuse(*arguments, **more):
        raise RuntimeError("TT_THROW: Requested mesh is too big")

    with monkeypatch.context() as broken:
        broken.setattr(emulator, "open_mesh_device", refuse)
        with pytest.raises(
            RuntimeError, match="TT-NN can't open a mesh of 2 x 4 of the 8 chips .* a cable may be missing"
        ):
            with open_device("emulated:t3k"):
                pass
        with pytest.raises(RuntimeError, match="TT_THROW"), open_device("emulated:n150"):
            pass
    with open_device("emulated:t3k", (1, 1)):  # no fabric is left over, with which all chips would have to be opened
        pass


def test_memory_set_aside_for_traces():
    """Is missing to all else, on each chip."""
    with open_device("emulated:n300") as mesh:
        _, total = dram_bytes(mesh)
    with open_device("emulated:n300", trace_region_size=60_000_000, num_command_queues=2) as mesh:
        less = total - dram_bytes(mesh)[1]
        assert 60_000_000 <= less < 60_100_000
        assert {total - dram_bytes(part)[1] for part in submeshes(mesh, 2)} == {less}
