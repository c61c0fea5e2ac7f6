"""jaxmath's SFT step on the peers' training batch; called by their `run_all.py`.

Takes the same arguments as the peers' scripts and prints the same JSON. The rows of their padded
batch are examples here: they are packed by length into rows of `--length` tokens, all of them in
one update, as in theirs.
"""

import dataclasses
import pathlib
import sys
import time

import jax
import numpy as np
import peerlib

from jaxmath import sharding
from jaxmath.checkpoint import source
from jaxmath.data import batches, records, tokenizer
from jaxmath.runs import sft
from jaxmath.train import optimizer as optimizer_lib

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import bench_steps  # noqa: E402


def examples_of(tokens, mask) -> list[batches.SftExample]:
    """The rows without their padding; every token but the first is a target."""
    lengths = mask.sum(axis=1)
    targets = [np.arange(length) > 0 for length in lengths]
    return [
        batches.SftExample(row[:length], target)
        for row, length, target in zip(tokens, lengths, targets, strict=True)
    ]


def main() -> None:
    parser = peerlib.parser(__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pad-frac", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--attention", default="chunked")
    parser.add_argument("--logprobs", default="chunked")
    parser.add_argument("--num-microbatches", type=int, default=1)
    parser.add_argument("--data", type=int, default=1, help="CPU devices that share the rows")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.data)
    watch = peerlib.CompileWatch()
    shape, dtype = peerlib.shape_of(args.model_dir), peerlib.dtype_of(args.model_dir)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=args.data))
    how = {"attention": args.attention, "logprobs": args.logprobs, "remat": args.remat}
    model = dataclasses.replace(source.load_config(args.model_dir), dtype=dtype, **how)
    tokens, mask = peerlib.sft_batch(args.batch, args.length, shape.vocab, pad_frac=args.pad_frac)
    examples = examples_of(tokens, mask)
    num_rows = len(batches.plan_rows([len(e.tokens) for e in examples], args.length))
    parts = args.data * args.num_microbatches
    run = sft.SftRun(
        output="",
        tokenizer=tokenizer.TokenizerConfig(args.model_dir),
        data=records.DataConfig(args.model_dir),
        optimizer=optimizer_lib.OptimizerConfig(args.lr, weight_decay=0.01),
        model=model,
        init_from=args.model_dir,
        max_tokens=args.length,
        row_tokens=args.length,
        batch_rows=-(-num_rows // parts) * parts,
        num_microbatches=args.num_microbatches,
        loss_reduction="token_mean",
    )
    useful = int(mask.sum())
    losses = []

    with jax.set_mesh(mesh):
        update = bench_steps.SftStep(run, examples, mesh)

        def steps(count: int) -> None:
            losses.extend(update() for _ in range(count))

        watch.take()
        start = time.perf_counter()
        steps(1)
        first, compiled = time.perf_counter() - start, watch.take()
        steps(1)
        for rep, _, meter in peerlib.measure(lambda _: steps(args.steps), args.repeats):
            step = meter.wall_s / args.steps
            record = {
                "bench": "train",
                "peer": f"jaxmath-data{args.data}",
                "model": shape.name,
                "dtype": dtype,
                "rep": rep,
                "tag": args.tag,
                "batch": args.batch,
                "length": args.length,
                "rows": run.batch_rows,
                "remat": args.remat,
                "first_s": round(first, 3),
                "recompiles": watch.take()["compiles"],
                "step_s": round(step, 4),
                "steps_s": round(1 / step, 4),
                "tok_s": round(useful / step, 2),
                "padded_tok_s": round(run.batch_rows * run.row_tokens / step, 2),
                "tok_per_cpu_s": round(useful * args.steps / meter.cpu_s, 2),
                "loss_first": round(losses[0], 5),
                "loss_last": round(losses[-1], 5),
                "steps": len(losses),
                "threads": peerlib.threads(),
                "versions": peerlib.versions("jaxmath", "jax", "jaxlib", "flax"),
            }
            peerlib.emit(record | compiled | meter.dict())


if __name__ == "__main__":
    main()
