"""jaxmath's decoder on the peers' generation workload; called by their `run_all.py`.

    PEERS_OURS=.venv/bin/python PEERS_OURS_DIR=scripts/peers python ../shared/bench-peers/run_all.py

Takes the same arguments as the peers' scripts and prints the same JSON. `--slots` is our batch; the
others decode all rows at once.
"""

import dataclasses
import time

import jax
import peerlib

from jaxmath import sharding
from jaxmath.checkpoint import source
from jaxmath.decode.decoder import DecodeConfig, Decoder
from jaxmath.decode.requests import Request
from jaxmath.decode.sampling import SamplingConfig


def main() -> None:
    parser = peerlib.parser(__doc__)
    parser.add_argument("--workload", default="std")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--chunk-tokens", type=int, default=32)
    parser.add_argument("--data", type=int, default=1, help="CPU devices that share the slots")
    parser.add_argument("--tensor", type=int, default=1, help="CPU devices that share each layer")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.data * args.tensor)
    watch = peerlib.CompileWatch()
    shape, dtype = peerlib.shape_of(args.model_dir), peerlib.dtype_of(args.model_dir)
    work = peerlib.gen_workload(args.workload, shape.vocab)
    start = time.perf_counter()
    mesh = sharding.make_mesh(sharding.MeshConfig(data=args.data, tensor=args.tensor))
    config = dataclasses.replace(source.load_config(args.model_dir), dtype=dtype)
    model, config = source.load_model(args.model_dir, mesh, dtype, config)
    drawn = SamplingConfig(temperature=work.temperature, max_tokens=work.longest)
    decode = DecodeConfig(
        max_prompt_tokens=max(map(len, work.prompts)),
        slots=min(args.slots, work.rows),
        chunk_tokens=args.chunk_tokens,
    )
    decoder = Decoder(config, decode, drawn, (), mesh)
    decoder.load(model)
    load_s = time.perf_counter() - start
    requests = [
        Request(p, s, tuple(tokens), dataclasses.replace(drawn, max_tokens=max_new))
        for p, (tokens, max_new) in enumerate(zip(work.prompts, work.max_new, strict=True))
        for s in range(work.n)
    ]

    def call(seed: int) -> int:
        fresh = [dataclasses.replace(r.options, seed=seed) for r in requests]
        named = [dataclasses.replace(r, options=o) for r, o in zip(requests, fresh, strict=True)]
        return sum(len(completion.tokens) for completion in decoder.generate(named))

    watch.take()
    with peerlib.Meter() as meter:
        got = call(0)
    assert got == work.useful_tokens, (got, work.useful_tokens)
    first, compiled = meter.wall_s, watch.take()
    for rep, raw, meter in peerlib.measure(lambda i: call(i + 1), args.repeats):
        again = watch.take()
        record = {
            "bench": "gen",
            "peer": f"jaxmath-data{args.data}-tensor{args.tensor}",
            "model": shape.name,
            "dtype": dtype,
            "rep": rep,
            "tag": args.tag,
            "micro": 0,
            "load_s": round(load_s, 2),
            "first_s": round(first, 3),
            "recompiles": again["compiles"],
            "tok_s": round(work.useful_tokens / meter.wall_s, 1),
            "raw_tok_s": round(raw / meter.wall_s, 1),
            "tok_per_cpu_s": round(work.useful_tokens / meter.cpu_s, 1),
            "versions": peerlib.versions("jaxmath", "jax", "jaxlib", "flax"),
        }
        peerlib.emit(record | compiled | work.describe() | meter.dict())


if __name__ == "__main__":
    main()
