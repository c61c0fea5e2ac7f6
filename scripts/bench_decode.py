"""Measures the decoder: response tokens per second on random weights.

    python scripts/bench_decode.py --model configs/models/qwen2.5-0.5b.yaml --slots 64
    python scripts/bench_decode.py --slots 64 --dtype float32          # the tiny shape, on a CPU

Responses have random lengths (a share of the vocabulary stops them), so slots are refilled all the
time. The first round compiles; the best of the others is the figure.
"""

import argparse
import time

import jax
import numpy as np

from jaxmath import config as configs
from jaxmath import sharding
from jaxmath.decode.generate import DecodeConfig, Generator, Request
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

TINY = ModelConfig(
    vocab_size=512,
    num_layers=4,
    embed_dim=128,
    mlp_dim=512,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a YAML file of configs/models; a tiny model without it")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--chunk-tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4, help="per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="longest prompt")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest response")
    parser.add_argument("--mean-tokens", type=int, default=100, help="response, were it not cut")
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel devices")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()

    model_config = configs.load(ModelConfig, args.model) if args.model else TINY
    mesh = sharding.make_mesh(sharding.MeshConfig(tensor=args.tensor))
    generator = Generator(
        model_config,
        DecodeConfig(args.slots, args.prompt_tokens, args.chunk_tokens, dtype=args.dtype),
        SamplingConfig(max_tokens=args.max_tokens),
        range(max(1, model_config.vocab_size // args.mean_tokens)),
        mesh,
    )
    params = generator.decode_params(qwen2.init_sharded(model_config, jax.random.key(0), mesh))
    rng = np.random.default_rng(0)
    lengths = rng.integers(args.prompt_tokens // 4, args.prompt_tokens + 1, args.prompts)
    prompts = [tuple(rng.integers(0, model_config.vocab_size, n).tolist()) for n in lengths]
    requests = [
        Request(p, s, tokens) for p, tokens in enumerate(prompts) for s in range(args.samples)
    ]

    print(f"{mesh.size} x {jax.devices()[0].device_kind}, {model_config.num_params:,} parameters")
    for round_index in range(args.rounds):
        start = time.perf_counter()
        completions = list(generator.generate(params, requests, seed=round_index))
        seconds = time.perf_counter() - start
        num_tokens = sum(len(completion.tokens) for completion in completions)
        note = " (with compilation)" if round_index == 0 else ""
        print(
            f"{len(completions)} responses, {num_tokens} tokens, {seconds:.2f} s, "
            f"{num_tokens / seconds:.0f} tokens/s{note}"
        )


if __name__ == "__main__":
    main()
