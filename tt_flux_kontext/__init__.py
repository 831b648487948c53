"""FLUX.1 Kontext [dev] on Tenstorrent TT-NN."""

from tt_flux_kontext.device import open_device, submeshes
from tt_flux_kontext.turns import side_by_side

__all__ = ["FluxKontextPipeline", "open_device", "side_by_side", "submeshes"]


def __getattr__(name: str):
    """The pipeline at its first use: diffusers and transformers take seconds to import, and not all need them."""
    if name != "FluxKontextPipeline":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from tt_flux_kontext.pipeline import FluxKontextPipeline

    return FluxKontextPipeline
