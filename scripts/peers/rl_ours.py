"""jaxmath's GRPO or PRIME step on the peers' workload; called by their `run_all.py`.

Takes the same arguments as the peers' scripts and prints the same JSON; `--prm` adds PRIME's
process reward model and its reference. A step is that of `python -m jaxmath prime`: responses from
the decoder, `prime.score`, `prime.prime_update`, the new weights handed to the decoder. The reward
is theirs, the share of even token ids, and no prompt is filtered out.
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
from jaxmath.data import records, tokenizer
from jaxmath.decode.decoder import DecodeConfig
from jaxmath.rl.config import RlConfig
from jaxmath.runs import prime, speed
from jaxmath.train.optimizer import OptimizerConfig

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import bench_steps  # noqa: E402


def arguments():
    parser = peerlib.parser(__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--plen", type=int, default=64)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prm", action="store_true", help="PRIME in place of GRPO")
    parser.add_argument("--prm-score", default="apart", choices=("apart", "gradient"))
    parser.add_argument("--row-tokens", type=int, help="packs responses into such rows")
    parser.add_argument("--rows", type=int, help="in one forward pass; all without it")
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--attention", default="chunked")
    parser.add_argument("--logprobs", default="chunked")
    parser.add_argument("--data", type=int, default=1, help="CPU devices that share the rows")
    return parser.parse_args()


def run_config(args, model) -> prime.PrimeRun:
    responses = args.prompts * args.n
    if args.row_tokens:
        rows = args.rows or -(-responses // (args.row_tokens // (args.plen + args.new)))
        rows = {"row_tokens": args.row_tokens, "tokens_per_microbatch": rows * args.row_tokens}
    else:
        rows = {"microbatch_size": args.rows or responses}
    optimizer = OptimizerConfig(1e-5, weight_decay=0.01, clip_norm=None)
    return prime.PrimeRun(
        output="",
        tokenizer=tokenizer.TokenizerConfig(args.model_dir),
        data=records.DataConfig(args.model_dir),
        init_from=args.model_dir,
        model=model,
        rl=RlConfig(
            prm=args.prm,
            prm_score=args.prm_score,
            advantage="rloo" if args.prm else "grpo",
            kl_coef=args.beta,
            num_prompts=args.prompts,
            num_responses=args.n,
            max_prompt_tokens=args.plen,
            max_response_tokens=args.new,
            policy_minibatch_size=responses,
            prm_minibatch_size=responses,
            policy_optimizer=optimizer,
            prm_optimizer=dataclasses.replace(optimizer, weight_decay=0.0),
            **rows,
        ),
        decode=DecodeConfig(max_prompt_tokens=args.plen, slots=responses),
        steps=args.warm + args.steps,
    )


def main() -> None:
    args = arguments()
    jax.config.update("jax_num_cpu_devices", args.data)
    watch = peerlib.CompileWatch()
    shape, dtype = peerlib.shape_of(args.model_dir), peerlib.dtype_of(args.model_dir)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=args.data))
    how = {"attention": args.attention, "logprobs": args.logprobs, "remat": args.remat}
    model = dataclasses.replace(source.load_config(args.model_dir), dtype=dtype, **how)
    config = run_config(args, model)
    lengths = np.linspace(args.plen // 2, args.plen, args.prompts).astype(int)
    rng = np.random.default_rng(5)

    def draw(count: int) -> list[int]:
        return rng.integers(peerlib.FIRST_PLAIN_ID, min(shape.vocab, 4096), count).tolist()

    with jax.set_mesh(mesh):
        update = bench_steps.RlStep(
            config, mesh, lambda ids: float(np.mean(np.asarray(ids) % 2 == 0))
        )

        def step() -> speed.Phases:
            return update([draw(k) for k in lengths])[0]

        start = time.perf_counter()
        step()
        first = time.perf_counter() - start
        for _ in range(1, args.warm):
            step()
        compiling = watch.take()
        for rep in range(args.steps):
            peerlib.wait_quiet(60)
            with peerlib.Meter() as meter:
                phases = step()
            rolled = phases.total("gen")
            scored = phases.total("old_logprob", "ref")
            record = {
                "bench": "grpo",
                "peer": f"jaxmath-{'prime' if args.prm else 'grpo'}-data{args.data}",
                "model": shape.name,
                "dtype": dtype,
                "rep": rep,
                "tag": args.tag,
                "prompts": args.prompts,
                "n": args.n,
                "new": args.new,
                "beta": args.beta,
                "iters": 1,
                "step_s": round(meter.wall_s, 4),
                "rollout_s": round(rolled, 4),
                "score_s": round(scored, 4),
                "update_s": round(meter.wall_s - rolled - scored, 4),
                "phases": {name: round(s, 4) for name, s in phases.seconds.items()},
                "rollout_tok_s": round(args.prompts * args.n * args.new / rolled, 1),
                "first_s": round(first, 3),
                "recompiles": watch.take()["compiles"],
                "threads": peerlib.threads(),
                "versions": peerlib.versions("jaxmath", "jax", "jaxlib", "flax"),
            }
            peerlib.emit(record | compiling | meter.dict())


if __name__ == "__main__":
    main()
