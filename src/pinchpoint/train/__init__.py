"""Training. Attacks and penalties arrive here as callables."""

from pinchpoint.train.config import TrainConfig
from pinchpoint.train.train import train

__all__ = ["TrainConfig", "train"]
