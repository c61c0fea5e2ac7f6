"""Every cache against attention written in NumPy: what is inserted and written is what is seen."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernels
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel

from jaxmath import sharding
from jaxmath.decode import cache_cudnn, cache_paged, caches
from jaxmath.decode.cache_cudnn import CudnnCache
from jaxmath.decode.cache_int8 import Int8Cache
from jaxmath.decode.cache_paged import PagedCache
from jaxmath.decode.cache_xla import XlaCache
from jaxmath.model.config import ModelConfig

SLOTS = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """A cache, and how far it may be from exact: worst error over largest value of a slot."""

    cache: Any
    tolerance: float
    dtype: str = "float32"
    heads: tuple[int, int, int] = (6, 2, 8)  # N, K, H
    length: int = 300  # two whole blocks or pages, and a part of one
    block_tokens: tuple[int, ...] = ()  # where the cache has a choice: one block of all

    @property
    def config(self) -> ModelConfig:
        N, K, H = self.heads
        sizes = {"vocab_size": 8, "num_layers": 1, "embed_dim": 8, "mlp_dim": 8}
        return ModelConfig(**sizes, num_heads=N, num_kv_heads=K, head_dim=H, dtype=self.dtype)

    def allocate(self):
        return self.cache.allocate(self.config, SLOTS, self.length, self.dtype, *self.block_tokens)


F32, BF16 = 2e-6, 1e-2  # rounding of the dtype times a small constant

CASES = {
    "xla-f32": Case(XlaCache, F32),
    "xla-bf16": Case(XlaCache, BF16, dtype="bfloat16", heads=(14, 2, 16)),
    "xla-whole-f32": Case(XlaCache, F32, block_tokens=(512,)),
    "xla-whole-bf16": Case(
        XlaCache, BF16, dtype="bfloat16", heads=(14, 2, 16), block_tokens=(512,)
    ),
    "cudnn-f32": Case(CudnnCache, F32),
    "cudnn-bf16": Case(CudnnCache, BF16, dtype="bfloat16", heads=(14, 2, 16)),
    "paged-f32": Case(PagedCache, F32, heads=(4, 2, 128)),
    "paged-bf16": Case(PagedCache, BF16, dtype="bfloat16", heads=(7, 1, 128)),
    "int8-f32": Case(Int8Cache, 2e-2),
    "int8-whole-f32": Case(Int8Cache, 2e-2, block_tokens=(512,)),
    "int8-bf16": Case(Int8Cache, 3e-2, dtype="bfloat16", heads=(14, 2, 24)),
}


class Loaded:
    """What stands for a view of a kernel's buffer, which the interpreter lacks: a copy."""

    def __init__(self, value):
        self.value, self.dtype = value, value.dtype

    def reshape(self, *shape):
        return Loaded(self.value.reshape(*shape))

    def __getitem__(self, index):
        return self.value[index]

    def bitcast(self, dtype):  # two rows of 16 bits make one of 32
        pairs = self.value.reshape(-1, 2, self.value.shape[1]).swapaxes(1, 2)
        return jax.lax.bitcast_convert_type(pairs, dtype)


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch):
    """cuDNN's call by XLA, and the TPU kernel by Pallas's interpreter, with two of its gaps
    bridged: views of a buffer, and masks in the store of three-dimensional arrays."""
    monkeypatch.setattr(CudnnCache, "implementation", "xla")
    wait = kernel.MultiPageAsyncCopyDescriptor.wait
    copy = lambda descriptor: Loaded(wait(descriptor)[...])  # noqa: E731
    monkeypatch.setattr(kernel.MultiPageAsyncCopyDescriptor, "wait", copy)

    def store(ref, value, *, mask):
        ref[...] = jnp.where(mask, value, ref[...])

    monkeypatch.setattr(pltpu, "store", store)
    with pltpu.force_tpu_interpret_mode():
        yield


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


write = jax.jit(lambda cache, *args: cache.write(*args), donate_argnums=0)
attend = jax.jit(lambda cache, *args: cache.attend(*args))


@functools.partial(jax.jit, static_argnames="width", donate_argnums=0)
def insert(cache, *args, width):
    return cache.insert(*args, width)


class Twin:
    """Keys and values in float64, one token at a time."""

    def __init__(self, case):
        _, K, H = case.heads
        self.k_BSKH, self.v_BSKH = np.zeros((2, SLOTS, case.length, K, H))

    def write(self, k_BKH, v_BKH, position_B):
        for b, at in enumerate(position_B):
            if at < self.k_BSKH.shape[1]:
                self.k_BSKH[b, at], self.v_BSKH[b, at] = k_BKH[b], v_BKH[b]

    def insert(self, k_PTKH, v_PTKH, row_I, start_I, slot_I, count, width):
        for row, start, slot in list(zip(row_I, start_I, slot_I, strict=True))[:count]:
            self.k_BSKH[slot, :width] = k_PTKH[row, start : start + width]
            self.v_BSKH[slot, :width] = v_PTKH[row, start : start + width]

    def attend(self, q_BNH, length_B):
        B, N, H = q_BNH.shape
        out_BNH = np.zeros((B, N, H))
        for b, n in np.ndindex(B, N):
            head = n // (N // self.k_BSKH.shape[2])
            k_SH, v_SH = self.k_BSKH[b, : length_B[b], head], self.v_BSKH[b, : length_B[b], head]
            score_S = k_SH @ q_BNH[b, n].astype(np.float64) / np.sqrt(H)
            prob_S = np.exp(score_S - score_S.max())
            out_BNH[b, n] = prob_S @ v_SH / prob_S.sum()
        return out_BNH


class Both:
    """A cache and its twin, fed the same random numbers; four prompts are in them already."""

    def __init__(self, case):
        self.case, self.rng = case, np.random.default_rng(0)
        self.cache, self.twin = case.allocate(), Twin(case)
        self.insert([0, 1, 0, 1, 1, 0], [0, 5, 0, 17, 0, 1], [2, 0, 3, 1, 7, 5], 6, width=280)

    def normal(self, *shape):
        return self.rng.standard_normal(shape).astype(jnp.dtype(self.case.dtype))

    def insert(self, row_I, start_I, slot_I, count, width):
        k_PTKH, v_PTKH = (self.normal(2, 17 + width, *self.case.heads[1:]) for _ in range(2))
        self.twin.insert(k_PTKH, v_PTKH, row_I, start_I, slot_I, count, width)
        pad = lambda values, fill: np.int32([*values, *[fill] * (SLOTS - len(values))])  # noqa: E731
        entries = (pad(row_I, 0), pad(start_I, 0), pad(slot_I, SLOTS), np.int32(count))
        self.cache = insert(self.cache, k_PTKH, v_PTKH, *entries, width=width)

    def write(self, position_B):
        k_BKH, v_BKH = (self.normal(SLOTS, *self.case.heads[1:]) for _ in range(2))
        self.twin.write(k_BKH, v_BKH, position_B)
        self.cache = write(self.cache, k_BKH, v_BKH, np.int32(position_B))

    def queries(self):
        return self.normal(SLOTS, self.case.heads[0], self.case.heads[2])

    def check(self, length_B):
        q_BNH = self.queries()
        out_BNH = attend(self.cache, q_BNH, np.int32(length_B))
        assert out_BNH.dtype == q_BNH.dtype
        exact_BNH = self.twin.attend(q_BNH, length_B)
        error_B = np.max(np.abs(np.asarray(out_BNH, np.float64) - exact_BNH), axis=(1, 2))
        error_B /= np.max(np.abs(exact_BNH), axis=(1, 2)) + 1e-9  # a slot never used holds zeros
        assert np.all(error_B <= self.case.tolerance), error_B


def test_each_slot_sees_its_own_tokens_up_to_its_length(case):
    both = Both(case)
    both.check([280, 1, 128, 129, 1, 2, 1, 127])
    both.check([256, 257, 2, 127, 1, 255, 1, 280])


def test_a_written_token_is_seen_and_the_next_is_not(case):
    both = Both(case)
    for length in (0, 1, 2):
        position_B = [7 + length, 126 + length, 127 + length, 279 + length, 0, 1, 2, 255 + length]
        both.write(position_B)
        both.check([at + 1 for at in position_B[:4]] + [1, 2, 1, position_B[7] + 1])


def test_a_slot_is_used_again_without_a_trace_of_its_last_sequence(case):
    both = Both(case)
    both.insert([1, 0, 0], [3, 0, 0], [2, 1, 0], 2, width=20)
    both.check([40, 20, 19, 280, 1, 280, 1, 1])


def test_a_position_beyond_the_cache_is_dropped(case):
    both = Both(case)
    both.write([100_000, 280, 512, 5, 0, 0, 0, 100_000])
    both.check([280, 281, 280, 6, 1, 280, 1, 280])


def test_a_slot_without_tokens_gives_no_nan_and_harms_no_other(case):
    both = Both(case)
    q_BNH = both.queries()
    some_BNH = attend(both.cache, q_BNH, np.int32([0, 150, 0, 280, 0, 3, 0, 0]))
    all_BNH = attend(both.cache, q_BNH, np.int32([150, 150, 280, 280, 1, 3, 1, 9]))
    none_BNH = attend(both.cache, q_BNH, np.int32([0] * SLOTS))
    for out_BNH in (some_BNH, none_BNH):
        assert np.all(np.isfinite(np.asarray(out_BNH, np.float32)))
    np.testing.assert_array_equal(some_BNH[1:6:2], all_BNH[1:6:2])
    if case.cache in (XlaCache, Int8Cache):  # the others leave open what such a slot sees
        assert not np.any(none_BNH) and not np.any(some_BNH[::2])


# On a CPU, XLA scatters bfloat16 by way of a copy in f32.
IN_PLACE = [name for name in CASES if name.endswith("f32")]


@pytest.mark.parametrize("name", IN_PLACE)
def test_tokens_are_stored_in_place(name):
    case = CASES[name]
    cache = jax.eval_shape(case.allocate)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    heads, index_B = case.heads[1:], jax.ShapeDtypeStruct((SLOTS,), jnp.int32)
    token = jax.ShapeDtypeStruct((SLOTS, *heads), case.dtype)
    prompt = jax.ShapeDtypeStruct((1, 8, *heads), case.dtype)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    for lowered in (
        write.lower(cache, token, token, index_B),
        insert.lower(cache, prompt, prompt, index_B, index_B, index_B, count, width=4),
    ):
        memory = lowered.compile().memory_analysis()
        assert memory.alias_size_in_bytes == size
        assert memory.temp_size_in_bytes < size / 32


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_mesh_changes_nothing(name, monkeypatch):
    # The interpreter lets simulated devices wait for each other, forever on few cores.
    monkeypatch.setattr(kernels, "ragged_paged_attention", plain_paged_attention)
    alone, split = Both(CASES[name]), Both(CASES[name])
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    place = lambda x, axes: jax.device_put(x, sharding.named(mesh, axes, x.shape))  # noqa: E731
    split.cache = jax.tree.map(place, split.cache, split.cache.axes())
    with jax.set_mesh(mesh):
        out_BNH = follow(split)
    np.testing.assert_allclose(out_BNH, follow(alone), rtol=1e-6, atol=1e-6)
    slots = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape)[0], split.cache)
    assert set(jax.tree.leaves(slots)) == {SLOTS // 4}


def plain_paged_attention(q_BNH, pages, length_B, table_BP, starts, count, *, sm_scale, **blocks):
    """JAX's kernel as its signature reads, for one query per slot."""
    k_BSKH, v_BSKH = (
        pages[table_BP].reshape(len(table_BP), -1, *pages.shape[2:])[:, :, first::2]
        for first in (0, 1)
    )
    (B, N, H), K = q_BNH.shape, k_BSKH.shape[2]
    assert starts.shape == (B + 1,) and sm_scale == H**-0.5
    q_BKGH = q_BNH.reshape(B, K, N // K, H)
    score_BKGS = jnp.einsum("BKGH,BSKH->BKGS", q_BKGH, k_BSKH) * sm_scale
    seen_BS = jnp.arange(k_BSKH.shape[1])[None] < length_B[:, None]
    prob_BKGS = jax.nn.softmax(jnp.where(seen_BS[:, None, None], score_BKGS, -1e30), axis=-1)
    return jnp.einsum("BKGS,BSKH->BKGH", prob_BKGS, v_BSKH).reshape(B, N, H)


def follow(both):
    """A token, a prompt, and what the slots see then."""
    both.write([280, 0, 130, 7, 0, 1, 2, 255])
    both.insert([1, 0], [3, 0], [2, 6], 2, width=20)
    length_B = np.int32([281, 1, 19, 8, 1, 2, 3, 256])
    return np.asarray(attend(both.cache, both.queries(), length_B))


def test_what_a_cache_cannot_hold_is_refused_by_name():
    case = dataclasses.replace(CASES["paged-f32"], heads=(4, 2, 64))
    with pytest.raises(ValueError, match="'paged': head_dim is 64, .*128; use cache 'xla'"):
        case.allocate()


def test_a_probe_says_why_a_cache_cannot_be_used_here():
    config = CASES["paged-bf16"].config
    reason = cache_cudnn.probe(config, "bfloat16")
    assert reason == "cuDNN needs an NVIDIA GPU; the devices here are of type cpu"
    assert cache_cudnn.probe(config, "float32").endswith("not in float32")
    reason = cache_paged.probe(config, "bfloat16")
    assert reason == "the kernel needs a TPU; the devices here are of type cpu"


@pytest.mark.parametrize("name", ["cudnn", "paged"])
def test_a_probe_accepts_what_agrees_with_plain_attention_and_nothing_else(name, monkeypatch):
    module, backend = {"cudnn": (cache_cudnn, "gpu"), "paged": (cache_paged, "tpu")}[name]
    case = CASES[f"{name}-bf16"]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert module.probe(case.config, "bfloat16") is None
    broken = lambda cache, q_BNH, length_B: cache_attend(cache, q_BNH, length_B - 1)  # noqa: E731
    cache_attend = case.cache.attend
    monkeypatch.setattr(case.cache, "attend", broken)
    assert "differs from plain attention" in module.probe(case.config, "bfloat16")
    missing = lambda cache, q_BNH, length_B: 1 / 0  # noqa: E731
    monkeypatch.setattr(case.cache, "attend", missing)
    assert module.probe(case.config, "bfloat16") == "ZeroDivisionError: division by zero"


class Gpu:
    """A device that is not here."""

    platform = "gpu"


@pytest.mark.parametrize("name", ["xla", "int8"])
def test_a_gpu_reads_long_blocks_and_a_cpu_short_ones(name):
    def num_blocks(device, length):
        mesh = types.SimpleNamespace(devices=np.array([device]))
        config = CASES["xla-f32"].config
        allocate = caches.choose(name, config, mesh, "float32")
        cache = jax.eval_shape(lambda: allocate(config, SLOTS, length, "float32"))
        return len(getattr(cache, "codes", cache).keys)

    assert [num_blocks(Gpu(), length) for length in (300, 4096, 5000)] == [1, 1, 2]
    assert [num_blocks(jax.devices()[0], length) for length in (64, 300, 4096)] == [1, 5, 8]
