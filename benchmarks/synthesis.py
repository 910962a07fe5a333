"""How fast is the generator, beside the published order of work, at equal output?

    python benchmarks/synthesis.py                                        mini checkpoint, CPU
    python benchmarks/synthesis.py --architecture sd14 --device cuda --steps 50 --default-steps 25

(a) `published_order.py`: one region at a time, fp32 (TF32 on a GPU), all attention kept, a scipy bilateral
solver with a grid for each pass; (b) ours with the same steps in the same precision; (c) ours in its default
precision. What is default stands in `conf/diffusion/`; what follows the options are further Hydra overrides.
Every repeat draws other mosaics, runs all arms on them one after the other in a rotating order, and counts by
its ratio; the median is reported. Each arm's peak of memory is that of a process of its own.
`--architecture sd14` is Stable Diffusion 1.4 with random weights: speed does not depend on them. The last
line is ``RESULT {json}``.
"""

import argparse
import json
import tempfile

from device_clock import facts, matmul_rate
from synthesis_arms import CONFIG_OF_ARCHITECTURE, Bench


def main() -> None:
    args, overrides = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, overrides, folder)
        result = {key: rounded(value) for key, value in measure(bench).items()} | facts(args.device)
    result |= {
        "architecture": args.architecture,
        "steps": bench.steps,
        "default_steps": bench.default_steps,
        "default_precision": bench.default_dtype,
        "mosaics": args.mosaics,
        "repeats": args.repeats,
        "cpu_time": args.cpu_time,
        "overrides": overrides,
    }
    print("RESULT", json.dumps(result))


def measure(bench: Bench) -> dict[str, float]:
    """Run everything, print it, and return the figures of the RESULT line."""
    bench.warm_up()
    stock_ms, over_stock = bench.unet_calls()
    print(
        f"UNet call, batch 2: stock diffusers {stock_ms:.2f} ms, published order {over_stock:.3f} times that"
    )
    equality = bench.compare()
    print("(a) and (b):", ", ".join(f"{name} {value:.2g}" for name, value in equality.items()))
    arms = bench.measure()
    shares = {key: bench.unet_share(arm) for key, arm in arms.items()}
    for key, arm in arms.items():
        stages = ", ".join(f"{name} {share:.1%}" for name, share in arm.shares().items())
        print(
            f"({key}) {arm.name}: {arm.per_mosaic_s:.3f} s a mosaic, {1 / arm.per_mosaic_s:.3f} mosaics/s, "
            f"peak {arm.peak_gb:.2f} GiB; {stages}; UNet {shares[key][0]:.1%} of all"
        )
    speedup, plain_s, solver_iou = bench.bilateral_speedup()
    print(
        f"bilateral solver: plain {plain_s * 1e3:.1f} ms a region, ours {speedup:.2f} x, IoU {solver_iou:.4f}"
    )
    result = {
        "speedup_same_steps": bench.ratio(arms["a"], arms["b"]),
        "speedup_default": bench.ratio(arms["a"], arms["c"]),
        "mosaics_per_s": 1 / arms["default"].per_mosaic_s,
        "capture_overhead": bench.capture_overhead(),
        "bilateral_speedup": speedup,
        "peak_gb": arms["default"].peak_gb,
        "published_mosaics_per_s": 1 / arms["a"].per_mosaic_s,
        "published_peak_gb": arms["a"].peak_gb,
        "same_steps_peak_gb": arms["b"].peak_gb,
        "published_unet_over_stock": over_stock,
        "unet_share": shares["default"][0],
        **equality,
    }
    if bench.clock.on_gpu:
        rate, reached = matmul_rate(bench.args.device), shares["default"][1]
        print(f"bf16 matmul {rate / 1e12:.0f} TFLOP/s, UNet {reached / 1e12:.0f}: {reached / rate:.1%}")
        result |= {"bf16_matmul_tflops": rate / 1e12, "unet_share_of_bf16_rate": reached / rate}
    return result


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", choices=list(CONFIG_OF_ARCHITECTURE), default="mini")
    parser.add_argument("--checkpoint", help="a folder; by default the mini checkpoint, or random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument(
        "--cpu-time", action="store_true", help="on a busy CPU: count its seconds, not the wall's"
    )
    parser.add_argument("--steps", type=int, help="of (a), (b) and (c); by default the config's")
    parser.add_argument("--default-steps", type=int, help="of mosaics_per_s; by default the config's")
    parser.add_argument("--mosaics", type=int, default=4, help="drawn together")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_known_args()


def rounded(value: float) -> float:
    """Return a figure with four significant digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
