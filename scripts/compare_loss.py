"""The loss of one packed training batch, in jaxmath and in transformers on PyTorch.

    python scripts/compare_loss.py runs/gsm8k-sft exported/

The batch is one that the SFT run saw; the weights are those of the exported Hugging Face folder.
jaxmath computes the packed rows as it trains on them; PyTorch computes each conversation alone, in
float32. Exit code 1 where the losses differ by more than 1e-4 of their size.
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import numpy as np
import torch
import transformers

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.checkpoint import source
from jaxmath.data import tokenizer
from jaxmath.runs import sft as sft_run
from jaxmath.train import sft

TOLERANCE = 1e-4


def torch_loss(folder: str, batch) -> float:
    """Σ w · nll / Σ w, segment by segment."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = 0.0
    for tokens_T, segment_T, weight_T in zip(
        batch.tokens_BT, batch.segment_ids_BT, batch.loss_weights_BT, strict=True
    ):
        for segment in range(1, segment_T.max() + 1):
            own_T = segment_T == segment
            ids = torch.tensor(tokens_T[own_T].astype(np.int64))[None]
            with torch.no_grad():
                logprobs = torch.log_softmax(model(ids).logits[0, :-1], -1)
            picked = logprobs.gather(-1, ids[0, 1:, None])[:, 0].double().numpy()
            total -= float(np.sum(picked * weight_T[own_T][1:]))
    return total / float(batch.loss_weights_BT.sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of an SFT run")
    parser.add_argument("exported", help="Hugging Face folder, exported from it")
    parser.add_argument("--step", type=int, default=0, help="whose batch to take")
    args = parser.parse_args()
    config = config_lib.load(sft_run.SftRun, str(pathlib.Path(args.run) / "config.yaml"))
    tokens = tokenizer.Tokenizer(config.tokenizer)
    batch = sft_run.read_data(config, tokens, pathlib.Path(args.run)).batch_at(args.step)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    shape = dataclasses.replace(source.load_config(args.exported), dtype="float32")
    model, _ = source.load_model(args.exported, mesh, "float32", shape)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        ours = float(jax.jit(sft.eval_loss)(model, batch).value())
    theirs = torch_loss(args.exported, batch)
    difference = abs(ours - theirs) / abs(theirs)
    print(
        f"{int(np.count_nonzero(batch.loss_weights_BT))} supervised tokens: jaxmath {ours:.7f}, "
        f"PyTorch {theirs:.7f}, relative difference {difference:.1e}"
    )
    return int(not difference <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
