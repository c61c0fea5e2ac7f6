"""What a PRIME run keeps in memory, and that saving memory changes nothing else."""

import jax
import numpy as np
import pytest

from jaxmath import sharding
from jaxmath.checkpoint import adapters, source, store
from jaxmath.runs import prime, respond

from . import tiny

LORA = {"prm_lora": {"rank": 2, "alpha": 8.0}}


@pytest.fixture(scope="module")
def plain(data, model, tmp_path_factory):
    """Two steps."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    prime.run(tiny.prime_config(data, model, folder, steps=2))
    return folder


def test_the_decoder_holds_nothing_during_an_update(data, model, plain, tmp_path, monkeypatch):
    held, one_step = [], prime.one_step

    def watched(config, step, prime_state, ref, *rest):
        ours = {id(x) for x in jax.tree.leaves((prime_state, ref))}
        others = [x for x in jax.live_arrays() if id(x) not in ours and x not in before]
        held.append(sum(x.nbytes for x in others))
        return one_step(config, step, prime_state, ref, *rest)

    class Ids(list):
        def __contains__(self, x):
            return any(x is other for other in self)

    before = Ids(jax.live_arrays())
    config = tiny.prime_config(data, model, tmp_path / "freed", steps=2)
    monkeypatch.setattr(prime, "one_step", watched)
    prime.run(config)
    assert max(held) < 4096  # scalars; the decoder's weights alone are 100 kB

    monkeypatch.setattr(respond.Responder, "release", lambda self: None)
    prime.run(tiny.prime_config(data, model, tmp_path / "kept", steps=2))
    assert min(held[2:]) > 50_000
    expected = tiny.saved(plain, 2)[1]
    assert tiny.saved(tmp_path / "freed", 2)[1] == expected
    assert tiny.saved(tmp_path / "kept", 2)[1] == expected


def test_moments_on_the_host_make_the_same_run(data, model, plain, tmp_path, monkeypatch):
    kinds, one_step = [], prime.one_step

    def watched(config, step, prime_state, *rest):
        states = (prime_state.policy.opt_state, prime_state.prm.opt_state)
        kinds.extend(
            {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim} for tree in states
        )
        return one_step(config, step, prime_state, *rest)

    optimizer = {"clip_norm": 1.0, "learning_rate": 1e-3, "offload": True}
    rl = {"policy_optimizer": optimizer, "prm_optimizer": optimizer}
    monkeypatch.setattr(prime, "one_step", watched)
    prime.run(tiny.prime_config(data, model, tmp_path, rl=rl, steps=1))
    prime.run(tiny.prime_config(data, model, tmp_path, rl=rl, steps=2))  # restored to the host
    assert kinds == [{"pinned_host"}] * 4
    assert tiny.saved(tmp_path, 2)[1] == tiny.saved(plain, 2)[1]


def test_a_reward_model_of_adapters_is_saved_resumed_and_read(data, model, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    prime.run(tiny.prime_config(data, model, whole, rl=LORA, steps=2))
    for steps in (1, 2):
        prime.run(tiny.prime_config(data, model, parted, rl=LORA, steps=steps))
    leaves = tiny.saved(whole, 2)[1]
    assert tiny.saved(parted, 2)[1] == leaves
    prm = {path for path in leaves if path.startswith("prm/params/")}
    assert prm and all(path.rsplit("/", 1)[1] in ("a", "b") for path in prm)

    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    read, _ = source.load_model(whole / "checkpoints", mesh, None, subtrees=source.PRM_SUBTREES)
    base, _ = source.load_model(model / "checkpoints", mesh)
    with store.CheckpointStore(whole / "checkpoints", read_only=True) as reader:
        found = adapters.restore(reader, mesh, prm=True)
    name = "down_FD"
    change = getattr(read.layers, name)[...] - getattr(base.layers, name)[...]
    pair = found.tree["layers"][name]
    expected = 4.0 * np.einsum("lfr,lrd->lfd", pair["a"][...], pair["b"][...])
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(change, expected, atol=1e-6)

    with pytest.raises(ValueError, match="another reward model"):
        other = {"prm_lora": LORA["prm_lora"] | {"alpha": 4.0}}
        prime.run(tiny.prime_config(data, model, whole, rl=other, steps=3))
