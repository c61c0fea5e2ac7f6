"""The trainer's weights as the decoder wants them: cast, one block per layer, placed.

Heads, MLP and vocabulary stay split over "tensor"; the rest is whole on every device, since a
gather of weights per token would cost more than the step. Where there are fewer key/value heads
than tensor shards, each head is repeated, so that every shard has one.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxmath import sharding
from jaxmath.decode import quantize
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

KV_PARAMS = ("wk_DKH", "bk_KH", "wv_DKH", "bv_KH")


@dataclasses.dataclass(frozen=True)
class Form:
    """What the decoder's weights are made of.

    dtype: of weights and activations; None takes the compute dtype of the model.
    int8: the blocks' matrices as eight-bit codes (`quantize.quantize_weights`).
    """

    dtype: str | None = None
    int8: bool = False


PLAIN = Form()


def decode_shape(model: ModelConfig, mesh: Mesh, form: Form = PLAIN) -> ModelConfig:
    """The model as the decoder computes it: `num_kv_heads` at least the number of tensor shards.

    Prompts are read with the attention of `model`, or where it cannot compute in the dtype of
    `form`, with one that can.

    Query heads n*G … n*G+G-1 share key/value head n; with each head repeated r times, consecutive
    groups of G/r query heads share one copy, and nothing else changes. Heads that the mesh does
    not divide are left as they are: placing the parameters names them.
    """
    shards, heads = mesh.shape["tensor"], model.num_kv_heads
    if shards <= heads or shards % heads or model.num_heads % shards:
        shards = heads
    shape = dataclasses.replace(model, num_kv_heads=shards)
    return shape.on_mesh(mesh, dtype=form.dtype, must=False)


def decode_params(model: qwen2.Qwen2, mesh: Mesh, form: Form = PLAIN) -> qwen2.DecodeParams:
    """One compiled program per model shape: cast, reshard, unstack, quantise.

    Raises:
      ValueError: the mesh's "tensor" axis does not divide heads, kv_heads, mlp or vocabulary.
    """
    place = program(model.config, mesh, form)
    with jax.set_mesh(mesh):
        return place(model)


def abstract(
    model: ModelConfig, mesh: Mesh, form: Form = PLAIN
) -> tuple[qwen2.DecodeParams, qwen2.DecodeParams]:
    """Shapes and shardings of `decode_params`; uses no memory."""
    place = functools.partial(unstack, shape=decode_shape(model, mesh, form), form=form)
    shapes = jax.eval_shape(place, qwen2.abstract(model))
    return shapes, shardings(shapes, mesh)


def unstack(model: qwen2.Qwen2, shape: ModelConfig, form: Form) -> qwen2.DecodeParams:
    """`qwen2.unstack` with the key/value heads of `shape`, in the given form."""
    params = qwen2.unstack(model, form.dtype)
    repeats = shape.num_kv_heads // model.config.num_kv_heads
    if repeats > 1:
        for block in params.blocks:
            for name in KV_PARAMS:
                param = getattr(block, name)
                axis = param.get_metadata()["axes"].index("kv_heads")
                repeated = jnp.repeat(param.get_value(), repeats, axis)
                setattr(block, name, param.replace(repeated))
            block.config = shape
    params = dataclasses.replace(params, config=shape)
    return quantize.quantize_weights(params) if form.int8 else params


@functools.lru_cache(maxsize=8)
def program(config: ModelConfig, mesh: Mesh, form: Form = PLAIN):
    """The jitted `unstack` of a trainer's parameters, with its results placed."""
    place = functools.partial(unstack, shape=decode_shape(config, mesh, form), form=form)
    return jax.jit(place, out_shardings=abstract(config, mesh, form)[1])


def shardings(shapes: qwen2.DecodeParams, mesh: Mesh) -> qwen2.DecodeParams:
    """The placement of `shapes` on `mesh`."""

    def block_sharding(path, param):
        axes = tuple("act_embed" if a == "embed" else a for a in param.get_metadata()["axes"])
        name = f"blocks{jax.tree_util.keystr(path)}"
        # The step of a quantised matrix has the trailing axes, those of its outputs.
        place = lambda x: sharding.named(mesh, axes[-x.ndim :], x.shape, name)  # noqa: E731
        return param.replace(jax.tree.map(place, param.get_value()))

    is_param = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return dataclasses.replace(
        shapes,
        embed_VD=sharding.replicated(mesh),
        blocks=jax.tree_util.tree_map_with_path(block_sharding, shapes.blocks, is_leaf=is_param),
        final_norm_D=sharding.replicated(mesh),
        head_DV=sharding.named(mesh, ("act_embed", "vocab"), shapes.head_DV.shape, "head_DV"),
    )
