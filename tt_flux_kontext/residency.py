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

WORKSPACE = 2_500_000_000  # bytes of DRAM for activations: a 1024 x 1024 VAE decode takes most


class Models:
    """Gives models with their weights on the device. They stay there as long as it can hold all of them at once.

    Models: `clip`, `t5`, `vae encoder`, `modulation`, `transformer`, `vae decoder`.

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
        total = 0
        for component, tensors in self._tensors.items():
            models = [(model, config) for name, model, config in self._models.values() if name == component]
            total += sum(survey(models, tensors, precision))
        self._keeps_all = total + WORKSPACE < dram_bytes(device)[1]
        self._resident = {}

    def __getitem__(self, name: str):
        """A model with its weights on the device. Whoever asked for it drops it before `release`."""
        if name not in self._resident:
            component, model_class, config = self._models[name]
            weights = Weights(self._tensors[component], self.precision, self.device)
            self._resident[name] = model_class(config, weights)
        return self._resident[name]

    def release(self, name: str) -> None:
        """Frees a model's weights unless all fit. The modulation's are of no use to the steps, and always go."""
        if name == "modulation" or not self._keeps_all:
            self._resident.pop(name, None)
