"""Writes a Hugging Face folder with random weights in the exact shape of a Qwen2.5 model.

    python scripts/make_hf_model.py FOLDER --size 0.5B --seed 0 --max-shard-size 300MB

For tests and measurements of `jaxmath convert`: `transformers` itself names, shapes and writes the
tensors. Needs `torch` and `transformers`.
"""

import argparse

# vocab, layers, embed, mlp, heads, kv heads, tied: the published config.json of each size
SIZES = {
    "tiny": (512, 3, 64, 160, 4, 2, True),
    "0.5B": (151936, 24, 896, 4864, 14, 2, True),
    "1.5B": (151936, 28, 1536, 8960, 12, 2, True),
    "3B": (151936, 36, 2048, 11008, 16, 2, True),
    "7B": (152064, 28, 3584, 18944, 28, 4, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--size", choices=SIZES, default="0.5B")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--max-shard-size", default="300MB")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import torch
    import transformers

    vocab, layers, embed, mlp, heads, kv_heads, tied = SIZES[args.size]
    config = transformers.Qwen2Config(
        vocab_size=vocab,
        num_hidden_layers=layers,
        hidden_size=embed,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        rope_theta=1e6,
        max_position_embeddings=32768,
        bos_token_id=vocab - 1,
        eos_token_id=vocab - 1,
    )
    torch.manual_seed(args.seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype))
    for name, parameter in model.named_parameters():  # transformers starts biases at 0, norms at 1
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    model.save_pretrained(args.folder, max_shard_size=args.max_shard_size)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.folder}: {count:,} parameters in {args.dtype}")


if __name__ == "__main__":
    main()
