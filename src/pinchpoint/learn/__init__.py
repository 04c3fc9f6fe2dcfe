"""Data, models, checkpoints and training. Attacks and penalties arrive here as callables."""

from pinchpoint.learn.data import AnyDataset, Dataset, load
from pinchpoint.learn.data_config import DataConfig
from pinchpoint.learn.models import ModelConfig, Normalize, build
from pinchpoint.learn.train import train
from pinchpoint.learn.train_config import TrainConfig

__all__ = ["AnyDataset", "DataConfig", "Dataset", "ModelConfig", "Normalize", "TrainConfig", "build", "load", "train"]
