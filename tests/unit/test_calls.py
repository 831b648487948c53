"""Calls of the pipeline: what callbacks may do, latents in place of pictures, threads, and what is too large."""

import threading

import pytest
import torch
from PIL import Image

from reference.accuracy import relative_rmse
from reference.pipeline import load, quiet
from tt_flux_kontext import FluxKontextPipeline, edit, residency
from tt_flux_kontext.denoising import Denoiser
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.residency import DoesNotFit
from tt_flux_kontext.resolution import pack_latents, unpack_latents

PROMPT = "make the circle red"
FAST = {"max_area": 64 * 64, "_auto_resize": False, "max_sequence_length": 32, "num_inference_steps": 3}
SIZE = {"height": 48, "width": 80, "max_area": 48 * 80}


@pytest.fixture
def pipe(tiny_checkpoint, mesh_device):
    pipe = FluxKontextPipeline.from_pretrained(tiny_checkpoint, device=mesh_device, precision="bf16")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, seed: int = 0, **arguments):
    arguments = FAST | {"prompt": PROMPT, "output_type": "latent"} | arguments
    return pipe(generator=torch.Generator().manual_seed(seed), **arguments).images


def picture(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


class TestCallbacks:
    @pytest.mark.parametrize("name", ["interrupt", "_interrupt"])
    def test_interrupt(self, pipe, name):
        """After the step, as in diffusers: the latents are those of that step."""
        seen = []

        def stop(pipe, step, timestep, tensors):
            seen.append(tensors["latents"].clone())
            setattr(pipe, name, step == 1)
            return {}

        result = run(pipe, callback_on_step_end=stop)
        assert len(seen) == 2 and torch.equal(result, seen[1])
        assert pipe.interrupt
        run(pipe, callback_on_step_end=lambda pipe, *rest: seen.append(pipe.interrupt))
        assert seen[2:] == [False] * 3  # of the next call

    def test_interrupt_from_another_thread(self, pipe):
        begun, steps = threading.Event(), []

        def slow(pipe, step, timestep, tensors):
            steps.append(step)
            begun.set()
            other.join()

        other = threading.Thread(target=lambda: begun.wait() and setattr(pipe, "interrupt", True))
        other.start()
        run(pipe, callback_on_step_end=slow)
        assert steps == [0]

    def test_attributes(self, pipe):
        """Those that callbacks written for diffusers read."""
        seen = {}

        def read(pipe, step, timestep, tensors):
            seen.update(steps=pipe.num_timesteps, guidance=pipe.guidance_scale, components=sorted(pipe.components))

        run(pipe, callback_on_step_end=read, guidance_scale=2.5)
        assert seen["steps"] == 3 and seen["guidance"] == 2.5
        theirs = load(pipe._editor.models._tensors["vae"].folder.parent)
        assert seen["components"] == sorted(theirs.components)
        assert pipe.vae_scale_factor == theirs.vae_scale_factor
        assert pipe._callback_tensor_inputs == theirs._callback_tensor_inputs
        run(pipe, sigmas=[1.0, 0.4])
        assert pipe.num_timesteps == 2

    def test_changes_in_place(self, pipe):
        """Count like those that are returned, which go first."""
        names = ["latents", "prompt_embeds"]

        def in_place(pipe, step, timestep, tensors):
            tensors["latents"].mul_(0.5)
            tensors["prompt_embeds"].add_(1.0)

        def returned(pipe, step, timestep, tensors):
            return {"latents": tensors["latents"] * 0.5, "prompt_embeds": tensors["prompt_embeds"] + 1.0}

        def both(pipe, step, timestep, tensors):
            latents, embeds = tensors["latents"] * 0.5, tensors["prompt_embeds"] + 1.0
            tensors["latents"].zero_()
            tensors["prompt_embeds"].zero_()
            return {"latents": latents, "prompt_embeds": embeds}

        first, *others = (
            run(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
            for callback in (in_place, returned, both)
        )
        assert all(torch.equal(first, other) for other in others)
        assert not torch.equal(first, run(pipe))

    @pytest.mark.parametrize(
        "name,change,match",
        [
            ("latents", lambda x: x[:, :-1], r"must be a tensor of shape \[2, 16, 64\] but is \[2, 15, 64\]"),
            ("latents", lambda x: x[:1], r"but is \[1, 16, 64\]"),
            ("latents", lambda x: x.numpy(), "but is ndarray"),
            ("latents", lambda x: x * torch.nan, "`latents` from the callback has values that are NaN"),
            ("prompt_embeds", lambda x: x[:, :8], r"`prompt_embeds` .* shape \[2, 32, 96\] but is \[2, 8, 96\]"),
            ("prompt_embeds", lambda x: x * torch.tensor([1.0, 2.0])[:, None, None], "equal for all results"),
        ],
    )
    def test_results_that_can_not_be_used(self, pipe, name, change, match):
        def callback(pipe, step, timestep, tensors):
            return {name: change(tensors[name])}

        with pytest.raises(ValueError, match=match):
            run(
                pipe,
                num_images_per_prompt=2,
                callback_on_step_end=callback,
                callback_on_step_end_tensor_inputs=[name],
            )


class TestLatents:
    def test_encoded(self, pipe):
        """An edit of encoded pictures is that of the pictures."""
        latents = pipe.encode(picture(80, 48), _auto_resize=False)
        assert latents.shape == (1, 16, 6, 10)
        assert torch.equal(run(pipe, image=latents), run(pipe, image=picture(80, 48)))

    def test_encoded_as_by_diffusers(self, pipe, tiny_checkpoint):
        theirs = load(tiny_checkpoint)
        image = theirs.image_processor.preprocess(picture(80, 48))
        with torch.no_grad():
            expected = theirs._encode_vae_image(image, None)
        latents = pipe.encode(picture(80, 48), _auto_resize=False)
        assert (latents - expected).norm() / expected.norm() < 0.02

    def test_decoded(self, pipe):
        latents = run(pipe, **SIZE)
        decoded = pipe.decode(latents, 48, 80, output_type="pt")
        assert torch.equal(decoded, run(pipe, output_type="pt", **SIZE))
        (pil,) = pipe.decode(latents, 48, 80)
        assert pil.size == (80, 48)

    def test_decoded_of_encoded(self, pipe):
        """Maps and packed latents are the same pictures."""
        latents = pipe.encode(picture(80, 48), _auto_resize=False)
        packed = pack_latents(latents)
        assert torch.equal(*(pipe.decode(each, 48, 80, output_type="pt") for each in (latents, packed)))

    def test_packed(self, pipe):
        """Of an earlier edit, as its picture's latents."""
        packed = run(pipe, **SIZE)
        latents = unpack_latents(packed, 48, 80, 8, "image")
        assert torch.equal(run(pipe, image=packed, **SIZE), run(pipe, image=latents))

    @pytest.mark.parametrize(
        "arguments,match",
        [
            ((torch.zeros(1, 16, 64), 48, 80), r"must have the shape \[1, 15, 64\] .* but it is \[1, 16, 64\]"),
            ((torch.zeros(1, 15, 64), 56, 80), "`height` and `width` must be multiples of 16 but are 56 and 80"),
            ((torch.zeros(1, 16, 5, 10), 48, 80), "even height and width"),
            ((torch.zeros(1, 4, 6, 10), 48, 80), "must have the shape"),
            ((torch.full((1, 15, 64), torch.nan), 48, 80), "`latents` has values that are NaN"),
            ((torch.zeros(1, 15, 64), 48, 80, "latent"), "`output_type` must be one of pil, np, pt"),
            ((torch.zeros(15, 64), 48, 80), "must have the shape"),
        ],
    )
    def test_what_can_not_be_decoded(self, pipe, mesh_device, arguments, match):
        free = dram_bytes(mesh_device)
        with pytest.raises(ValueError, match=match):
            pipe.decode(*arguments)
        assert dram_bytes(mesh_device) == free

    def test_what_can_not_be_encoded(self, pipe):
        for image in (None, torch.zeros(1, 16, 8, 8)):
            with pytest.raises(ValueError, match="has to be a picture"):
                pipe.encode(image)

    def test_that_are_no_numbers(self, pipe, monkeypatch):
        """Never become a picture."""
        step = Denoiser.step

        def spoilt(self, *arguments):
            step(self, *arguments)
            self.images.replace(torch.full((1, 16, 64), torch.nan))

        monkeypatch.setattr(Denoiser, "step", spoilt)
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            run(pipe, output_type="pil")


class TestTurns:
    def test_threads_wait_for_each_other(self, pipe):
        alone = [run(pipe, seed) for seed in range(4)]
        found = [None] * 4

        def one(seed):
            found[seed] = run(pipe, seed)

        threads = [threading.Thread(target=one, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(*pair) for pair in zip(alone, found, strict=True))

    @pytest.mark.parametrize("again", [run, lambda pipe: pipe.encode(picture(64, 64))], ids=["edit", "encode"])
    def test_callbacks_that_call_their_pipeline(self, pipe, again):
        """Would wait for themselves: they are told, and the pipeline is free again."""
        with pytest.raises(RuntimeError, match="A callback can't call the pipeline that is calling it"):
            run(pipe, callback_on_step_end=lambda pipe, *rest: again(pipe))
        run(pipe)


class TestTooLarge:
    @pytest.mark.parametrize(
        "arguments",
        [
            {"num_images_per_prompt": 10**9},
            {"height": 10**6, "width": 10**6, "max_area": 10**12},
            {"height": 10**6, "width": 10**6, "max_area": 10**12, "image": picture(8, 8), "_auto_resize": True},
            {"max_area": 10**18},
            {"num_inference_steps": 10**12},
            {"prompt": [PROMPT] * 10**5, "num_images_per_prompt": 10**5},
        ],
        ids=["results", "pixels", "reference", "area", "steps", "prompts"],
    )
    def test_is_refused_before_it_is_made(self, pipe, mesh_device, arguments):
        free = dram_bytes(mesh_device)
        with pytest.raises(DoesNotFit):
            run(pipe, **arguments)
        assert dram_bytes(mesh_device) == free

    def test_for_the_device_before_noise_and_pictures_are_made(self, pipe, monkeypatch):
        """Where this machine could hold it."""
        monkeypatch.setattr(residency, "host_memory", lambda: (10**18, 10**18))
        for made in ("randn_tensor", "prepare"):
            monkeypatch.setattr(f"tt_flux_kontext.call.{made}", lambda *args, **kwargs: pytest.fail("was made"))
        with pytest.raises(DoesNotFit, match="DRAM in bf16"):
            run(pipe, num_images_per_prompt=10**9, image=picture(64, 64))

    def test_to_encode_or_to_decode(self, pipe, monkeypatch):
        large = {"height": 10**6, "width": 10**6, "max_area": 10**12}
        with pytest.raises(DoesNotFit, match="of this machine's memory"):
            pipe.encode(picture(64, 64), **large)
        monkeypatch.setattr(residency, "host_memory", lambda: (10**18, 10**18))
        with pytest.raises(DoesNotFit, match="DRAM in bf16"):
            pipe.encode(picture(64, 64), **large)
        monkeypatch.setattr(residency, "dram_bytes", lambda device: (0, residency.LASTING))
        with pytest.raises(DoesNotFit, match="DRAM in bf16"):
            pipe.decode(torch.zeros(1, 15, 64), 48, 80)

    def test_a_million_steps(self, pipe):
        """Their modulation is computed some at a time; nothing is a million wide."""

        def stop(pipe, step, timestep, tensors):
            pipe.interrupt = step == 1

        run(pipe, num_inference_steps=10**6, callback_on_step_end=stop)
        assert pipe.num_timesteps == 10**6

    def test_tables_of_some_steps_at_a_time(self, pipe, monkeypatch):
        """Give what one table gives but for rounding, with the models making room for each other too."""
        whole = run(pipe, num_inference_steps=5)
        monkeypatch.setattr(edit, "TABLE_STEPS", 2)
        steps = []
        parts = run(pipe, num_inference_steps=5, callback_on_step_end=lambda *a: steps.append(a[1]))
        assert relative_rmse(parts, whole) < 0.01
        assert steps == list(range(5))
        monkeypatch.setattr(residency, "dram_bytes", lambda device: (0, dram_bytes(device)[1]))
        assert torch.equal(parts, run(pipe, num_inference_steps=5))


def test_as_diffusers_with_a_text_and_negative_embeddings(pipe, tiny_checkpoint):
    """Of another number of tokens; and the other way round; and one `prompt_2` for several prompts."""
    theirs = load(tiny_checkpoint)
    with quiet(), torch.no_grad():
        embeds, pooled, _ = theirs.encode_prompt("blue", max_sequence_length=20)
    negative = {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled, "true_cfg_scale": 2.0}
    positive = {"prompt": None, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    for arguments in (
        negative,
        positive | {"negative_prompt": PROMPT, "true_cfg_scale": 2.0},
    ):
        with quiet():
            expected = run(theirs, **SIZE, **arguments)
        result = run(pipe, **SIZE, **arguments)
        assert (result - expected).norm() / expected.norm() < 0.02
    both = run(pipe, prompt=["a", "b"], prompt_2="c", num_inference_steps=1)
    assert torch.equal(both, run(pipe, prompt=["a", "b"], prompt_2=["c", "c"], num_inference_steps=1))
    assert torch.equal(run(pipe, prompt_2=""), run(pipe))
