"""Images from encoded files, by Pillow: no file is trusted, and what cannot be decoded is named in one sentence."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from pinchpoint.data.listing import Encoded, Geometry
from pinchpoint.errors import DataError

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # of Pillow's; PostScript, for one, would run a program
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_AS_32 = ("PNG", "PPM")  # formats of whose 16 bits Pillow may make the mode I
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF 6.0, section 4
_MOST_PIXELS = 2**26


def decode(encoded: Encoded, geometry: Geometry | None = None) -> UInt8[Tensor, "3 height width"]:
    """The image in RGB (grey is repeated, transparency dropped), of its own size where no geometry is given.

    16 bits a channel become 8, 65535 as 255: grey is rounded to the nearest; of colours Pillow takes the upper byte.

    Photographs are turned as their EXIF orientation says, before anything else.
    Resizing is bicubic with antialiasing (Pillow's), rounding as torchvision's ``Resize`` and ``CenterCrop``.

    Raises:
        DataError: naming the file, where it is no whole image of 8 or 16 bits, a known format and a sane size.
    """
    source = encoded.name if encoded.content is None else io.BytesIO(encoded.content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source, formats=_FORMATS) as image:
                _check_size(encoded.name, image)
                _check_mode(encoded.name, image)
                rgb = _fitted(encoded.name, _rgb(image), geometry)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(encoded.name, str(error)) from None
    except Exception as error:  # a decoder may say anything
        seen = f"{encoded.name} ({(str(error) or type(error).__name__).splitlines()[0]})"
        raise DataError("an image file must be a whole image", seen, "replace it or take it away") from None
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def _check_size(name: str, image: Image.Image) -> None:
    if image.width * image.height > _MOST_PIXELS:
        raise _too_large(name, f"{image.width}x{image.height}")


def _check_mode(name: str, image: Image.Image) -> None:
    sixteen = image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in _SIXTEEN_AS_32)
    if not sixteen and image.mode not in _EIGHT_BITS:
        rule = "an image must have 8 bits a channel, or 16 without a sign"
        raise DataError(rule, f"{name} of mode {image.mode}", "convert it")


def _rgb(image: Image.Image) -> Image.Image:
    """8 bits a channel, the right way up."""
    turned = ImageOps.exif_transpose(image)
    if image.mode in _EIGHT_BITS:
        return turned.convert("RGB")
    tags = getattr(image, "tag_v2", {})  # a TIFF may have 12 bits, and may have white as 0
    white = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    values = np.asarray(turned).astype(np.float64)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


def _fitted(name: str, image: Image.Image, geometry: Geometry | None) -> Image.Image:
    if geometry is None:
        return image
    height, width, resize = geometry
    if resize is not None:
        shorter = min(image.size)
        wanted = tuple(int(resize * side / shorter) for side in image.size)
        if wanted[0] * wanted[1] > _MOST_PIXELS:
            raise _too_large(name, f"{image.width}x{image.height}, resized {wanted[0]}x{wanted[1]}")
        if wanted != image.size:
            image = image.resize((wanted[0], wanted[1]), Image.Resampling.BICUBIC)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    if image.size != (width, height):
        raise DataError(
            f"images must all have one size, {width}x{height} as the first",
            f"{image.width}x{image.height} in {name}",
            "set data.image_size, for example 224",
        )
    return image


def _too_large(name: str, seen: str) -> DataError:
    return DataError(
        f"an image may have {_MOST_PIXELS} pixels at most", f"{name} ({seen})", "replace it or take it away"
    )
