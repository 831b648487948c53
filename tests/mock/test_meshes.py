"""The emulator's calls on several chips, asked of real TT-NN; and wrong ones, which both refuse."""

import pickle

import pytest
import torch

from tests.mesh_refusals import CASES, SIGNATURES, SILENT, around, norm, product
from tests.mock.recording import Recorder
from tests.pcc.test_pipeline import picture
from tests.refusals import New
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.device import open_device
from tt_flux_kontext.planner.mock_device import run


def work(mesh) -> None:
    """All that is special to meshes."""
    tensors = split_and_join(mesh)
    for axis in (0, 1):
        if mesh.shape[axis] > 1:
            for x in tensors:
                gather_and_sum(x, axis)
            convolve_with_halo(mesh, axis)
            attend_around(New(mesh), axis)
            share_features(New(mesh), axis)


def attend_around(new: New, axis: int) -> None:
    around(new, axis=axis, logical_n=64 * new.device.shape[axis] - 13)
    around(new, axis=axis, joint=40)
    around(new, axis=axis, joint=32, shares=True)
    around(new, axis=axis, joint=32, shares=True, dtype="bfloat8_b")


def share_features(new: New, axis: int) -> None:
    product(new, axis=axis)
    product(new, axis=axis, bias_tensor=None, chunks=3, dtype=ttnn.float32)
    norm(new, axis=axis)
    norm(new, 1, 1, 32 * 40 + 1, 64, axis=axis)


def split_and_join(mesh) -> list:
    """Tensors of all dtypes, whose chips have 64 x 512 values each."""
    tensors, (rows, columns) = [], mesh.shape
    placements = [ttnn.PlacementShard(-2), ttnn.PlacementShard(3)]
    mapper = ttnn.create_mesh_mapper(mesh, ttnn.MeshMapperConfig(placements))
    composer = ttnn.create_mesh_composer(mesh, ttnn.MeshComposerConfig([2, 3]))
    for dtype in (ttnn.bfloat16, ttnn.float32, ttnn.bfloat8_b):
        values = torch.randn(1, 1, 64 * rows, 512 * columns)
        on_host = ttnn.from_torch(values, dtype, layout=ttnn.TILE_LAYOUT, mesh_mapper=mapper)
        ttnn.from_torch(values, dtype, layout=ttnn.TILE_LAYOUT, device=mesh)
        x = ttnn.to_device(on_host, mesh)
        ttnn.copy_host_to_device_tensor(on_host, x)
        ttnn.to_torch(ttnn.from_device(x), mesh_composer=composer)
        ttnn.to_torch(ttnn.get_device_tensors(x)[-1])
        ttnn.typecast(on_host, ttnn.float32)
        tensors.append(x)
    return tensors


def gather_and_sum(x, axis: int) -> None:
    ttnn.get_usable_topology(x, cluster_axis=axis)
    ttnn.all_reduce(x, cluster_axis=axis)
    for dim in (-1, 2, 0):
        ttnn.mesh_partition(ttnn.all_gather(x, dim, cluster_axis=axis), dim, axis)
    ttnn.reduce_scatter(x, 3, cluster_axis=axis)
    ttnn.reduce_scatter(ttnn.all_gather(x, 2, cluster_axis=axis), 2, cluster_axis=axis)
    few = ttnn.slice(x, [0, 0, 0, 0], [1, 1, 45, 96])
    ttnn.all_reduce(few, cluster_axis=axis)
    ttnn.all_gather(few, 3, cluster_axis=axis)
    ttnn.all_gather(ttnn.to_layout(few, ttnn.ROW_MAJOR_LAYOUT), 2, cluster_axis=axis)


def convolve_with_halo(mesh, axis: int) -> None:
    cores = ttnn.CoreRangeSet({ttnn.CoreRange(ttnn.CoreCoord(0, 0), ttnn.CoreCoord(7, 7))})
    neighbour, barrier = (ttnn.create_global_semaphore(mesh, cores, 0) for _ in range(2))
    rows = ttnn.zeros((1, 8, 16, 64), device=mesh)
    rows = ttnn.experimental.neighbor_pad_async(rows, [1], [1], [1], "zeros", [axis], [neighbour], [barrier])
    ttnn.conv2d(
        input_tensor=ttnn.reshape(rows, (1, 1, 160, 64)),
        weight_tensor=ttnn.from_torch(torch.ones(32, 64, 3, 3), dtype=ttnn.bfloat16),
        bias_tensor=ttnn.from_torch(torch.ones(1, 1, 1, 32), dtype=ttnn.bfloat16),
        device=mesh,
        in_channels=64,
        out_channels=32,
        batch_size=1,
        input_height=10,
        input_width=16,
        kernel_size=(3, 3),
        padding=(0, 1),
        conv_config=ttnn.Conv2dConfig(),
        return_output_dim=True,
        return_weights_and_bias=True,
    )


def edit(mesh, checkpoint, precision: str, width: int, height: int, text_tokens: int) -> None:
    """One step."""
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=mesh, precision=precision)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": height, "width": width, "max_area": height * width, "_auto_resize": False}
    more = {"num_inference_steps": 1, "max_sequence_length": text_tokens, "output_type": "pt"}
    pipe(picture(width, height), "make it blue", **more, **size)


@pytest.mark.parametrize("system, least", [pytest.param("n300", 300, marks=pytest.mark.slow), ("t3k", 300)])
def test_real_ttnn_gives_tensors_of_the_same_form(system, least, tiny_checkpoint, tmp_path):
    with open_device(f"emulated:{system}") as mesh, Recorder() as recorder:
        work(mesh)
        # Tokens, and rows of the VAE's maps, do not fill all chips, so that there is padding to mask.
        edit(mesh, tiny_checkpoint, "bf16", 64, 80, 32)
        edit(mesh, tiny_checkpoint, "bfp8_mixed", 112, 112, 128)  # and here there is none but at the end
    calls, file = list(recorder.calls.values()), tmp_path / "calls"
    file.write_bytes(pickle.dumps(calls))
    answers = list(run(system, "tests.mock.replay", {"calls": str(file)}))
    unlike = [f"{calls[a['call']]}: {a['difference']}" for a in answers if a["difference"]]
    print(f"\n{system}: {len(calls)} distinct calls, {len(answers) - len(unlike)} agree")
    assert len(answers) == len(calls) >= least
    assert not unlike, "\n".join(unlike)


def test_tt_nn_refuses_the_same_but_what_is_listed():
    cases = [*CASES, *SIGNATURES]
    refused = {answer["case"]: answer["refused"] for answer in run("n300", "tests.mock.refuse", cases)}
    assert refused == {case: case not in SILENT for case in cases}
