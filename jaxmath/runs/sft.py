"""`sft`: supervised fine-tuning of a model on conversations, or training of one from scratch."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxmath import config as config_lib
from jaxmath import metrics, sharding
from jaxmath.checkpoint import store
from jaxmath.data import batches, prefetch, records, token_cache, tokenizer
from jaxmath.model import lora as lora_lib
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig
from jaxmath.runs import models, session
from jaxmath.runs.progress import Progress
from jaxmath.train import optimizer as optimizer_lib
from jaxmath.train import sft, state

SHOWN = ("sft/loss", "sft/lr", "sft/grad_norm", "perf/tokens_per_s")


@dataclasses.dataclass(frozen=True)
class SftRun:
    """One fine-tuning run.

    output: run folder. A run found there is continued from its newest checkpoint.
    init_from: Hugging Face folder, hub id or jaxmath checkpoint folder; null trains `model` from
      random parameters. model: null takes the shape (and bfloat16) from `init_from`.
    prompt_style: how rows that are a problem and its solution are put; rows with messages are taken
      as they are.
    max_tokens: conversations are cut on the right there; row_tokens: length of a packed row.
    batch_rows: rows per update, over all devices; num_microbatches: parts that are held in memory
      one after another.
    loss_reduction: "token_mean" over the update's targets, or "sequence_mean" of each
      conversation's token mean.
    pack: several conversations in a row; false gives each a row of its own. max_segments: so many
      in a row at most; null for as many as fit.
    token_cache: folder that keeps the conversations tokenised, so that the next start on the same
      data reads them; null tokenises at every start.
    lora: trains adapters beside the frozen model of `init_from`; null trains all parameters.
    epochs, max_steps: the run ends with the first of them.
    """

    output: str
    tokenizer: tokenizer.TokenizerConfig
    data: records.DataConfig
    optimizer: optimizer_lib.OptimizerConfig
    model: ModelConfig | None = None
    init_from: str | None = None
    prompt_style: str = "plain"
    max_tokens: int = 5000
    row_tokens: int = 5000
    batch_rows: int = 128
    num_microbatches: int = 16
    loss_reduction: batches.Reduction = "sequence_mean"
    pack: bool = True
    max_segments: int | None = None
    token_cache: str | None = None
    lora: lora_lib.LoraConfig | None = None
    epochs: int = 5
    max_steps: int | None = None
    seed: int = 42
    mesh: sharding.MeshConfig = sharding.MeshConfig()
    checkpoint: store.CheckpointConfig = store.CheckpointConfig(save_every=300)
    log_every: int = 1
    wandb_project: str | None = None

    def __post_init__(self):
        models.check_source(self)
        for field in ("max_tokens", "batch_rows", "num_microbatches", "epochs", "log_every"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        for field in ("max_steps", "max_segments"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ValueError(f"{field} is {value}; expected at least 1, or null")
        if self.lora is not None and self.init_from is None:
            raise ValueError("lora is set and init_from is null; name the model to adapt")
        if self.batch_rows % self.num_microbatches:
            raise ValueError(
                f"batch_rows {self.batch_rows} is not a multiple of num_microbatches "
                f"{self.num_microbatches}; choose a divisor"
            )
        if self.max_tokens > self.row_tokens:
            raise ValueError(
                f"max_tokens {self.max_tokens} exceeds row_tokens {self.row_tokens}; a "
                "conversation has to fit a row"
            )


def plan(config: SftRun) -> dict[str, Any]:
    """What `--dry-run` prints besides the config."""
    mesh = session.make_mesh(config)
    return models.plan(config, mesh) | {
        "tokens per update": config.batch_rows * config.row_tokens,
        "tokens per micro-batch": config.batch_rows // config.num_microbatches * config.row_tokens,
    }


def run(config: SftRun) -> session.Report:
    """Trains to the end, or on from the newest checkpoint; returns the last loss."""
    folder = session.open_folder(config, "sft")
    mesh = session.make_mesh(config)
    models.check_rows(mesh, config.batch_rows // config.num_microbatches, "rows per micro-batch")
    tokens = tokenizer.Tokenizer(config.tokenizer)
    data = read_data(config, tokens, folder)
    num_steps = data.num_steps(config.epochs)
    if config.max_steps is not None:
        num_steps = min(num_steps, config.max_steps)
    meta = models.meta(config, mesh, tokens, folder)
    meta["data"] = _fingerprint(data)

    with (
        jax.set_mesh(mesh),
        store.CheckpointStore(folder / "checkpoints", config.checkpoint) as checkpoints,
    ):
        optimizer = optimizer_lib.make_optimizer(config.optimizer, num_steps)
        base = None
        if config.lora is not None:
            base = models.load(config, mesh, dtype=config.lora.base_dtype)
            digest = models.digest_of(base)
            meta |= models.base_meta(config.init_from, base, config.lora, digest)
        program = step_program(config, mesh, optimizer)
        train_state, step = models.restore_or(
            checkpoints,
            lambda: program.state,
            functools.partial(_initial, config, optimizer, mesh),
            meta,
        )
        session.record(folder, config, "sft")
        frozen = () if base is None else (base,)
        placed = functools.partial(_placed_batch, data, program.batch.tokens_BT.sharding)
        loss = math.nan
        pending: list[metrics.Metrics] = []
        with (
            Progress("sft", num_steps, "steps", initial=step) as progress,
            prefetch.Prefetch(placed, range(step, num_steps)) as ahead,
        ):
            writer = metrics.MetricWriter(
                folder,
                resume_step=step,
                show=SHOWN,
                wandb_project=config.wandb_project,
                echo=progress.print,
            )
            since, row_tokens, waited = time.monotonic(), 0, 0.0
            while step < num_steps:
                batch, num_tokens = ahead.next()
                train_state, step_metrics = program.step(train_state, batch, *frozen)
                pending.append(step_metrics)
                step += 1
                row_tokens += num_tokens
                progress.update(1, num_tokens)
                if step % config.log_every == 0 or step == num_steps:
                    values = combine(pending)  # waits for the device
                    values |= _speed(row_tokens, time.monotonic() - since, ahead.waited_s - waited)
                    since, row_tokens, waited = time.monotonic(), 0, ahead.waited_s
                    pending = []
                    loss = writer.write(step, values)["sft/loss"]
                if step % config.checkpoint.save_every == 0 or step == num_steps:
                    checkpoints.save(step, train_state, meta | {"step": step})
            writer.close()
    if math.isnan(loss):  # nothing was left to do
        rows = metrics.read_rows(folder / "metrics.jsonl")
        loss = float(rows[-1]["sft/loss"]) if rows else math.nan
    summary = {"steps": num_steps, "loss": loss, "examples": data.num_examples}
    return session.Report(summary, (str(folder / "checkpoints"),))


def combine(steps: list[metrics.Metrics]) -> dict[str, Any]:
    """Metrics of several steps as one: means add up, of plain numbers the last counts, and
    counters (`…skipped_updates`, `…num_tokens`) are summed."""
    out = dict(steps[-1])
    for name, value in out.items():
        summed = isinstance(value, metrics.Mean) or name.endswith(("skipped_updates", "num_tokens"))
        if summed:
            for earlier in steps[:-1]:
                out[name] = out[name] + earlier[name]
    return out


def read_data(config: SftRun, tokens: tokenizer.Tokenizer, folder: pathlib.Path) -> batches.SftData:
    """The run's packed batches; rejected rows go to `folder`/rejects.jsonl."""
    rejects = folder / "rejects.jsonl"

    def encode():
        conversations = records.read_conversations(config.data, config.prompt_style, rejects)
        return batches.encode_conversations(tokens, conversations, config.max_tokens)

    if config.token_cache is None:
        examples, counts = encode()
    else:
        key = token_cache.key_of(config.data, config.prompt_style, tokens, config.max_tokens)
        cache = token_cache.TokenCache(config.token_cache, key)
        if not cache.exists() and jax.process_index() == 0:
            cache.write(*encode(), rejects.read_text(encoding="utf-8"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("token_cache")
        examples, counts, text = cache.read()
        rejects.write_text(text, encoding="utf-8")
        session.say(f"sft: tokens are those of {cache.path}")
    data = batches.SftData(
        examples,
        config.row_tokens,
        config.batch_rows,
        config.loss_reduction,
        config.seed,
        config.pack,
        config.max_segments,
    )
    print(
        f"sft: {counts.num_kept} of {counts.num_read} conversations, {counts.num_truncated} cut at "
        f"{config.max_tokens} tokens, {counts.num_without_target} without a target; rows filled "
        f"{data.fill:.1%}"
    )
    return data


def _placed_batch(
    data: batches.SftData, placement: jax.sharding.NamedSharding, step: int
) -> tuple[batches.SftBatch, int]:
    """The batch of a step on its devices, and its tokens; a host builds only the rows it holds."""
    shape = (data.batch_rows, data.row_tokens)
    parts = placement.addressable_devices_indices_map(shape).values()
    held = sorted({row for part in parts for row in range(*part[0].indices(shape[0]))})
    batch = data.batch_at(step, held)

    def place(field_BT):
        def part(index):
            rows = range(*index[0].indices(shape[0]))
            first = held.index(rows[0])
            return field_BT[first : first + len(rows), index[1]]

        return jax.make_array_from_callback(shape, placement, part)

    return batches.SftBatch(*(place(field_BT) for field_BT in batch)), data.tokens_at(step)


def _speed(num_tokens: int, seconds: float, waited_s: float) -> dict[str, float]:
    """Tokens a second, and the share of the time in which the loop waited for a batch: at most so
    much did the devices lose, since they may still have been computing."""
    return {
        "perf/tokens_per_s": num_tokens / seconds,
        "perf/data_wait": waited_s / seconds,
    }


def _fingerprint(data: batches.SftData) -> str:
    """Of the token ids in their order: a resumed run must see the same data."""
    return config_lib.fingerprint(
        [data.lengths.tolist(), data.checksum, data.row_tokens, data.batch_rows]
    )


# --- the compiled step ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A run's one program, with shapes and placements of all it takes: `step(state, batch, base)`.

    state, batch, base: of `ShapeDtypeStruct`; `step.lower(*arguments)` compiles without a weight.
    base: the frozen model of LoRA, else None and no argument.
    """

    step: Any
    state: state.TrainState
    batch: batches.SftBatch
    base: qwen2.Qwen2 | None

    @property
    def arguments(self) -> tuple:
        return (self.state, self.batch) + (() if self.base is None else (self.base,))


def step_program(
    config: SftRun, mesh: jax.sharding.Mesh, optimizer: optimizer_lib.Optimizer
) -> StepProgram:
    """The program of `config` on `mesh`, not yet compiled; the state is donated."""
    shape = models.shape_on(config, mesh)
    create = functools.partial(_create, config, optimizer)
    abstract = models.with_shardings(jax.eval_shape(create, models.abstract_params(shape)), mesh)
    rows = sharding.named(mesh, ("batch", "seq"))
    held = (config.batch_rows, config.row_tokens)
    ids = jax.ShapeDtypeStruct(held, "int32", sharding=rows)
    batch = batches.SftBatch(ids, ids, ids, jax.ShapeDtypeStruct(held, "float32", sharding=rows))
    step = functools.partial(
        sft.sft_step,
        optimizer=optimizer,
        num_microbatches=config.num_microbatches,
        lora=config.lora,
        seed=config.seed,
    )
    base, placed = None, (sharding.tree_shardings(mesh, abstract), rows)
    if config.lora is not None:
        dtype = config.lora.base_dtype or models.stored_dtype(config)
        base = models.with_shardings(models.abstract_params(shape, dtype), mesh)
        placed += (sharding.tree_shardings(mesh, base),)
    compiled = jax.jit(
        step,
        in_shardings=placed,
        out_shardings=(placed[0], sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return StepProgram(compiled, abstract, batch, base)


def _create(config: SftRun, optimizer, params: qwen2.Qwen2) -> state.TrainState:
    """The state before the first update, of the parameters or of fresh adapters beside them."""
    if config.lora is not None:
        params = lora_lib.init(config.lora, params.config, jax.random.key(config.seed))
    return state.create(params, optimizer)


def _initial(config: SftRun, optimizer, mesh) -> state.TrainState:
    shape = models.shape_on(config, mesh)
    create = functools.partial(_create, config, optimizer)
    abstract = models.abstract_params(shape)
    shardings = sharding.tree_shardings(mesh, jax.eval_shape(create, abstract))
    if config.lora is not None:
        return jax.jit(lambda: create(abstract), out_shardings=shardings)()
    params = models.load(config, mesh, dtype="float32")
    return jax.jit(create, out_shardings=shardings, donate_argnums=0)(params)
