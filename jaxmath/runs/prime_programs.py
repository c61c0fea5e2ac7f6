"""PRIME's compiled programs: where their arrays live, and what to lower them with.

A function of a `runs.prime.PrimeRun` and a mesh, so that a plan for hardware that is not there sees
what a run would compile.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmath import sharding
from jaxmath.model import lora, qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.rl import packing, prime, rollouts
from jaxmath.rl import parts as parts_lib
from jaxmath.rl.config import RlConfig
from jaxmath.runs import models
from jaxmath.train import optimizer as optimizer_lib
from jaxmath.train import state


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run: a function of the config and the mesh alone.

    parts: those of an update, jitted.
    arguments: name of a part → the arguments it gets, as ShapeDtypeStructs with their shardings, to
      lower it from; parts that a run of this config never calls are left out. All rows are in use
      there, as for the longest responses: the loops over micro-batches have a known length. A run
      of packed rows stops behind the last row in use.
    calls: name of a part → how often a step calls it.
    state: the abstract state, to restore into. whole: the sharding of a batch's arrays.
    """

    parts: parts_lib.Parts
    arguments: dict[str, tuple[Any, ...]]
    calls: dict[str, int]
    state: prime.PrimeState
    whole: Any


def make(config: Any, mesh: Mesh) -> Programs:
    """Nothing is compiled yet, and nothing placed on a device."""
    rl, whole = config.rl, sharding.replicated(mesh)
    shape = models.shape_on(config, mesh)
    both = optimizers(config)
    state_shapes = abstract_state(config, shape, both, mesh)
    at = sharding.tree_shardings(mesh, state_shapes)
    base = None if rl.prm_lora is None else at.policy.params
    adapters = None if rl.prm_lora is None else at.prm.params
    pure = parts_lib.make(rl, *both)
    jitted = parts_lib.Parts(
        score=jax.jit(
            pure.score, in_shardings=(at.policy.params, whole, whole, whole), out_shardings=whole
        ),
        adapted=jax.jit(
            pure.adapted,
            in_shardings=(base, adapters, whole, whole, whole, whole),
            out_shardings=whole,
        ),
        like=jax.jit(
            pure.like,
            in_shardings=(at.policy.params, at.policy.params),
            out_shardings=at.policy.params,
        ),
        mismatch=jax.jit(pure.mismatch, in_shardings=(whole,), out_shardings=whole),
        prm=jax.jit(
            pure.prm,
            in_shardings=(at.prm, whole, whole, whole, base),
            out_shardings=(at.prm, whole, whole),
            donate_argnums=0,
        ),
        advantages=jax.jit(
            pure.advantages, in_shardings=(whole, whole, whole), out_shardings=whole
        ),
        policy=jax.jit(
            pure.policy,
            in_shardings=(at.policy, whole, whole, whole, whole),
            out_shardings=(at.policy, whole, whole),
            donate_argnums=0,
        ),
    )
    arguments = _arguments(rl, state_shapes, config.ref_dtype, whole)
    calls = _calls(rl, arguments)
    return Programs(jitted, {name: arguments[name] for name in calls}, calls, state_shapes, whole)


def _arguments(
    rl: RlConfig, abstract: prime.PrimeState, ref_dtype: str, whole
) -> dict[str, tuple[Any, ...]]:
    B, T = rl.num_prompts * rl.num_responses, rl.max_tokens

    def array(dtype, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=whole)

    def rows(num_responses):
        size = rl.rows(num_responses)
        return packing.Rows(array("int32", size.max_rows, size.row_tokens), None)

    i32, f32 = array("int32", B, T), array("float32", B, T)
    texts = rollouts.RolloutBatch(i32, i32, i32, f32, array("float32", B))
    complete = texts._replace(old_logprob_BT=f32, decoder_logprob_BT=f32)
    batch = complete._replace(old_logprob_BT=None) if rl.on_policy else complete
    policy = (abstract.policy, batch, f32, f32 if rl.has_kl else None)
    params = abstract.policy.params
    base = None if rl.prm_lora is None else abstract_reference(params, ref_dtype)
    found = {
        "score": (params, texts, rows(rl.score_size), array("float32")),
        "mismatch": (complete,),
        "advantages": (batch, *((f32, f32) if rl.prm else (None, None))),
        "policy": (*policy, rows(rl.policy_minibatch_size)),
    }
    if rl.prm:
        found["prm"] = (abstract.prm, batch, f32, rows(rl.prm_minibatch_size), base)
        if rl.prm_update == "none":
            del found["prm"]
    if base is not None:
        one = array("float32")
        scored = (texts, rows(rl.score_size), one)
        found["adapted"] = (base, abstract.prm.params, one, *scored)
    elif rl.needs_reference and rl.prm and ref_dtype != "float32":
        found["like"] = (params, abstract_reference(params, ref_dtype))
    return found


def _calls(rl: RlConfig, arguments: dict[str, Any]) -> dict[str, int]:
    """Of each program in a step; scores are of the policy, of the reference, and of the PRM."""
    parts = rl.num_prompts * rl.num_responses // rl.score_size
    frozen = int(rl.prm and rl.prm_score == "apart")
    if rl.needs_reference:
        frozen += rl.prm + (rl.kl_coef > 0 and not (rl.prm and rl.temperature == 1))
    times = {
        "score": parts * ((not rl.on_policy) + (frozen if rl.prm_lora is None else 0)),
        "adapted": parts * frozen,
        "prm": rl.prm_updates,
        "policy": rl.policy_updates,
        "like": (rl.prm_updates if rl.prm_update == "after" else 1) * (rl.prm_score == "apart"),
        "mismatch": 1,
        "advantages": 1,
    }
    return {name: times[name] for name in arguments if times[name]}


def optimizers(config: Any):
    """Of policy and PRM."""
    rl = config.rl
    return (
        optimizer_lib.make_optimizer(rl.policy_optimizer, config.steps * rl.policy_updates),
        optimizer_lib.make_optimizer(rl.prm_optimizer, config.steps * rl.prm_updates),
    )


def _create(params: qwen2.Qwen2, config: Any, optimizers) -> prime.PrimeState:
    """Policy and PRM from the same parameters, or the PRM's adapters, which change nothing yet."""
    policy_optimizer, prm_optimizer = optimizers
    prm, adapters = None, config.rl.prm_lora
    if adapters is not None:
        fresh = lora.init(adapters, params.config, jax.random.key(config.seed))
        prm = state.create(fresh, prm_optimizer)
    elif config.rl.prm:
        prm = state.create(jax.tree.map(jnp.copy, params), prm_optimizer)
    return prime.PrimeState(state.create(params, policy_optimizer), prm)


def initial_state(config: Any, mesh: Mesh) -> prime.PrimeState:
    """The state before the first step."""
    params = models.load(config, mesh, dtype="float32")
    create = functools.partial(_create, config=config, optimizers=optimizers(config))
    shardings = sharding.tree_shardings(mesh, jax.eval_shape(create, params))
    return jax.jit(create, out_shardings=shardings)(params)


def reference(config: Any, mesh: Mesh) -> qwen2.Qwen2:
    """The frozen reference model, in `ref_dtype`."""
    params = models.load(config, mesh, dtype="float32")
    if config.ref_dtype == "float32":
        return params
    cast = functools.partial(prime.reference, dtype=config.ref_dtype)
    return jax.jit(cast, out_shardings=sharding.tree_shardings(mesh, params))(params)


def abstract_reference(params: Any, ref_dtype: str) -> Any:
    """The frozen model's shapes, placed like the abstract `params` that it is made from."""
    ref = jax.eval_shape(functools.partial(prime.reference, dtype=ref_dtype), params)
    place = lambda r, p: jax.ShapeDtypeStruct(r.shape, r.dtype, sharding=p.sharding)  # noqa: E731
    return jax.tree.map(place, ref, params)


def abstract_state(config: Any, shape: ModelConfig, optimizers, mesh: Mesh) -> prime.PrimeState:
    """The state's shapes with their shardings, to restore into and to lower from."""
    create = functools.partial(_create, config=config, optimizers=optimizers)
    return models.with_shardings(jax.eval_shape(create, models.abstract_params(shape)), mesh)
