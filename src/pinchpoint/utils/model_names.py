"""What a model may be called on a command line, and the sentence about what is none; nothing heavy is imported."""

from __future__ import annotations

import difflib
import re

from pinchpoint.errors import ConfigError

MODEL_PREFIXES = ("timm", "torchvision", "open_clip", "py")
"""Before a colon: where the model comes from."""


WAYS = (
    "a checkpoint folder, a .safetensors or .pt2 file, timm:NAME, torchvision:NAME, open_clip:NAME or py:MODULE:FACTORY"
)


def unknown_model(spec: str) -> ConfigError:
    """Why a name is none of a model, with what may have been meant.

    >>> unknown_model("tmm:resnet18").remedy
    'perhaps timm:resnet18 is meant'
    """
    prefix, colon, rest = spec.partition(":")
    if colon and re.fullmatch(r"[\w-]{2,}", prefix):
        close = difflib.get_close_matches(prefix, MODEL_PREFIXES[:-1], n=1, cutoff=0.5)
        remedy = f"perhaps {close[0]}:{rest} is meant" if close else "use one of those"
        return ConfigError(f"a model is {WAYS}", spec, remedy)
    remedy = "check the path"
    if re.fullmatch(r"\w+", spec):
        remedy += f", or write timm:{spec} for the network of that name"
    return ConfigError(f"a model is {WAYS}", f"{spec or 'an empty name'}, where there is nothing", remedy)
