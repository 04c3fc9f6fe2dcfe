"""Networks: built by name, saved as checkpoints, opened from what other people have."""

from pinchpoint.models.build import ModelConfig, Normalize, build

__all__ = ["ModelConfig", "Normalize", "build"]
