"""Qwen2.5 (arXiv:2412.15115): a pure function of (parameters, tokens).

`Qwen2` is an `flax.nnx.Module`, hence a JAX pytree: use plain `jax.jit`, `jax.grad`, `jax.tree.map`
on it. Its blocks are one `Block` stacked along a leading axis L and scanned, so compile time does
not grow with depth. `unstack` cuts the stack into single blocks, in the compute dtype, for the
decoder, which runs the same `Block` unrolled with an `attend` that reads a cache.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxmath import sharding
from jaxmath.kernels import attention as attention_kernels
from jaxmath.kernels import logprobs as logprobs_kernels
from jaxmath.kernels.linear import linear
from jaxmath.model import rope
from jaxmath.model.config import ModelConfig

INIT_STD = 0.02  # transformers' initializer_range for Qwen2

# attend(q_BTNH, k_BTKH, v_BTKH) → out_BTNH: the one thing training and decoding do differently
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def rms_norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) * scale (arXiv:1910.07467); f32 inside, dtype of x outside."""
    x_f32 = x_BTD.astype(jnp.float32)
    x_f32 = x_f32 * jax.lax.rsqrt(jnp.mean(x_f32**2, axis=-1, keepdims=True) + eps)
    return (x_f32 * scale_D[None, None].astype(jnp.float32)).astype(x_BTD.dtype)


class Block(nnx.Module):
    """Attention and gated MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        D, F, H = config.embed_dim, config.mlp_dim, config.head_dim
        N, K = config.num_heads, config.num_kv_heads
        keys = iter(jax.random.split(key, 7))

        def weight(shape, axes):
            return nnx.Param(
                INIT_STD * jax.random.normal(next(keys), shape, jnp.float32), axes=axes
            )

        def constant(value, shape, axes):
            return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)

        self.config = config
        self.input_norm_D = constant(1.0, (D,), ("norm",))
        self.wq_DNH = weight((D, N, H), ("embed", "heads", "head_dim"))
        self.bq_NH = constant(0.0, (N, H), ("heads", "head_dim"))
        self.wk_DKH = weight((D, K, H), ("embed", "kv_heads", "head_dim"))
        self.bk_KH = constant(0.0, (K, H), ("kv_heads", "head_dim"))
        self.wv_DKH = weight((D, K, H), ("embed", "kv_heads", "head_dim"))
        self.bv_KH = constant(0.0, (K, H), ("kv_heads", "head_dim"))
        self.wo_NHD = weight((N, H, D), ("heads", "head_dim", "embed"))
        self.mlp_norm_D = constant(1.0, (D,), ("norm",))
        self.gate_DF = weight((D, F), ("embed", "mlp"))
        self.up_DF = weight((D, F), ("embed", "mlp"))
        self.down_FD = weight((F, D), ("mlp", "embed"))

    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array, attend: Attend) -> jax.Array:
        """One block. x_BTD and the result have the compute dtype."""
        config, dtype = self.config, x_BTD.dtype
        w = lambda param: param[...].astype(dtype)  # noqa: E731  masters are f32

        h_BTD = rms_norm(x_BTD, self.input_norm_D[...], config.rms_norm_eps)
        q_BTNH = linear("BTD,DNH->BTNH", h_BTD, self.wq_DNH[...]) + w(self.bq_NH)[None, None]
        k_BTKH = linear("BTD,DKH->BTKH", h_BTD, self.wk_DKH[...]) + w(self.bk_KH)[None, None]
        v_BTKH = linear("BTD,DKH->BTKH", h_BTD, self.wv_DKH[...]) + w(self.bv_KH)[None, None]
        turn = rope.rotation(positions_BT, config.head_dim, config.rope_theta)
        out_BTNH = attend(rope.rotate(q_BTNH, *turn), rope.rotate(k_BTKH, *turn), v_BTKH)
        x_BTD = x_BTD + linear("BTNH,NHD->BTD", out_BTNH, self.wo_NHD[...])
        x_BTD = sharding.constrain(x_BTD, "batch", "seq", "act_embed")

        h_BTD = rms_norm(x_BTD, self.mlp_norm_D[...], config.rms_norm_eps)
        gate_BTF = linear("BTD,DF->BTF", h_BTD, self.gate_DF[...])
        up_BTF = linear("BTD,DF->BTF", h_BTD, self.up_DF[...])
        act_BTF = sharding.constrain(jax.nn.silu(gate_BTF) * up_BTF, "batch", "seq", "mlp")
        x_BTD = x_BTD + linear("BTF,FD->BTD", act_BTF, self.down_FD[...])
        return sharding.constrain(x_BTD, "batch", "seq", "act_embed")


class Qwen2(nnx.Module):
    """The whole network, layers stacked; parameters are f32 unless loaded or cast otherwise."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        V, D = config.vocab_size, config.embed_dim
        embed_key, head_key, layers_key = jax.random.split(key, 3)

        def table(key, shape, axes):
            return nnx.Param(INIT_STD * jax.random.normal(key, shape, jnp.float32), axes=axes)

        self.config = config
        self.embed_VD = table(embed_key, (V, D), ("table_vocab", "embed"))
        block_keys = jax.random.split(layers_key, config.num_layers)
        self.layers = jax.vmap(lambda key: Block(config, key))(block_keys)
        self.final_norm_D = nnx.Param(jnp.ones((D,), jnp.float32), axes=("norm",))
        tied = config.tie_embeddings
        self.head_DV = None if tied else table(head_key, (D, V), ("embed", "vocab"))

    def head(self) -> jax.Array:
        """head_DV, the output projection; the transposed table where embeddings are tied."""
        if self.head_DV is not None:
            return sharding.constrain(self.head_DV[...], "act_embed", "vocab")
        # Gather over fsdp, then split over tensor: in one step the partitioner finds no path.
        table_VD = sharding.constrain(self.embed_VD[...], "table_vocab", "act_embed")
        return sharding.constrain(table_VD.T, "act_embed", "vocab")

    def hidden_states(self, tokens_BT, positions_BT, segment_ids_BT) -> jax.Array:
        """hidden_BTD after the final norm, in the compute dtype.

        Args:
          tokens_BT: i32 token ids.
          positions_BT: i32, restarting at 0 in each segment.
          segment_ids_BT: i32, 0 on padding; tokens see only their own segment, causally.
        """
        config = self.config
        attention = attention_kernels.of(config.attention)

        def body(x_BTD, block):
            attend = lambda q, k, v: attention(q, k, v, segment_ids_BT)  # noqa: E731
            return block(x_BTD, positions_BT, attend), None

        x_BTD = embed(self.embed_VD[...], tokens_BT, config)
        x_BTD, _ = jax.lax.scan(_remat(body, config.remat), x_BTD, self.layers)
        return rms_norm(x_BTD, self.final_norm_D[...], config.rms_norm_eps)

    def logits(self, hidden_BTD) -> jax.Array:
        """logits_BTV, f32."""
        head_DV = self.head().astype(hidden_BTD.dtype)
        return project(hidden_BTD, head_DV)

    def token_logprobs(
        self,
        tokens_BT,
        positions_BT,
        segment_ids_BT,
        *,
        temperature: float | jax.Array = 1.0,
        needed_BT=None,
    ) -> jax.Array:
        """logprob_BT, f32: log p(token t | earlier tokens of its segment), logits / temperature.

        0 where there is nothing to predict from (the first token of a segment, padding) and where
        `needed_BT`, bool, is false: the head is not applied there. No [B, T, V] array is made
        unless `config.logprobs` is "reference".
        """
        return self.token_scores(
            tokens_BT, positions_BT, segment_ids_BT, temperature=temperature, needed_BT=needed_BT
        ).logprob_BT

    def token_scores(
        self,
        tokens_BT,
        positions_BT,
        segment_ids_BT,
        *,
        temperature: float | jax.Array = 1.0,
        needed_BT=None,
        entropy: bool = False,
    ) -> logprobs_kernels.TokenScores:
        """As `token_logprobs`, with the entropy of the distribution that each token was drawn from
        where `entropy` is true."""
        hidden_BTD = self.hidden_states(tokens_BT, positions_BT, segment_ids_BT)
        before_BT = jnp.pad(segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
        scored_BT = (segment_ids_BT == before_BT) & (segment_ids_BT > 0)
        if needed_BT is not None:
            scored_BT &= needed_BT
        # A token is predicted at the position before it.
        back = functools.partial(jnp.roll, shift=-1, axis=1)
        head_DV, head_axes = self.head_DV, logprobs_kernels.HEAD_AXES
        if head_DV is None:  # the lookup table is not split over tensor
            head_DV, head_axes = self.embed_VD[...].T, ("embed", "table_vocab")
        found = logprobs_kernels.LOGPROBS[self.config.logprobs](
            hidden_BTD,
            head_DV[...],
            back(tokens_BT),
            temperature,
            needed_BT=back(scored_BT),
            entropy=entropy,
            head_axes=head_axes,
        )
        return jax.tree.map(lambda x_BT: jnp.roll(x_BT, 1, axis=1), found)


def embed(table_VD, tokens_BT, config: ModelConfig) -> jax.Array:
    """Looks tokens up; x_BTD in the compute dtype."""
    table_VD = sharding.constrain(table_VD.astype(config.dtype), "table_vocab", "embed")
    x_BTD = jnp.take(table_VD, tokens_BT, axis=0)
    # Two steps, so that the partitioner swaps batch and embed by one all-to-all over fsdp.
    x_BTD = sharding.constrain(x_BTD, "lookup_batch", "seq", "embed")
    return sharding.constrain(x_BTD, "batch", "seq", "act_embed")


def project(hidden_BTD, head_DV) -> jax.Array:
    """logits_BTV, accumulated in f32: a bf16 logit of 64 is wrong by up to 0.25."""
    return jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=jnp.float32)


def _remat(body, policy: str):
    if policy == "none":
        return body
    policies = jax.checkpoint_policies
    keep = {"full": None, "dots": policies.dots_with_no_batch_dims_saveable}[policy]
    return jax.checkpoint(body, policy=keep, prevent_cse=False)  # a scan needs no CSE barrier


# --- making one -------------------------------------------------------------------------------


def abstract(config: ModelConfig) -> Qwen2:
    """The module with ShapeDtypeStructs for parameters; uses no memory."""
    return jax.eval_shape(lambda key: Qwen2(config, key), jax.random.key(0))


def init_sharded(config: ModelConfig, key: jax.Array, mesh: Mesh) -> Qwen2:
    """Random parameters, born on their shards: no device ever holds the whole model."""
    shardings = sharding.tree_shardings(mesh, abstract(config))
    return jax.jit(lambda key: Qwen2(config, key), out_shardings=shardings)(key)


# --- for the decoder --------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeParams:
    """The same parameters, one `Block` per layer, in the compute dtype; norm scales in f32."""

    embed_VD: jax.Array
    blocks: tuple[Block, ...]
    final_norm_D: jax.Array
    head_DV: jax.Array
    config: ModelConfig = dataclasses.field(metadata={"static": True})


def unstack(model: Qwen2, dtype: Any = None) -> DecodeParams:
    """Cuts the stack of layers into blocks and casts to `dtype` (default: the compute dtype).

    Compile it (`jax.jit(unstack)`): it runs once per weight update. Unrolled layers with weights of
    their own let the decode step read each weight once; slices of a stack would be copied.
    """
    config = model.config
    dtype = jnp.dtype(dtype or config.dtype)

    def single(stacked, i):
        # Norm scales (rank 1) are f32 in training too: rounding them would move the logprobs.
        return stacked[i].astype(jnp.float32 if stacked.ndim == 2 else dtype)

    blocks = tuple(
        jax.tree.map(lambda x, i=i: single(x, i), model.layers) for i in range(config.num_layers)
    )
    return DecodeParams(
        embed_VD=model.embed_VD[...].astype(dtype),
        blocks=blocks,
        final_norm_D=model.final_norm_D[...].astype(jnp.float32),
        head_DV=model.head().astype(dtype),
        config=config,
    )
