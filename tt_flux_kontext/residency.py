"""The models of a checkpoint, and which of them have their weights on the device."""

from tt_flux_kontext.checkpoint import Checkpoint, CheckpointError
from tt_flux_kontext.device import dram_bytes
from tt_flux_kontext.models.clip import CLIPTextEncoder, clip_config
from tt_flux_kontext.models.modulation import Modulation
from tt_flux_kontext.models.t5 import T5Encoder, t5_config
from tt_flux_kontext.models.transformer import Transformer, TransformerConfig
from tt_flux_kontext.models.vae import Decoder, Encoder, VAEConfig
from tt_flux_kontext.models.weights import Weights, survey
from tt_flux_kontext.precision import Precision

# Bytes of DRAM to leave for activations. The VAE's decoder needs most: 1.7e9 for 1024 x 1024 pixels and 3.7e9 for sizes
# whose rows don't fill tiles, as TT-NN's allocator counts them on an N150.
WORKSPACE = 4_000_000_000


class Models:
    """Gives models with their weights on the device, where they stay until another one needs the room.

    Models, in an edit's order: `clip`, `t5`, `vae encoder`, `modulation`, `transformer`, `vae decoder`.

    Raises `CheckpointError`, before anything reaches the device, when a model's files don't fit its config or the
    models don't fit together.
    """

    def __init__(self, checkpoint: Checkpoint, device, precision: Precision):
        self.device = device
        self.precision = precision
        self.vae_config = vae = VAEConfig.from_dict(checkpoint.config("vae", "AutoencoderKL"))
        self.transformer_config = transformer = TransformerConfig.from_dict(
            checkpoint.config("transformer", "FluxTransformer2DModel")
        )
        t5 = t5_config(checkpoint.config("text_encoder_2", "T5EncoderModel"))
        clip = clip_config(checkpoint.config("text_encoder", "CLIPTextModel"))
        for what, given, wanted in (
            ("in_channels", transformer.in_channels, 4 * vae.latent_channels),
            ("joint_attention_dim", transformer.joint_attention_dim, t5.d_model),
            ("pooled_projection_dim", transformer.pooled_projection_dim, clip.hidden_size),
        ):
            if given != wanted:
                raise CheckpointError(
                    f"The transformer's {what} is {given}, but its neighbour in the pipeline gives {wanted}."
                )
        self._models = {
            "clip": ("text_encoder", CLIPTextEncoder, clip),
            "t5": ("text_encoder_2", T5Encoder, t5),
            "vae encoder": ("vae", Encoder, vae),
            "modulation": ("transformer", Modulation, transformer),
            "transformer": ("transformer", Transformer, transformer),
            "vae decoder": ("vae", Decoder, vae),
        }
        self._tensors = {component: checkpoint.tensors(component) for component, *_ in self._models.values()}
        self._bytes = {}
        for component, tensors in self._tensors.items():
            models = {name: rest for name, (owner, *rest) in self._models.items() if owner == component}
            self._bytes |= dict(zip(models, survey(list(models.values()), tensors, precision)))
        self._resident = {}  # the one used last comes last

    def __getitem__(self, name: str):
        """A model with its weights on the device. Whoever asked for it drops it before asking for another."""
        model = self._resident.pop(name, None)
        if model is None:
            self._make_room(self._bytes[name])
            component, model_class, config = self._models[name]
            weights = Weights(self._tensors[component], self.precision, self.device)
            model = model_class(config, weights)
        self._resident[name] = model
        return model

    def release(self, name: str) -> None:
        """Frees a model's weights."""
        del self._resident[name]

    def _make_room(self, needed: int) -> None:
        """Edits need the models in turn, so the one used last is the one needed last: it goes first."""
        while self._resident and dram_bytes(self.device)[0] < needed + WORKSPACE:
            self._resident.popitem()
