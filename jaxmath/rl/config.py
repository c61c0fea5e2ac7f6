"""RlConfig: what an RL run can choose, with INTELLECT-MATH's values as defaults."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxmath.model import lora
from jaxmath.rl import advantages, packing, policy_loss, process_rewards
from jaxmath.rl.rollouts import RolloutConfig
from jaxmath.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class RlConfig(RolloutConfig):
    """The algorithm; with the fields of `RolloutConfig`, and INTELLECT-MATH's values.

    advantage: entry of `advantages.ESTIMATORS`; gamma_outcome, gamma_process: its discounts.
    prm: learn an implicit process reward model and add its rewards; false: outcomes alone, as in
      GRPO, and neither a PRM nor (with `kl_coef` 0) a reference model exists.
    prm_lora: the PRM is adapters beside the reference, which is then the only other copy of the
      model; null: a model of its own. It is computed in the reference's dtype, without dropout.
    beta: β of the PRM's loss (and of its rewards with `prm_norm` none).
    prm_granularity: pay the process reward at every "token", or the "whole" of it at the last.
    prm_norm: entry of `process_rewards.NORMS`; prm_norm_groups: ranks that normalise apart (1: none
      do; the released code used 8); prm_zero_below: nats under which rewards count as zero.
    prm_score: for "after", where its scores come from: "apart", the reference's own program, so
      that they are equal bit for bit while the parameters are; "gradient", the forward pass of the
      update, one pass less. Two programs round differently: `prm_zero_below` has to cover that.
    prm_update: "after": each mini-batch is scored, then trained on, so later ones are scored by a
      model that learnt from earlier ones; "before": train on all, then score; "none": score only.
    ref_type: "freeze": a frozen reference model; "policy": the policy that sampled, which needs no
      model of its own.
    clip_eps: ε of the surrogate's clip; clip_eps_low, clip_eps_high: of either side, in its place.
    loss_reduction: entry of `policy_loss.REDUCTIONS`.
    kl_coef: of the term kl_coef · KL(policy ‖ reference) of the policy's loss; kl_estimator: entry
      of `policy_loss.KL_ESTIMATORS`, also of the metric `actor/kl_ref`.
    entropy_coef: of the term -entropy_coef · entropy of the policy's loss, at `temperature`.
    importance_cap: weigh each token's loss with min(π_trainer / π_decoder, cap); null: do not.
    max_mismatch: stop the run where trainer and decoder differ by more than so many nats in the
      mean over a step's tokens; null: never.
    policy_minibatch_size, prm_minibatch_size: responses (not prompts) per optimizer update.
    microbatch_size: responses in one forward pass, over all devices, one in a row as long as prompt
      and response may be.
    tokens_per_microbatch: in place of it: tokens in one forward pass, over all devices; responses
      are packed by length into rows of `row_tokens` (null: the longest prompt and response).
    temperature: of sampling, hence of both policy log-probabilities in the ratio.
    shuffle_seed: order of the policy's mini-batches; the PRM goes through the rows in order.
    """

    advantage: str = "rloo"
    gamma_outcome: float = 1.0
    gamma_process: float = 1.0
    prm: bool = True
    prm_lora: lora.LoraConfig | None = None
    beta: float = 0.05
    prm_granularity: Literal["token", "whole"] = "token"
    prm_norm: str = "batch_norm"
    prm_norm_groups: int = 1
    prm_zero_below: float = 1e-5
    prm_update: Literal["after", "before", "none"] = "after"
    prm_score: Literal["apart", "gradient"] = "apart"
    ref_type: Literal["freeze", "policy"] = "freeze"
    clip_eps: float = 0.2
    clip_eps_low: float | None = None
    clip_eps_high: float | None = None
    loss_reduction: str = "sequence_mean"
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    entropy_coef: float = 0.0
    importance_cap: float | None = None
    max_mismatch: float | None = None
    policy_minibatch_size: int = 256
    prm_minibatch_size: int = 256
    microbatch_size: int = 8
    tokens_per_microbatch: int | None = None
    row_tokens: int | None = None
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
            "prm_score": ("apart", "gradient"),
            "ref_type": ("freeze", "policy"),
            "loss_reduction": policy_loss.REDUCTIONS,
            "kl_estimator": policy_loss.KL_ESTIMATORS,
        }
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}; expected one of {', '.join(known)}"
                )
        if self.num_responses < 2 and self.advantage not in advantages.WITHOUT_BASELINE:
            raise ValueError(
                f"num_responses is {self.num_responses}; the baseline of {self.advantage} needs at "
                f"least 2 (of {' or '.join(advantages.WITHOUT_BASELINE)} 1 is enough)"
            )
        for field in ("beta", "clip_eps", "temperature"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)}; expected a number > 0")
        for field in ("clip_eps_low", "clip_eps_high", "importance_cap", "max_mismatch"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"{field} is {value}; expected a number > 0, or null")
        for field in ("kl_coef", "entropy_coef"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"{field} is {getattr(self, field)}; expected a number >= 0")
        for field in ("gamma_outcome", "gamma_process"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected a number in [0, 1]")
        if self.prm_score == "gradient" and self.prm_update != "after":
            raise ValueError(
                f"prm_score is 'gradient' and prm_update is {self.prm_update!r}; scores come from "
                "the update's own pass only where it is 'after'"
            )
        self._check_adapters()
        self._check_parts()

    def _check_adapters(self):
        if self.prm_lora is None:
            return
        if not self.prm or self.ref_type != "freeze":
            raise ValueError(
                f"prm_lora is set with prm {str(self.prm).lower()} and ref_type {self.ref_type!r}; "
                "adapters need a PRM, and the frozen reference beside them: set prm to true and "
                "ref_type to 'freeze', or prm_lora to null"
            )
        if self.prm_lora.dropout:
            raise ValueError(
                f"prm_lora.dropout is {self.prm_lora.dropout}; the PRM is trained as it scores, "
                "without dropout: leave it out"
            )
        if self.prm_lora.base_dtype is not None:
            raise ValueError(
                f"prm_lora.base_dtype is {self.prm_lora.base_dtype}; the adapters' base is the "
                "reference: leave it out, and set the run's ref_dtype"
            )

    def _check_parts(self):
        rows = self.num_prompts * self.num_responses
        parts = [("policy_minibatch_size", rows)]
        if self.prm:
            parts.append(("prm_minibatch_size", rows))
        if self.tokens_per_microbatch is None:
            parts += [("microbatch_size", getattr(self, field)) for field, _ in parts]
            if self.row_tokens is not None:
                raise ValueError(
                    f"row_tokens is {self.row_tokens}, but responses are only packed into rows "
                    "where tokens_per_microbatch says how many tokens a forward pass takes; set it"
                )
        for field, whole in parts:
            if getattr(self, field) < 1 or whole % getattr(self, field):
                raise ValueError(
                    f"{field} is {getattr(self, field)}, which does not divide {whole} responses "
                    f"(a step has num_prompts · num_responses = {rows}); choose a divisor"
                )
        if self.row_tokens is not None and self.row_tokens < self.max_tokens:
            raise ValueError(
                f"row_tokens is {self.row_tokens}; a prompt and its response may have "
                f"{self.max_tokens} tokens (max_prompt_tokens + max_response_tokens): expected at "
                "least as many"
            )
        if self.tokens_per_microbatch is not None and self.microbatch_rows < 1:
            raise ValueError(
                f"tokens_per_microbatch is {self.tokens_per_microbatch}; expected at least the "
                f"{self.row_tokens or self.max_tokens} tokens of one row"
            )
        if self.prm_norm_groups < 1 or rows % self.prm_norm_groups:
            raise ValueError(
                f"prm_norm_groups is {self.prm_norm_groups}, which does not divide the {rows} "
                "responses of a step; 1 normalises over all of them"
            )

    @property
    def max_tokens(self) -> int:
        """Of a prompt and its response."""
        return self.max_prompt_tokens + self.max_response_tokens

    @property
    def packed(self) -> bool:
        """Whether a row holds several responses."""
        return self.tokens_per_microbatch is not None

    @property
    def microbatch_rows(self) -> int:
        """Rows in one forward pass, over all devices."""
        if self.tokens_per_microbatch is None:
            return self.microbatch_size
        return self.tokens_per_microbatch // (self.row_tokens or self.max_tokens)

    def rows(self, num_responses: int) -> packing.Shape:
        """The rows that hold any so many responses."""
        return packing.shape_for(
            num_responses,
            self.max_tokens,
            microbatch_rows=self.microbatch_rows,
            row_tokens=(self.row_tokens or self.max_tokens) if self.packed else None,
        )

    @property
    def on_policy(self) -> bool:
        """Whether the policy that learns is the one that sampled, in the one update of a step: then
        that update finds the old log-probabilities itself, and nothing asks for them earlier."""
        return self.policy_updates == 1 and self.ref_type == "freeze"

    @property
    def score_size(self) -> int:
        """Responses scored in one call: as the PRM is, which learns between two calls."""
        return self.prm_minibatch_size if self.prm else self.policy_minibatch_size

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen reference model has to exist."""
        return self.ref_type == "freeze" and (self.prm or self.kl_coef > 0)

    @property
    def has_kl(self) -> bool:
        """Whether the KL to the reference is known: asked for, or at no price."""
        free = self.ref_type == "policy" or (self.prm and self.temperature == 1)
        return free or self.kl_coef > 0

    @property
    def clip_range(self) -> tuple[float, float]:
        """(ε below, ε above)."""
        low, high = self.clip_eps_low, self.clip_eps_high
        return self.clip_eps if low is None else low, self.clip_eps if high is None else high

    @property
    def policy_updates(self) -> int:
        """Optimizer updates of the policy per rollout batch."""
        return self.num_prompts * self.num_responses // self.policy_minibatch_size

    @property
    def prm_updates(self) -> int:
        """Optimizer updates of the PRM per rollout batch, where there is one."""
        return self.num_prompts * self.num_responses // self.prm_minibatch_size
