"""Images a second of the real train loader beside a plain torchvision loader that makes dense masks.

    python benchmarks/dataloader.py --categories LVIS_CATEGORIES.json
    python benchmarks/dataloader.py --batches 2 --workers 0        a quick look

Ours is the loader of ``python train.py experiment=lvis_baseline`` with the settings of its config; theirs is
``torchvision.datasets.CocoDetection`` with v2 transforms: a mask of every instance at the size of the image,
carried through each step, and Copy-Paste on these. Three settings: multi-scale (short side 640 to 800),
large-scale jitter to 1024 px, and that with Copy-Paste on each image. Made data with LVIS's counts; both draw
images uniformly; theirs pads to 1024 px, as torchvision's references do. The last line is ``RESULT {json}``:
for each setting ``*_images_per_s``, ``*_plain_images_per_s`` and ``*_ratio``; ``ratio`` is that of the last.
"""

import argparse
import json
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lvis_format_data import read_categories, write_annotations, write_images
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

CONF = Path(__file__).resolve().parents[1] / "conf"
SETTINGS = {
    "multi_scale": ["data/transform=multi_scale"],
    "lsj": ["data/transform=large_scale_jitter"],
    "copy_paste": [
        "data/transform=large_scale_jitter",
        "data/copy_paste=simple",
        "data.copy_paste.probability=1.0",
    ],
}


class PlainImages(CocoDetection):
    """Finds images by ``coco_url``, LVIS has no ``file_name``; leaves out images without instances."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.ids = [image_id for image_id in self.ids if self.coco.getAnnIds(image_id)]

    def _load_image(self, id):
        url = self.coco.loadImgs(id)[0]["coco_url"]
        return Image.open(Path(self.root, *url.split("/")[-2:])).convert("RGB")


class DenseCopyPaste(torch.utils.data.Dataset):
    """Simple Copy-Paste with a mask of every instance; all images are of one size."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, target = self.dataset[index]
        other_image, other = self.dataset[int(torch.randint(len(self), ()))]
        number = int(torch.randint(len(other["masks"]) + 1, ()))
        chosen = torch.randperm(len(other["masks"]))[:number]
        if not number:
            return image, target
        pasted = other["masks"][chosen].bool()
        cover = pasted.any(dim=0)
        masks = torch.cat([target["masks"].bool() & ~cover, pasted])
        labels = torch.cat([target["labels"], other["labels"][chosen]])
        keep = masks.sum(dim=(1, 2)) >= 32
        masks = masks[keep]
        return torch.where(cover, other_image, image), {
            "boxes": masks_to_boxes(masks),
            "labels": labels[keep],
            "masks": masks.to(torch.uint8),
        }


def plain_transform(name):
    scale = {
        "multi_scale": [v2.RandomShortestSize([640, 672, 704, 736, 768, 800], 1333)],
        "lsj": [v2.ScaleJitter((1024, 1024), (0.1, 2.0)), v2.RandomCrop((1024, 1024), pad_if_needed=True)],
    }["multi_scale" if name == "multi_scale" else "lsj"]
    return v2.Compose(
        [
            v2.ToImage(),
            *scale,
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.SanitizeBoundingBoxes(labels_getter=lambda sample: (sample[1]["labels"], sample[1]["masks"])),
        ]
    )


def plain_loader(root, name, batch_size, num_workers):
    images = PlainImages(str(root), str(root / "lvis_v1_train.json"), transforms=plain_transform(name))
    dataset = wrap_dataset_for_transforms_v2(images, target_keys=("boxes", "labels", "masks"))
    return DataLoader(
        DenseCopyPaste(dataset) if name == "copy_paste" else dataset,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        collate_fn=as_lists,
    )


def as_lists(samples):
    return [image for image, _ in samples], [target for _, target in samples]


def our_loader(root, name, batch_size, num_workers, epoch_steps):
    overrides = [
        "experiment=lvis_baseline",
        f"data.root={root}",
        f"paths.run_dir={root}",
        f"data.batch_size={batch_size}",
        f"data.num_workers={num_workers}",
        f"data.epoch_steps={epoch_steps}",
        "data.repeat_threshold=0",
        *SETTINGS[name],
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        datamodule = instantiate(compose("train", overrides=overrides).datamodule)
    datamodule.setup("fit")
    return datamodule.train_dataloader()


def images_per_s(loader, num_batches):
    """Time ``num_batches`` after a first one; count images, and megapixels and instances of one of them."""
    batches = iter(loader)
    next(batches)
    start, images, pixels, instances = time.perf_counter(), 0, 0, 0
    for batch, targets in islice(batches, num_batches):
        images += len(batch)
        pixels += sum(image.shape[1] * image.shape[2] for image in batch)
        instances += sum(len(target["labels"]) for target in targets)
    seconds = time.perf_counter() - start
    return images / seconds, pixels / images / 1e6, instances / images


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--categories", default=None, help="JSON list of LVIS categories with counts")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    result = {name: getattr(arguments, name) for name in ("images", "batches", "batch_size", "workers")}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = write_images(root, ["train2017"], arguments.files)
        categories = read_categories(arguments.categories)
        for split, count in (("train", arguments.images), ("val", 1)):
            path = root / f"lvis_v1_{split}.json"
            write_annotations(path, num_images=count, categories=categories, files=files, root=root)
        steps = arguments.batches + 1
        for setting in SETTINGS:
            size = arguments.batch_size, arguments.workers
            ours, *our_load = images_per_s(our_loader(root, setting, *size, steps), arguments.batches)
            plain, *load = images_per_s(plain_loader(root, setting, *size), arguments.batches)
            result[f"{setting}_images_per_s"] = round(ours, 2)
            result[f"{setting}_plain_images_per_s"] = round(plain, 2)
            result[f"{setting}_ratio"] = round(ours / plain, 2)
            print(
                f"{setting}: ours {ours:.1f} images/s ({our_load[0]:.2f} Mpx, {our_load[1]:.1f} instances), "
                f"plain {plain:.1f} ({load[0]:.2f} Mpx, {load[1]:.1f} instances), ratio {ours / plain:.2f}",
                flush=True,
            )
    result["ratio"] = result["copy_paste_ratio"]
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
