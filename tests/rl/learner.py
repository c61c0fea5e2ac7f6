"""A learner small enough for a test: one layer, four prompts with four responses each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.rl import parts, prime, rollouts
from jaxmath.rl.config import RlConfig
from jaxmath.rl.rollouts import Group, Prompt, Sample
from jaxmath.train import optimizer, state
from jaxmath.train.optimizer import OptimizerConfig

TINY = ModelConfig(24, 1, 16, 24, 4, 2, 8, dtype="float32")
EOS = 1


def config(**fields):
    base = {
        "num_prompts": 4,
        "num_responses": 4,
        "max_prompt_tokens": 4,
        "max_response_tokens": 8,
        "policy_minibatch_size": 4,
        "prm_minibatch_size": 4,
        "microbatch_size": 2,
        "policy_optimizer": OptimizerConfig(1e-2, weight_decay=0.01),
        "prm_optimizer": OptimizerConfig(2e-2, clip_norm=10.0),
    }
    return RlConfig(**base | fields)


@functools.cache
def params(seed=0):
    return qwen2.Qwen2(TINY, jax.random.key(seed))


@functools.cache
def rollout_batch(seed=0):
    rng = np.random.default_rng(seed)
    groups = []
    for prompt in range(4):
        tokens = tuple(int(t) for t in rng.integers(2, TINY.vocab_size, rng.integers(2, 5)))
        samples = []
        for _ in range(4):
            length = int(rng.integers(1, 9))
            response = [int(t) for t in rng.integers(2, TINY.vocab_size, length)]
            response[-1] = EOS if rng.random() < 0.8 else response[-1]
            samples.append(Sample(tuple(response), float(rng.random() < 0.5), -np.ones(length)))
        groups.append(Group(Prompt(prompt, tokens), tuple(samples)))
    batch = rollouts.to_batch(
        groups, max_prompt_tokens=4, max_response_tokens=8, pad_id=0, eos_ids=(EOS,)
    )
    return batch._replace(old_logprob_BT=score(params(), batch))


@functools.partial(jax.jit, static_argnames="temperature")
def score(model, batch, temperature=1.0):
    """The plain way: all rows at once, a response in each, every logit there."""
    logprob_BTV = distributions(model, batch, temperature)
    logprob_BT = jnp.take_along_axis(logprob_BTV, batch.tokens_BT[:, :, None], axis=2)[:, :, 0]
    return jnp.where(batch.response_mask_BT > 0, logprob_BT, 0.0)


def entropies(model, batch):
    """entropy_BT of what each token was drawn from, nats; meaningful on response tokens."""
    logprob_BTV = distributions(model, batch)
    return -jnp.sum(jnp.exp(logprob_BTV) * logprob_BTV, axis=2)


def distributions(model, batch, temperature=1.0):
    """log p(· | earlier tokens), the first of a row meaningless."""
    logits_BTV = model.logits(model.hidden_states(*batch[:3])) / temperature
    return jnp.roll(jax.nn.log_softmax(logits_BTV, axis=-1), 1, axis=1)


def optimizers(rl):
    return {
        "policy_optimizer": optimizer.make_optimizer(rl.policy_optimizer, 100),
        "prm_optimizer": optimizer.make_optimizer(rl.prm_optimizer, 100),
    }


def start(rl, policy=0, prm=0):
    both = optimizers(rl)
    return prime.PrimeState(
        state.create(params(policy), both["policy_optimizer"]),
        state.create(params(prm), both["prm_optimizer"]) if rl.prm else None,
    )


@functools.cache
def compiled(rl):
    return parts.Parts(*map(jax.jit, parts.make(rl, **optimizers(rl))))


def step(rl, learner, ref, batch):
    return prime.prime_update(learner, ref, batch, config=rl, parts=compiled(rl))


def update(rl, ref=0, batch=None, policy=0, prm=0):
    batch = rollout_batch() if batch is None else batch
    return step(rl, start(rl, policy, prm), None if ref is None else params(ref), batch)


def worst(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs)
