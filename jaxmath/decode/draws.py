"""Random bits → an index drawn with given probabilities, by the inverse of their running sum.

Two words of 32 bits per row and token: noise for every vocabulary entry (the Gumbel-max trick)
would cost a CPU more than the model's own matrix products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def row_keys(seed_B, prompt_id_B, sample_B) -> jax.Array:
    """Typed PRNG keys, one per row, made of (seed, prompt id, sample index); all u32."""

    def one(seed, prompt_id, sample):
        # The generator is named, not left to a flag of JAX: samples must repeat elsewhere.
        run_key = jax.random.key(seed, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(run_key, prompt_id), sample)

    return jax.vmap(one)(seed_B, prompt_id_B, sample_B)


def bits(key_B, position_B) -> jax.Array:
    """Two random words per row, for the token at `position_B` (i32): bits_B2, u32.

    `fold_in` is Threefry-2x32 (Salmon et al., SC 2011) of the position under the row's key, and
    its two words of output are uniform; hashing them again would add nothing.
    """
    return jax.random.key_data(jax.vmap(jax.random.fold_in)(key_B, position_B))


def pick(mass_BN, bits_B) -> jax.Array:
    """index_B i32, n with probability mass_n / Σ mass; bits 0 take the first of positive mass.

    Masses become whole numbers that sum to about 2^31, so their running sum is exact in any order:
    an index of mass 0 owns an empty interval and cannot be drawn, at neither end, and the result
    does not depend on how a back end arranges the sum. An index below 2^-31 of the total is lost.

    Args:
      mass_BN: f32, not negative, one positive in each row.
      bits_B: u32.
    """
    scale_B1 = 2.0**31 / jnp.sum(mass_BN, axis=-1, keepdims=True)
    cumulative_BN = jnp.cumsum((mass_BN * scale_B1).astype(jnp.uint32), axis=-1)
    target_B = _product_high(bits_B, cumulative_BN[:, -1])
    return jnp.sum(cumulative_BN <= target_B[:, None], axis=-1, dtype=jnp.int32)


def _product_high(a, b) -> jax.Array:
    """⌊a b / 2^32⌋ for u32, which is below b; in halves, since JAX has no 64 bits by default."""
    low, high = lambda x: x & 0xFFFF, lambda x: x >> 16
    middle = high(a) * low(b) + high(low(a) * low(b))  # below 2^32, as is the sum that follows
    other = low(a) * high(b) + low(middle)
    return high(a) * high(b) + high(middle) + high(other)
