"""Hidden states → token log-probabilities, with and without a [B, T, V] array.

    logprob_BT = f(hidden_BTD, head_DV, targets_BT, temperature)

log softmax(hidden @ head / temperature) at the target, natural logarithm, float32. Products are
taken in the dtype of `hidden_BTD` and accumulated in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

CHUNK_TOKENS = 1024  # per call of the head: 1024 x 152k f32 logits are 0.6 GB


def _pick(hidden_BTD, head_DV, targets_BT, temperature) -> jax.Array:
    head_DV = head_DV.astype(hidden_BTD.dtype)
    logits_BTV = jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=jnp.float32)
    logits_BTV = logits_BTV / temperature
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[:, :, None], axis=-1)[:, :, 0]
    return target_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


def reference(hidden_BTD, head_DV, targets_BT, temperature=1.0) -> jax.Array:
    """The plain twin: all logits at once. Returns logprob_BT, f32."""
    return _pick(hidden_BTD, head_DV, targets_BT, temperature)


def chunked(hidden_BTD, head_DV, targets_BT, temperature=1.0) -> jax.Array:
    """Positions in chunks of about `CHUNK_TOKENS` tokens; their logits are recomputed for the
    gradient and never kept, and the gradient of the head accumulates over the chunks in f32.
    Returns logprob_BT, f32."""
    B, T, D = hidden_BTD.shape
    num_chunks = -(-T // max(1, CHUNK_TOKENS // B))
    chunk = -(-T // num_chunks)  # equal chunks: fewer than num_chunks positions are padding
    padding = num_chunks * chunk - T
    hidden = jnp.pad(hidden_BTD, ((0, 0), (0, padding), (0, 0)))
    hidden = hidden.reshape(B, num_chunks, chunk, D).swapaxes(0, 1)
    targets = jnp.pad(targets_BT, ((0, 0), (0, padding)))
    targets = targets.reshape(B, num_chunks, chunk).swapaxes(0, 1)
    head_f32 = head_DV.astype(jnp.float32)  # so that the scan sums head gradients in f32

    @jax.checkpoint
    def one(hidden_BCD, targets_BC, head):
        return _pick(hidden_BCD, head, targets_BC, temperature)

    logprob = jax.lax.map(lambda part: one(*part, head_f32), (hidden, targets))
    return logprob.swapaxes(0, 1).reshape(B, num_chunks * chunk)[:, :T]


LOGPROBS = {"reference": reference, "chunked": chunked}
