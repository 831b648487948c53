"""FLUX.1 Kontext by diffusers: what ours is held against, and the tools that do it."""

import logging

# Importing diffusers' pipelines makes transformers advise torchvision, for image processors that nothing here uses.
logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
