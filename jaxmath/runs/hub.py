"""A set of records to the Hugging Face hub, with its card."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import tempfile

from jaxmath.runs import session

REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """Where to. repo: "owner/name" of a data set, made if it is not there.

    token_env: environment variable that holds a token with the right to write.
    """

    repo: str
    private: bool = True
    token_env: str = "HF_TOKEN"

    def __post_init__(self):
        if not REPO.fullmatch(self.repo):
            raise ValueError(f"repo is {self.repo!r}; expected owner/name")


def token(config: HubConfig) -> str:
    """The token; asked for before anything is sampled, so that a lack of it shows at once.

    Raises:
      ValueError: the variable is empty.
    """
    if not (found := os.environ.get(config.token_env)):
        raise ValueError(
            f"push_to_hub.token_env: the environment variable {config.token_env} is empty or not "
            "set; put a token that may write into it, or set push_to_hub to null"
        )
    return found


def push(config: HubConfig, parquet: pathlib.Path, card: str) -> str:
    """Uploads the rows of a Parquet file and then the card; the repository's address.

    Raises:
      ValueError: the hub refuses. Its message is given without the token.
    """
    import datasets
    import huggingface_hub

    secret = token(config)
    session.say(f"pushing {parquet.name} to {config.repo}")
    try:
        with tempfile.TemporaryDirectory(dir=parquet.parent, prefix=".hub-") as cache:
            table = datasets.Dataset.from_parquet(str(parquet), cache_dir=cache)
            table.push_to_hub(config.repo, private=config.private, token=secret)
        huggingface_hub.HfApi(token=secret).upload_file(
            path_or_fileobj=card.encode(),
            path_in_repo="README.md",
            repo_id=config.repo,
            repo_type="dataset",
        )
    except Exception as error:  # of many libraries' kinds, and any may quote its request
        reason = f"{type(error).__name__}: {error}".replace(secret, "[token]")
        raise ValueError(
            f"push_to_hub to {config.repo}: {reason}; the records are whole in {parquet.parent}: "
            "mend the repository's name, the token or the network and start again"
        ) from None
    return f"https://huggingface.co/datasets/{config.repo}"
