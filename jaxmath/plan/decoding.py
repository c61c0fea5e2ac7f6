"""The decoder's programs, compiled for its mesh from shapes alone: nothing runs, no weight is made.

The mesh may consist of devices that are not there (`targets.devices`); the decoder's `cache` is
then named, since the best cannot be found out.
"""

from __future__ import annotations

from typing import Any

import jax

from jaxmath.decode import placement, prefill
from jaxmath.decode.decoder import Decoder
from jaxmath.decode.sampling import SamplingConfig


def params(decoder: Decoder) -> Any:
    """Shapes and placement of the weights the decoder computes with."""
    return _placed(*placement.abstract(decoder.model, decoder.mesh, decoder.form))


def state(decoder: Decoder) -> Any:
    """Shapes and placement of the decode state."""
    shapes = jax.eval_shape(decoder._init)
    return _placed(shapes, decoder.state_formats)


def decode_chunk(decoder: Decoder) -> jax.stages.Compiled:
    """The token loop."""
    return decoder._chunk


def admit(decoder: Decoder, width: int) -> jax.stages.Compiled:
    """The prefill of prompts of up to `width` tokens."""
    rows = prefill.PackedRows(decoder.shards, 2 * width)
    entry = prefill.Entry(prefill.Place(0, 0), 0, (0,), 0, 0, 0, SamplingConfig(max_tokens=1))
    admission = rows.admission([entry], decoder.slots, decoder.features)
    args = (params(decoder), state(decoder), admission)
    with jax.set_mesh(decoder.mesh):
        return decoder._admit.lower(*args, width=width).compile()


def ideal_bytes(decoder: Decoder) -> int:
    """What a step must move on one device with all slots at full length.

    All weights but the embedding table, of which it reads a row per slot, and all of the cache,
    once; the f32 logits written and read once.
    """
    model, plan, mesh = decoder.model, decoder.memory, decoder.mesh
    item = params(decoder).embed_VD.dtype.itemsize
    table = model.vocab_size * model.embed_dim * item
    here = decoder.slots // decoder.shards
    logits = 2 * 4 * here * model.vocab_size // mesh.shape["tensor"]
    return plan.footprint.weights - table + plan.cache + logits


def _placed(shapes: Any, shardings: Any) -> Any:
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(place, shapes, shardings)
