"""`serve`: a model behind OpenAI's HTTP interface, until a signal."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from typing import Any

from jaxmath import config as config_lib
from jaxmath import sharding
from jaxmath.data import tokenizer
from jaxmath.decode import decoder, sampling
from jaxmath.model.config import ModelConfig
from jaxmath.runs import models, session
from jaxmath.serve import app, protocol, server, worker


@dataclasses.dataclass(frozen=True)
class ServeRun:
    """One server.

    init_from, model: as in `sft`. name: what clients call the model; null for the last part of
      `init_from`.
    decode: `max_prompt_tokens` is the longest prompt a client may send.
    sampling: how responses are drawn where a client does not say; its `max_tokens` is the most a
      client may ask for.
    host: reachable from this machine alone unless it says otherwise, and then `api_key_env` must
      name an environment variable that holds the key clients have to show. The key, prompts and
      responses travel as they are: put a proxy that speaks TLS in front of an open port.
    max_choices: responses that one call may ask for. max_waiting: unfinished responses of all
      calls; further calls are told to come back later.
    grace_s: time for running responses to finish after the first signal.
    """

    tokenizer: tokenizer.TokenizerConfig
    init_from: str
    decode: decoder.DecodeConfig
    model: ModelConfig | None = None
    name: str | None = None
    sampling: sampling.SamplingConfig = sampling.SamplingConfig()
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str | None = None
    max_body_bytes: int = 4 * 2**20
    max_choices: int = 256
    max_waiting: int = 4096
    grace_s: float = 30.0
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        for field in ("max_body_bytes", "max_choices", "max_waiting"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; expected at least 1")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}; expected 0 (any free one) … 65535")
        if not 0 <= self.grace_s < float("inf"):
            raise ValueError(f"grace_s is {self.grace_s}; expected 0 or more seconds")
        if self.max_choices > self.max_waiting:
            raise ValueError(
                f"max_choices {self.max_choices} is more than max_waiting {self.max_waiting}; such "
                "a call could never be taken"
            )
        if self.api_key_env is None and not server.is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines; set api_key_env to the name "
                "of an environment variable that holds a key, or host to 127.0.0.1"
            )

    @property
    def model_name(self) -> str:
        return self.name or pathlib.Path(self.init_from).name


def plan(config: ServeRun) -> dict[str, Any]:
    """What `--dry-run` prints besides the config."""
    facts = models.plan(config, session.make_mesh(config))
    return facts | {
        "address": f"{_url(config.host, config.port)} as {config.model_name!r}",
        "API key": f"from {config.api_key_env}" if config.api_key_env else "none asked for",
        "tokens per prompt, at most": config.decode.max_prompt_tokens,
        "tokens per response, at most": config.sampling.max_tokens,
    }


def run(config: ServeRun) -> session.Report:
    """Loads the model, serves, and returns when all is finished after a signal."""
    api_key = _api_key(config.api_key_env)
    listening = server.bind(config.host, config.port)  # before the model, which takes a while
    with listening:
        service = make_service(config, api_key)
        url = _url(config.host, listening.getsockname()[1])
        print(f"serving {config.model_name} at {url}; stop with Ctrl+C", file=sys.stderr)
        server.Server(service, config.grace_s).run([listening])
    if service.worker.error is not None:
        raise RuntimeError("the decoder failed; see above") from service.worker.error
    return session.Report({"responses": service.worker.num_finished}, ())


def make_service(config: ServeRun, api_key: str | None) -> app.Service:
    """Everything behind the routes: model, decoder and tokenizer."""
    mesh = session.make_mesh(config)
    tokens = tokenizer.Tokenizer(config.tokenizer)
    engine = decoder.Decoder(
        models.model_config(config),
        config.decode,
        config.sampling,
        tokens.eos_ids,
        mesh,
        detokenize=tokens.decode,
        per_request=True,
        weights=models.decoder_weights(config, mesh),
    )
    session.say(engine.memory.table())
    return app.Service(
        worker=worker.Worker(engine.open, config.max_waiting),
        limits=protocol.Limits(
            model=config.model_name,
            max_prompt_tokens=config.decode.max_prompt_tokens,
            vocab_size=engine.model.vocab_size,
            max_choices=config.max_choices,
            defaults=config.sampling,
        ),
        codec=codec_of(tokens),
        max_body_bytes=config.max_body_bytes,
        api_key=api_key,
        local_only=server.is_loopback(config.host),
    )


def codec_of(tokens: tokenizer.Tokenizer) -> protocol.Codec:
    """A chat's content stays text; a plain prompt is what the model reads, control tokens too."""
    return protocol.Codec(
        encode=tokens.encode_rendered,
        encode_chat=lambda messages: tokens.encode_chat(messages, add_generation_prompt=True),
        decode=tokens.decode,
    )


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise config_lib.ConfigError(
            f"api_key_env: the environment variable {variable} is empty or not set; put the key "
            "that clients have to show into it"
        )
    return key


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
