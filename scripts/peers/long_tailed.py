"""Runs a training script of the peers' benchmark, or ours, on examples of long-tailed length.

    python scripts/peers/long_tailed.py PATH/train_torch.py MODEL_DIR --batch 32 --length 512

Their batch is of full rows, or of evenly spread lengths; here lengths are log-normal, as in real
data: median a quarter of the limit, and cut at it. Everything else is the script's own: the peers
pad each example to the longest, we pack.
"""

import runpy
import sys

import numpy as np
import peerlib


def lengths_of(batch: int, length: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).lognormal(np.log(length / 4), 0.8, batch)
    return np.clip(drawn, 2, length).astype(int)


def sft_batch(batch: int, length: int, vocab: int, seed: int = 99, pad_frac: float = 0.0):
    """(tokens, mask), i32[batch, longest] each; in place of `peerlib.sft_batch`."""
    lengths = lengths_of(batch, length, seed)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(peerlib.FIRST_PLAIN_ID, min(vocab, 4096), mask.shape, np.int32)
    return np.where(mask, tokens, peerlib.PAD_ID), mask


if __name__ == "__main__":
    peerlib.sft_batch = sft_batch
    sys.argv = [*sys.argv[1:], "--pad-frac", "0.5"]  # not 0: so that they mask their padding
    runpy.run_path(sys.argv[0], run_name="__main__")
