"""Hidden states → log-probabilities and entropies of tokens, with and without a [B, T, V] array.

    LOGPROBS = {"reference": …, "chunked": …}
    TokenScores = f(hidden_BTD, head_DV, targets_BT, temperature, needed_BT=…, entropy=…)

log softmax(z)[target] and -Σ softmax(z) log softmax(z), z = hidden @ head / temperature, natural
logarithm, float32. Products are taken in the dtype of `hidden_BTD` and accumulated in float32; the
gradient of the head adds up in float32. No gradient flows into the temperature. Positions that
`needed_BT` leaves out give 0 and no gradient.

On a mesh the head may come split over fsdp, as it is stored, and is gathered once, in the compute
dtype; its words stay split over tensor.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmath import sharding

# Positions per device and call of the head. 1024 x 152k f32 logits are 0.6 GB. Rows in fewer than
# four chunks would be gone through whole, however few of their positions are needed; chunks of
# fewer than 128 positions would read the head too often.
CHUNK_TOKENS = 1024
LEAST_CHUNKS, LEAST_TOKENS = 4, 128

HEAD_AXES = ("embed", "vocab")  # logical axes of a head as it is stored


class TokenScores(NamedTuple):
    """f32, in nats. entropy_BT: of the whole distribution; None unless asked for."""

    logprob_BT: jax.Array
    entropy_BT: jax.Array | None


def reference(
    hidden_BTD,
    head_DV,
    targets_BT,
    temperature=1.0,
    *,
    needed_BT=None,
    entropy=False,
    head_axes=HEAD_AXES,
) -> TokenScores:
    """The plain twin: all logits at once."""
    head_DV = _gathered(head_DV, hidden_BTD.dtype, head_axes)
    logits_BTV = _logits(hidden_BTD, head_DV, jax.lax.stop_gradient(temperature))
    logprob_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
    logprob_BT = _at(logprob_BTV, targets_BT)
    entropy_BT = -jnp.sum(jnp.exp(logprob_BTV) * logprob_BTV, axis=-1) if entropy else None
    found = TokenScores(logprob_BT, entropy_BT)
    if needed_BT is None:
        return found
    return jax.tree.map(lambda x_BT: jnp.where(needed_BT, x_BT, 0.0), found)


def chunked(
    hidden_BTD,
    head_DV,
    targets_BT,
    temperature=1.0,
    *,
    needed_BT=None,
    entropy=False,
    head_axes=HEAD_AXES,
) -> TokenScores:
    """About `CHUNK_TOKENS` positions of each device at a time, and only as many chunks as hold a
    needed position; the gradient computes their logits again, so that none are kept."""
    B, T, _ = hidden_BTD.shape
    shards = sharding.num_shards("batch")
    shards = shards if B % shards == 0 else 1
    tokens = T * B // shards
    wanted = min(CHUNK_TOKENS, max(LEAST_TOKENS, tokens // LEAST_CHUNKS))
    num_chunks = min(T, -(-tokens // wanted))
    how = _How(num_chunks, -(-T // num_chunks), shards, entropy, tuple(head_axes))
    order = None if needed_BT is None else _order(needed_BT)
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature, jnp.float32))
    found = _chunked(how, hidden_BTD, head_DV, targets_BT, temperature, order)
    if needed_BT is None:
        return found
    return jax.tree.map(lambda x_BT: jnp.where(needed_BT, x_BT, 0.0), found)


LOGPROBS = {"reference": reference, "chunked": chunked}


# --- both ways --------------------------------------------------------------------------------


def _gathered(head_DV, dtype, head_axes) -> jax.Array:
    """The head in the compute dtype on every shard of the batch, its words split over tensor."""
    # Gather over fsdp, then split over tensor: in one step the partitioner finds no path.
    head_DV = sharding.constrain(head_DV.astype(dtype), "act_embed", head_axes[1])
    return sharding.constrain(head_DV, "act_embed", "vocab")


def _logits(hidden_BTD, head_DV, temperature) -> jax.Array:
    logits_BTV = jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=jnp.float32)
    return logits_BTV / temperature


def _at(x_BTV, targets_BT) -> jax.Array:
    return jnp.take_along_axis(x_BTV, targets_BT[:, :, None], axis=-1)[:, :, 0]


# --- in chunks --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _How:
    """num_chunks of chunk positions cover a row; shards: of the batch, equal parts of its rows."""

    num_chunks: int
    chunk: int
    shards: int
    entropy: bool
    head_axes: tuple[str | None, ...]


class _Order(NamedTuple):
    """The positions of each row with the needed ones in front; i32.

    index_BT: which position stands at each place. rank_BT: the place of each position.
    num_needed: i32[], of the row that has most: the rows are gone through side by side.
    """

    index_BT: jax.Array
    rank_BT: jax.Array
    num_needed: jax.Array


def _order(needed_BT) -> _Order:
    index_BT = jnp.argsort(~needed_BT, axis=1, stable=True)
    return _Order(index_BT, jnp.argsort(index_BT, axis=1), jnp.max(jnp.sum(needed_BT, axis=1)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    how: _How, hidden_BTD, head_DV, targets_BT, temperature, order: _Order | None
) -> TokenScores:
    return _forward(how, hidden_BTD, head_DV, targets_BT, temperature, order)[0]


def _forward(how: _How, hidden_BTD, head_DV, targets_BT, temperature, order: _Order | None):
    whole_DV = _gathered(head_DV, hidden_BTD.dtype, how.head_axes)
    hidden, targets = _to_front(hidden_BTD, order, how), _to_front(targets_BT, order, how)
    zeros = jnp.zeros(targets.shape, jnp.float32)
    zeros = sharding.constrain(zeros, "batch", "seq")

    def one(i, out):
        logits_BCV = _logits(_slice(hidden, i, how), whole_DV, temperature)
        max_BC = jnp.max(logits_BCV, axis=-1)
        exp_BCV = jnp.exp(logits_BCV - max_BC[:, :, None])
        sum_BC = jnp.sum(exp_BCV, axis=-1)
        lse_BC = max_BC + jnp.log(sum_BC)
        parts = [_at(logits_BCV, _slice(targets, i, how)) - lse_BC, lse_BC]
        if how.entropy:
            parts.append(lse_BC - jnp.sum(exp_BCV * logits_BCV, axis=-1) / sum_BC)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
        return tuple(put(x, part, i * how.chunk) for x, part in zip(out, parts, strict=True))

    out = _loop(order, how, one, (zeros,) * (3 if how.entropy else 2))
    back = [_from_front(x, order, targets_BT.shape[1]) for x in (out[0], *out[2:])]
    found = TokenScores(back[0], back[1] if how.entropy else None)
    saved = (hidden_BTD, head_DV, targets_BT, temperature, order, out[1:])
    return found, saved


def _backward(how: _How, saved, gradient: TokenScores):
    """With p = softmax(z): d logprob / dz = onehot - p, d entropy / dz = -p (log p + entropy)."""
    hidden_BTD, head_DV, targets_BT, temperature, order, statistics = saved
    dtype = hidden_BTD.dtype
    whole_DV = _gathered(head_DV, dtype, how.head_axes)
    front = functools.partial(_to_front, order=order, how=how)
    hidden, targets, of_logprob = front(hidden_BTD), front(targets_BT), front(gradient.logprob_BT)
    of_entropy = front(gradient.entropy_BT) if how.entropy else None
    B, _, D = hidden.shape
    V = head_DV.shape[1]

    def one(i, out):
        dhidden, dhead_SDV = out
        part = functools.partial(_slice, i=i, how=how)
        hidden_BCD = part(hidden)
        logprob_BCV = _logits(hidden_BCD, whole_DV, temperature) - part(statistics[0])[:, :, None]
        prob_BCV = jnp.exp(logprob_BCV)
        is_target = jnp.arange(V)[None, None] == part(targets)[:, :, None]
        dz_BCV = part(of_logprob)[:, :, None] * (is_target - prob_BCV)
        if how.entropy:
            towards = logprob_BCV + part(statistics[1])[:, :, None]
            dz_BCV -= part(of_entropy)[:, :, None] * prob_BCV * towards
        dz_BCV = (dz_BCV / temperature).astype(dtype)
        dhidden_BCD = jnp.einsum("BCV,DV->BCD", dz_BCV, whole_DV).astype(dtype)
        # A sum for each shard of the batch: they meet once, behind the loop.
        split = lambda x: x.reshape(how.shards, -1, x.shape[-1])  # noqa: E731
        dhead_SDV += jnp.einsum(
            "SXD,SXV->SDV", split(hidden_BCD), split(dz_BCV), preferred_element_type=jnp.float32
        )
        dhead_SDV = sharding.constrain(dhead_SDV, "batch", "act_embed", "vocab")
        put = jax.lax.dynamic_update_slice_in_dim
        return put(dhidden, dhidden_BCD, i * how.chunk, axis=1), dhead_SDV

    start = (
        sharding.constrain(jnp.zeros_like(hidden), "batch", "seq", "act_embed"),
        sharding.constrain(
            jnp.zeros((how.shards, D, V), jnp.float32), "batch", "act_embed", "vocab"
        ),
    )
    dhidden, dhead_SDV = _loop(order, how, one, start)
    dhead_DV = sharding.constrain(jnp.sum(dhead_SDV, axis=0), "embed", "vocab")
    dhead_DV = sharding.constrain(dhead_DV, *how.head_axes).astype(head_DV.dtype)
    dhidden_BTD = _from_front(dhidden, order, hidden_BTD.shape[1])
    return dhidden_BTD, dhead_DV, None, jnp.zeros_like(temperature), None


_chunked.defvjp(_forward, _backward)


def _loop(order: _Order | None, how: _How, body, start):
    """`body(i, carry)` for each chunk that holds a needed position."""
    if order is None:
        return jax.lax.fori_loop(0, how.num_chunks, body, start)
    # Both bounds, so that who reads the compiled program sees the largest number of turns.
    within = lambda i: (i < how.num_chunks) & (i * how.chunk < order.num_needed)  # noqa: E731
    _, out = jax.lax.while_loop(
        lambda carry: within(carry[0]),
        lambda carry: (carry[0] + 1, body(carry[0], carry[1])),
        (jnp.int32(0), start),
    )
    return out


def _to_front(x_BT, order: _Order | None, how: _How) -> jax.Array:
    """[B, T, …] → [B, num_chunks · chunk, …], the needed positions of each row in front."""
    if order is not None:
        x_BT = _take(x_BT, order.index_BT)
    padding = how.num_chunks * how.chunk - x_BT.shape[1]
    return jnp.pad(x_BT, ((0, 0), (0, padding)) + ((0, 0),) * (x_BT.ndim - 2))


def _from_front(x_BT, order: _Order | None, length: int) -> jax.Array:
    """The inverse of `_to_front`."""
    x_BT = x_BT[:, :length]
    return x_BT if order is None else _take(x_BT, order.rank_BT)


def _take(x_BT, index_BT) -> jax.Array:
    """Along the positions of each row; `x_BT` may have more axes."""
    index = index_BT.reshape(index_BT.shape + (1,) * (x_BT.ndim - 2))
    return jnp.take_along_axis(x_BT, index, axis=1)


def _slice(x_BT, i, how: _How) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x_BT, i * how.chunk, how.chunk, axis=1)
