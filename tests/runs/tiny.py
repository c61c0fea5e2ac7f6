"""Runs small enough for a test: a two-layer model, a few problems, one device."""

import contextlib
import json
import pathlib

import pytest

from jaxmath import config as config_lib
from jaxmath.checkpoint import store
from jaxmath.runs import evaluate, generate, prime, sft, synth

MODEL = {
    "vocab_size": 512,
    "num_layers": 2,
    "embed_dim": 32,
    "mlp_dim": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "rope_theta": 1e4,
    "max_positions": 256,
    "tie_embeddings": True,
    "attention": "reference",
    "remat": "none",
    "dtype": "float32",
}
DECODE = {"slots": 16, "max_prompt_tokens": 48, "chunk_tokens": 8, "prompt_buckets": []}
VERIFY = {"num_workers": 1}


class Cut(Exception):
    """Stands for whatever ends a process: raised in the middle of a run."""


def sft_config(data: pathlib.Path, output: pathlib.Path, /, **changes) -> sft.SftRun:
    fields = {
        "output": str(output),
        "tokenizer": {"path": str(data / "tokenizer")},
        "data": {"path": str(data / "train.jsonl")},
        "model": MODEL,
        "max_tokens": 96,
        "row_tokens": 96,
        "batch_rows": 16,
        "num_microbatches": 2,
        "max_steps": 4,
        "optimizer": {"learning_rate": 1e-2, "schedule": "linear", "warmup_ticks": 1},
        "checkpoint": {"save_every": 2},
    }
    return config_lib.from_dict(sft.SftRun, fields | changes)


def prime_config(
    data: pathlib.Path, model: pathlib.Path, output: pathlib.Path, /, rl=None, **changes
) -> prime.PrimeRun:
    fields = {
        "output": str(output),
        "tokenizer": {"path": str(data / "tokenizer")},
        "data": {"path": str(data / "train.jsonl"), "limit": 32},
        "init_from": str(model),
        "prompt_style": "plain",
        "decode": DECODE,
        "rollout_prompts": 6,
        "steps": 4,
        "checkpoint": {"save_every": 2},
        "verify": VERIFY,
    }
    updates = {"clip_norm": 1.0, "learning_rate": 1e-3}
    algorithm = {
        "num_prompts": 4,
        "num_responses": 4,
        "min_accuracy": 0.0,
        "max_accuracy": 1.0,
        "max_prompt_tokens": DECODE["max_prompt_tokens"],
        "max_response_tokens": 32,
        "policy_minibatch_size": 8,
        "prm_minibatch_size": 16,
        "microbatch_size": 8,
        "policy_optimizer": updates,
        "prm_optimizer": updates,
    }
    fields["rl"] = algorithm | (rl or {})
    return config_lib.from_dict(prime.PrimeRun, fields | changes)


def synth_config(
    data: pathlib.Path, model: pathlib.Path, output: pathlib.Path, /, **changes
) -> synth.SynthRun:
    fields = {
        "output": str(output),
        "tokenizer": {"path": str(data / "tokenizer")},
        "data": {"path": str(data / "train.jsonl"), "limit": 24},
        "init_from": str(model),
        "decode": DECODE,
        "prompt_style": "plain",
        "sft_style": "qwen25-math-cot",
        "shard_questions": 8,
        "sampling": {"temperature": 0.9, "max_tokens": 40},
        "verify": VERIFY,
    }
    return config_lib.from_dict(synth.SynthRun, fields | changes)


def eval_config(
    data: pathlib.Path, model: pathlib.Path, output: pathlib.Path, /, **changes
) -> evaluate.EvalRun:
    fields = {
        "output": str(output),
        "tokenizer": {"path": str(data / "tokenizer")},
        "problems": {"seen": {"path": str(data / "train.jsonl"), "limit": 12}},
        "init_from": str(model),
        "decode": DECODE,
        "num_samples": 2,
        "sampling": {"temperature": 1.0, "max_tokens": 40},
        "verify": VERIFY,
    }
    return config_lib.from_dict(evaluate.EvalRun, fields | changes)


def generate_config(
    data: pathlib.Path, model: pathlib.Path, output: pathlib.Path, /, **changes
) -> generate.GenerateRun:
    fields = {
        "output": str(output),
        "tokenizer": {"path": str(data / "tokenizer")},
        "data": {"path": str(data / "train.jsonl"), "limit": 6},
        "init_from": str(model),
        "decode": DECODE,
        "prompt_style": "plain",
        "sampling": {"temperature": 0.0, "max_tokens": 40},
    }
    return config_lib.from_dict(generate.GenerateRun, fields | changes)


def saved(run: pathlib.Path, step: int) -> tuple[dict, dict]:
    """The metadata of a checkpoint, and path → digest of every array: equal digests, equal bits."""
    with store.CheckpointStore(run / "checkpoints", read_only=True) as reader:
        meta, leaves = reader.describe(step)
    return meta, {path: leaf["digest"] for path, leaf in leaves.items()}


def checkpoints(run: pathlib.Path) -> dict[str, bytes]:
    """Every file of every step; the lock, which names its last owner, is not one of them."""
    found = contents(run / "checkpoints")
    return {name: data for name, data in found.items() if name != "lock"}


def rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file under the folder, by its path from there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def cut_after(owner, name: str, num_calls: int):
    """The call after `num_calls` calls of `owner.name` raises `Cut`."""
    original, calls = getattr(owner, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > num_calls:
            raise Cut(f"{name} was called {num_calls} times")
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield
