"""CheckpointStore: what is saved comes back, on any mesh; what is damaged or different does not."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmath import sharding
from jaxmath.checkpoint import digest, trees
from jaxmath.checkpoint.errors import CheckpointError, CheckpointLocked, CheckpointMismatch
from jaxmath.checkpoint.store import CheckpointConfig, CheckpointStore
from jaxmath.model import qwen2
from jaxmath.model.config import ModelConfig

CONFIG = ModelConfig(
    vocab_size=64, num_layers=2, embed_dim=16, mlp_dim=32, num_heads=4, num_kv_heads=2, head_dim=4
)


def make_mesh(fsdp: int, tensor: int = 1):
    devices = jax.devices()[: fsdp * tensor]
    return sharding.make_mesh(sharding.MeshConfig(fsdp=fsdp, tensor=tensor), devices)


def make_state(mesh):
    """A small training state: bf16 and f32, stacked layers, optimizer moments, a key, a counter."""
    params = qwen2.init_sharded(CONFIG, jax.random.key(0), mesh)
    opt_state = jax.jit(optax.adamw(1e-3).init)(params)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    rng, step = jax.random.key(3), jnp.int32(7)
    return {"params": params, "opt": opt_state, "half": half, "rng": rng, "step": step}


def abstract_state(mesh):
    shapes = jax.eval_shape(lambda: make_state_shapes())
    return trees.with_shardings(shapes, sharding.tree_shardings(mesh, shapes))


def make_state_shapes():
    params = qwen2.Qwen2(CONFIG, jax.random.key(0))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    rng, step = jax.random.key(3), jnp.int32(7)
    opt_state = optax.adamw(1e-3).init(params)
    return {"params": params, "opt": opt_state, "half": half, "rng": rng, "step": step}


def bits(tree) -> dict[str, bytes]:
    leaves = trees.flatten(tree)
    data = {k: jax.random.key_data(x) if trees.is_key(x) else x for k, x in leaves.items()}
    return {path: np.asarray(x).tobytes() for path, x in data.items()}


def small(value: float = 0.0):
    return {"a": jnp.full((4, 3), value, jnp.float32), "b": jnp.arange(5, dtype=jnp.int32)}


SMALL = {
    "a": jax.ShapeDtypeStruct((4, 3), jnp.float32),
    "b": jax.ShapeDtypeStruct((5,), jnp.int32),
}


@pytest.mark.parametrize(("fsdp", "tensor"), [(4, 2), (4, 1), (1, 1)])
def test_restore_is_bit_equal_on_any_mesh(tmp_path, fsdp, tensor):
    state = make_state(make_mesh(8))
    with CheckpointStore(tmp_path) as store:
        store.save(7, state, {"tokens": 70, "losses": [1.5, 0.25]})
    mesh = make_mesh(fsdp, tensor)
    with CheckpointStore(tmp_path) as store:
        tree, meta, step = store.restore(abstract_state(mesh))
    assert (step, meta) == (7, {"tokens": 70, "losses": [1.5, 0.25]})
    assert jax.tree.structure(tree) == jax.tree.structure(state)
    assert bits(tree) == bits(state)
    wq = tree["params"].layers.wq_DNH
    axes = ("layers", "embed", "heads", "head_dim")
    assert wq[...].sharding == sharding.named(mesh, axes)
    assert jax.random.bits(tree["rng"]) == jax.random.bits(state["rng"])


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    change = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with CheckpointStore(tmp_path) as store:
        x = jnp.arange(2.0**22)
        store.save(0, {"x": x}, {})
        change(x).block_until_ready()
        like = {"x": jax.ShapeDtypeStruct((2**22,), jnp.float32)}
        assert np.array_equal(store.restore(like).tree["x"], np.arange(2.0**22))


def test_a_subtree_is_restored_alone_when_asked_for(tmp_path):
    state = make_state(make_mesh(8))
    with CheckpointStore(tmp_path) as store:
        store.save(1, state, {})
        like = abstract_state(make_mesh(1))["params"]
        params = store.restore(like, subtree="params").tree
        leaf = store.restore(
            trees.flatten(like)["final_norm_D"], subtree="params/final_norm_D"
        ).tree
    assert bits(params) == bits(state["params"])
    assert np.array_equal(leaf, state["params"].final_norm_D[...])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"c": SMALL["a"]}, "lacks c"),
        (lambda t: {"a": t["a"]}, "also holds b"),
        (lambda t: t | {"a": jax.ShapeDtypeStruct((3, 4), jnp.float32)}, r"a has shape \(4, 3\)"),
        (lambda t: t | {"a": jax.ShapeDtypeStruct((4, 3), jnp.bfloat16)}, "a has dtype float32"),
    ],
)
def test_other_arrays_than_stored_are_an_error_by_name(tmp_path, change, message):
    with CheckpointStore(tmp_path) as store:
        store.save(0, small(), {})
        with pytest.raises(CheckpointMismatch, match=message):
            store.restore(change(SMALL))
        assert store.all_steps() == [0]  # a mismatch is not damage


def test_numbers_jax_would_narrow_are_refused(tmp_path):
    with (
        CheckpointStore(tmp_path) as store,
        pytest.raises(CheckpointError, match="n has dtype int64"),
    ):
        store.save(0, {"n": 2**40}, {})


def test_meta_must_be_json(tmp_path):
    with CheckpointStore(tmp_path) as store, pytest.raises(CheckpointError, match="JSON values"):
        store.save(0, small(), {"x": {1, 2}})


# --- retention --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "metrics", "kept"),
    [
        ("max", [0.9, 0.1, float("nan"), 0.2, 0.3], [0, 4]),
        ("max", [0.9, 0.8, 0.1, 0.2], [0, 3]),  # the newest stays although it is not among the best
        ("max", [0.1, float("inf"), 0.3, 0.2], [2, 3]),
        ("max", [float("nan"), float("-inf"), None], [2]),
        ("min", [0.9, 0.1, float("-inf"), 0.2, float("nan")], [1, 4]),
        ("max", [0.5, 0.5, 0.1], [1, 2]),  # of equals, the newer
        ("max", [None, None, None], [2]),
    ],
)
def test_the_newest_and_the_best_finite_steps_are_kept(tmp_path, mode, metrics, kept):
    config = CheckpointConfig(keep_last=1, keep_best=1, best_mode=mode)
    with CheckpointStore(tmp_path, config) as store:
        for step, metric in enumerate(metrics):
            store.save(step, small(step), {}, metric)
        store.wait()
        assert store.all_steps() == kept


def test_the_best_step_is_remembered_by_a_new_process(tmp_path):
    config = CheckpointConfig(keep_last=1, keep_best=1)
    with CheckpointStore(tmp_path, config) as store:
        store.save(0, small(), {}, 0.9)
        store.save(1, small(), {}, 0.1)
    with CheckpointStore(tmp_path, config) as store:
        store.save(2, small(), {}, 0.2)
        store.wait()
        assert store.all_steps() == [0, 2]


def test_steps_are_ordered_by_number(tmp_path):
    with CheckpointStore(tmp_path) as store:
        for step in (9, 10, 100):
            store.save(step, small(step), {})
        store.wait()
        assert (store.latest_step(), store.all_steps()) == (100, [10, 100])


def test_deleted_steps_do_not_pile_up(tmp_path):
    with CheckpointStore(tmp_path, CheckpointConfig(keep_last=1)) as store:
        for step in range(5):
            store.save(step, small(), {})
    with CheckpointStore(tmp_path):
        assert not list((tmp_path / "trash").iterdir())


def test_saving_a_step_that_is_not_new_is_an_error(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(5, small(), {})
        for step in (5, 4):
            with pytest.raises(CheckpointError, match="not after the newest saved step 5"):
                store.save(step, small(), {})


# --- damage -----------------------------------------------------------------------------------


def flip_a_bit(step_folder: pathlib.Path, seed: int) -> None:
    """Flips one bit of array data: in a data file of the OCDBT store."""
    rng = np.random.default_rng(seed)
    files = sorted((step_folder / "state").rglob("d/*"), key=lambda f: f.stat().st_size)
    data = bytearray(files[-1].read_bytes())
    data[rng.integers(len(data) // 4, len(data) * 3 // 4)] ^= 1 << int(rng.integers(8))
    files[-1].write_bytes(data)


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_bit_is_noticed_and_the_step_before_is_used(tmp_path, seed, caplog):
    tree = {"x": jax.random.normal(jax.random.key(0), (64, 64))}
    like = {"x": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    with CheckpointStore(tmp_path) as store:
        store.save(1, tree, {"at": 1})
        store.save(2, tree, {"at": 2})
        store.wait()
        flip_a_bit(tmp_path / "2", seed)
        with pytest.raises(CheckpointError, match="step 2"):
            store.restore(like, step=2)
        tree_back, meta, step = store.restore(like)
        assert (step, meta) == (1, {"at": 1})
        assert bits(tree_back) == bits(tree)
        assert "step 2 is damaged" in caplog.text
        assert store.all_steps() == [1]
        assert len(list((tmp_path / "damaged").glob("2-*/state"))) == 1  # set aside, not deleted
        store.save(2, tree, {"at": 2})  # and the number is free again
        assert store.restore(like).step == 2


@pytest.mark.parametrize("what", ["truncate", "delete data", "delete manifest", "garble meta"])
def test_other_damage_falls_back_too(tmp_path, what):
    with CheckpointStore(tmp_path) as store:
        store.save(1, small(1), {"at": 1})
        store.save(2, small(2), {"at": 2})
    step = tmp_path / "2"
    data = max((step / "state").rglob("d/*"), key=lambda f: f.stat().st_size)
    if what == "truncate":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif what == "delete data":
        data.unlink()
    elif what == "delete manifest":
        (step / "state" / "manifest.ocdbt").unlink()
    else:
        meta = step / "meta" / "metadata"
        meta.write_text(meta.read_text().replace("digest", "Digest", 1))
    with CheckpointStore(tmp_path) as store:
        assert store.restore(SMALL).step == 1


def test_without_an_intact_step_every_reason_is_listed_and_nothing_is_moved(tmp_path):
    with CheckpointStore(tmp_path) as store:
        for step in (1, 2):
            store.save(step, small(step), {})
        store.wait()
        for step in (1, 2):
            (tmp_path / str(step) / "meta" / "metadata").unlink()
        with pytest.raises(CheckpointError, match=r"no intact checkpoint \(step 2.*step 1"):
            store.restore(SMALL)
        assert store.all_steps() == [1, 2]


def test_an_empty_folder_says_so(tmp_path):
    with CheckpointStore(tmp_path) as store:
        assert store.latest_step() is None
        with pytest.raises(CheckpointError, match="no step  ?saved here"):
            store.restore(SMALL)


def test_a_failed_save_surfaces_at_the_next_call(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path) as store:
        store.save(1, small(1), {})
        store.wait()
        with monkeypatch.context() as patch:
            patch.setattr(type(store._manager._checkpoint_deleter), "delete_steps", _full_disk)
            store.save(2, small(2), {})
            with pytest.raises(CheckpointError, match="No space left"):
                store.save(3, small(3), {})
        store.save(4, small(4), {})
        assert store.restore(SMALL).step == 4


def _full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("seed", range(3))
def test_a_digest_is_the_same_on_every_mesh_and_changes_with_any_bit(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, 6, 4)).astype(np.float32)
    on = [
        jax.device_put(x, sharding.named(make_mesh(fsdp), ("embed", None, None)))
        for fsdp in (1, 4, 8)
    ]
    device = [digest._sums_on_device(y) for y in on]  # for large arrays; numpy for small ones
    assert {tuple(map(int, pair)) for pair in device} == {tuple(map(int, digest._sums(x)))}
    flipped = x.copy().reshape(-1).view(np.uint32)
    flipped[rng.integers(flipped.size)] ^= np.uint32(1 << int(rng.integers(32)))
    flipped = flipped.view(np.float32).reshape(x.shape)
    assert digest.digests({"x": flipped}) != digest.digests({"x": x})
    swapped = x[:, ::-1].copy()
    assert digest.digests({"x": swapped}) != digest.digests({"x": x})


# --- processes --------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, small(1), {})
        store.wait()
        with pytest.raises(CheckpointLocked, match=f"in use by pid {os.getpid()}"):
            CheckpointStore(tmp_path)
        with CheckpointStore(tmp_path, read_only=True) as reader:
            assert reader.restore(SMALL).step == 1
            with pytest.raises(CheckpointError, match="read-only"):
                reader.save(2, small(), {})
    CheckpointStore(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        CheckpointStore(tmp_path / "file" / "run")


WRITER = """
import sys, jax.numpy as jnp
from jaxmath.checkpoint.store import CheckpointConfig, CheckpointStore
store = CheckpointStore(sys.argv[1], CheckpointConfig(keep_last=2))
step = store.latest_step() or 0
print("ready", flush=True)
while True:
    step += 1
    store.save(step, {"x": jnp.full((300_000,), step, jnp.float32)}, {"step": step})
    print(step, flush=True)
"""


def test_killed_while_saving_the_newest_whole_step_is_restored(tmp_path):
    """SIGKILL at three moments of continuous saving and deleting; then the lock is free again."""
    like = {"x": jax.ShapeDtypeStruct((300_000,), jnp.float32)}
    root = pathlib.Path(__file__).resolve().parents[2]
    seen = 0
    for trial in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(root)},
            text=True,
        )
        while writer.stdout.readline().strip() != str(seen + 4):
            assert writer.poll() is None
        time.sleep(0.013 * trial)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        with CheckpointStore(tmp_path) as store:
            steps = store.all_steps()
            assert all(store.restore(like, step).meta == {"step": step} for step in steps)
            tree, meta, step = store.restore(like)
            assert step == meta["step"] == max(steps) >= seen + 3  # the fourth was still on its way
            assert np.array_equal(tree["x"], np.full(300_000, step, np.float32))
            assert not list(tmp_path.glob("*tmp*"))
            seen = step


@pytest.mark.parametrize(
    "fields", [{"save_every": 0}, {"keep_last": 0}, {"keep_best": -1}, {"best_mode": "most"}]
)
def test_a_config_that_makes_no_sense_names_its_field(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        CheckpointConfig(**fields)
