"""Data, models, checkpoints and training. Attacks and penalties arrive here as callables."""

from pinchpoint.learn.data import DataConfig, Dataset, load
from pinchpoint.learn.models import ModelConfig, Normalize, build
from pinchpoint.learn.train import Epoch, TrainConfig, train

__all__ = ["DataConfig", "Dataset", "Epoch", "ModelConfig", "Normalize", "TrainConfig", "build", "load", "train"]
