"""Conversations tokenised once: an ArrayRecord data set that later starts read instead.

Written and read through TensorFlow Datasets, without TensorFlow, so that
`tfds.builder_from_directory` opens it too. A data set lies under a key made of all that its tokens
come from: another file, template or length makes another data set beside it, and none is ever out
of date. Its metadata holds the lengths of all examples, which packing needs before the first batch.
"""

import contextlib
import io
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxmath import config as config_lib
from jaxmath.data import batches, records, sources
from jaxmath.data.tokenizer import Tokenizer

VERSION = "1.0.0"  # raise it when the same inputs give other tokens
SPLIT = "train"


class TokenCache:
    """One data set in `folder`, which may hold many.

    Args:
      folder: made if absent.
      key: see `key_of`.
    """

    def __init__(self, folder: str | pathlib.Path, key: str):
        self._folder, self._key = pathlib.Path(folder), key
        self.path = self._folder / "conversations" / key / VERSION

    def exists(self) -> bool:
        return (self.path / "dataset_info.json").is_file()

    def write(
        self,
        examples: Sequence[batches.SftExample],
        counts: batches.EncodeCounts,
        rejects: str = "",
    ) -> None:
        """Writes all examples, or none: beside their place, then renamed.

        Args:
          rejects: the text of the list of malformed rows, for `read` to give back.

        Raises:
          ValueError: the folder cannot be written.
        """
        listed = batches.InMemory(examples)
        metadata = {
            "lengths": listed.lengths.tolist(),
            "checksum": str(listed.checksum),
            "counts": list(counts),
            "rejects": rejects,
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
                _builder(examples, metadata, self._folder, self._key).download_and_prepare()
        except OSError as error:
            raise ValueError(
                f"token_cache {self._folder} cannot be written ({error}); choose another folder"
            ) from None

    def read(self) -> tuple["Stored", batches.EncodeCounts, str]:
        """The examples, still on disk, what happened to their conversations, and the rejects.

        Raises:
          ValueError: the data set is damaged.
        """
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(self.path)
            metadata = builder.info.metadata
            examples = Stored(
                builder.as_data_source(SPLIT),
                np.asarray(metadata["lengths"], np.int64),
                int(metadata["checksum"]),
            )
            if len(examples.source) != len(examples.lengths):
                raise ValueError(f"{len(examples.source)} of {len(examples.lengths)} examples")
        except Exception as error:  # of many kinds, and all mean the same
            raise ValueError(
                f"{self.path}: is no data set that can be read ({' '.join(str(error).split())}); "
                "delete it, and it is written anew"
            ) from None
        return examples, batches.EncodeCounts(*metadata["counts"]), metadata["rejects"]


class Stored:
    """`batches.Examples` that are read from disk when they are taken."""

    def __init__(self, source, lengths: np.ndarray, checksum: int):
        self.source, self.lengths, self.checksum = source, lengths, checksum

    def take(self, indices: Sequence[int]) -> list[batches.SftExample]:
        rows = self.source.__getitems__([int(index) for index in indices])
        return [batches.SftExample(row["tokens"], row["loss_mask"]) for row in rows]


def key_of(
    data: records.DataConfig, prompt_style: str, tokenizer: Tokenizer, max_tokens: int
) -> str:
    """Of all that tokens come from: the content of files, tokenizer and template, and options."""
    return config_lib.fingerprint(
        {
            "files": sources.digests(data.path, data.split, data.name),
            "limit": data.limit,
            "max_reject_fraction": data.max_reject_fraction,
            "prompt_style": prompt_style,
            "tokenizer": tokenizer.fingerprint,
            "max_tokens": max_tokens,
        }
    )


def _builder(examples, metadata, folder, key):
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    ids = tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes")
    mask = tfds.features.Tensor(shape=(None,), dtype=np.bool_, encoding="bytes")

    class Conversations(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Token ids of conversations, and which of them are targets."""

        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=key)]

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"tokens": ids, "loss_mask": mask}),
                metadata=tfds.core.MetadataDict(metadata),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
            for number, example in enumerate(examples):
                yield number, {"tokens": example.tokens, "loss_mask": example.loss_mask}

    return Conversations(data_dir=folder, config=key, file_format="array_record")
