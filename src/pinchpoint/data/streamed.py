"""Data sets that stay on disk: images are decoded by worker processes when a batch asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from pinchpoint.data.listing import Geometry, Listing
from pinchpoint.data.part import Part
from pinchpoint.errors import DataError

_GB = 1e9


@dataclass(frozen=True)
class Loading:
    """How files become batches.

    Attributes:
        geometry: the size the images are brought to.
        workers: processes that decode; 0: none, the caller waits.
        memory_gb: the most that ``tensors`` may take.
    """

    geometry: Geometry
    workers: int = 0
    memory_gb: float = 8.0


class FilePart:
    """A part decoded from files. Batches come in the order asked for, whatever the number of workers.

    Args:
        listing: its images, in its order.
        loading: size, workers, memory.
        limit: the option that makes this part smaller, for the error that says so.
    """

    def __init__(self, listing: Listing, loading: Loading, limit: str) -> None:
        self.listing, self.loading, self.limit = listing, loading, limit
        self.labels: Int[Tensor, "samples"] = torch.from_numpy(listing.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return 3, self.loading.geometry.height, self.loading.geometry.width

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """One (x, y) for each tensor of row numbers, in that order.

        Raises:
            DataError: naming a file that is no image, when its turn has come.
        """
        rows = [chosen.cpu() for chosen in rows]
        loader = DataLoader(
            _Decoder(self.listing, self.loading.geometry),
            batch_sampler=[chosen.tolist() for chosen in rows],
            num_workers=min(self.loading.workers, len(rows)),
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        try:
            for chosen, decoded in zip(rows, loader, strict=True):
                if isinstance(decoded, DataError):
                    raise decoded
                x = decoded.to(device, non_blocking=True).float() / 255
                yield x, self.labels[chosen].to(device, non_blocking=True)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            seen = str(error).splitlines()[0]
            raise DataError("the processes that decode images must live", seen, "set data.workers to 0") from None

    def tensors(self, samples: int | None = None) -> tuple[Float[Tensor, "some *shape"], Int[Tensor, "some"]]:
        """The first samples (all where None), decoded into memory on the CPU.

        Raises:
            DataError: where they need more memory than is allowed, or a file is no image.
        """
        count = len(self) if samples is None else min(samples, len(self))
        size = 4 * count * torch.Size(self.input_shape).numel() / _GB
        if size > self.loading.memory_gb:
            raise DataError(
                f"images held in memory may take {self.loading.memory_gb:g} GB",
                f"{size:.3g} GB for {count} of {'x'.join(map(str, self.input_shape))}",
                f"set data.{self.limit} to {int(count * self.loading.memory_gb / size)} or less, or raise data.memory_gb",
            )
        x = torch.empty(count, *self.input_shape)
        start = 0
        for part, _ in self.batches(torch.arange(count).split(64), torch.device("cpu")):
            x[start : start + len(part)] = part
            start += len(part)
        return x, self.labels[:count]


@dataclass(frozen=True)
class NoPart:
    """A part without samples; using it is refused with ``error``."""

    input_shape: tuple[int, ...]
    error: DataError

    @property
    def labels(self) -> Int[Tensor, "0"]:
        """None."""
        return torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return 0

    def batches(self, rows: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Refused."""
        raise self.error

    def tensors(self, samples: int | None = None) -> tuple[Tensor, Tensor]:
        """Refused."""
        raise self.error


@dataclass(frozen=True)
class StreamedDataset:
    """A data set on disk. ``x_train`` and so on are decoded when first asked for, and only where they are small."""

    name: str
    classes: int
    train: Part
    validation: Part
    test: Part
    class_names: tuple[str, ...] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return self.test.input_shape

    @cached_property
    def x_train(self) -> Float[Tensor, "train *shape"]:
        """All training images."""
        return self.train.tensors()[0]

    @property
    def y_train(self) -> Int[Tensor, "train"]:
        """The training labels."""
        return self.train.labels

    @cached_property
    def x_validation(self) -> Float[Tensor, "validation *shape"]:
        """All validation images."""
        return self.validation.tensors()[0]

    @property
    def y_validation(self) -> Int[Tensor, "validation"]:
        """The validation labels."""
        return self.validation.labels

    @cached_property
    def x_test(self) -> Float[Tensor, "test *shape"]:
        """All test images."""
        return self.test.tensors()[0]

    @property
    def y_test(self) -> Int[Tensor, "test"]:
        """The test labels."""
        return self.test.labels


class _Decoder(torch.utils.data.Dataset[Tensor]):
    """Runs in the worker processes. An error travels as a value: raised there, it would come back as another type."""

    def __init__(self, listing: Listing, geometry: Geometry) -> None:
        self.listing, self.geometry = listing, geometry

    def __getitems__(self, wanted: list[int]) -> UInt8[Tensor, "batch 3 height width"] | DataError:
        from pinchpoint.data.decode import decode  # Pillow is needed by nobody else

        try:
            images = [decode(self.listing.images[int(self.listing.rows[row])], self.geometry) for row in wanted]
        except DataError as error:
            return error
        return torch.stack(images) if images else torch.empty(0, 3, *self.geometry[:2], dtype=torch.uint8)


def _as_it_is(batch: object) -> object:
    return batch
