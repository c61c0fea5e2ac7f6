"""Measures the SFT step and the RL step on random weights, on whatever devices are there.

    python scripts/bench_train.py                                         # the tiny shape, a CPU
    python scripts/bench_train.py --torch --long-tailed --rows 16         # beside PyTorch
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.96 python scripts/bench_train.py --torch \\
        --model configs/models/qwen2.5-7b.yaml --rows 4 --row-tokens 4096 \\
        --rl-model configs/models/qwen2.5-math-1.5b.yaml --prompts 64 --prompt-tokens 256 \\
        --new-tokens 512 --minibatch 64 --tokens-per-microbatch 6144      # an H200, one call

The programs are those of `jaxmath sft` and `jaxmath prime`. Printed of each: tokens/s, those that
count and with padding; the share of the devices' peak (without recomputation and padding); the
peak memory as the compiler predicts it, as `jaxmath plan` adds it up, beside the measured one; and
the seconds of each phase of an RL step. The first round compiles; medians of the others are the
figures. `--torch` trains the same model on the same examples with transformers: float32 masters
under bfloat16 autocast, a row for each example; where that does not fit, what does, and it says so.
Each part runs in a process of its own, since neither library gives its memory back.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import bench_steps
import jax
import numpy as np

from jaxmath import config as configs
from jaxmath import sharding
from jaxmath.data import batches
from jaxmath.decode.decoder import DecodeConfig
from jaxmath.model.config import ModelConfig
from jaxmath.plan import programs
from jaxmath.rl.config import RlConfig
from jaxmath.runs import plan_jobs, prime, sft, speed
from jaxmath.train import optimizer as optimizer_lib

TINY = ModelConfig(
    vocab_size=4096,
    num_layers=4,
    embed_dim=256,
    mlp_dim=688,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    remat="none",
    dtype="float32",
)


# --- the parts --------------------------------------------------------------------------------


def bench_sft(args) -> None:
    shape, mesh = _model(args, args.model), _mesh(args)
    examples = [batches.SftExample(ids, np.arange(len(ids)) > 0) for ids in _texts(args, shape)]
    run = sft.SftRun(
        output="",
        optimizer=_optimizer(args),
        model=shape,
        max_tokens=args.row_tokens,
        row_tokens=args.row_tokens,
        batch_rows=args.rows,
        num_microbatches=args.num_microbatches,
        loss_reduction="token_mean",
        mesh=_mesh_config(args),
        **bench_steps.TEXTS,
    )
    print(f"\nSFT: {_name(shape)}, {args.rows} rows of {args.row_tokens}, remat {shape.remat}")
    with jax.set_mesh(mesh), _kept_programs():
        _predict(plan_jobs.sft_job(run, mesh))
        step = bench_steps.SftStep(run, examples, mesh)
        taken = [i for row in step.data.rows_at(0) for i in row]
        lengths = step.data.lengths[taken]
        losses, seconds = [], []
        for _ in range(args.rounds + 1):
            start = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - start)
    padded = args.rows * args.row_tokens
    print(
        f"first step {seconds[0]:.1f} s, programs included; loss {losses[0]:.4f}, {losses[-1]:.4f}"
    )
    _rate("SFT", statistics.median(seconds[1:]), lengths, padded, 3, shape, mesh)
    _measured_memory()


def bench_rl(args) -> None:
    shape, mesh = _model(args, args.rl_model or args.model), _mesh(args)
    responses = args.prompts * args.samples
    rows = {"microbatch_size": args.microbatch or responses}
    if args.tokens_per_microbatch:
        rows = {"tokens_per_microbatch": args.tokens_per_microbatch}
    run = prime.PrimeRun(
        output="",
        init_from=None,
        model=shape,
        rl=RlConfig(
            prm=not args.grpo,
            prm_score=args.prm_score,
            advantage="grpo" if args.grpo else "rloo",
            num_prompts=args.prompts,
            num_responses=args.samples,
            max_prompt_tokens=args.prompt_tokens,
            max_response_tokens=args.new_tokens,
            policy_minibatch_size=args.minibatch or responses,
            prm_minibatch_size=args.minibatch or responses,
            policy_optimizer=_optimizer(args),
            prm_optimizer=_optimizer(args),
            **rows,
        ),
        decode=DecodeConfig(args.prompt_tokens, args.slots or responses),
        steps=plan_jobs.MANY,
        ref_dtype=shape.dtype,
        mesh=_mesh_config(args),
        **bench_steps.TEXTS,
    )
    what = "GRPO" if args.grpo else "PRIME"
    print(
        f"\n{what}: {_name(shape)}, {args.prompts} prompts x {args.samples}, {args.new_tokens} new "
        f"tokens, {run.rl.policy_updates} updates, remat {shape.remat}"
    )
    rng = np.random.default_rng(args.seed)
    with jax.set_mesh(mesh), _kept_programs():
        _predict(plan_jobs.prime_job(run, mesh))
        step = bench_steps.RlStep(run, mesh, lambda tokens: float(rng.random() < 0.5))
        measured = []
        for index in range(args.rounds + 1):
            lengths = rng.integers(args.prompt_tokens // 2, args.prompt_tokens + 1, args.prompts)
            start = time.perf_counter()
            phases, lengths = step([rng.integers(0, shape.vocab_size, n) for n in lengths])
            measured.append((time.perf_counter() - start, phases.seconds, lengths))
            if index == 0:
                print(f"first step {measured[0][0]:.1f} s, programs included")
    measured = measured[1:]
    middle = statistics.median(seconds for seconds, _, _ in measured)
    of_phase = {
        name: statistics.median(phases[name] for _, phases, _ in measured)
        for name in measured[0][1]
    }
    print("phases: " + ", ".join(f"{name} {s:.3f} s" for name, s in of_phase.items()))
    generated = responses * args.new_tokens
    print(f"rollout: {generated / of_phase['gen']:,.0f} tokens/s; {what} step {middle:.3f} s")
    update = sum(of_phase.get(name, 0.0) for name in prime.UPDATE)
    passes = prime.passes(run.rl)
    _rate("update", update, measured[-1][2], responses * run.rl.max_tokens, passes, shape, mesh)
    _measured_memory()


def bench_torch(args) -> None:
    """The same examples with transformers, each in a row of its own, padded to the longest."""
    import torch
    import transformers

    shape = _model(args, args.model)
    cuda = torch.cuda.is_available()
    texts = _texts(args, shape)
    if not args.long_tailed:
        texts = texts[: args.rows]
    attempts = [(rows, "float32") for rows in (len(texts), 1)]
    attempts += [(rows, "bfloat16") for rows in (len(texts), 1)]
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.embed_dim,
        intermediate_size=shape.mlp_dim,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        tie_word_embeddings=shape.tie_embeddings,
        use_cache=False,
    )
    for rows, masters in attempts:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = _torch_seconds(args, config, texts, rows, masters, shape)
        except torch.cuda.OutOfMemoryError:
            print(f"torch: {rows} rows at a time with {masters} masters do not fit")
            continue
        lengths = [len(ids) for ids in texts]
        padded = sum(max(map(len, part)) * len(part) for part in _parts(texts, rows))
        print(f"\ntorch {torch.__version__}: {_name(shape)}, {masters} masters, {rows} rows a pass")
        print(
            f"torch SFT: {seconds:.3f} s, {sum(lengths) / seconds:,.0f} tokens/s that count, "
            f"{padded / seconds:,.0f} with padding, "
            f"{3 * speed.forward_flops(shape, lengths) / seconds / 1e12:,.3f} TFLOP/s"
        )
        if cuda:
            print(f"measured: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at the peak")
        return


def _torch_seconds(args, config, texts, rows: int, masters: str, shape: ModelConfig) -> float:
    """Median seconds of an update on all texts, so many rows in a pass."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config._attn_implementation = "sdpa"
    with torch.device(device):
        model = transformers.Qwen2ForCausalLM(config).to(getattr(torch, masters)).train()
    if shape.remat != "none":
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    cast = shape.dtype == "bfloat16" and masters == "float32"
    autocast = torch.autocast(device, torch.bfloat16) if cast else contextlib.nullcontext()
    num_targets = sum(len(ids) - 1 for ids in texts)

    def update() -> None:
        for part in _parts(texts, rows):
            width = max(map(len, part))
            ids = torch.zeros((len(part), width), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, text in enumerate(part):
                ids[row, : len(text)] = torch.from_numpy(text).long()
                mask[row, : len(text)] = 1
            labels = ids.masked_fill(mask == 0, -100).to(device)
            padding = {} if mask.all() else {"attention_mask": mask.to(device)}
            with autocast:
                loss = model(
                    input_ids=ids.to(device),
                    labels=labels,
                    num_items_in_batch=torch.tensor(num_targets, device=device),
                    **padding,
                ).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits

    seconds = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _parts(texts, rows: int):
    return [texts[first : first + rows] for first in range(0, len(texts), rows)]


# --- what they share --------------------------------------------------------------------------


def _texts(args, shape: ModelConfig) -> list[np.ndarray]:
    """Random ids that fill the rows: one to a row, or of log-normal length with a long tail."""
    rng = np.random.default_rng(args.seed)
    lengths = [args.row_tokens] * args.rows
    if args.long_tailed:
        drawn = rng.lognormal(np.log(args.row_tokens / 8), 1.0, 64 * args.rows)
        lengths = np.clip(drawn, 2, args.row_tokens).astype(int).tolist()
        # As many as fill the rows: one more would start another.
        count = 1
        while len(batches.plan_rows(lengths[: count + 1], args.row_tokens)) <= args.rows:
            count += 1
        lengths = lengths[:count]
    return [rng.integers(0, shape.vocab_size, length).astype(np.int32) for length in lengths]


def _model(args, path: str | None) -> ModelConfig:
    shape = configs.load(ModelConfig, path) if path else TINY
    how = {name: getattr(args, name) for name in ("remat", "attention", "logprobs", "dtype")}
    return dataclasses.replace(shape, **{name: value for name, value in how.items() if value})


def _name(shape: ModelConfig) -> str:
    return f"{shape.num_params / 1e9:.3f} B parameters, {shape.dtype}"


def _mesh_config(args) -> sharding.MeshConfig:
    return sharding.MeshConfig(args.data, args.fsdp, args.tensor)


def _mesh(args):
    return sharding.make_mesh(_mesh_config(args))


def _optimizer(args) -> optimizer_lib.OptimizerConfig:
    return optimizer_lib.OptimizerConfig(
        1e-5, weight_decay=0.01, kind=args.optimizer, first_moment_dtype=args.first_moment
    )


@contextlib.contextmanager
def _kept_programs() -> Iterator[None]:
    """Programs compiled to be measured are found again when they are to run."""
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield


def _predict(job) -> None:
    """Bytes of one device while each program runs: its own, and what lies beside it."""
    rows = []
    for program in job.programs:
        cost = programs.cost(program)
        beside = sum(job.parts[name] for name in program.beside)
        rows.append((program.name, cost.peak + beside, cost.compile_s))
    print("predicted: " + ", ".join(f"{name} {held / 2**30:.2f} GiB" for name, held, _ in rows))
    print("compiled in: " + ", ".join(f"{name} {seconds:.1f} s" for name, _, seconds in rows))


def _measured_memory() -> None:
    peak = speed.memory_metrics().get("memory/peak_gib")
    print("measured: " + ("no device keeps a peak here" if peak is None else f"{peak:.2f} GiB"))


def _rate(name, seconds: float, lengths, padded: int, passes: int, shape, mesh) -> None:
    flops = passes * speed.forward_flops(shape, lengths) / seconds
    peak = speed.peak_flops(mesh)
    share = "" if peak is None else f", {flops / peak:.1%} of the peak"
    print(
        f"{name}: {seconds:.3f} s, {np.sum(lengths) / seconds:,.0f} tokens/s that count, "
        f"{padded / seconds:,.0f} with padding, {flops / 1e12:,.3f} TFLOP/s{share}"
    )


PARTS = {"sft": bench_sft, "rl": bench_rl, "torch": bench_torch}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", help="a YAML file of configs/models; a tiny model without it")
    parser.add_argument("--rl-model", help="of the RL step; that of --model without it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["sft", "rl"])
    parser.add_argument("--torch", action="store_true", help="transformers' SFT step besides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=int, default=1)
    parser.add_argument("--fsdp", type=int, default=-1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--cpu-devices", type=int, default=1)
    how = parser.add_argument_group("how the model is computed; as its file says without")
    how.add_argument("--dtype", choices=("bfloat16", "float32"))
    how.add_argument("--remat", choices=("none", "dots", "full"))
    how.add_argument("--attention")
    how.add_argument("--logprobs")
    how.add_argument("--optimizer", default="adamw")
    how.add_argument("--first-moment", default="float32", choices=("float32", "bfloat16"))
    rows = parser.add_argument_group("SFT")
    rows.add_argument("--rows", type=int, default=4, help="in an update")
    rows.add_argument("--row-tokens", type=int, default=512)
    rows.add_argument("--num-microbatches", type=int, default=1)
    rows.add_argument("--long-tailed", action="store_true", help="packed examples of many lengths")
    rl = parser.add_argument_group("RL")
    rl.add_argument("--grpo", action="store_true", help="outcomes alone, no PRM")
    rl.add_argument("--prm-score", default="apart", choices=("apart", "gradient"))
    rl.add_argument("--prompts", type=int, default=8)
    rl.add_argument("--samples", type=int, default=4, help="per prompt")
    rl.add_argument("--prompt-tokens", type=int, default=64, help="longest prompt")
    rl.add_argument("--new-tokens", type=int, default=64)
    rl.add_argument("--minibatch", type=int, help="responses in an update; all without it")
    rl.add_argument("--microbatch", type=int, help="responses in a pass; all without it")
    rl.add_argument("--tokens-per-microbatch", type=int, help="packs responses into rows")
    rl.add_argument("--slots", type=int, help="of the decoder; one for each response without it")
    args = parser.parse_args()
    parts = args.parts + ["torch"] * (args.torch and "torch" not in args.parts)
    if len(parts) > 1:
        for part in parts:
            again = [sys.executable, str(pathlib.Path(__file__)), *_without_parts(sys.argv[1:])]
            subprocess.run([*again, "--parts", part], check=False)
        return
    jax.config.update("jax_num_cpu_devices", args.cpu_devices)
    if parts != ["torch"]:
        devices = jax.devices()
        print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}", flush=True)
    PARTS[parts[0]](args)


def _without_parts(words: list[str]) -> list[str]:
    """The command line for one part: without --torch, and without --parts and its names."""
    kept, skipping = [], False
    for word in words:
        skipping = word == "--parts" or (skipping and word in PARTS)
        if not skipping and word != "--torch":
            kept.append(word)
    return kept


if __name__ == "__main__":
    main()
