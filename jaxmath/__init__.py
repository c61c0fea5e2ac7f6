"""INTELLECT-MATH in JAX: synthesis, verification, SFT, PRIME and evaluation of Qwen2.5 models."""
