"""Changes of a config that save memory, tried in turn until it fits: each try is compiled.

    micro-batches as small as the mesh allows, all of a block recomputed, the target's own
    attention, reference in bfloat16, as many slots as fit; then the same on other meshes: all
    sharded, and tensor = 2, 4, 8; last, on the mesh that came nearest: moments in the host's
    memory, first moments in bfloat16

None of these changes what is learnt, but for the rounding of a bfloat16 reference or moment.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from jaxmath import config as config_lib
from jaxmath.plan import report
from jaxmath.runs import plan, session

MAX_TRIES = 5


@dataclasses.dataclass(frozen=True)
class Found:
    """answer: of the first changes that fit, or None; changes: those, as overrides; tried: a line
    for each that did not."""

    answer: plan.Answer | None
    changes: tuple[str, ...]
    tried: tuple[str, ...]

    def text(self) -> str:
        """For people; the last line says what to do."""
        lines = [f"tried {line}" for line in self.tried]
        if self.answer is None:
            return "\n".join([*lines, "nothing that was tried fits; it takes more devices"])
        return "\n".join([self.answer.text(), "", *lines, f"change: {' '.join(self.changes)}"])

    def json(self) -> str:
        facts = {"tried": list(self.tried), "change": list(self.changes)}
        answer = None if self.answer is None else self.answer.facts()
        return json.dumps(facts | {"answer": answer}, indent=2)


def search(first: plan.Answer, max_tries: int = MAX_TRIES) -> Found:
    """Compiles changes of `first`, which does not fit, until one does. Its own overrides stay.

    Args:
      max_tries: of changes that leave the optimizers alone.
    """
    tried: list[str] = []
    nearest, missing = (), _missing(first)
    for changes in list(candidates(first))[:max_tries]:
        found = _try(first, changes, tried)
        if found is not None and found.plan.fits:
            return Found(found, changes, tuple(tried))
        if found is not None and _missing(found) < missing:
            nearest, missing = changes, _missing(found)
    for more in optimizer_savings(first.config):
        changes = (*nearest, *more)
        found = _try(first, changes, tried)
        if found is not None and found.plan.fits:
            return Found(found, changes, tuple(tried))
    return Found(None, (), tuple(tried))


def _try(first: plan.Answer, changes: tuple[str, ...], tried: list[str]) -> plan.Answer | None:
    """The plan with these changes, or None for a config that is wrong; what does not fit is noted
    in `tried`."""
    overrides = (*first.question.overrides, *changes)
    question = dataclasses.replace(first.question, overrides=overrides)
    session.say(f"trying {' '.join(changes)}")
    try:
        found = plan.answer(question, stop_when_full=True)
    except config_lib.ConfigError as error:
        tried.append(f"{' '.join(changes)}: {error}")
        return None
    if not found.plan.fits:
        tried.append(f"{' '.join(changes)}: {_shortfall(found)}")
    return found


def _missing(found: plan.Answer) -> float:
    """Bytes by which the fullest program is too large, as far as programs were compiled."""
    fullest = found.plan.fullest
    return math.inf if fullest is None else fullest.total - found.plan.chip.memory


def candidates(first: plan.Answer) -> Iterator[tuple[str, ...]]:
    """Overrides to try, the least of changes first."""
    config, mesh = first.config, first.mesh
    own = mesh.shape["tensor"]
    seen = set()
    for tensor in (own, *(t for t in (1, 2, 4, 8) if t != own)):
        if mesh.size % tensor or not _divides(tensor, config.model):
            continue
        shards = mesh.size // tensor
        if tensor == own:
            kept = (mesh.shape["data"], mesh.shape["fsdp"])
            splits = [kept, (1, shards)]
        else:
            splits = [(1, shards)]
        for data, fsdp in splits:
            changes = _savings(config, mesh, data * fsdp)
            if (data, fsdp, tensor) != tuple(mesh.shape.values()):
                changes += (f"mesh={{data: {data}, fsdp: {fsdp}, tensor: {tensor}}}",)
            if changes and changes not in seen:
                seen.add(changes)
                yield changes


def _savings(config: Any, mesh: Mesh, shards: int) -> tuple[str, ...]:
    """What saves memory on the devices of `mesh` with so many shards of the batch."""
    changes = []
    if hasattr(config, "num_microbatches") and config.batch_rows % shards == 0:
        most = config.batch_rows // shards
        if config.num_microbatches != most:
            changes.append(f"num_microbatches={most}")
    if hasattr(config, "rl"):
        if config.rl.microbatch_rows != shards and config.rl.packed:
            row_tokens = config.rl.row_tokens or config.rl.max_tokens
            changes.append(f"rl.tokens_per_microbatch={shards * row_tokens}")
        elif config.rl.microbatch_rows != shards:
            changes.append(f"rl.microbatch_size={shards}")
        if config.rl.ref_type == "freeze" and config.ref_dtype != "bfloat16":
            changes.append("ref_dtype=bfloat16")
    if config.model is not None and not hasattr(config, "sampling"):
        if config.model.remat != "full":
            changes.append("model.remat=full")
        if config.model.attention in ("reference", "chunked"):
            best = dataclasses.replace(config.model, attention="auto").on_mesh(mesh).attention
            if best != config.model.attention:
                changes.append("model.attention=auto")
    if hasattr(config, "decode") and config.decode.slots is not None:
        changes.append("decode.slots=null")
    return tuple(changes)


def optimizer_savings(config: Any) -> Iterator[tuple[str, ...]]:
    """Overrides that make optimizer states smaller on the device, added up; none for a decoder."""
    optimizers = {}
    if hasattr(config, "rl"):
        optimizers["rl.policy_optimizer"] = config.rl.policy_optimizer
        if config.rl.prm and config.rl.prm_update != "none":
            optimizers["rl.prm_optimizer"] = config.rl.prm_optimizer
    elif hasattr(config, "optimizer"):
        optimizers["optimizer"] = config.optimizer
    offload = tuple(f"{path}.offload=true" for path, o in optimizers.items() if not o.offload)
    smaller = tuple(
        f"{path}.first_moment_dtype=bfloat16"
        for path, o in optimizers.items()
        if o.first_moment_dtype != "bfloat16"
    )
    if offload:
        yield offload
    if smaller:
        yield (*offload, *smaller)


def _divides(tensor: int, model: Any) -> bool:
    """Whether heads can be split over so many devices; of a shape that is not stated, none is."""
    if model is None:
        return tensor == 1
    return model.num_heads % tensor == 0 and model.vocab_size % tensor == 0


def _shortfall(found: plan.Answer) -> str:
    if found.plan.job.refusals:
        return found.plan.job.refusals[0].splitlines()[0]
    row = found.plan.fullest
    return f"{row.program.name} takes {report.gib(row.total)} GiB"
