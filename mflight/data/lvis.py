"""LVIS v1 and COCO-format datasets: annotations as shared flat arrays, images with their targets."""

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pydantic import ConfigDict, validate_call
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import clip_boxes_to_image

from mflight.data.annotations import open_annotation_file, read_classes
from mflight.data.categories import Categories
from mflight.data.left_out import MAX_SHARE, LeftOut
from mflight.data.outlines import Outlines
from mflight.data.pictures import read_picture
from mflight.data.target import Target

_log = logging.getLogger(__name__)


class LVISAnnotations:
    """The annotations of a dataset, read once, then opened in milliseconds and shared by all processes.

    With a cache the arrays are files mapped read-only: DataLoader workers and ranks of a machine share one
    copy of them, and nothing that Python does turns a shared page into a private one. Pickling passes the
    names of the files on, not their content.

    Args:
        annotation_file: JSON in LVIS v1 or COCO instance format.
        cache_dir: folder for the arrays; ``None`` reads the file each time and keeps the arrays in memory.
    """

    def __init__(self, annotation_file: str | Path, cache_dir: str | Path | None = None) -> None:
        self.annotation_file = Path(annotation_file)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self._arrays = open_annotation_file(self.annotation_file, self.cache_dir)
        # plain views: slicing a memmap costs ten times as much as slicing an array
        self._arrays = {name: np.asarray(values) for name, values in self._arrays.items()}
        self.image_ids: np.ndarray = self._arrays["image_ids"]
        self.categories = read_classes(self._arrays)
        if told := self.left_out.warning():
            _log.warning("%s: %s", self.annotation_file.name, told)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the names of the files."""
        return type(self), (self.annotation_file, self.cache_dir)

    @property
    def num_instances(self) -> int:
        """Number of instances, without the dropped ones."""
        return len(self._arrays["labels"])

    @property
    def left_out(self) -> LeftOut:
        """What of the file is no instance and should be one."""
        return LeftOut.of_arrays(self._arrays)

    @property
    def category_image_counts(self) -> dict[int, int]:
        """In how many images of this file each ``category_id`` has an instance."""
        counts = self._arrays["image_counts"].tolist()
        return {c.category_id: count for c, count in zip(self.categories, counts, strict=True)}

    def size_hw(self, index: int) -> tuple[int, int]:
        """Return ``(H, W)`` in pixels of an image, as annotated."""
        height, width = self._arrays["image_sizes_hw"][index].tolist()
        return height, width

    def image_path(self, index: int) -> str:
        """Return the likeliest path of an image below its folder, ``train2017/000000000009.jpg`` for LVIS."""
        return self.image_paths(index)[0]

    def image_paths(self, index: int) -> list[str]:
        """Return where the file of an image may lie below its folder, the likeliest place first."""
        return self._row("path", index, "paths").tobytes().decode().split("\n")

    def image_category_ids(self, index: int) -> list[int]:
        """Return each ``category_id`` that has an instance in an image, once, in order."""
        return [
            self.categories.category_id_of(label)
            for label in np.unique(self._instances("labels", index)).tolist()
        ]

    def instance_scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Return int32[A] labels and float64[A] scales, ``sqrt(area / (H W))``, of all instances."""
        image_area = self._arrays["image_sizes_hw"].astype(np.float64).prod(axis=1)
        of_instance = np.repeat(image_area, np.diff(self._arrays["instance_offsets"]))
        return self._arrays["labels"], np.sqrt(np.maximum(self._arrays["areas"], 0) / of_instance)

    def target(self, index: int) -> dict[str, Any]:
        """Return the target of an image without its masks.

        Args:
            index: of the image, in file order.

        Returns:
            The keys of :class:`~mflight.data.target.Target`, all but ``masks``. Boxes are as
            annotated, so they may reach over the edge of the image by a fraction of a pixel.
        """
        labels = self._instances("labels", index)
        listed = self._row("not_exhaustive", index)
        not_exhaustive = np.concatenate([listed, self._row("crowd", index, "crowd_labels")])
        return {
            "boxes": _tensor(self._instances("boxes", index), torch.float32),
            "labels": _tensor(labels, torch.int64),
            "image_id": int(self.image_ids[index]),
            "area": _tensor(self._instances("areas", index), torch.float32),
            "iscrowd": torch.zeros(len(labels), dtype=torch.int64),
            "is_synthetic": False,
            "negative_labels": _tensor(self._negatives(index), torch.int64),
            "not_exhaustive_labels": _tensor(np.unique(not_exhaustive), torch.int64),
            "ignore_boxes": _tensor(self._row("crowd", index, "crowd_boxes"), torch.float32),
            "sample_id": "",
        }

    def outlines(self, index: int) -> Outlines:
        """Return the outlines of the instances of an image, in the order of its target."""
        first, last = self._arrays["instance_offsets"][index : index + 2]
        polygons = self._arrays["polygon_offsets"][first : last + 1]
        vertices = self._arrays["vertex_offsets"][polygons[0] : polygons[-1] + 1]
        runs = self._arrays["rle_offsets"][first : last + 1].tolist()
        masks = {}
        for instance, (start, stop) in enumerate(pairwise(runs)):
            if stop > start:
                counts = self._arrays["rle"][start:stop].tobytes()
                masks[instance] = torch.from_numpy(
                    coco_mask.decode({"size": self.size_hw(index), "counts": counts})
                )
        return Outlines(
            vertices=_tensor(self._arrays["vertices"][vertices[0] : vertices[-1]], torch.float32),
            vertex_offsets=vertices - vertices[0],
            polygon_offsets=polygons - polygons[0],
            masks=masks,
        )

    def _negatives(self, index: int) -> np.ndarray:
        if not self._arrays["is_exhaustive"][index]:
            return self._row("negative", index, "negatives")
        is_absent = np.ones(len(self.categories) + 1, dtype=bool)
        is_absent[0] = False
        is_absent[self._instances("labels", index)] = False
        is_absent[self._row("crowd", index, "crowd_labels")] = False
        return np.flatnonzero(is_absent)

    def _instances(self, name: str, index: int) -> np.ndarray:
        return self._row("instance", index, name)

    def _row(self, offsets: str, index: int, name: str | None = None) -> np.ndarray:
        first, last = self._arrays[f"{offsets}_offsets"][index : index + 2]
        return self._arrays[name or offsets][first:last]


class LVISDataset(Dataset):
    """Images with targets from an annotation file in LVIS v1 or COCO instance format.

    ``dataset[i]`` is ``(image uint8[3, H, W], Target)``, or what ``transform`` makes of it. A transform is
    called as ``transform(image, target, outlines)`` with the target still without masks, so that polygons
    are drawn once, at the size that is trained on.

    Args:
        annotation_file: JSON; LVIS publishes its files at https://www.lvisdataset.org/dataset.
        image_root: folder of the images; those of LVIS are COCO's ``train2017`` and ``val2017`` below it.
        cache_dir: folder for the flat arrays made of the annotations, or ``None`` for no cache.
        transform: applied to each sample.
        replaces_damaged: an image that cannot be read gives way to another one, drawn by torch's random
            state; else ``None`` stands for its sample. Each is told; a tenth of the images end it.

    Raises:
        FileNotFoundError: if there is no such annotation file or image folder.
    """

    @validate_call(config=ConfigDict(arbitrary_types_allowed=True))
    def __init__(
        self,
        *,
        annotation_file: str | Path,
        image_root: str | Path,
        cache_dir: str | Path | None = None,
        transform: Callable[[Tensor, dict[str, Any], Outlines], tuple[Tensor, Target]] | None = None,
        replaces_damaged: bool = False,
    ) -> None:
        self._replaces_damaged = replaces_damaged
        self._damaged: set[int] = set()
        self.image_root = Path(image_root)
        if not self.image_root.is_dir():
            raise FileNotFoundError(f"image_root {self.image_root} does not exist")
        self.annotations = LVISAnnotations(annotation_file, cache_dir)
        self.transform = transform

    @property
    def categories(self) -> Categories:
        """The classes of the annotation file."""
        return self.annotations.categories

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.annotations)

    def __getitem__(self, index: int) -> tuple[Tensor, Target] | None:
        """Read an image and its target; a damaged one is told, and replaced or left out."""
        try:
            image = self.read_image(index)
        except (ValueError, OSError) as error:
            self._tell_damaged(index, error)
            return self[int(torch.randint(len(self), ()))] if self._replaces_damaged else None
        target, outlines = self.annotations.target(index), self.annotations.outlines(index)
        if self.transform is not None:
            return self.transform(image, target, outlines)
        height, width = image.shape[1:]
        for key in ("boxes", "ignore_boxes"):
            target[key] = clip_boxes_to_image(target[key], (height, width))
        return image, Target(masks=outlines.draw((height, width)), **target)

    def _tell_damaged(self, index: int, error: Exception) -> None:
        """Warn of a damaged image the first time; a tenth of them, and more than one, is a ValueError."""
        if index in self._damaged:
            return
        self._damaged.add(index)
        if len(self._damaged) > 1 and len(self._damaged) >= MAX_SHARE * len(self):
            raise ValueError(
                f"{len(self._damaged)} of {len(self)} images are no use, the last: {error}"
            ) from None
        instead = "another one is trained on" if self._replaces_damaged else "it is not scored"
        _log.warning("%s; %s (%d of %d images so far)", error, instead, len(self._damaged), len(self))

    def find_image(self, index: int) -> Path:
        """Return the file of an image: below its split's folder, or directly in ``image_root``."""
        paths = self.annotations.image_paths(index)
        for path in (*paths, *(Path(path).name for path in paths)):
            if (self.image_root / path).is_file():
                return self.image_root / path
        raise FileNotFoundError(
            f"image {self.annotations.image_ids[index]} has no file: {self.image_root} holds none of "
            f"{', '.join(dict.fromkeys((*paths, *(Path(path).name for path in paths))))}"
        )

    def read_image(self, index: int) -> Tensor:
        """Return uint8[3, H, W]; a damaged file or one of another size than annotated raises."""
        pixels = read_picture(self.find_image(index), self.annotations.size_hw(index))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _tensor(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)  # a copy: the arrays are read-only


def read_categories(annotation_file: str | Path, cache_dir: str | Path | None = None) -> Categories:
    """Return the classes of an annotation file, from its cache where there is one."""
    return read_classes(open_annotation_file(Path(annotation_file), cache_dir and Path(cache_dir)))
