"""An SFT step and an RL step by themselves, for `bench_train` and the scripts in `peers`.

The programs are those of `jaxmath sft` and `jaxmath prime`, on random weights or a model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxmath import sharding
from jaxmath.data import batches, records, tokenizer
from jaxmath.decode.decoder import Decoder
from jaxmath.decode.requests import Request
from jaxmath.decode.sampling import SamplingConfig
from jaxmath.rl import rollouts
from jaxmath.runs import models, plan_jobs, prime, prime_programs, sft, speed
from jaxmath.train import optimizer as optimizer_lib
from jaxmath.train import state

# Named in the configs of the runs, and never read here.
TEXTS = {"tokenizer": tokenizer.TokenizerConfig("none"), "data": records.DataConfig("none")}


class SftStep:
    """The step of an SFT run on given examples, all of them in every update."""

    def __init__(self, run: sft.SftRun, examples: Sequence[batches.SftExample], mesh):
        self.data = batches.SftData(
            examples, run.row_tokens, run.batch_rows, run.loss_reduction, run.seed, run.pack
        )
        optimizer = optimizer_lib.make_optimizer(run.optimizer, plan_jobs.MANY)
        self.program = sft.step_program(run, mesh, optimizer)
        create = jax.jit(
            lambda params: state.create(params, optimizer),
            out_shardings=sharding.tree_shardings(mesh, self.program.state),
            donate_argnums=0,
        )
        self.state = create(models.load(run, mesh, dtype="float32"))

    def __call__(self) -> float:
        """One update; the loss before it."""
        batch = jax.device_put(self.data.batch_at(0), self.program.batch.tokens_BT.sharding)
        self.state, found = self.program.step(self.state, batch)
        return found["sft/loss"].value()


class RlStep:
    """The step of a PRIME run without its loader and its verifier: no prompt is filtered out.

    reward: of the tokens of a response.
    """

    def __init__(self, run: prime.PrimeRun, mesh, reward: Callable[[Sequence[int]], float]):
        self.run, self.reward = run, reward
        self.compiled = prime_programs.make(run, mesh)
        self.state = prime_programs.initial_state(run, mesh)
        self.ref = prime_programs.reference(run, mesh) if run.rl.needs_reference else None
        drawn = SamplingConfig(run.rl.temperature, max_tokens=run.rl.max_response_tokens)
        self.decoder = Decoder(self.state.policy.params.config, run.decode, drawn, (), mesh)
        self.decoder.load(self.state.policy.params)
        self.count = 0

    def __call__(self, prompts: Sequence[Sequence[int]]) -> tuple[speed.Phases, np.ndarray]:
        """Rollouts, update, hand-over: (seconds by phase, tokens of each prompt and response)."""
        rl, phases = self.run.rl, speed.Phases()
        with phases("gen"):
            batch = self._rollouts(prompts)
        self.state, found = prime.one_step(
            self.run, self.count, self.state, self.ref, batch, self.compiled, phases
        )
        with phases("sync"):
            self.decoder.load(self.state.policy.params)
            jax.block_until_ready(self.decoder.params)
        self.count += 1
        if not np.isfinite(found["actor/pg_loss"]):
            raise ValueError(f"the policy's loss is {found['actor/pg_loss']}; nothing was measured")
        assert batch.tokens_BT.shape == (len(prompts) * rl.num_responses, rl.max_tokens)
        return phases, np.count_nonzero(batch.segment_ids_BT, axis=1)

    def _rollouts(self, prompts: Sequence[Sequence[int]]) -> rollouts.RolloutBatch:
        rl = self.run.rl
        samples = range(rl.num_responses)
        requests = [Request(p, s, tuple(ids)) for p, ids in enumerate(prompts) for s in samples]
        done = {
            (c.prompt_id, c.sample): rollouts.Sample(c.tokens, self.reward(c.tokens), c.logprobs)
            for c in self.decoder.generate(requests, seed=self.count)
        }
        groups = [
            rollouts.Group(rollouts.Prompt(p, tuple(ids)), tuple(done[p, s] for s in samples))
            for p, ids in enumerate(prompts)
        ]
        return rollouts.to_batch(
            groups,
            max_prompt_tokens=rl.max_prompt_tokens,
            max_response_tokens=rl.max_response_tokens,
            pad_id=0,
            eos_ids=(),
        )
