"""One table pairs logical axes with the mesh; what does not fit is refused before compiling."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from jaxmath import sharding


def mesh_of(data, fsdp, tensor):
    return sharding.make_mesh(sharding.MeshConfig(data, fsdp, tensor))


class Layer(nnx.Module):
    def __init__(self):
        self.w_DF = nnx.Param(jnp.zeros((8, 16)), axes=("embed", "mlp"))
        self.scale_D = nnx.Param(jnp.zeros((8,)), axes=("norm",))


# --- the mesh ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (sharding.MeshConfig(), (1, 8, 1)),
        (sharding.MeshConfig(data=2, tensor=2), (2, 2, 2)),
        (sharding.MeshConfig(data=-1, fsdp=4), (2, 4, 1)),
        (sharding.MeshConfig(1, 1, 8), (1, 1, 8)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(config, sizes):
    mesh = sharding.make_mesh(config)
    assert tuple(mesh.shape[axis] for axis in sharding.MESH_AXES) == sizes
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_a_mesh_over_some_devices_uses_only_those():
    devices = jax.devices()[2:6]
    mesh = sharding.make_mesh(sharding.MeshConfig(tensor=2), devices)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 2}
    assert list(mesh.devices.flat) == devices
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (-1, -1, 1)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="expected positive sizes, at most one of them -1"):
        sharding.MeshConfig(*sizes)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (3, -1, 1), (16, -1, 1)])
def test_a_mesh_that_does_not_use_the_devices_is_refused(sizes):
    with pytest.raises(ValueError, match=r"does not use the 8 devices present; set mesh\.data"):
        mesh_of(*sizes)


# --- the table --------------------------------------------------------------------------------


def test_every_rule_names_axes_of_the_mesh():
    for entry in sharding.RULES.values():
        names = (entry,) if isinstance(entry, str) else (entry or ())
        assert set(names) <= set(sharding.MESH_AXES)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("embed", "heads", "head_dim"), PartitionSpec("fsdp", "tensor", None)),
        (("batch", "seq", "act_embed"), PartitionSpec(("data", "fsdp"), None, None)),
        (("layers", "mlp", "embed"), PartitionSpec(None, "tensor", "fsdp")),
        ((None, "vocab"), PartitionSpec(None, "tensor")),
        ((), PartitionSpec()),
    ],
)
def test_spec_reads_the_table(axes, expected):
    assert sharding.spec(axes) == expected


def test_an_unknown_axis_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown logical axis 'embd'; known: batch, "):
        sharding.spec(("embd",))


@pytest.mark.parametrize("axes", [("heads", "mlp"), ("batch", "embed")])
def test_two_dimensions_on_one_mesh_axis_are_refused(axes):
    with pytest.raises(ValueError, match="put two dimensions on mesh axis"):
        sharding.spec(axes)


def test_a_size_the_mesh_does_not_divide_is_refused_with_name_size_and_axis():
    mesh = mesh_of(1, 2, 4)
    with pytest.raises(ValueError) as caught:
        sharding.named(mesh, ("embed", "kv_heads"), (8, 2), "wk")
    text = str(caught.value)
    assert text.startswith("wk: axis 'kv_heads' has size 2, which mesh axis tensor of size 4 ")
    with pytest.raises(ValueError, match=r"'batch' has size 6.* dataxfsdp of size 4"):
        sharding.named(mesh_of(2, 2, 2), ("batch",), (6,))


def test_a_shape_without_the_axes_it_claims_is_refused():
    with pytest.raises(ValueError, match=r"shape \(8,\) does not have the axes"):
        sharding.named(mesh_of(1, 8, 1), ("embed", "mlp"), (8,))


# --- trees ------------------------------------------------------------------------------------


def test_a_tree_is_sharded_by_the_axes_of_its_parameters():
    mesh = mesh_of(2, 2, 2)
    shardings = sharding.tree_shardings(mesh, {"layer": Layer(), "step": jnp.zeros(())})
    assert shardings["layer"].w_DF.get_value().spec == PartitionSpec("fsdp", "tensor")
    assert shardings["layer"].scale_D.get_value().spec == PartitionSpec(None)
    assert shardings["step"].spec == PartitionSpec()
    placed = jax.device_put({"layer": Layer(), "step": jnp.zeros(())}, shardings)
    assert placed["layer"].w_DF.addressable_shards[0].data.shape == (4, 8)


def test_stacked_layers_and_optimizer_moments_follow_their_parameters():
    mesh = mesh_of(2, 2, 2)
    stack = jax.eval_shape(jax.vmap(lambda _: Layer()), jnp.zeros(3))
    state = jax.eval_shape(optax.adamw(1e-3).init, stack)
    moments = sharding.tree_shardings(mesh, state)[0]
    assert moments.mu.w_DF.get_value().spec == PartitionSpec(None, "fsdp", "tensor")
    assert moments.nu.scale_D.get_value().spec == PartitionSpec(None, None)
    assert moments.count.spec == PartitionSpec()


def test_a_parameter_that_does_not_fit_is_named_by_its_path():
    with pytest.raises(ValueError, match=r"w_DF.*'embed' has size 8, which mesh axis fsdp of size"):
        mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=3), jax.devices()[:3])
        sharding.tree_shardings(mesh, {"layer": Layer()})


# --- activations ------------------------------------------------------------------------------


def test_constrain_without_a_mesh_is_the_identity():
    x_BTD = jnp.zeros((2, 3, 4))
    assert sharding.constrain(x_BTD, "batch", "seq", "act_embed") is x_BTD


def test_constrain_pins_an_activation_to_the_mesh_that_is_set():
    mesh = mesh_of(2, 2, 2)
    with jax.set_mesh(mesh):
        pin = jax.jit(lambda x_BTF: sharding.constrain(x_BTF, "batch", "seq", "mlp"))
        x_BTF = pin(jnp.zeros((4, 3, 8)))
    assert x_BTF.addressable_shards[0].data.shape == (1, 3, 4)
