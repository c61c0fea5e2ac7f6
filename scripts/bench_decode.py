"""Measures the decoder on random weights: tokens/s against what the machine allows.

    python scripts/bench_decode.py                                        # the tiny shape, a CPU
    python scripts/bench_decode.py --model configs/models/qwen2.5-0.5b.yaml --dtype float32 \\
        --slots 32 --prompts 8 --prompt-tokens 128 --max-tokens 64        # 0.5B, a CPU
    python scripts/bench_decode.py --model configs/models/qwen2.5-7b.yaml --slots 256 64 \\
        --prompts 128 --prompt-tokens 768 --max-tokens 1024 --transformers   # an H200, one call

Prompts are of uniform length, responses of long-tailed length (log-normal, cut at the limit) unless
`--uniform`. Printed beside the rate: the share of slot steps that made no token while requests
waited, and shares of two limits: multiplications over the measured speed of matrix products, and
bytes that must be read (weights once a step, keys and values of live tokens) over the measured copy
bandwidth. The first round compiles; the median of the others is the figure.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath import config as configs
from jaxmath import sharding
from jaxmath.decode.decoder import DecodeConfig, Decoder
from jaxmath.decode.requests import Request
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

TINY = ModelConfig(
    vocab_size=4096,
    num_layers=4,
    embed_dim=256,
    mlp_dim=688,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    dtype="float32",
)


def timed(function, *arguments, repeats: int = 10) -> float:
    """Median seconds of a compiled function."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def limits(dtype: str, rows: int) -> tuple[float, float]:
    """(FLOP/s of a product with `rows` rows, bytes/s of a copy), measured on one device."""
    big = jax.default_backend() != "cpu"
    size = 8192 if big else 2048
    x, w = jnp.ones((rows, size), dtype), jnp.ones((size, size), dtype)
    flops = 2 * rows * size * size / timed(jax.jit(jnp.matmul), x, w)
    block = jnp.ones((2**29 if big else 2**26,), jnp.float32)
    return flops, 2 * block.nbytes / timed(jax.jit(lambda block: block + 1), block)


def workload(args, vocab_size: int, seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(args.prompt_tokens // 4, args.prompt_tokens + 1, args.prompts)
    requests = []
    for prompt, length in enumerate(lengths):
        tokens = tuple(rng.integers(0, vocab_size, length).tolist())
        for sample in range(args.samples):
            if args.uniform:
                wanted = rng.integers(args.max_tokens // 4, args.max_tokens + 1)
            else:
                wanted = rng.lognormal(np.log(args.max_tokens / 4), 0.8)
            wanted = min(max(wanted, 1), args.max_tokens)
            options = SamplingConfig(max_tokens=int(wanted), seed=seed)
            requests.append(Request(prompt, sample, tokens, options))
    return requests


def floor_seconds(config: ModelConfig, requests, slots: int, dtype: str, flops: float, copy: float):
    """Seconds that arithmetic alone, and that memory traffic alone, would take."""
    item = jnp.dtype(dtype).itemsize
    lookup = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    weights = config.num_params - lookup
    pairs = config.num_layers * config.num_heads * config.head_dim
    kv_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * item
    tokens = sum(request.options.max_tokens for request in requests)
    context = sum(
        request.options.max_tokens * (len(request.tokens) + request.options.max_tokens / 2)
        for request in requests
    )
    prompts = sum({request.prompt_id: len(request.tokens) for request in requests}.values())
    arithmetic = (2 * weights * (tokens + prompts) + 4 * pairs * context) / flops
    return arithmetic, (weights * item * tokens / slots + kv_bytes * context) / copy


def measure(args, config: ModelConfig, slots: int) -> None:
    mesh = sharding.make_mesh(sharding.MeshConfig(data=args.data, tensor=args.tensor))
    start = time.perf_counter()
    decoder = Decoder(
        config,
        DecodeConfig(
            args.prompt_tokens,
            slots,
            args.chunk_tokens,
            dtype=args.dtype,
            cache=args.cache,
            int8_weights=args.int8_weights,
        ),
        SamplingConfig(max_tokens=args.max_tokens),
        (),
        mesh,
    )
    decoder.load(qwen2.init_sharded(config, jax.random.key(0), mesh))
    session = decoder.open()
    session.submit(Request(0, 0, (1, 2, 3)))
    while not session.occupancy.tokens:
        session.step()
    print(f"first token {time.perf_counter() - start:.1f} s after the start, programs included")
    print(decoder.memory.table())
    dtype = args.dtype or config.dtype
    flops, copy = limits(dtype, slots // args.data)
    print(f"measured: {flops / 1e9:,.0f} GFLOP/s at {slots} rows, copies {copy / 1e9:,.1f} GB/s")
    rates = []
    for round_index in range(args.rounds + 1):
        requests = workload(args, config.vocab_size, round_index)
        session = decoder.open()
        for request in requests:
            session.submit(request)
        start = time.perf_counter()
        num_tokens = 0
        while session.busy:
            num_tokens += sum(len(completion.tokens) for completion in session.step())
        seconds = time.perf_counter() - start
        arithmetic, traffic = floor_seconds(config, requests, slots, dtype, flops, copy)
        rates.append(num_tokens / seconds)
        note = " (compiles)" if round_index == 0 else ""
        print(
            f"round {round_index}: {num_tokens} tokens in {seconds:.2f} s, "
            f"{rates[-1]:,.0f} tokens/s, "
            f"{arithmetic / mesh.size / seconds:.0%} of the arithmetic limit, "
            f"{traffic / mesh.size / seconds:.0%} of the memory limit "
            f"({traffic * copy / seconds / 1e9:,.1f} GB/s), "
            f"idle {session.occupancy.idle_share:.1%}{note}",
            flush=True,
        )
    print(f"median of {args.rounds}: {statistics.median(rates[1:]):,.0f} tokens/s")


def transformers_rate(args, config: ModelConfig, rows: int) -> None:
    """The same work by `transformers` generate: one static batch, tokens that were asked for."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hf_config = transformers.Qwen2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        tie_word_embeddings=config.tie_embeddings,
    )
    dtype = getattr(torch, args.dtype or config.dtype)
    with torch.device(device):
        model = transformers.Qwen2ForCausalLM(hf_config).to(dtype).eval()
    requests = workload(args, config.vocab_size, 1)[:rows]
    width = max(len(request.tokens) for request in requests)
    longest = max(request.options.max_tokens for request in requests)
    ids = torch.zeros((len(requests), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        ids[row, width - len(request.tokens) :] = torch.tensor(request.tokens)
        mask[row, width - len(request.tokens) :] = 1
    for name in ("warm-up", "transformers"):
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=longest if name == "transformers" else 8,
                eos_token_id=None,
                pad_token_id=0,
            )
        seconds = time.perf_counter() - start
    useful = sum(request.options.max_tokens for request in requests)
    print(f"transformers, {len(requests)} rows: {useful / seconds:,.0f} tokens/s that count")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", help="a YAML file of configs/models; a tiny model without it")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    parser.add_argument("--slots", type=int, nargs="+", default=[64])
    parser.add_argument("--chunk-tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4, help="per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="longest prompt")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest response")
    parser.add_argument("--uniform", action="store_true", help="response lengths")
    parser.add_argument("--cache", help="by name; the best without it")
    parser.add_argument("--int8-weights", action="store_true")
    parser.add_argument("--data", type=int, default=1, help="devices that share the slots")
    parser.add_argument("--tensor", type=int, default=1, help="devices that share each layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transformers", action="store_true", help="the same work by generate")
    args = parser.parse_args()
    if jax.config.jax_platforms == "cpu" or args.data * args.tensor > 1:
        jax.config.update("jax_num_cpu_devices", args.data * args.tensor)
    config = configs.load(ModelConfig, args.model) if args.model else TINY
    devices = jax.devices()
    where = f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}"
    print(f"{where}, {config.num_params:,} parameters")
    for slots in args.slots:
        measure(args, config, slots)
    if args.transformers:
        transformers_rate(args, config, max(args.slots))


if __name__ == "__main__":
    main()
