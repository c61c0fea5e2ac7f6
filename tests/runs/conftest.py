import jax
import pytest

from jaxmath import sharding
from jaxmath.runs import problems, session, sft

from . import tiny


@pytest.fixture(scope="package", autouse=True)
def one_device():
    """Runs take one of the eight devices; a test of meshes undoes it."""
    single = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "make_mesh", lambda config: single)
        yield


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    """Folder of 200 easy problems and a tokenizer."""
    folder = tmp_path_factory.mktemp("data") / "problems"
    problems.run(problems.ProblemsConfig(str(folder), num_train=200, num_test=12, levels=(1,)))
    return folder


@pytest.fixture(scope="package")
def model(data, tmp_path_factory):
    """Run folder of a model that has learnt the first sixteen problems by heart."""
    folder = tmp_path_factory.mktemp("model") / "sft"
    config = tiny.sft_config(
        data,
        folder,
        data={"path": str(data / "train.jsonl"), "limit": 16},
        loss_reduction="token_mean",
        num_microbatches=1,
        epochs=1000,
        max_steps=150,
        checkpoint={"save_every": 1000},
    )
    sft.run(config)
    return folder
