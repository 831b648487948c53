"""Every distinct call that emulated runs of all models make, asked of real TT-NN: is its tensor of the same form?"""

import pickle

import pytest
import torch

from reference.make_checkpoint import make_checkpoint
from tests.mock.recording import Recorder
from tests.pcc.test_pipeline import picture
from tt_flux_kontext import FluxKontextPipeline
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.mesh import Mesh, Parallel
from tt_flux_kontext.models.clip import CLIPTextEncoder
from tt_flux_kontext.models.modulation import Modulation
from tt_flux_kontext.models.t5 import T5Encoder
from tt_flux_kontext.models.transformer import Positions, Transformer
from tt_flux_kontext.models.vae import Decoder, Encoder, to_picture, to_tokens
from tt_flux_kontext.models.weights import Weights, upload
from tt_flux_kontext.planner.kontext_dev import ShapeCheckpoint
from tt_flux_kontext.planner.mock_device import run
from tt_flux_kontext.precision import FULL
from tt_flux_kontext.residency import COMPONENTS
from tt_flux_kontext.resolution import image_ids

LEAST = 300  # distinct calls: fewer would mean that the recorder misses some


@pytest.fixture
def calls(request, mesh_device, tiny_checkpoint, tmp_path):
    with Recorder() as recorder:
        for size, precision in (("tiny", "bf16"), ("tiny", "bfp8"), ("odd", "bf16"), ("tiny_schnell", "bf16")):
            folder = tiny_checkpoint if size == "tiny" else make_checkpoint(tmp_path / size, size=size)
            edits(folder, precision, mesh_device)
        edit_of_odd_rows(tiny_checkpoint, mesh_device, *request.param)
        of_real_widths(mesh_device)
    return list(recorder.calls.values())


def edits(checkpoint, precision: str, device) -> None:
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, precision=precision)
    pipe.set_progress_bar_config(disable=True)
    common = {
        "prompt": "make the circle red",
        "num_inference_steps": 2,
        "max_sequence_length": 45,
        "max_area": 96 * 96,
        "_auto_resize": False,
        "output_type": "pt",
    }
    pipe(image=picture(96, 64), **common)
    pipe(image=picture(96, 64), negative_prompt="blue", true_cfg_scale=2.0, height=64, width=64, **common)
    pipe(height=96, width=96, **common)
    pipe(image=picture(96, 64), mask_image=torch.ones(8, 8), reference_images=[picture(64, 64)], **common)
    pipe.edits([{"height": 64, "width": 64} | common] * 2)  # tables of modulation wait on the host


def edit_of_odd_rows(checkpoint, device, width: int, height: int) -> None:
    """At a size whose rows fill no tiles, nor all positions of its maps."""
    pipe = FluxKontextPipeline.from_pretrained(checkpoint, device=device, precision="bf16")
    pipe.set_progress_bar_config(disable=True)
    size = {"width": width, "height": height, "max_area": width * height}
    once = {"num_inference_steps": 1, "max_sequence_length": 32, "output_type": "pt"}
    pipe(picture(width, height), "make it blue", **once, **size)


def of_real_widths(device) -> None:
    """One double and one single block, one T5 layer, CLIP-L and the VAE, on little input; weights have no values."""
    checkpoint, parallel = ShapeCheckpoint(), Parallel(Mesh(device))

    def model(model_class: type, component: str, **layers: int):
        _, read_config = COMPONENTS[component]
        config = read_config(checkpoint.config(component, "") | layers)
        return model_class(config, Weights(checkpoint.tensors(component), FULL, parallel))

    pooled = model(CLIPTextEncoder, "text_encoder")(torch.arange(77))
    context = model(T5Encoder, "text_encoder_2", num_layers=1)(torch.arange(77))
    blocks = {"num_layers": 1, "num_single_layers": 1}
    table = model(Modulation, "transformer", **blocks)([1.0, 0.5], 2.5, pooled)
    reference = model(Encoder, "vae")(torch.zeros(3, 64, 96))
    image = torch.cat([torch.zeros(16, 64), to_tokens(reference)])
    ids = torch.cat([image_ids(4, 4, 0), image_ids(4, 6, 1)])
    config = COMPONENTS["transformer"][1](checkpoint.config("transformer", "") | blocks)
    positions = Positions.of(ids, 77, config, parallel)
    transformer = model(Transformer, "transformer", **blocks)
    table.choose(1)
    placed = parallel.scatter(image, ttnn.bfloat16)
    added = upload(torch.zeros(1, 1, len(image), config.inner_dim), device, ttnn.bfloat16)
    transformer(placed, context, positions, table.step(), added)
    transformer.without_blocks(placed, added, table.step_out())
    to_picture(model(Decoder, "vae")(torch.zeros(16, 64), 64, 64))


@pytest.mark.parametrize(
    "calls", [(208, 176), pytest.param((1104, 944), marks=pytest.mark.slow)], ids=["odd rows", "bucket"], indirect=True
)
def test_real_ttnn_gives_tensors_of_the_same_form(calls, tmp_path, capsys):
    file = tmp_path / "calls"
    file.write_bytes(pickle.dumps(calls))
    differences = {}
    for line in run("n150", "tests.mock.replay", {"calls": str(file)}):
        differences[line["call"]] = line["difference"]
    unlike = [f"{calls[i]}: {difference}" for i, difference in differences.items() if difference]
    agree = sum(not difference for difference in differences.values())
    with capsys.disabled():
        functions = len({call.name for call in calls})
        print(f"\n{len(calls)} distinct calls of {functions} functions replayed on TT-NN's mock device, {agree} agree")
    assert len(differences) == len(calls) >= LEAST
    assert not unlike, "\n".join(unlike)
