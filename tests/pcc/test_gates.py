"""Planted mistakes: each is one that ports of Flux made or could make, and a test of this folder must catch it."""

import pytest
import torch

from tests.pcc import test_pipeline, test_text_encoders, test_transformer, test_vae
from tt_flux_kontext import resolution
from tt_flux_kontext.backend import ttnn
from tt_flux_kontext.models import clip, layers, modulation, rope, t5, vae


def guidance_not_scaled(monkeypatch):
    embed = modulation.Modulation._upload
    monkeypatch.setattr(
        modulation.Modulation,
        "_upload",
        lambda self, values: embed(
            self, [v / 1000 for v in values] if values == [test_transformer.GUIDANCE] else values
        ),
    )


def scale_and_shift_swapped(monkeypatch):
    adaptive = modulation.Adaptive

    def swapped(shift, scale, gate=None):
        return adaptive(ttnn.subtract(scale, 1.0), ttnn.add(shift, 1.0), gate)

    monkeypatch.setattr(modulation, "Adaptive", swapped)


def half_split_rope(monkeypatch):
    """Pairs are 16 features apart in each tile, instead of neighbours."""
    tables = rope.rope_tables

    def halves(ids, axes_dims):
        return tuple(
            table[:, ::2].unflatten(1, (-1, 16)).repeat(1, 1, 2).flatten(1) for table in tables(ids, axes_dims)
        )

    def rotation():
        result = torch.zeros(32, 32)
        result[torch.arange(16) + 16, torch.arange(16)] = -1
        result[torch.arange(16), torch.arange(16) + 16] = 1
        return result

    monkeypatch.setattr(rope, "rope_tables", halves)
    monkeypatch.setattr(rope, "pair_rotation", rotation)


def reference_ids_start_with_0(monkeypatch):
    ids = resolution.image_ids
    monkeypatch.setattr(resolution, "image_ids", lambda rows, columns, index: ids(rows, columns, 0))


def erf_gelu(monkeypatch):
    build = layers.Linear.__init__

    def erf(self, *args, activation=None, **kwargs):
        build(self, *args, activation="GELU" if activation == "GELU_TANH" else activation, **kwargs)

    monkeypatch.setattr(layers.Linear, "__init__", erf)


def sample_of_the_posterior(monkeypatch):
    moments = vae.Encoder.moments

    def sample(self, image, rows):
        x = moments(self, image, rows)
        mean, log_variance = x.rows.fetch(x.values).chunk(2, dim=-1)
        drawn = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * torch.randn_like(mean)
        values = torch.cat([drawn, log_variance], dim=-1)
        return x._replace(values=ttnn.to_device(x.rows.on_host(values, ttnn.bfloat16), self.device))

    monkeypatch.setattr(vae.Encoder, "moments", sample)


def symmetric_downsampling(monkeypatch):
    build = vae.Conv2d.__init__

    def symmetric(self, *args, padding=(1, 1, 1, 1), **kwargs):
        build(self, *args, padding=(1, 1, 1, 1) if padding == (0, 1, 0, 1) else padding, **kwargs)

    monkeypatch.setattr(vae.Conv2d, "__init__", symmetric)


def t5_attention_scaled(monkeypatch):
    attention = layers.biased_attention
    monkeypatch.setattr(t5, "biased_attention", lambda *args: attention(*args, scale=32**-0.5))


def clip_pooled_at_the_last_token(monkeypatch):
    monkeypatch.setattr(clip, "end_of_text", lambda ids, eos_token_id: len(ids) - 1)


def reference_stretched_to_the_output(monkeypatch):
    monkeypatch.setattr(resolution, "reference_size", lambda *args: (96, 96))


MODULES = {
    guidance_not_scaled: test_transformer.test_time_guidance_text_embedding,
    scale_and_shift_swapped: test_transformer.test_double_block,
    half_split_rope: test_transformer.test_query_norm_and_rope,
    erf_gelu: test_transformer.test_gelu_tail,
    sample_of_the_posterior: test_vae.test_encoder,
    symmetric_downsampling: test_vae.test_encoder,
    clip_pooled_at_the_last_token: test_text_encoders.test_clip,
    t5_attention_scaled: test_text_encoders.test_t5_layer,
}


@pytest.mark.parametrize("mistake", MODULES, ids=lambda mistake: mistake.__name__)
def test_module_tests_catch(mistake, monkeypatch, reset_seeds, mesh_device, check_accuracy):
    mistake(monkeypatch)
    with pytest.raises(AssertionError, match="relative RMSE"):
        MODULES[mistake](mesh_device, check_accuracy, "tiny")


@pytest.mark.parametrize(
    "mistake", [reference_ids_start_with_0, reference_stretched_to_the_output], ids=lambda mistake: mistake.__name__
)
def test_pipeline_tests_catch(mistake, monkeypatch, reset_seeds, mesh_device, tiny_checkpoint, check_accuracy):
    mistake(monkeypatch)
    with pytest.raises(AssertionError, match="relative RMSE"):
        test_pipeline.test_edit(mesh_device, tiny_checkpoint, check_accuracy)
