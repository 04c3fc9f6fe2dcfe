"""From what a source lists to the three parts of a data set on disk."""

from __future__ import annotations

from collections.abc import Mapping

from pinchpoint.data.config import DataConfig
from pinchpoint.data.decode import decode
from pinchpoint.data.listing import Geometry, Listing, Role
from pinchpoint.data.split import in_turn, stratified
from pinchpoint.data.streamed import FilePart, Loading, NoPart, StreamedDataset
from pinchpoint.errors import ConfigError, DataError


def assemble(
    config: DataConfig,
    listed: Mapping[Role, Listing],
    classes: int | tuple[str, ...],
    image_size: int | None,
) -> StreamedDataset:
    """Parts of their own are kept; a missing test part is the validation part, or ``test_share`` of the images; a missing
    validation part is ``validation_share`` of the training part. Within a part one image of each class comes in turn.

    Images of which no class has two cannot be split: all are test, and training is refused.

    Args:
        config: limits, shares, size and workers.
        listed: the images of each part of the source.
        classes: of the whole source: their names, or their number where they have none.
        image_size: where the config names none; None: the images' own.

    Raises:
        ConfigError: for a size and a resize that do not go together.
        DataError: where the first image is none, or a class is too small to be split.
    """
    names, count = (None, classes) if isinstance(classes, int) else (classes, len(classes))
    train, validation, test = (listed.get(role) for role in ("train", "validation", "test"))
    if test is None:
        test, validation = validation, None
    whole = listed.get("whole") or (train if test is None else None)
    if whole is not None and whole.singletons:
        train, test = None, whole
    elif whole is not None:
        train, test = _split(whole, config.test_share, config.split_seed)
    assert test is not None  # a source lists something
    test = _first(test, config.limit_test)
    loading = Loading(_geometry(config, test, image_size), config.workers, config.memory_gb)
    tested = FilePart(test, loading, "limit_test")
    if train is None:
        nothing = NoPart(
            tested.input_shape,
            DataError(
                "a training part needs images beside those of the test part",
                f"none in {config.name}",
                "give it folders train and val, or two images and more of each class",
            ),
        )
        return StreamedDataset(config.name, count, nothing, nothing, tested, names)
    train = _first(train, config.limit_train)
    if validation is None:
        train, validation = _split(train, config.validation_share, config.split_seed)
    trained, validated = (FilePart(part, loading, "limit_train") for part in (train, _first(validation, None)))
    return StreamedDataset(config.name, count, trained, validated, tested, names)


def _split(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    larger, smaller = stratified(listing.labels, share, seed)
    return listing.at(larger), listing.at(smaller)


def _first(listing: Listing, limit: int | None) -> Listing:
    return listing.at(in_turn(listing.labels)[:limit])


def _geometry(config: DataConfig, listing: Listing, image_size: int | None) -> Geometry:
    size = config.image_size or image_size
    if size is None:
        if config.resize is not None:
            raise ConfigError("data.resize needs data.image_size", "none", "give both")
        height, width = decode(listing.images[int(listing.rows[0])]).shape[1:]
        return Geometry(height, width, None)
    resize = config.resize or size
    if resize < size:
        raise ConfigError(f"data.resize must be data.image_size ({size}) or more", resize, "make it larger")
    return Geometry(size, size, resize)
