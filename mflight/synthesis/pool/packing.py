"""A pool sample as tar members and back. No torch, no pickle."""

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from PIL import Image

from mflight.synthesis.pool.index import PoolError, RequestAnswer

_SUFFIX_OF_START = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png"}
_BLOCK = tarfile.BLOCKSIZE
_FOREIGN = "sample {}: its members are not a sample's ({})"
_SAMPLE_ID = re.compile(r"^[A-Za-z0-9_-]{1,80}$")  # no dot: WebDataset takes the name up to the first one


@dataclass(frozen=True)
class PoolSample:
    """One synthetic image with its instances.

    Attributes:
        sample_id: 1 to 80 letters, digits, ``_`` or ``-``; unique in the pool.
        image: ``uint8[H, W, 3]``, RGB.
        annotations: per instance ``{"category_id", "region", "bbox": [x, y, w, h] px, "area": px²,
            "segmentation": RLE}``.
        regions: per region ``{"category_id", "box": [x1, y1, x2, y2] px, "rejected": None | rule name}``.
        provenance: what is needed to make the sample again; JSON values.
    """

    sample_id: str
    image: np.ndarray
    annotations: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class EncodedSample:
    """One synthetic image as a file, with its instances; to pass a sample on without encoding it again.

    Attributes:
        sample_id: as in ``PoolSample``.
        picture: bytes of a JPEG or PNG file.
        annotations: as in ``PoolSample``.
        regions: as in ``PoolSample``.
        provenance: as in ``PoolSample``.
    """

    sample_id: str
    picture: bytes
    annotations: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    provenance: dict[str, Any]


def answer_of(sample: PoolSample | EncodedSample, index: int) -> RequestAnswer:
    """Return what the index says of a sample, given the number of its request."""
    return RequestAnswer(
        request_id=sample.sample_id,
        index=index,
        regions=verdicts(sample.regions),
        category_ids=tuple(annotation["category_id"] for annotation in sample.annotations),
    )


def verdicts(regions: Iterable[dict[str, Any]]) -> tuple[tuple[int, str | None], ...]:
    """Return ``(category_id, rule that rejected it or None)`` of each region."""
    return tuple((region["category_id"], region.get("rejected")) for region in regions)


def encode_sample(
    sample: PoolSample | EncodedSample, image_format: Literal["jpeg", "png"], jpeg_quality: int
) -> bytes:
    """Pack a sample as tar members ``<sample_id>.jpg`` (or ``.png``) and ``<sample_id>.json``.

    Args:
        sample: the image and its instances.
        image_format: ``"jpeg"`` or ``"png"``; an encoded sample keeps its own.
        jpeg_quality: 1 to 100.

    Returns:
        The members with their headers, padded to 512 bytes.

    Raises:
        PoolError: if the id or the image is not of the form that ``PoolSample`` or ``EncodedSample`` states.
    """
    if not _SAMPLE_ID.fullmatch(sample.sample_id):
        raise PoolError(f"a sample_id is 1 to 80 letters, digits, '_' or '-', got {sample.sample_id!r}")
    encoded = isinstance(sample, EncodedSample)
    picture = sample.picture if encoded else _encode_image(sample, image_format, jpeg_quality)
    if (suffix := suffix_of(picture)) is None:
        raise PoolError(f"sample {sample.sample_id}: picture must be a JPEG or PNG, begins {picture[:8]!r}")
    about = {name: getattr(sample, name) for name in ("sample_id", "annotations", "regions", "provenance")}
    return _tar_member(sample.sample_id + suffix, picture) + _tar_member(
        sample.sample_id + ".json", msgspec.json.encode(about)
    )


def suffix_of(picture: bytes) -> str | None:
    """Return the suffix of an image file by its first bytes, such as ``.jpg``; None for an unknown one."""
    return next((suffix for start, suffix in _SUFFIX_OF_START.items() if picture.startswith(start)), None)


def _encode_image(sample: PoolSample, image_format: str, jpeg_quality: int) -> bytes:
    image = sample.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype}{list(image.shape)}"
        raise PoolError(f"sample {sample.sample_id}: image must be uint8[H, W, 3], got {got}")
    buffer = io.BytesIO()
    if image_format == "png":
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    else:
        # 4:4:4, because halved chroma smears colour over the masks' edges
        Image.fromarray(image).save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    return buffer.getvalue()


def unpack_sample(span: bytes, sample_id: str) -> EncodedSample:
    """Unpack what ``encode_sample`` packed.

    Args:
        span: the tar members.
        sample_id: the id that the members must bear.

    Returns:
        The sample, its image as it is stored.

    Raises:
        PoolError: if the members are not those of a sample of that id.
    """
    try:
        members = dict(_tar_members(span))
        about = msgspec.json.decode(members.pop(".json"))
        (picture,) = members.values()
        sample = EncodedSample(picture=picture, **about)
    except (tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise PoolError(_FOREIGN.format(sample_id, error)) from error
    if not _SAMPLE_ID.fullmatch(sample_id):  # it becomes a file name
        raise PoolError(f"a sample_id is 1 to 80 letters, digits, '_' or '-', the pool holds {sample_id!r}")
    if sample.sample_id != sample_id:
        raise PoolError(f"sample {sample_id}: the shard holds {sample.sample_id!r} at its place")
    return sample


def decode_sample(span: bytes, sample_id: str) -> PoolSample:
    """Unpack what ``encode_sample`` packed, and decode the image.

    Args:
        span: the tar members.
        sample_id: the id that the members must bear.

    Returns:
        The sample.

    Raises:
        PoolError: if the members are not those of a sample of that id.
    """
    sample = unpack_sample(span, sample_id)
    try:
        with Image.open(io.BytesIO(sample.picture), formats=("JPEG", "PNG")) as opened:
            image = np.array(opened if opened.mode == "RGB" else opened.convert("RGB"))
    except (ValueError, OSError) as error:
        raise PoolError(_FOREIGN.format(sample_id, error)) from error
    return PoolSample(sample_id, image, sample.annotations, sample.regions, sample.provenance)


def _tar_members(span: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield suffix and content of each member; opening an archive takes twice as long for two of them."""
    start = 0
    while start < len(span):
        header = tarfile.TarInfo.frombuf(span[start : start + _BLOCK], "ascii", "strict")
        start += _BLOCK
        if not 0 <= header.size <= len(span) - start:
            raise tarfile.ReadError(f"{header.name} of {header.size} bytes in {len(span) - start}")
        yield os.path.splitext(header.name)[1], span[start : start + header.size]
        start += -(-header.size // _BLOCK) * _BLOCK


def _tar_member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)
