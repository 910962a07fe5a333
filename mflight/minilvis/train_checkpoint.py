"""Make the mini checkpoint: `python -m mflight.minilvis.train_checkpoint --help`."""

import argparse
import json
import logging
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from tqdm import tqdm
from transformers import CLIPTokenizer

from mflight.minilvis.autoencoder import (
    build_autoencoder,
    measure_psnr,
    to_unit,
    train_decoder,
    train_encoder,
)
from mflight.minilvis.captions import spoken, train_tokenizer
from mflight.minilvis.judges import accuracy_by_class, judge_classes, train_judge
from mflight.minilvis.species import SPECIES
from mflight.minilvis.text_to_image import build_scheduler
from mflight.minilvis.text_to_image_training import TextToImageTrainer

logger = logging.getLogger(__name__)

_BACKGROUNDS = ("grass", "sand", "water", "bricks")


def main() -> None:
    """Run the stages that are asked for; each goes on from what the work folder holds."""
    args = _parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    work = args.work
    tokenizer = train_tokenizer(work / "tokenizer")
    if "autoencoder" in args.stages:
        _train_autoencoder(work / "vae", args)
    if "text_to_image" in args.stages:
        trainer = TextToImageTrainer(
            tokenizer,
            work / "text_to_image.pt",
            peer_file=args.peer and args.peer / "text_to_image.pt",
            batch_size=args.batch_size,
            seed=args.seed,
        )
        if args.start_from is not None and trainer.step == 0:
            _start_from(trainer, args.start_from, work)
        trainer.train(
            num_steps=args.steps, learning_rate=args.learning_rate, cooldown_steps=args.cooldown_steps
        )
    if "export" in args.stages:
        export(work, tokenizer, args.output)
    if "judge" in args.stages:
        report = judge_checkpoint(args.output, images_per_class=args.images_per_class, seed=args.seed)
        (args.output / "judgement.json").write_text(json.dumps(report, indent=1) + "\n")
        logger.info(json.dumps(report, indent=1))


def export(work: Path, tokenizer: CLIPTokenizer, output: Path) -> None:
    """Write the moving average as a ``StableDiffusionPipeline`` folder in fp16 safetensors.

    Args:
        work: folder of the training's state.
        tokenizer: as trained.
        output: replaced as a whole.
    """
    trainer = TextToImageTrainer(tokenizer, work / "text_to_image.pt")
    autoencoder = AutoencoderKL.from_pretrained(work / "vae")
    autoencoder.register_to_config(_name_or_path="")  # else the work folder's path would be shipped
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=trainer.average.text_encoder,
        tokenizer=tokenizer,
        unet=trainer.average.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(partial, safe_serialization=True)
    (partial / "classes.json").write_text(json.dumps([species.name for species in SPECIES], indent=1) + "\n")
    (partial / "training.json").write_text(json.dumps({"text_to_image_steps": trainer.step}) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    os.replace(partial, output)


def judge_checkpoint(folder: Path, *, images_per_class: int, seed: int) -> dict:
    """Draw single objects by the stock pipeline and let the judge name them.

    Args:
        folder: the checkpoint.
        images_per_class: images drawn of each class.
        seed: of judge and noise.

    Returns:
        the judge's accuracy on drawn objects, and on generated ones in all and by class.
    """
    judge, own_accuracy = train_judge(seed=seed)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    asked, seen = [], []
    for index, species in enumerate(tqdm(SPECIES, desc="judging", mininterval=10)):
        prompts = [
            f"a photo of a single {spoken(species)}, {species.definition}, on {_BACKGROUNDS[number % 4]}"
            for number in range(images_per_class)
        ]
        generator = torch.Generator().manual_seed(seed * 1000 + index)
        images = pipeline(
            prompts, height=64, width=64, num_inference_steps=16, guidance_scale=3.0, generator=generator,
            output_type="np",
        ).images  # fmt: skip
        seen.append(judge_classes(judge, to_unit((images * 255).round().astype("uint8"))))
        asked.append(torch.full((images_per_class,), index))
    asked_all, seen_all = torch.cat(asked), torch.cat(seen)
    return {
        "judge_accuracy_on_drawn": round(own_accuracy, 4),
        "accuracy_on_generated": round((asked_all == seen_all).float().mean().item(), 4),
        "images_per_class": images_per_class,
        "by_class": accuracy_by_class(asked_all, seen_all),
    }


def _start_from(trainer: TextToImageTrainer, folder: Path, work: Path) -> None:
    """Begin a work folder with the weights of a checkpoint."""
    shipped = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    step = json.loads((folder / "training.json").read_text())["text_to_image_steps"]
    trainer.start_from(shipped.text_encoder, shipped.unet, step=step)
    if not (work / "vae").exists():
        shipped.vae.save_pretrained(work / "vae")


def _train_autoencoder(folder: Path, args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    autoencoder = AutoencoderKL.from_pretrained(folder) if folder.exists() else build_autoencoder()
    train_decoder(autoencoder, num_steps=args.decoder_steps, seed=args.seed)
    train_encoder(autoencoder, num_steps=args.encoder_steps, seed=args.seed)
    logger.info("autoencoder PSNR in dB: %s", measure_psnr(autoencoder))
    autoencoder.save_pretrained(folder)


def _parse() -> argparse.Namespace:
    stages = ("autoencoder", "text_to_image", "export", "judge")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=stages, default=list(stages))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/mini_checkpoint"), help="state of the training"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "checkpoint", help="the checkpoint"
    )
    parser.add_argument(
        "--start-from", type=Path, help="a checkpoint whose weights are trained on, where --work is empty"
    )
    parser.add_argument(
        "--peer", type=Path, help="--work of a second training, with another --seed, to share weights with"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--batch-size", type=int, default=16, help="scenes a step of text_to_image")
    parser.add_argument("--steps", type=int, default=8000, help="text_to_image is trained up to this step")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--cooldown-steps", type=int, default=1500, help="last steps, with a falling rate")
    parser.add_argument("--decoder-steps", type=int, default=3000)
    parser.add_argument("--encoder-steps", type=int, default=700)
    parser.add_argument("--images-per-class", type=int, default=8, help="images that the judge sees")
    return parser.parse_args()


if __name__ == "__main__":
    main()
