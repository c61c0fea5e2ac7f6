"""Prints what the 7B decoder's token loop moves on machines that are not here, as a table.

    python scripts/bench_compiled.py                  # all cases, full depth: minutes each
    python scripts/bench_compiled.py --layers 2 v5e   # two layers, cases whose target has "v5e"

Needs the compilers that `jaxmath/plan/targets.py` names; a case without its compiler is a line that
says so. Bytes are per device and step, all slots at full length; `ideal` is weights, cache and
logits once; `floor` is the bytes over the published bandwidth, with all of the devices' tokens.
`compile` is the token loop and the longest of the prefills, each from nothing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import time

import jax
import numpy as np

from jaxmath import config as configs
from jaxmath import sharding
from jaxmath.decode.decoder import DecodeConfig, Decoder
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.model.config import ModelConfig
from jaxmath.plan import decoding, hlo, targets, traffic

BYTES_PER_S = {"v4": 1.228e12, "v5e": 0.819e12, "v6e": 1.640e12, "h200": 4.8e12}  # published


@dataclasses.dataclass(frozen=True)
class Case:
    """A mesh (data, fsdp, tensor) on a target, and a cache of `slots` sequences of `length`."""

    target: str
    mesh: tuple[int, int, int]
    cache: str
    slots: int
    length: int


CASES = (
    Case("v5e:2x4", (2, 1, 4), "xla", 256, 4096),
    Case("v5e:2x4", (2, 1, 4), "paged", 256, 4096),
    Case("v5e:2x4", (2, 1, 4), "int8", 256, 4096),
    Case("v5e:2x4", (4, 1, 2), "xla", 128, 4096),
    Case("v6e:2x4", (2, 1, 4), "xla", 512, 4096),
    Case("v4:2x2x4", (4, 1, 4), "xla", 512, 4096),
    Case("h200:1", (1, 1, 1), "xla", 256, 2048),
    Case("h200:1", (1, 1, 1), "xla", 256, 4096),
    Case("h200:8", (8, 1, 1), "xla", 1024, 4096),
)
HEADER = (
    "| target | mesh | cache | slots | GB | ideal | ratio | scratch GB | exchanges | floor "
    "| compile |"
)


def row(case: Case, model: ModelConfig) -> str:
    """A line of the table."""
    name = f"| {case.target} | {'x'.join(map(str, case.mesh))} | {case.cache} "
    if reason := targets.missing(case.target):
        return f"{name}| {reason.splitlines()[0][:90]} |"
    devices = targets.devices(case.target)[: int(np.prod(case.mesh))]
    mesh = sharding.make_mesh(sharding.MeshConfig(*case.mesh), devices)
    decode = DecodeConfig(
        max_prompt_tokens=case.length // 4, slots=case.slots, cache=case.cache, memory_fraction=1.0
    )
    sampling = SamplingConfig(max_tokens=case.length - case.length // 4)
    decoder = Decoder(model, decode, sampling, (0,), mesh)
    start = time.perf_counter()
    compiled = decoding.decode_chunk(decoder)
    seconds = [time.perf_counter() - start]
    start = time.perf_counter()
    decoding.admit(decoder, decode.max_prompt_tokens)
    seconds.append(time.perf_counter() - start)
    program = hlo.parse(compiled.as_text())
    loop = traffic.main_loop(program)
    moved, ideal = traffic.accessed(program, loop.body), decoding.ideal_bytes(decoder)
    kinds = collections.Counter(e.kind for e in traffic.collectives(program, loop))
    floor = moved / BYTES_PER_S[case.target.partition(":")[0]]
    cells = (
        f"{case.slots} x {case.length}",
        f"{moved / 1e9:.2f}",
        f"{ideal / 1e9:.2f}",
        f"{moved / ideal:.2f}",
        f"{compiled.memory_analysis().temp_size_in_bytes / 1e9:.2f}",
        ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none",
        f"{floor * 1e3:.1f} ms, {case.slots / floor:,.0f} tok/s",
        " + ".join(f"{s:.0f}" for s in seconds) + " s",
    )
    return f"{name}| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="?", default="", help="cases whose target has this text")
    parser.add_argument("--model", default="configs/models/qwen2.5-7b.yaml")
    parser.add_argument("--layers", type=int, help="depth; the model's own without it")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # no device is used, should there be one
    model = configs.load(ModelConfig, args.model)
    model = dataclasses.replace(model, num_layers=args.layers or model.num_layers)
    print(f"{args.model}, {model.num_layers} layers, {model.dtype}, jax {jax.__version__}\n")
    print(HEADER)
    print("|---" * HEADER.count(" | ") + "|---|")
    for case in CASES:
        if args.only in case.target:
            print(row(case, model), flush=True)


if __name__ == "__main__":
    main()
