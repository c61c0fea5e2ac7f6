"""Prints two tables: a train step's work per device on more and more chips, and compile times.

    python scripts/bench_scaling.py                     # 7B on v5e:4x4 … 16x16, 28 and 14 layers
    python scripts/bench_scaling.py --only chips --layers 2     # sooner

Tokens per chip are fixed: a row of `--row-tokens` on each, in two micro-batches. Weights are split
over all chips, or over `--fsdp` of them and repeated. FLOPs and bytes received per device then
should not depend on the number of chips, nor the compile time on the number of layers, which are
scanned. Needs libtpu; no TPU.
"""

from __future__ import annotations

import argparse

from jaxmath.runs import plan

TOPOLOGIES = {"v5e:4x4": 16, "v5e:4x8": 32, "v5e:8x8": 64, "v5e:8x16": 128, "v5e:16x16": 256}


def step(args: argparse.Namespace, topology: str, layers: int):
    """The train step's row of the plan."""
    chips = TOPOLOGIES[topology]
    overrides = (
        f"batch_rows={2 * chips}",
        "num_microbatches=2",
        f"row_tokens={args.row_tokens}",
        f"max_tokens={args.row_tokens}",
        f"model.num_layers={layers}",
        f"mesh={{data: {max(chips // args.fsdp, 1)}, fsdp: {min(chips, args.fsdp)}, tensor: 1}}",
    )
    return plan.answer(plan.ask(args.config, overrides, topology, "sft")).plan.rows[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/sft.yaml")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--row-tokens", type=int, default=2048)
    parser.add_argument("--fsdp", type=int, default=max(TOPOLOGIES.values()))
    parser.add_argument("--targets", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--only", choices=("chips", "depth"))
    args = parser.parse_args()
    plan.on_cpu_alone()
    if args.only != "depth":
        print("| target | TFLOP | GB received | of which | peak GiB | compiled |")
        print("|---|---|---|---|---|---|")
        costs = []
        for topology in args.targets:
            cost = step(args, topology, args.layers).cost
            received = cost.work.received.most_common()
            kinds = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in received)
            print(
                f"| {topology} | {cost.flops / 1e12:.2f} | {cost.work.total_received / 1e9:.2f} | "
                f"{kinds} | {cost.peak / 2**30:.2f} | {cost.compile_s:.0f} s |",
                flush=True,
            )
            costs.append(cost)
        for what, numbers in {
            "TFLOP": [cost.flops for cost in costs],
            "GB received": [cost.work.total_received for cost in costs],
        }.items():
            print(f"{what}: the largest is {max(numbers) / min(numbers):.3f} of the smallest")
    if args.only != "chips":
        print("\n| layers | compiled |\n|---|---|")
        for layers in (args.layers // 2, args.layers):
            cost = step(args, "v5e:4x4", layers).cost
            print(f"| {layers} | {cost.compile_s:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
