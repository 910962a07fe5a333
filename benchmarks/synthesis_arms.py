"""The ways of `synthesis.py` to draw the same mosaics, built from the house's config, and their figures."""

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from bilateral import draw_case, refine_plainly
from device_clock import ROOT, DeviceClock, UNetClock
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from published_order import AttentionStore, PublishedOrder, unet_call
from random_checkpoint import save_sd14
from torch.utils.flop_counter import FlopCounterMode

from mflight.data.categories import Categories, Category
from mflight.diffusion.attention import AttentionRecorder, AttentionSettings
from mflight.diffusion.parts import choose_dtype
from mflight.diffusion.pipeline import load_pipeline
from mflight.minilvis.checkpoint import checkpoint_folder
from mflight.minilvis.species import SPECIES
from mflight.synthesis.worker import fill_device

CONFIG_OF_ARCHITECTURE = {"mini": "mini_sd", "sd14": "sd14"}


@dataclass
class Arm:
    """One way to draw: seconds and stage seconds a mosaic of every repeat, and the peak of memory."""

    name: str
    draw: object
    pipeline: object
    seconds: list[float]
    stages: list[dict[str, float]]
    peak_gb: float = 0.0

    @property
    def per_mosaic_s(self) -> float:
        return statistics.median(self.seconds)

    def shares(self) -> dict[str, float]:
        names = self.stages[0]
        sums = {name: sum(stage[name] for stage in self.stages) for name in names}
        return {name: seconds / sum(sums.values()) for name, seconds in sums.items()}


class Bench:
    """Builds the arms from the house's config and measures them; a model is loaded when it is first used."""

    def __init__(self, args, overrides, folder):
        self.args, self._overrides, self._folder = args, overrides, folder
        self.clock = DeviceClock(args.device, args.cpu_time)
        if self.clock.on_gpu:
            torch.set_float32_matmul_precision("high")  # TF32, for every arm
            torch.backends.cudnn.allow_tf32 = True
        else:
            torch.set_num_threads(args.threads)
        if args.checkpoint is None:
            args.checkpoint = checkpoint_folder()
            if args.architecture == "sd14":
                args.checkpoint = str(save_sd14(Path(folder) / "sd14", args.device))
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            choice = f"diffusion={CONFIG_OF_ARCHITECTURE[args.architecture]}"
            config = compose("train", overrides=[choice, "paths.run_dir=.", *overrides])
        node = OmegaConf.to_container(config.diffusion.synthesizer, resolve=True)
        node["pipeline"]["checkpoint"] = args.checkpoint
        self._node = fill_device(node, args.device)
        self._planner_node = OmegaConf.to_container(config.synthesis.planner, resolve=True)
        classes = (
            Category(s.category_id, s.name, s.definition, frequency=s.frequency, image_count=1)
            for s in SPECIES
        )
        self.planner = instantiate(
            self._planner_node | {"categories": Categories(list(classes))}, _convert_="all"
        )
        self.default_steps = args.default_steps or node["num_inference_steps"]
        self.steps = args.steps or node["num_inference_steps"]
        dtype = choose_dtype(node["pipeline"].get("dtype", "float32"), args.device)
        self.default_dtype = str(dtype).removeprefix("torch.")

    @cached_property
    def equal(self):
        return self._ours("float32")

    @cached_property
    def default(self):
        return self.equal if self.default_dtype == "float32" else self._ours(self.default_dtype)

    @cached_property
    def published(self):
        wanted = ("checkpoint", "device", "scheduler", "scheduler_settings")
        plain = {key: value for key, value in self._node["pipeline"].items() if key in wanted}
        attention = instantiate(self._node.get("attention"), _convert_="all") or AttentionSettings()
        return PublishedOrder(
            load_pipeline(**plain),
            num_inference_steps=self.steps,
            guidance_scale=self._node["guidance_scale"],
            token_rule=attention.token_rule,
            sigma_spatial_px=instantiate(self._node["labeler"]).settings.sigma_spatial_px,
            region_filter=instantiate(self._node["region_filter"]),
        )

    def _ours(self, dtype):
        node = self._node | {"pipeline": self._node["pipeline"] | {"dtype": dtype}}
        return instantiate(node, _convert_="all")

    def requests(self, repeat):
        first = repeat * self.args.mosaics
        return [self.planner.request(first + index) for index in range(self.args.mosaics)]

    def arm(self, key):
        """(a), (b), (c) at the same steps, or (c) at its own ("default")."""
        if key == "a":
            return Arm("published order, float32", self._draw_published, self.published.pipeline, [], [])
        synthesizer = self.equal if key == "b" else self.default
        steps = self.default_steps if key == "default" else self.steps

        def draw(requests):
            synthesizer.num_inference_steps = steps
            results = synthesizer.synthesize(requests)
            return {stage: s * len(requests) for stage, s in results[0].seconds.items()}

        dtype = str(synthesizer.pipeline.dtype).removeprefix("torch.")
        return Arm(f"ours, {dtype}, {steps} steps", draw, synthesizer.pipeline, [], [])

    def arms(self):
        """All arms; those that coincide are one."""
        arms = {key: self.arm(key) for key in ("a", "b", "c", "default")}
        distinct = {}
        return {key: distinct.setdefault(arm.name, arm) for key, arm in arms.items()}

    def _draw_published(self, requests):
        stages = [self.published.draw(request).seconds for request in requests]
        return {name: sum(stage[name] for stage in stages) for name in stages[0]}

    def warm_up(self):
        """Meet every shape of every repeat once, with other prompts than those that will be timed."""
        for repeat in range(self.args.repeats):
            others = self.requests(self.args.repeats + repeat)
            requests = [
                replace(other, layout=own.layout)
                for own, other in zip(self.requests(repeat), others, strict=True)
            ]
            for synthesizer in {id(s): s for s in (self.equal, self.default)}.values():
                synthesizer.num_inference_steps = 2
                synthesizer.synthesize(requests)
        self.published.num_inference_steps = 2
        self.published.draw(requests[0])
        self.published.num_inference_steps = self.steps

    def measure(self):
        """Time all arms on the same mosaics, in an order that rotates."""
        arms = self.arms()
        distinct = list({id(arm): arm for arm in arms.values()}.values())
        for repeat in range(self.args.repeats):
            requests = self.requests(repeat)
            turn = repeat % len(distinct)
            for arm in distinct[turn:] + distinct[:turn]:
                seconds, stages = self.clock.timed(lambda arm=arm, requests=requests: arm.draw(requests))
                arm.seconds.append(seconds / len(requests))
                arm.stages.append({name: s / len(requests) for name, s in stages.items()})
        for key, arm in arms.items():
            arm.peak_gb = arm.peak_gb or self.peak_alone(key)
        return arms

    def peak_alone(self, key):
        """Peak of memory of one arm, in a process that has loaded no other arm's model."""
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(peak_of_arm, self.args, self._overrides, self._folder, key).result()

    @staticmethod
    def ratio(slow, fast):
        """Median over the repeats of what `slow` takes over what `fast` takes."""
        return statistics.median(s / f for s, f in zip(slow.seconds, fast.seconds, strict=True))

    def capture_overhead(self):
        """Drawing latents with attention kept, over the same UNet with no recorder in it: a ratio less 1."""
        requests, synthesizer = self.requests(0), self.default
        synthesizer.num_inference_steps = self.default_steps
        never = mock.patch.object(AttentionRecorder, "installed", lambda recorder: nullcontext(recorder))
        arms, ratios = {"kept": nullcontext, "plain": lambda: never}, []
        for repeat in range(1 + max(2, self.args.repeats)):  # the first warms up
            seconds = {}
            for name in sorted(arms, reverse=repeat % 2 == 1):
                with arms[name]():
                    seconds[name], canvases = self.clock.timed(lambda: synthesizer.denoise(requests))
                assert all(canvas.attention_maps[0] for canvas in canvases) == (name == "kept")
            ratios.append(seconds["kept"] / seconds["plain"])
        return statistics.median(ratios[1:]) - 1

    def bilateral_speedup(self):
        """The plain solver on the CPU, over ours on the device, on drawn scenes of the regions' sizes."""
        labeler, device = self.equal.labeler, torch.device(self.args.device)
        boxes = [box for request in self.requests(0) for box in request.layout.region_boxes]
        cases = [draw_case((y2 - y1, x2 - x1), seed) for seed, (x1, y1, x2, y2) in enumerate(boxes)]
        crops, masks = [crop for crop, _ in cases], [torch.from_numpy(mask).to(device) for _, mask in cases]
        sigma = labeler.settings.sigma_spatial_px
        labeler._refine(crops[:2], masks[:2])
        ratios = []
        for _ in range(self.args.repeats):
            plain_s, plain = self.clock.timed(lambda: [refine_plainly(*case, sigma)[0] for case in cases])
            ours_s, ours = self.clock.timed(lambda: labeler._refine(crops, masks))
            ratios.append(plain_s / ours_s)
        worst = min(iou(*pair) for pair in zip(plain, ours, strict=True))
        return statistics.median(ratios), plain_s / len(cases), worst

    def unet_calls(self):
        """One region's call with stock attention, in ms, and (a)'s over it: both at a guidance batch of 2.

        The calls alternate, and each pair counts by its ratio: the median of many.
        """
        x1, y1, x2, y2 = self.requests(0)[0].layout.region_boxes[0]
        pipeline = self.published.pipeline
        stride_px = pipeline.latent_stride_px
        call = unet_call(pipeline, ((y2 - y1) // stride_px, (x2 - x1) // stride_px))
        stock_s, ratios = [], []
        with torch.inference_mode():
            for pair in range(5 + 10 * self.args.repeats):  # the first five warm up
                seconds = {}
                for name in ("stock", "explicit")[:: 1 if pair % 2 else -1]:
                    with AttentionStore(pipeline.unet).installed() if name == "explicit" else nullcontext():
                        seconds[name] = self.clock.timed(call)[0]
                stock_s.append(seconds["stock"])
                ratios.append(seconds["explicit"] / seconds["stock"])
        return statistics.median(stock_s[5:]) * 1e3, statistics.median(ratios[5:])

    def compare(self):
        """Latents, images and masks of (a) and (b), worst of the first repeat's mosaics."""
        requests = self.requests(0)
        self.equal.num_inference_steps = self.steps
        canvases = self.equal.denoise(requests)
        latents, pixels, ious = 0.0, 0.0, []
        for request, canvas in zip(requests, canvases, strict=True):
            theirs, image = self.published.draw(request), self.equal.decode(canvas)
            ours = self.equal.labeler.label(image, request.layout, canvas.attention_maps)
            difference = (theirs.latents - canvas.latents).norm() / theirs.latents.norm()
            latents = max(latents, difference.item())
            pixels = max(pixels, float((np.abs(theirs.image.astype(int) - image) > 2).mean()))
            ious += [iou(mask, region.mask) for mask, region in zip(theirs.masks, ours, strict=True)]
        return {
            "latents_difference": latents,
            "pixels_differing": pixels,
            "mask_iou_min": min(ious),
            "mask_iou_mean": statistics.mean(ious),
        }

    def unet_share(self, arm):
        """Share of the UNet in an arm's time, from one more run, and what it reaches in FLOP/s."""
        with UNetClock(arm.pipeline.unet) as clock:
            arm.draw(self.requests(0))
        flops = {}
        for shape in set(clock.shapes) if self.clock.on_gpu else ():
            call = unet_call(self.published.pipeline, shape[2:])  # batch 2
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                call()
            flops[shape] = counter.get_total_flops() / 2 * shape[0]
        reached = sum(flops[shape] for shape in clock.shapes) / clock.seconds if flops else None
        return clock.seconds / clock.wall_s, reached


def peak_of_arm(args, overrides, folder, key):
    """Return the peak, in GiB, of drawing one repeat's mosaics; in a process of its own."""
    bench = Bench(args, overrides, folder)
    arm = bench.arm(key)
    bench.clock.reset_peak()
    arm.draw(bench.requests(0))
    return bench.clock.peak_gb()


def iou(mask, other):
    union = (mask | other).sum()
    return float((mask & other).sum() / union) if union else 1.0
