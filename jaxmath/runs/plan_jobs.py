"""The runs' real programs, from shapes alone: no array is made, no file is read.

A job is built by the same functions as the run: `sft.step_program`, `prime_programs.make`, the
decoder's own programs and `placement.program`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxmath.decode import decoder, memory, placement, sampling
from jaxmath.eval import benchmarks
from jaxmath.model.config import ModelConfig
from jaxmath.plan import decoding, verdicts, work
from jaxmath.plan.programs import Program
from jaxmath.plan.verdicts import Job
from jaxmath.runs import models, prime, prime_programs, sft
from jaxmath.train import optimizer as optimizer_lib

MANY = 10**6  # updates of a run whose data are not looked at; no program depends on it
STORED = "bfloat16"  # in which Qwen publishes its weights
WEIGHTS, CACHE = "decoder's weights", "decoder's cache"
SCORED = "PRM as it is scored"  # its parameters in the reference's dtype, for as long as that takes
RESPONSE_SHARE = 4  # a mean prompt or response is taken to be this part of its limit


def sft_job(config: sft.SftRun, mesh: Mesh, response_tokens: int | None = None) -> Job:
    """The train step; its state stays in memory."""
    shape = models.shape_on(config, mesh)
    rows = config.batch_rows // config.num_microbatches
    models.check_rows(mesh, rows, "rows per micro-batch")
    optimizer = optimizer_lib.make_optimizer(config.optimizer, config.max_steps or MANY)
    program = sft.step_program(config, mesh, optimizer)
    tokens = config.batch_rows * config.row_tokens
    parts = {
        "weights": verdicts.device_bytes(program.state.params),
        "optimizer": verdicts.device_bytes(program.state.opt_state),
    }
    if program.base is not None:
        parts["frozen weights"] = verdicts.device_bytes(program.base)
    step = Program(
        "train step",
        _compiled(program.step, mesh, *program.arguments),
        holds=tuple(parts),
        beside=(),
        model_flops=3 * tokens * work.forward_flops(shape, config.row_tokens / 2),
        runs=1,
    )
    what = (
        f"an update of {config.batch_rows} rows of {config.row_tokens:,} tokens, "
        f"{rows} rows at a time"
    )
    host, notes = _on_host({"optimizer": program.state.opt_state})
    return Job(parts, (step,), what, tokens, notes=notes, host=host)


def _on_host(trees: dict[str, Any]) -> tuple[dict[str, int], tuple[str, ...]]:
    """(bytes of those in the host's memory, what there is to say of them)."""
    found = {name: verdicts.host_bytes(tree) for name, tree in trees.items()}
    found = {name: size for name, size in found.items() if size}
    note = "what lies on the host crosses to the devices and back at each update: not in the times"
    return found, (note,) * bool(found)


class _Part(NamedTuple):
    """A program of PRIME's update. holds: what it takes of the arrays that stay. passes: over a
    token: one forward, two back where a model learns, of which adapters save one."""

    label: str
    holds: tuple[str, ...]
    passes: int


PRIME_PARTS = {
    "score": _Part("log-probs", ("policy",), 1),
    "adapted": _Part("log-probs with adapters", ("PRM", "reference"), 1),
    "prm": _Part("prm update", ("PRM", "PRM's optimizer"), 3),
    "policy": _Part("policy update", ("policy", "its optimizer"), 3),
}
ADAPTERS_UPDATE = _Part("prm update", ("PRM", "PRM's optimizer", "reference"), 2)


def prime_job(config: prime.PrimeRun, mesh: Mesh, response_tokens: int | None = None) -> Job:
    """Rollouts with the decoder, log-probabilities, both updates, and the hand-over of weights."""
    rl = config.rl
    shape = models.shape_on(config, mesh)
    models.check_rows(mesh, rl.microbatch_rows, "rows of a micro-batch")
    made = prime_programs.make(config, mesh)
    num_rows, row = rl.num_prompts * rl.num_responses, rl.max_tokens
    trees = {"policy": made.state.policy.params, "its optimizer": made.state.policy.opt_state}
    if made.state.prm is not None:
        trees |= {"PRM": made.state.prm.params, "PRM's optimizer": made.state.prm.opt_state}
    if rl.needs_reference:
        ref = prime_programs.abstract_reference(made.state.policy.params, config.ref_dtype)
        trees["reference"] = ref
    parts = {name: verdicts.device_bytes(tree) for name, tree in trees.items()}
    host, about_host = _on_host(trees)
    learning = tuple(parts)
    programs = []
    for name, part in PRIME_PARTS.items():
        if name not in made.arguments:
            continue
        if name == "prm" and rl.prm_lora is not None:
            part = ADAPTERS_UPDATE
        num_responses = {"policy": rl.policy_minibatch_size, "prm": rl.prm_minibatch_size}.get(
            name, rl.score_size
        )
        # The decoder's weights and cache are gone: `runs.prime` lets them go before the update.
        beside = tuple(other for other in learning if other not in part.holds)
        if name == "score" and "like" in made.arguments:
            beside += (SCORED,)
        programs.append(
            Program(
                part.label,
                _compiled(getattr(made.parts, name), mesh, *made.arguments[name]),
                holds=part.holds,
                beside=beside,
                model_flops=part.passes * num_responses * row * work.forward_flops(shape, row / 2),
                runs=made.calls[name],
            )
        )
    drawn = sampling.SamplingConfig(rl.temperature, max_tokens=rl.max_response_tokens)
    mean = response_tokens or -(-rl.max_response_tokens // RESPONSE_SHARE)
    rollout = _Rollout.of(
        shape, mesh, config.decode, drawn, reserved=sum(parts.values()), beside=learning
    )
    parts |= rollout.parts
    if "like" in made.arguments:
        parts[SCORED] = parts["reference"]
    # All tokens with full slots, or the longest response, which ends the rollout.
    steps = max(-(-num_rows * mean // max(rollout.slots, 1)), rl.max_response_tokens)
    params = made.state.policy.params
    sync = _sync(shape, mesh, config.decode, params, "policy", learning[1:], runs=1)
    return Job(
        parts,
        (*rollout.programs(steps, rl.num_prompts), *programs, sync),
        f"a step of {num_rows:,} responses of up to {row:,} tokens, "
        f"{rl.microbatch_rows} rows at a time",
        num_rows * row,
        rollout.refusals,
        (
            _assumed(mean, rl.max_response_tokens),
            "prompts that the accuracy filter drops are not in it: decoding takes longer by them",
            "updates are counted with every response at its limit",
            *about_host,
        ),
        host,
    )


def decode_job(verb: str, config: Any, mesh: Mesh, response_tokens: int | None = None) -> Job:
    """`synth`, `eval`, `generate`, `serve`: weights loaded, handed over, then decoding."""
    shape = models.shape_on(config, mesh)
    loaded = models.with_shardings(models.abstract_params(shape, STORED), mesh)
    parts = {"loaded weights": verdicts.device_bytes(loaded)}
    sync = _sync(shape, mesh, config.decode, loaded, "loaded weights", (), runs=0)
    drawn = _sampling(verb, config)
    mean = response_tokens or -(-drawn.max_tokens // RESPONSE_SHARE)
    rollout = _Rollout.of(
        shape,
        mesh,
        config.decode,
        drawn,
        reserved=0,  # the loaded weights are gone when slots are counted
        beside=(),
        per_request=verb == "serve",
    )
    asked = rollout.slots // getattr(config, "num_samples", 1)
    return Job(
        parts | rollout.parts,
        (sync, *rollout.programs(mean, asked)),
        f"{rollout.slots:,} responses of {mean:,} tokens, all slots at once",
        rollout.slots * mean,
        rollout.refusals,
        (_assumed(mean, drawn.max_tokens),),
    )


@dataclasses.dataclass(frozen=True)
class _Rollout:
    """A decoder beside other arrays. made: None where it does not fit, which `refusals` say."""

    made: decoder.Decoder | None
    beside: tuple[str, ...]
    parts: dict[str, int]
    refusals: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        shape: ModelConfig,
        mesh: Mesh,
        config: decoder.DecodeConfig,
        drawn: sampling.SamplingConfig,
        *,
        reserved: int,
        beside: tuple[str, ...],
        per_request: bool = False,
    ) -> _Rollout:
        weights = memory.device_bytes(*placement.abstract(shape, mesh, config.form))
        parts = {WEIGHTS: weights}
        try:
            made = decoder.Decoder(
                shape,
                config,
                drawn,
                (0,),  # which token ends a response does not change the program
                mesh,
                detokenize=lambda ids: "",
                per_request=per_request,
                reserved=reserved,
            )
        except ValueError as error:
            if "fit" not in str(error):
                raise
            return cls(None, beside, parts, (f"decoder: {error}",))
        return cls(made, beside, parts | {CACHE: made.memory.cache})

    @property
    def slots(self) -> int:
        return self.made.slots if self.made else 0

    def programs(self, steps: int, prompts: int) -> tuple[Program, ...]:
        """The token loop, for so many steps, and the longest prefill, for so many prompts."""
        made = self.made
        if made is None:
            return ()
        length, width = made.memory.footprint.length, made.decode.max_prompt_tokens
        row_tokens = 2 * width * made.shards
        holds = (WEIGHTS, CACHE)
        loop = Program(
            "decode step",
            lambda: decoding.decode_chunk(made),
            holds,
            self.beside,
            made.slots * work.forward_flops(made.model, length),
            steps,
            is_loop=True,
        )
        prefill = Program(
            "prefill",
            lambda: decoding.admit(made, width),
            holds,
            self.beside,
            row_tokens * work.forward_flops(made.model, width / 2, head=False),
            math.ceil(prompts * width / RESPONSE_SHARE / row_tokens),
            after=loop.name,
        )
        return loop, prefill


def _sync(
    shape: ModelConfig,
    mesh: Mesh,
    config: decoder.DecodeConfig,
    params: Any,
    held: str,
    beside: tuple[str, ...],
    runs: int,
) -> Program:
    program = placement.program(shape, mesh, config.form)
    return Program("weight sync", _compiled(program, mesh, params), (held,), beside, 0.0, runs)


def _sampling(verb: str, config: Any) -> sampling.SamplingConfig:
    """With the longest responses that the run asks for."""
    if verb != "eval":
        return config.sampling
    asked = [config.max_tokens or benchmarks.BENCHMARKS[n].max_tokens for n in config.benchmarks]
    asked += [config.max_tokens or config.sampling.max_tokens] * bool(config.problems)
    return dataclasses.replace(config.sampling, max_tokens=max(asked))


def _assumed(mean: int, limit: int) -> str:
    return (
        f"assumed: responses of {mean:,} tokens on average, at most {limit:,} (--response-tokens)"
    )


def _compiled(jitted: Any, mesh: Mesh, *arguments: Any) -> Callable[[], jax.stages.Compiled]:
    def compile_now() -> jax.stages.Compiled:
        with jax.set_mesh(mesh):
            return jitted.lower(*arguments).compile()

    return compile_now
