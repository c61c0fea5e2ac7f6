"""`replay`: one PRIME update on recorded inputs, beside the recorded numbers.

A case is a folder with three Hugging Face checkpoints, `policy/`, `prm/` and `reference/`, and a
`case.json` of `settings`, `samples` (contiguous by prompt, nothing padded) and `expected` numbers.
The update is the trainer's own `prime.prime_update`, in float32 and on one device.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath import metrics, sharding
from jaxmath.checkpoint import huggingface
from jaxmath.rl import parts as parts_lib
from jaxmath.rl import policy_loss, prime, rollouts
from jaxmath.rl.config import RlConfig
from jaxmath.train import optimizer, state
from jaxmath.train.optimizer import OptimizerConfig

# Errors are relative to the expected number, but to no less than this share of the largest number
# of its array: a score is the difference of two log-probabilities near -6, and where it is nearly
# zero its rounding, 5e-7, says nothing about the method.
FLOOR = 1e-2


class Row(NamedTuple):
    """One line of the table; of an array, its worst number."""

    name: str
    expected: float
    ours: float
    error: float


def run(case_folder: str | os.PathLike, tolerance: float = 1e-4) -> int:
    """Replays a case and prints each expected number beside ours: 0 if all agree, else 1.

    Raises:
      ValueError: the folder is no case, or its settings are none of ours.
    """
    folder = pathlib.Path(case_folder)
    case = read_case(folder)
    ours = replay(folder, case)
    if unknown := sorted(set(case["expected"]) - set(ours)):
        raise ValueError(
            f"{folder / 'case.json'} expects {', '.join(unknown)}, which this update does not "
            f"compute; known: {', '.join(ours)}"
        )
    rows = [compare(name, value, ours[name]) for name, value in case["expected"].items()]
    print(f"{'number':<28} {'expected':>15} {'ours':>15} {'relative error':>15}")
    for row in rows:
        verdict = "" if row.error <= tolerance else "  PAST TOLERANCE"
        print(f"{row.name:<28} {row.expected:>15.8g} {row.ours:>15.8g} {row.error:>15.2e}{verdict}")
    num_bad = sum(not row.error <= tolerance for row in rows)  # a NaN is past any tolerance
    worst = max(rows, key=lambda row: np.nan_to_num(row.error, nan=np.inf))
    print(f"{len(rows) - num_bad} of {len(rows)} within {tolerance:g}; worst {worst.error:.2e}")
    print(f"of an array its worst number; errors relative to at least {FLOOR:.0%} of its largest")
    return int(num_bad > 0)


def read_case(folder: pathlib.Path) -> dict[str, Any]:
    """`case.json`, with its three parts.

    Raises:
      ValueError: it cannot be read, or a part is missing.
    """
    path = folder / "case.json"
    try:
        case = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a case folder") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    missing = {"settings", "samples", "expected"} - set(case)
    if missing:
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}; see the layout of a case")
    return case


def replay(folder: pathlib.Path, case: Mapping[str, Any]) -> dict[str, Any]:
    """Our numbers under the names of `expected`: floats, and lists of one array per response."""
    settings, samples = case["settings"], case["samples"]
    config, batch = make_config(settings, samples), make_batch(samples)
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=1), jax.devices()[:1])

    def load(name):
        model_config = huggingface.load_config(folder / name, dtype="float32")
        return huggingface.load_params(folder / name, model_config, mesh)

    policy, prm, reference = load("policy"), load("prm"), load("reference")
    policy_optimizer = optimizer.make_optimizer(config.policy_optimizer, config.policy_updates)
    prm_optimizer = optimizer.make_optimizer(config.prm_optimizer, config.prm_updates)
    before = prime.PrimeState(
        state.create(policy, policy_optimizer), state.create(prm, prm_optimizer)
    )
    parts = parts_lib.Parts(*map(jax.jit, parts_lib.make(config, policy_optimizer, prm_optimizer)))
    score = functools.partial(prime.score, config=config, parts=parts)
    with jax.default_matmul_precision("highest"):
        after, reported, between = prime.prime_update(
            before, reference, batch, config=config, parts=parts
        )
        policy_BT = score(policy, batch, config.temperature)
        policy_after_BT = score(after.policy.params, batch, config.temperature)
        prm_after_BT = score(after.prm.params, batch, 1.0)

    low, high = config.clip_range
    tokens_BT, _ = policy_loss.clipped_surrogate(
        policy_BT,
        batch.old_logprob_BT,
        between.advantage_BT,
        clip_eps_low=low,
        clip_eps_high=high,
    )
    share_BT = policy_loss.token_mean(
        jnp.asarray(batch.response_mask_BT), config.max_response_tokens
    )
    arrays = {
        "policy_logprobs": policy_BT,
        "reference_logprobs": between.ref_logprob_BT,
        "prm_logprobs": between.prm_logprob_BT,
        "prm_token_scores": between.score_BT,
        "prm_token_scores_normalised": between.process_reward_BT,
        "returns": between.returns_BT,
        "advantages": between.advantage_BT,
        "prm_logprobs_after": prm_after_BT,
        "policy_logprobs_after": policy_after_BT,
    }
    scalars = {
        "prm_loss": "reward_model/prm_loss",
        "prm_pairwise_accuracy": "reward_model/dpo_acc",
        "prm_grad_norm": "reward_model/grad_norm",
        "policy_loss": "actor/pg_loss",
        "clip_fraction": "actor/pg_clipfrac",
        "approx_kl": "actor/ppo_kl",
        "policy_grad_norm": "actor/grad_norm",
    }
    values = metrics.fetch(reported)
    ours = {name: values[ours] for name, ours in scalars.items() if ours in values}
    ours["policy_loss_token_mean"] = float(policy_loss.reduce(tokens_BT, share_BT))
    valid_BT = batch.response_mask_BT > 0
    for name, x_BT in arrays.items():
        x_BT = np.asarray(x_BT)
        ours[name] = [x_T[valid_T] for x_T, valid_T in zip(x_BT, valid_BT, strict=True)]
    return ours


def make_config(settings: Mapping[str, Any], samples: Sequence[Mapping]) -> RlConfig:
    """The case's settings as ours.

    Raises:
      ValueError: a setting is missing, or is none of ours.
    """

    def adamw(fields):
        if fields["name"] != "adamw":
            raise ValueError(f"optimizer is {fields['name']!r}; expected adamw")
        return OptimizerConfig(
            learning_rate=fields["lr"],
            clip_norm=fields["grad_clip"],
            **{name: fields[name] for name in ("b1", "b2", "eps", "weight_decay")},
        )

    try:
        if settings["policy_updates"] != 1:
            raise ValueError(
                f"policy_updates is {settings['policy_updates']}; only 1 can be replayed, since "
                "several depend on how the responses are shuffled"
            )
        rows, num_responses = len(samples), settings["n_samples"]
        return RlConfig(
            num_prompts=rows // num_responses,
            num_responses=num_responses,
            max_prompt_tokens=max(len(sample["prompt_ids"]) for sample in samples),
            max_response_tokens=max(len(sample["response_ids"]) for sample in samples),
            temperature=settings["temperature"],
            beta=settings["beta"],
            gamma_outcome=settings["gamma_verifier"],
            gamma_process=settings["gamma_prm"],
            clip_eps=settings["clip_ratio"],
            prm_update=settings["prm_update"],
            prm_granularity=settings["granularity"],
            prm_norm=settings["score_norm"],
            loss_reduction=settings["loss_reduction"],
            policy_minibatch_size=rows,
            prm_minibatch_size=rows // settings["prm_updates"],
            microbatch_size=num_responses,
            policy_optimizer=adamw(settings["policy_optimizer"]),
            prm_optimizer=adamw(settings["prm_optimizer"]),
        )
    except KeyError as error:
        raise ValueError(f"the case's settings have no {error}") from None


def make_batch(samples: Sequence[Mapping[str, Any]]) -> rollouts.RolloutBatch:
    """The case's samples, with the behaviour policy's recorded log-probabilities."""
    groups = [
        rollouts.Group(
            rollouts.Prompt(sample["prompt"], tuple(sample["prompt_ids"])),
            (
                rollouts.Sample(
                    tuple(sample["response_ids"]),
                    float(sample["correct"]),
                    np.asarray(sample["old_logprobs"], np.float32),
                ),
            ),
        )
        for sample in samples
    ]
    batch = rollouts.to_batch(
        groups,
        max_prompt_tokens=max(len(sample["prompt_ids"]) for sample in samples),
        max_response_tokens=max(len(sample["response_ids"]) for sample in samples),
        pad_id=0,
        eos_ids=(),  # responses are given at their full length
    )
    return batch._replace(old_logprob_BT=batch.decoder_logprob_BT, decoder_logprob_BT=None)


def compare(name: str, expected: Any, ours: Any) -> Row:
    """Expected beside ours; of arrays the number with the largest relative error, see `FLOOR`.

    Raises:
      ValueError: the shapes differ.
    """
    if isinstance(expected, (int, float)):
        expected, ours = [[expected]], [np.array([ours])]
    shapes = [len(row) for row in expected], [len(row) for row in ours]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} has rows of {shapes[0]} numbers; expected {shapes[1]}")
    expected = np.concatenate([np.asarray(row, np.float64) for row in expected])
    ours = np.concatenate([np.asarray(row, np.float64) for row in ours])
    scale = np.maximum(np.abs(expected), FLOOR * np.max(np.abs(expected)))
    error = np.abs(ours - expected) / np.maximum(scale, np.finfo(np.float64).tiny)
    worst = int(np.argmax(np.nan_to_num(error, nan=np.inf)))
    return Row(name, float(expected[worst]), float(ours[worst]), float(error[worst]))
