"""`sft`: supervised fine-tuning of a model on conversations, or training of one from scratch."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from jaxmath import config as config_lib
from jaxmath import metrics, sharding
from jaxmath.checkpoint import store
from jaxmath.data import batches, records, tokenizer
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
    pack: several conversations in a row; false gives each a row of its own.
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
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; expected at least 1, or null")
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
    optimizer = optimizer_lib.make_optimizer(config.optimizer, num_steps)
    meta = models.meta(config, mesh, tokens, folder)
    meta["data"] = _fingerprint(data)

    with (
        jax.set_mesh(mesh),
        store.CheckpointStore(folder / "checkpoints", config.checkpoint) as checkpoints,
    ):
        train_state, step = models.restore_or(
            checkpoints,
            functools.partial(abstract_state, models.config_of(meta), optimizer, mesh),
            functools.partial(_initial, config, optimizer, mesh),
            meta,
        )
        session.record(folder, config, "sft")
        step_fn = step_program(config, optimizer, mesh, train_state)
        batch_sharding = sharding.named(mesh, ("batch", "seq"))
        loss = math.nan
        pending: list[metrics.Metrics] = []
        with Progress("sft", num_steps, "steps", initial=step) as progress:
            writer = metrics.MetricWriter(
                folder,
                resume_step=step,
                show=SHOWN,
                wandb_project=config.wandb_project,
                echo=progress.print,
            )
            since, row_tokens = time.monotonic(), 0
            while step < num_steps:
                host_batch = data.batch_at(step)
                batch = jax.tree.map(lambda x: jax.device_put(x, batch_sharding), host_batch)
                train_state, step_metrics = step_fn(train_state, batch)
                pending.append(step_metrics)
                step += 1
                num_tokens = int(np.count_nonzero(host_batch.segment_ids_BT))
                row_tokens += num_tokens
                progress.update(1, num_tokens)
                if step % config.log_every == 0 or step == num_steps:
                    values = combine(pending)  # waits for the device
                    now = time.monotonic()
                    values["perf/tokens_per_s"] = row_tokens / (now - since)
                    since, row_tokens, pending = now, 0, []
                    loss = writer.write(step, values)["sft/loss"]
                if step % config.checkpoint.save_every == 0 or step == num_steps:
                    checkpoints.save(step, train_state, meta | {"step": step})
            writer.close()
    if math.isnan(loss):  # nothing was left to do
        rows = metrics.read_rows(folder / "metrics.jsonl")
        loss = float(rows[-1]["sft/loss"]) if rows else math.nan
    summary = {"steps": num_steps, "loss": loss, "examples": len(data.examples)}
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
    conversations = records.read_conversations(
        config.data, config.prompt_style, folder / "rejects.jsonl"
    )
    examples, counts = batches.encode_conversations(tokens, conversations, config.max_tokens)
    data = batches.SftData(
        examples,
        config.row_tokens,
        config.batch_rows,
        config.loss_reduction,
        config.seed,
        config.pack,
    )
    print(
        f"sft: {counts.num_kept} of {counts.num_read} conversations, {counts.num_truncated} cut at "
        f"{config.max_tokens} tokens, {counts.num_without_target} without a target; rows filled "
        f"{data.fill:.1%}"
    )
    return data


def _fingerprint(data: batches.SftData) -> str:
    """Of the token ids in their order: a resumed run must see the same data."""
    lengths = [len(example.tokens) for example in data.examples]
    checksum = sum(
        int(np.sum(example.tokens.astype(np.int64) * np.arange(1, len(example.tokens) + 1)))
        for example in data.examples
    )
    return config_lib.fingerprint([lengths, checksum, data.row_tokens, data.batch_rows])


def _initial(config: SftRun, optimizer, mesh) -> state.TrainState:
    params = models.load(config, mesh, dtype="float32")
    shardings = _shardings(params, optimizer, mesh)
    create = functools.partial(state.create, optimizer=optimizer)
    return jax.jit(create, out_shardings=shardings, donate_argnums=0)(params)


def abstract_state(shape: ModelConfig, optimizer, mesh) -> state.TrainState:
    """Shapes and placement of all that a step reads and writes."""
    params = models.abstract_params(shape)
    create = functools.partial(state.create, optimizer=optimizer)
    return models.with_shardings(jax.eval_shape(create, params), mesh)


def _shardings(params, optimizer, mesh):
    create = functools.partial(state.create, optimizer=optimizer)
    return sharding.tree_shardings(mesh, jax.eval_shape(create, params))


def step_program(config: SftRun, optimizer, mesh, train_state):
    """The jitted step for a state like `train_state`, whose arrays may be abstract."""
    shardings = sharding.tree_shardings(mesh, train_state)
    step = functools.partial(
        sft.sft_step, optimizer=optimizer, num_microbatches=config.num_microbatches
    )
    return jax.jit(
        step,
        in_shardings=(shardings, sharding.named(mesh, ("batch", "seq"))),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
