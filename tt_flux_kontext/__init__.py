"""FLUX.1 Kontext [dev] on Tenstorrent TT-NN."""

from tt_flux_kontext.device import open_device
from tt_flux_kontext.pipeline import FluxKontextPipeline

__all__ = ["FluxKontextPipeline", "open_device"]
