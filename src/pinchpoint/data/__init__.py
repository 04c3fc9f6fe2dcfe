"""Data sets: found by name, split, held in memory or decoded as they are needed."""

from pinchpoint.data.config import DataConfig
from pinchpoint.data.load import AnyDataset, Dataset, load

__all__ = ["AnyDataset", "DataConfig", "Dataset", "load"]
