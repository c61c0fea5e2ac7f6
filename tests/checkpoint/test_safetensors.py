"""Damaged and hostile weights folders: one clear error each, before a byte of data is used."""

import json
import os

import numpy as np
import pytest

from jaxmath.checkpoint import huggingface, safetensors
from jaxmath.checkpoint.errors import CheckpointError

from .conftest import make_model, write_folder


def shard(folder, number: int = 0):
    return sorted(folder.glob("*.safetensors"))[number]


def rewrite_header(file, change) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = change(header) or header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def rewrite_index(folder, change) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def first_entry(header) -> dict:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def header_change(change):
    return lambda folder: rewrite_header(shard(folder), change)


def truncate(folder):
    file = shard(folder)
    file.write_bytes(file.read_bytes()[:-10])


def append(folder):
    file = shard(folder)
    file.write_bytes(file.read_bytes() + b"more")


def state_header_of(length):
    def damage(folder):
        data = shard(folder).read_bytes()
        shard(folder).write_bytes(length.to_bytes(8, "little") + data[8:])

    return damage


def replace_file(content):
    return lambda folder: shard(folder).write_bytes(content)


def overlap(header):
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    header[names[1]]["shape"] = header[names[0]]["shape"]


def hole(header):
    entry = first_entry(header)
    entry["data_offsets"][1] -= 4 * entry["shape"][-1]
    entry["shape"][0] -= 1


def twice_in_one_file(header):
    text = json.dumps(header)
    return (text[:-1] + ', "model.embed_tokens.weight": {}}').encode()


def set_first(**fields):
    return header_change(lambda header: first_entry(header).update(fields))


def twice_in_the_folder(folder):
    name = next(iter(safetensors.read_header(shard(folder, 1))))
    zeros = {name: np.zeros(3, np.float32)}
    from safetensors.numpy import save_file

    save_file(zeros, folder / "model-extra.safetensors")
    rewrite_index(folder, lambda weight_map: weight_map.update(other="model-extra.safetensors"))


def drop_tensor(from_index: bool):
    def damage(folder):
        from safetensors.numpy import load_file, save_file

        file = shard(folder, -1)
        tensors = load_file(file)
        del tensors["model.norm.weight"]
        save_file(tensors, file)
        if from_index:
            rewrite_index(folder, lambda weight_map: weight_map.pop("model.norm.weight"))

    return damage


def point_index_at(target):
    def damage(folder):
        if target.startswith(".."):
            (folder.parent / "outside.safetensors").write_bytes(shard(folder).read_bytes())
        name = target.format(folder=folder)
        rewrite_index(folder, lambda m: m.update({"model.embed_tokens.weight": name}))

    return damage


def link_out(folder):
    file = shard(folder)
    os.rename(file, folder.parent / "elsewhere.safetensors")
    file.symlink_to(folder.parent / "elsewhere.safetensors")


def pickle_only(folder):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def config_change(**fields):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


DAMAGE = {
    "truncated data": (truncate, "damaged or not safetensors"),
    "data too long": (append, "its header describes"),
    "truncated header": (
        lambda f: replace_file(shard(f).read_bytes()[:40])(f),
        "states a header of",
    ),
    "empty file": (replace_file(b""), "has 0 bytes"),
    "not safetensors": (replace_file(b"PK\x03\x04" + b"zip" * 99), "damaged or not safetensors"),
    "header of 2^63": (state_header_of(2**63), "states a header of"),
    "header of 200 MB": (state_header_of(2 * 10**8), "states a header of"),
    "header nested deep": (replace_file((10**5).to_bytes(8, "little") + b"[" * 10**5), "header"),
    "header a list": (replace_file((2).to_bytes(8, "little") + b"[]"), "not a mapping"),
    "shape and bytes differ": (set_first(shape=[1, 2]), "needs 8 bytes"),
    "shape overflows": (set_first(shape=[2**40, 2**40]), "needs"),
    "negative size": (set_first(shape=[-96, -24]), "negative"),
    "size not a number": (set_first(shape=["96", 24]), "negative"),
    "offsets past the end": (set_first(data_offsets=[0, 10**9]), "needs"),
    "overlapping tensors": (header_change(overlap), "begins at byte"),
    "hole between tensors": (header_change(hole), "begins at byte"),
    "entry without dtype": (
        header_change(lambda h: first_entry(h).pop("dtype") and None),
        "lacks dtype",
    ),
    "unsupported dtype": (set_first(dtype="F8_E4M3"), "has dtype F8_E4M3; supported: BF16"),
    "a name twice in a file": (header_change(twice_in_one_file), "appears twice"),
    "a name in two files": (twice_in_the_folder, "is in both|places in"),
    "missing tensor": (drop_tensor(from_index=True), r"lacks model\.norm\.weight; config"),
    "missing in its shard": (
        drop_tensor(from_index=False),
        r"names model\.norm\.weight in .* lacks",
    ),
    "missing shard": (lambda f: shard(f).unlink(), "is missing"),
    "index up": (point_index_at("../outside.safetensors"), "plain name"),
    "index absolute": (point_index_at("{folder}/model-00001-of-00003.safetensors"), "plain name"),
    "index to a url": (point_index_at("https://example.org/m.safetensors"), "plain name"),
    "index to no weights": (point_index_at("config.json"), "plain name"),
    "link out of the folder": (link_out, "outside its folder"),
    "index wrong file": (point_index_at("model-00002-of-00003.safetensors"), "places in"),
    "index not json": (lambda f: (f / safetensors.INDEX).write_text("{"), "expected JSON"),
    "index without a map": (lambda f: (f / safetensors.INDEX).write_text("[]"), "expected JSON"),
    "pickle weights only": (pickle_only, "only safetensors weights are read"),
    "one layer more in config": (config_change(num_hidden_layers=4), r"lacks model\.layers\.3"),
    "one layer less in config": (
        config_change(num_hidden_layers=2),
        r"also holds model\.layers\.2",
    ),
    "tie flag wrong": (config_change(tie_word_embeddings=True), "also holds lm_head.weight"),
    "other width in config": (config_change(intermediate_size=41), "has shape .* asks for"),
    "heads 0 in config": (config_change(num_attention_heads=0, head_dim=None), "config.json"),
    "another model": (config_change(model_type="llama"), "only 'qwen2'"),
    "config missing": (lambda f: (f / "config.json").unlink(), "config.json: missing"),
    "config not json": (lambda f: (f / "config.json").write_text("[]"), "not a JSON mapping"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_folder_is_one_clear_error(hf_folder, load, kind):
    damage, message = DAMAGE[kind]
    load(hf_folder)
    assert len(list(hf_folder.glob("*.safetensors"))) == 3
    damage(hf_folder)
    with pytest.raises(CheckpointError, match=message) as error:
        load(hf_folder)
    assert "\n" not in str(error.value)


def test_no_folder_at_all_is_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        safetensors.read_folder(tmp_path / "none")


def test_the_hub_cache_layout_of_links_is_followed(tmp_path, load):
    source = write_folder(tmp_path / "hf", make_model())
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in source.iterdir():
        os.rename(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert load(snapshot).config.num_layers == 3


def test_mixed_dtypes_need_a_choice(tmp_path, load):
    from safetensors.numpy import load_file, save_file

    folder = write_folder(tmp_path / "hf", make_model())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="float16, float32; say which dtype"):
        huggingface.file_dtype(folder)
    assert load(folder, "float32").final_norm_D[...].dtype == np.float32


def test_our_files_are_read_by_the_safetensors_library(tmp_path):
    from safetensors.numpy import load_file

    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.normal(size=(5, i + 1)).astype(np.float16) for i in range(4)}
    shapes = {name: x.shape for name, x in tensors.items()}
    with safetensors.Writer(tmp_path, shapes, np.float16, max_shard_bytes=50) as writer:
        for name, x in reversed(tensors.items()):
            writer.write(name, 3, x[3:])
            writer.write(name, 0, x[:3])
    files = sorted(tmp_path.glob("*.safetensors"))
    back = {name: x for file in files for name, x in load_file(file).items()}
    assert len(files) == 3 and back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    weight_map = json.loads((tmp_path / safetensors.INDEX).read_text())["weight_map"]
    assert all(name in load_file(tmp_path / file) for name, file in weight_map.items())
