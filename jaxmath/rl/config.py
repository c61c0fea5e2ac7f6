"""RlConfig: what a PRIME run can choose, with INTELLECT-MATH's values as defaults."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxmath.rl import advantages, policy_loss, process_rewards
from jaxmath.rl.rollouts import RolloutConfig
from jaxmath.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class RlConfig(RolloutConfig):
    """The algorithm; with the fields of `RolloutConfig`, and INTELLECT-MATH's values.

    advantage: entry of `advantages.ESTIMATORS`; gamma_outcome, gamma_process: its discounts.
    beta: β of the PRM's loss (and of its rewards with `prm_norm` none).
    prm_granularity: pay the process reward at every "token", or the "whole" of it at the last.
    prm_norm: entry of `process_rewards.NORMS`; prm_norm_groups: ranks that normalise apart (1: none
      do; the released code used 8); prm_zero_below: nats under which rewards count as zero.
    prm_update: "after": each mini-batch is scored, then trained on, so later ones are scored by a
      model that learnt from earlier ones; "before": train on all, then score; "none": score only.
    ref_type: "freeze": a frozen reference model; "policy": the policy that sampled.
    clip_eps, loss_reduction: of the policy loss, see `policy_loss`.
    policy_minibatch_size, prm_minibatch_size: responses (not prompts) per optimizer update.
    microbatch_size: responses in one forward pass, over all devices.
    temperature: of sampling, hence of both policy log-probabilities in the ratio.
    shuffle_seed: order of the policy's mini-batches; the PRM goes through the rows in order.
    """

    advantage: str = "rloo"
    gamma_outcome: float = 1.0
    gamma_process: float = 1.0
    beta: float = 0.05
    prm_granularity: Literal["token", "whole"] = "token"
    prm_norm: str = "batch_norm"
    prm_norm_groups: int = 1
    prm_zero_below: float = 1e-5
    prm_update: Literal["after", "before", "none"] = "after"
    ref_type: Literal["freeze", "policy"] = "freeze"
    clip_eps: float = 0.2
    loss_reduction: str = "sequence_mean"
    policy_minibatch_size: int = 256
    prm_minibatch_size: int = 256
    microbatch_size: int = 8
    temperature: float = 1.0
    shuffle_seed: int = 0
    policy_optimizer: OptimizerConfig = OptimizerConfig(5e-7, weight_decay=0.01, clip_norm=1.0)
    prm_optimizer: OptimizerConfig = OptimizerConfig(1e-6, clip_norm=10.0)

    def __post_init__(self):
        super().__post_init__()
        choices = {
            "advantage": advantages.ESTIMATORS,
            "prm_granularity": process_rewards.GRANULARITIES,
            "prm_norm": process_rewards.NORMS,
            "prm_update": ("after", "before", "none"),
            "ref_type": ("freeze", "policy"),
            "loss_reduction": policy_loss.REDUCTIONS,
        }
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}; expected one of {', '.join(known)}"
                )
        for field in ("beta", "clip_eps", "temperature"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)}; expected a number > 0")
        for field in ("gamma_outcome", "gamma_process"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected a number in [0, 1]")
        rows = self.num_prompts * self.num_responses
        parts = (
            ("policy_minibatch_size", rows),
            ("prm_minibatch_size", rows),
            ("microbatch_size", self.policy_minibatch_size),
            ("microbatch_size", self.prm_minibatch_size),
        )
        for field, whole in parts:
            if getattr(self, field) < 1 or whole % getattr(self, field):
                raise ValueError(
                    f"{field} is {getattr(self, field)}, which does not divide {whole} responses "
                    f"(a step has num_prompts · num_responses = {rows}); choose a divisor"
                )
        if self.prm_norm_groups < 1 or rows % self.prm_norm_groups:
            raise ValueError(
                f"prm_norm_groups is {self.prm_norm_groups}, which does not divide the {rows} "
                "responses of a step; 1 normalises over all of them"
            )

    @property
    def policy_updates(self) -> int:
        """Optimizer updates of the policy per rollout batch."""
        return self.num_prompts * self.num_responses // self.policy_minibatch_size

    @property
    def prm_updates(self) -> int:
        """Optimizer updates of the PRM per rollout batch."""
        return self.num_prompts * self.num_responses // self.prm_minibatch_size
