"""What OpenAI's client gets, against what the pipeline gives."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import torch
from PIL import ExifTags, Image

from tests.serving.conftest import png

PROMPT = "make the circle red"
SHORT = {"num_inference_steps": 1, "max_sequence_length": 16}


def gradient(edge: int = 32, turned: int = 0) -> Image.Image:
    return Image.linear_gradient("L").resize((edge, edge)).rotate(turned).convert("RGB")


def opened(file: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(file)))


def expected(server, seed: int, **arguments) -> Image.Image:
    """The same edit, asked of the pipeline."""
    rule = {"height": 32, "width": 32, "max_area": 32 * 32, "_auto_resize": False, "prompt": PROMPT} | SHORT
    pipe = server.service.worker.engine.pipe
    return pipe(generator=torch.Generator().manual_seed(seed), **rule | arguments).images[0]


def same(ours: Image.Image, theirs: Image.Image) -> bool:
    return np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_edit(tiny):
    answer = tiny.client().images.edit(image=png(gradient()), prompt=PROMPT, n=2, extra_body=SHORT | {"seed": 3})
    assert [image.seed for image in answer.data] == [3, 4]
    for image in answer.data:
        assert same(opened(image.b64_json), expected(tiny, image.seed, image=gradient()))
    assert answer.size == "32x32" and answer.output_format == "png"
    assert answer.usage.to_dict() == {
        "input_tokens": 16 + 4,
        "input_tokens_details": {"text_tokens": 16, "image_tokens": 4},
        "output_tokens": 2 * 4,
        "total_tokens": 16 + 4 + 2 * 4,
    }


def test_several_pictures(tiny):
    """The first is edited, the others are looked at, at most as large as results."""
    pictures = [gradient(), gradient(64, turned=90), gradient(32, turned=180)]
    answer = tiny.client().images.edit(image=list(map(png, pictures)), prompt=PROMPT, extra_body=SHORT | {"seed": 0})
    references = [pictures[1].resize((32, 32)), pictures[2]]
    wanted = expected(tiny, 0, image=pictures[0], reference_images=references)
    assert same(opened(answer.data[0].b64_json), wanted)
    assert answer.usage.input_tokens_details.image_tokens == 3 * 4


def test_mask(tiny):
    """Transparent where the picture is painted anew: the rest comes back as it was."""
    mask, white = Image.new("RGBA", (32, 32), "black"), Image.new("L", (32, 32), 0)
    mask.paste((0, 0, 0, 0), (16, 0, 32, 32))
    white.paste(255, (16, 0, 32, 32))
    body = SHORT | {"seed": 0, "strength": 0.9, "num_inference_steps": 2}
    answer = tiny.client().images.edit(image=png(gradient()), mask=png(mask), prompt=PROMPT, extra_body=body)
    ours = opened(answer.data[0].b64_json)
    arguments = {"strength": 0.9, "num_inference_steps": 2}
    assert same(ours, expected(tiny, 0, image=gradient(), mask_image=white, **arguments))
    assert same(ours.crop((0, 0, 16, 32)), gradient().crop((0, 0, 16, 32)))


def test_generation(tiny):
    answer = tiny.client().images.generate(prompt=PROMPT, size="48x16", extra_body=SHORT | {"seed": 1})
    wanted = expected(tiny, 1, height=16, width=48, max_area=48 * 16)
    assert same(opened(answer.data[0].b64_json), wanted) and answer.size == "48x16"


def test_streams(tiny):
    """Partial pictures, and last the picture itself."""
    body = SHORT | {"seed": 2, "num_inference_steps": 4}
    client = tiny.client().images
    events = list(client.edit(image=png(gradient()), prompt=PROMPT, stream=True, partial_images=3, extra_body=body))
    *partial, last = events
    assert [event.type for event in partial] == ["image_edit.partial_image"] * 2  # none in the first two steps
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert all(opened(event.b64_json).size == (32, 32) for event in partial)
    assert last.type == "image_edit.completed" and last.usage.output_tokens == 4
    assert same(opened(last.b64_json), expected(tiny, 2, image=gradient(), num_inference_steps=4))

    events = list(client.generate(prompt=PROMPT, stream=True, n=2, extra_body=SHORT))
    assert [event.type for event in events] == ["image_generation.completed"] * 2


def test_requests_that_wait_run_together(tiny):
    """And have the results that they would have alone."""
    client = tiny.client().images
    with ThreadPoolExecutor(4) as pool:
        bodies = [SHORT | {"seed": seed} for seed in range(4)]
        answers = list(pool.map(lambda body: client.generate(prompt=PROMPT, extra_body=body), bodies))
    for seed, answer in enumerate(answers):
        assert same(opened(answer.data[0].b64_json), expected(tiny, seed))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_formats(tiny, kind):
    """Smaller where they are compressed more; with their parameters, and that an AI made them."""
    sizes = []
    for compression in (90, 10):
        answer = tiny.client().images.generate(
            prompt=PROMPT, output_format=kind, output_compression=compression, extra_body=SHORT | {"seed": 0}
        )
        picture = opened(answer.data[0].b64_json)
        sizes.append(len(answer.data[0].b64_json))
    assert picture.format == kind.upper() and sizes[1] < sizes[0]
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    text = comment[8:].decode("utf-16-be")
    assert text.startswith(f"{PROMPT}\nSteps: 1,") and "Seed: 0, Size: 32x32, Model: tiny" in text
    assert b"digitalsourcetype/trainedAlgorithmicMedia" in picture.info["xmp"]


@pytest.mark.parametrize(
    "fields, code, says",
    [
        ({"quality": "high"}, "invalid_value", "`quality` can be 'auto': what a result costs"),
        ({"background": "transparent"}, "invalid_value", "results have no transparency"),
        ({"response_format": "url"}, "invalid_value", "`response_format` can be 'b64_json'"),
        ({"output_format": "gif"}, "invalid_value", "`output_format` can be 'png', 'jpeg' or 'webp'"),
        ({"style": "vivid"}, "unknown_parameter", "There is no field `style` here"),
        ({"model": "gpt-image-2"}, "model_not_found", "only 'tiny'"),
        ({"n": 11}, "invalid_value", "`n` should be less than or equal to 10"),
        ({"partial_images": 1}, None, "`partial_images` goes with `stream`."),
        ({"output_compression": 50}, None, "PNG loses nothing"),
        ({"size": "large"}, None, "`size` is 'auto' or WIDTHxHEIGHT"),
        ({"size": "40x40"}, None, "`size` must be of multiples of 16 pixels but is '40x40'."),
        ({"size": "0x16"}, None, "multiples of 16"),
        ({"size": "64x16"}, None, "edges of at most 1 to 3"),
        ({"size": "1024x1024"}, None, "`size` may have 1536 pixels at most"),
        ({"extra_body": {"steps": 4}}, "unknown_parameter", "There is no field `steps` here."),
        ({"extra_body": {"num_inference_steps": 101}}, None, "`num_inference_steps` may be 100 at most."),
        ({"extra_body": {"guidance_scale": "high"}}, "invalid_value", "`guidance_scale` should be a valid number"),
        ({"extra_body": {"seed": -1}}, "invalid_value", "`seed` should be greater than or equal to 0."),
        ({"extra_body": {"max_sequence_length": 1000}}, None, "from 1 to 512"),  # the pipeline's sentence
        ({"extra_body": {"strength": 0.5}}, None, "`strength`"),  # which is of a mask
        ({"prompt": ""}, "invalid_value", "`prompt` should"),
    ],
)
def test_refusals(tiny, fields, code, says):
    with pytest.raises(openai.APIStatusError) as caught:
        tiny.client().images.generate(**{"prompt": "a", **fields})
    assert caught.value.status_code == (404 if code == "model_not_found" else 400)
    assert caught.value.code == code and says in caught.value.message
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"image": ("a.png", b"no picture")}, "`image` can't be read: pictures are PNG, JPEG, WEBP."),
        ({"mask": png(Image.new("RGB", (32, 32)))}, "it has no transparency"),
        ({"extra_body": {"image": "text"}, "image": openai.NOT_GIVEN}, "`image` has to be a file."),
        ({"extra_body": {"input_fidelity": "low"}}, "`input_fidelity` can be 'high'"),
    ],
)
def test_refusals_of_edits(tiny, fields, says):
    fields = {"prompt": "a", "image": png(gradient()), **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        tiny.client().images.edit(**fields)
    assert says in caught.value.message


def test_models(tiny):
    client = tiny.client().models
    assert [model.id for model in client.list()] == ["tiny"]
    assert client.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.retrieve("other")


def test_metrics(tiny):
    """Of the tests before, and of this one."""
    tiny.client().images.generate(prompt=PROMPT, extra_body=SHORT | {"num_inference_steps": 2})
    text = tiny.ask("/metrics").said
    for name in ("clip", "t5", "step", "vae decoder"):
        assert f'tt_flux_kontext_phase_seconds_bucket{{le="1200.0",phase="{name}"}}' in text
    (steps,) = [line for line in text.splitlines() if line.startswith("tt_flux_kontext_steps_total ")]
    assert float(steps.split()[1]) >= 2
    assert tiny.outcomes()["ok"] >= 1
