"""Top-k and top-p as one threshold per row: the tokens whose logit reaches it stay.

No sort of the vocabulary. The largest threshold that still keeps enough (k tokens, or the
probability p) is found by bisection over the 2^32 floats, which is exact. It runs over a few
candidates where they decide the matter, else over the whole vocabulary.

Tokens that tie at the threshold all stay, so more than k may.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

GROUP = 32  # tokens whose largest logit stands for them in the choice of candidates
NUM_GROUPS = 128  # groups that become candidates: 128 tokens or more of the likeliest are in them


def threshold(logits_BV, top_k_B, top_p_B, weight_of: Callable) -> jax.Array:
    """The least logit that passes top-k, then top-p of what is left; -inf where neither is asked.

    Args:
      logits_BV: f32, finite but for -inf.
      top_k_B: i32, 0 is off. top_p_B: f32, 1 is off (Holtzman et al., arXiv:1904.09751: the
        smallest set of likeliest tokens that reaches p).
      weight_of: [B, *] logits → their unnormalised probabilities, f32; with a second argument,
        [B], 0 for logits below it.
    Returns:
      threshold_B, f32.
    """
    off = lambda: jnp.full(top_k_B.shape, -jnp.inf)  # noqa: E731
    by_rank_B, by_mass_B = top_k_B > 0, top_p_B < 1

    def asked():
        few = _candidates(logits_BV)
        ranked = lambda: _rank_threshold(logits_BV, few, top_k_B)  # noqa: E731
        rank_B = jnp.where(by_rank_B, jax.lax.cond(jnp.any(by_rank_B), ranked, off), -jnp.inf)
        massed = lambda: _mass_threshold(logits_BV, few, rank_B, top_p_B, weight_of)  # noqa: E731
        mass_B = jax.lax.cond(jnp.any(by_mass_B), massed, off)
        # The lower, where p is so close to 1 that rounding finds no mass to reach it.
        return jnp.where(by_mass_B, jnp.maximum(mass_B, rank_B), rank_B)

    return jax.lax.cond(jnp.any(by_rank_B | by_mass_B), asked, off)


def _rank_threshold(logits_BV, few: Candidates, top_k_B) -> jax.Array:
    k_B = jnp.minimum(top_k_B, logits_BV.shape[-1])

    def largest(x_BC):
        return bisect(lambda t_B: _count(x_BC >= t_B[:, None]) >= k_B, k_B.shape)

    return few.decide(largest, lambda t_B: t_B, top_k_B > 0, logits_BV)


def _mass_threshold(logits_BV, few: Candidates, rank_B, top_p_B, weight_of) -> jax.Array:
    def kept_mass(x_BC):
        return jnp.sum(weight_of(x_BC, rank_B), axis=-1)

    def largest(x_BC):
        weight_BC = weight_of(x_BC)  # once, not at every step of the bisection
        kept = lambda t_B: jnp.where(x_BC >= t_B[:, None], weight_BC, 0)  # noqa: E731
        return bisect(lambda t_B: jnp.sum(kept(t_B), axis=-1) >= wanted_B, top_p_B.shape)

    wanted_B = top_p_B * few.decide(kept_mass, lambda _: rank_B, top_p_B < 1, logits_BV)
    return few.decide(largest, lambda t_B: t_B, top_p_B < 1, logits_BV)


def bisect(enough: Callable, shape: tuple[int, ...]) -> jax.Array:
    """The largest f32 t, elementwise, for which `enough(t)` holds; -inf where none does.

    `enough` is true up to some t, then false, and false of NaN. One bit of t at a time.
    """

    def settle(i, image):
        trial = image | jnp.left_shift(jnp.uint32(1), 31 - i.astype(jnp.uint32))
        return jnp.where(enough(_float(trial)), trial, image)

    return _float(jax.lax.fori_loop(0, 32, settle, jnp.zeros(shape, jnp.uint32)))


def _count(true_BC) -> jax.Array:
    """How many of each row are true, added up in columns, which a CPU does several at a time."""
    B, C = true_BC.shape
    columns = true_BC.reshape(B, math.gcd(C, GROUP), -1).astype(jnp.int32)
    # A barrier, or XLA would join the two sums again.
    return jnp.sum(jax.lax.optimization_barrier(jnp.sum(columns, axis=1)), axis=-1)


def _float(image) -> jax.Array:
    """u32 → f32 in ascending order: the floats sort like whole numbers once signs are undone."""
    image = jnp.maximum(image, jnp.uint32(0x007FFFFF))  # -inf; what is below would be NaN
    sign = jnp.uint32(1 << 31)
    return jax.lax.bitcast_convert_type(jnp.where(image >= sign, image ^ sign, ~image), jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """Some logits of each row, candidate_BC, among them all that are above covered_B.

    covered_B is None where they are all there is.
    """

    candidate_BC: jax.Array
    covered_B: jax.Array | None

    def decide(self, f: Callable, depth_of: Callable, wanted_B, logits_BV) -> jax.Array:
        """f of the candidates; f of all logits for rows in which it looks below `covered_B`.

        Row by row, for the two may sum in another order: what a row gets must not depend on its
        neighbours' needs. They decide only whether the second is computed.

        Args:
          f: [B, *] logits → [B].
          depth_of: result of f → the least logit that had a say in it.
          wanted_B: bool, rows whose result is used.
        """
        few_B = f(self.candidate_BC)
        if self.covered_B is None:
            return few_B
        short_B = wanted_B & ~(depth_of(few_B) >= self.covered_B)
        all_B = lambda: jnp.where(short_B, f(logits_BV), few_B)  # noqa: E731
        return jax.lax.cond(jnp.any(short_B), all_B, lambda: few_B)


def _candidates(logits_BV) -> Candidates:
    V = logits_BV.shape[-1]
    if V <= GROUP * NUM_GROUPS:
        return Candidates(logits_BV, None)
    num_groups = -(-V // GROUP)
    padding = ((0, 0), (0, num_groups * GROUP - V))
    padded = jnp.pad(logits_BV, padding, constant_values=-jnp.inf)
    # Group j is j, j + num_groups, …: a vocabulary split over devices keeps 1/n of each group.
    logits_BGJ = padded.reshape(-1, GROUP, num_groups)
    best_BM, group_BM = jax.lax.top_k(jnp.max(logits_BGJ, axis=1), NUM_GROUPS)
    candidate_BGM = jnp.take_along_axis(logits_BGJ, group_BM[:, None], axis=2, mode="clip")
    # Not best_BM[:, -1]: XLA then no longer sees a top-k, and sorts all groups.
    candidate_BC = candidate_BGM.reshape(-1, GROUP * NUM_GROUPS)
    return Candidates(candidate_BC, jnp.min(best_BM, axis=-1))
