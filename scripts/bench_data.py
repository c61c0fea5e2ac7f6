"""How fast conversations become batches: tokenising, packing, and a start from the token cache.

python scripts/bench_data.py PROBLEMS.jsonl TOKENIZER [CONVERSATIONS [FOLDER]]

Each conversation is a problem with solutions of several strung together: lengths spread as those of
a long-thinking teacher do (log-normal, median 400 tokens, cut at 4,096). FOLDER keeps the cache.
"""

import pathlib
import random
import sys
import tempfile
import time

from jaxmath import config as config_lib
from jaxmath.data import batches, records, token_cache, tokenizer

ROW_TOKENS, BATCH_ROWS, NUM_BATCHES = 4096, 16, 100


def conversations(problems: pathlib.Path, number: int) -> list[records.Conversation]:
    data = records.DataConfig(path=str(problems))
    source = [c.messages for c in records.read_conversations(data, "plain", None)]
    draw, made = random.Random(0), []
    while len(made) < number:
        question, answer = source[len(made) % len(source)]
        wanted = draw.lognormvariate(0, 0.8) * 1000  # characters: 2.5 to a token
        text = answer["content"]
        while len(text) < wanted:
            text += "\n\n" + draw.choice(source)[1]["content"]
        made.append(
            records.Conversation(str(len(made)), (question, {"role": "assistant", "content": text}))
        )
    return made


class Timed:
    """Prints what was done, the seconds it took, and how many a second."""

    def __init__(self, what: str):
        self.what, self.number, self.unit = what, None, ""

    def __enter__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        rate = f", {self.number / wall:,.0f} {self.unit}/s" if self.number else ""
        print(f"{self.what}: {wall:.2f} s ({cpu:.2f} s of CPU){rate}", flush=True)


def main() -> None:
    problems, path = sys.argv[1:3]
    number = int(sys.argv[3]) if len(sys.argv) > 3 else 100_000
    made = conversations(pathlib.Path(problems), number)
    config = tokenizer.TokenizerConfig(path, chat_template="tulu", eos_token="<|im_end|>")
    with Timed("loading the tokenizer"):
        tokens = tokenizer.Tokenizer(config)
    with Timed(f"tokenising {number:,} conversations") as timed:
        examples, counts = batches.encode_conversations(tokens, made, ROW_TOKENS)
        lengths = batches.InMemory(examples).lengths
        timed.number, timed.unit = int(lengths.sum()), "tokens"
    print(
        f"  {lengths.sum():,} tokens, mean {lengths.mean():.0f}, longest {lengths.max()}, "
        f"{counts.num_truncated} cut"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = sys.argv[4] if len(sys.argv) > 4 else folder
        cache = token_cache.TokenCache(folder, config_lib.fingerprint([number, path]))
        if not cache.exists():
            with Timed("writing the token cache"):
                cache.write(examples, counts)
        with Timed("opening the token cache"):
            stored, _, _ = cache.read()
        with Timed(f"packing into rows of {ROW_TOKENS}") as timed:
            timed.number, timed.unit = len(examples), "conversations"
            data = batches.SftData(examples, ROW_TOKENS, BATCH_ROWS, "token_mean", seed=0)
        print(f"  rows filled {data.fill:.2%}")
        for name, some in (("memory", examples), ("the token cache", stored)):
            data = batches.SftData(some, ROW_TOKENS, BATCH_ROWS, "token_mean", seed=0)
            with Timed(f"{NUM_BATCHES} batches of {BATCH_ROWS} rows from {name}") as timed:
                timed.unit = "tokens"
                for step in range(min(NUM_BATCHES, data.steps_per_epoch)):
                    timed.number = (timed.number or 0) + data.batch_at(step).segment_ids_BT.size


if __name__ == "__main__":
    main()
