"""Chat messages and text to token ids and back, over a `transformers` tokenizer.

Text of data is text. A problem that contains the string `<|im_end|>` must not end a turn, so
content never becomes a control token: only the chat template writes control tokens. `render` may
show such a string, `encode_chat` spells it out in ordinary tokens. Everything between two control
tokens is encoded as one piece, so ids of harmless content equal those of the plain tokenizer.

With the `tulu` template the role tags (`<|user|>`) are ordinary text by design of that template;
only its EOS is a control token.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Message = dict[str, str]

ROLES = ("system", "user", "assistant")

# Qwen2's pre-tokenizer: each digit is a token of its own, so that numbers align digit by digit.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATES = {
    # Plain ChatML: no default system message.
    "chatml": (
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    ),
    # open-instruct's default, used by INTELLECT-MATH: an EOS after each assistant turn, and no
    # newline after the last one.
    "tulu": (
        "{%- for message in messages -%}"
        "{{- '<|' + message.role + '|>\\n' + message.content -}}"
        "{%- if message.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
        "{%- if message.role != 'assistant' or not loop.last -%}{{- '\\n' -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
    ),
}

TOKENIZER_OWN = "tokenizer"

CHATS_AT_A_TIME = 1024  # rendered by one core, then tokenised by all


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer, how it writes a chat, and where a response ends.

    path: a local folder, or a hub id such as "Qwen/Qwen2.5-Math-7B-Instruct".
    chat_template: None or "tokenizer" for the tokenizer's own, a name in `CHAT_TEMPLATES`, or the
      path of a Jinja file.
    eos_token: ends an assistant turn; None for the tokenizer's own.
    stop_tokens: further tokens that end generation, where the tokenizer has them.
    """

    path: str
    chat_template: str | None = None
    eos_token: str | None = None
    stop_tokens: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")

    def __post_init__(self):
        if not self.path:
            raise ValueError(
                "path is empty, expected a tokenizer folder or a hub id; set tokenizer.path"
            )
        name = self.chat_template
        known = name in (None, TOKENIZER_OWN, *CHAT_TEMPLATES)
        if not known and not pathlib.Path(name).is_file():
            raise ValueError(
                f"chat_template is {name!r}, which is no file and no known name; "
                f"use one of {[TOKENIZER_OWN, *CHAT_TEMPLATES]} or the path of a Jinja file"
            )


class Tokenizer:
    """Ids of text and chats. Immutable after construction.

    eos_ids: the ids that end a response; the first is the one the chat template writes.
    pad_id: id for positions that hold nothing.
    vocab_size: number of known ids, added tokens included; embeddings may have more rows.

    Raises:
      ValueError: nothing loadable at `config.path`, no chat template, or an unknown `eos_token`.
    """

    def __init__(self, config: TokenizerConfig):
        self.config = config
        self._hf = _load(config.path)
        self._added = dict(self._hf.get_added_vocab())
        if config.chat_template not in (None, TOKENIZER_OWN):
            self._hf.chat_template = _template_text(config.chat_template)
        if self._hf.chat_template is None:
            raise ValueError(
                f"{config.path}: this tokenizer has no chat template of its own; "
                f"set chat_template to one of {list(CHAT_TEMPLATES)} or a Jinja file"
            )
        if config.eos_token is not None:
            if config.eos_token not in self._added:
                raise ValueError(
                    f"eos_token is {config.eos_token!r}, which {config.path} does not know as one "
                    f"token; use one of {sorted(self._added)}"
                )
            self._hf.eos_token = config.eos_token
        if self._hf.eos_token is None:
            raise ValueError(f"{config.path}: this tokenizer names no EOS token; set eos_token")
        stops = [self._added[token] for token in config.stop_tokens if token in self._added]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys([self._hf.eos_token_id, *stops]))
        pad_id = self._hf.pad_token_id
        self.pad_id: int = self.eos_ids[-1] if pad_id is None else pad_id
        self.vocab_size: int = len(self._hf)
        self._text_backend = _without_added_tokens(self._hf.backend_tokenizer)
        controls = sorted((t for t in self._added if len(t) > 1), key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, controls)) + ")")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all that decides the ids of a chat: vocabulary, merges, template and EOS."""
        parts = (self._hf.backend_tokenizer.to_str(), self._hf.chat_template, self._hf.eos_token)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text` taken as text: a spelled-out control token stays text."""
        return self._encode_text(text).ids

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """As `encode`, and for each id the index in `text` of its first character."""
        encoding = self._encode_text(text)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a finished prompt: a spelled-out control token is that token."""
        return self._hf.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens dropped."""
        return self._hf.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The chat as one string, for people to read; `encode_chat` gives what the model reads."""
        return "".join(text for text, _ in self._parts(messages, add_generation_prompt))

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> list[int]:
        """Ids of the chat; control tokens come from the template only, never from content."""
        parts = self._parts(messages, add_generation_prompt)
        found = [self.encode(text) if control is None else [control] for text, control in parts]
        return list(itertools.chain.from_iterable(found))

    def encode_chats_with_mask(
        self, chats: Iterable[Sequence[Message]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each chat its ids, i32[T], and whether each is assistant text or the EOS that ends it,
        bool[T]. Some chats at a time, on all cores.

        The role tag before an assistant turn and what the template writes after its EOS are not
        supervised. A token that begins before the assistant's text is not either.

        Raises:
          ValueError: a chat does not begin with a system or user message, or the template changes
            what it wrote for earlier messages when later ones follow; at the latest when the chat's
            turn comes.
        """
        chats = iter(chats)
        while block := list(itertools.islice(chats, CHATS_AT_A_TIME)):
            found = [self._parts_and_spans(messages) for messages in block]
            texts = [text for parts, _ in found for text, control in parts if control is None]
            encodings = iter(self._text_backend.encode_batch(texts, add_special_tokens=False))
            for parts, spans in found:
                ids, starts = _ids_and_starts(parts, encodings)
                mask = np.zeros(len(ids), bool)
                for begin, end in spans:
                    mask |= (begin <= starts) & (starts < end)
                yield ids, mask

    def save(self, folder: str | pathlib.Path) -> None:
        """Write the tokenizer, with the chat template and EOS in force, for `AutoTokenizer`."""
        self._hf.save_pretrained(str(folder))

    def _encode_text(self, text: str):
        return self._text_backend.encode(text, add_special_tokens=False)

    def _parts_and_spans(self, messages: Sequence[Message]):
        """`_parts` of the chat, and (begin, end) of each assistant turn in its characters."""
        if not messages or messages[0]["role"] == "assistant":
            raise ValueError("expected a chat that begins with a system or user message")
        parts = self._parts(messages, add_generation_prompt=False)
        text = "".join(part for part, _ in parts)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.render(messages[:i], add_generation_prompt=True)
                through = self.render(messages[: i + 1]) if i + 1 < len(messages) else text
                if not (text.startswith(through) and through.startswith(before)):
                    raise ValueError(
                        "the chat template rewrites earlier messages when later ones follow, so "
                        "assistant text cannot be located; use chat_template chatml or tulu"
                    )
                spans.append((len(before), _end_of_turn(parts, len(before), len(through))))
        return parts, spans

    def _parts(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> list[tuple[str, int | None]]:
        """The rendered chat cut at the template's control tokens: (text, control id or None)."""
        for message in messages:
            if message["role"] not in ROLES:
                raise ValueError(f"message role is {message['role']!r}, expected one of {ROLES}")
        contents = "".join(message["content"] for message in messages)
        # A private-use character that no content has, put between all characters of a content
        # that spells a control token: then every control token in the rendered text is the
        # template's own.
        guard = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in contents)
        guarded = [
            {"role": m["role"], "content": guard.join(m["content"])}
            if self._control.search(m["content"])
            else {"role": m["role"], "content": m["content"]}
            for m in messages
        ]
        rendered = self._hf.apply_chat_template(
            guarded, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        pieces = self._control.split(rendered)
        return [
            (piece, self._added[piece]) if n % 2 else (piece.replace(guard, ""), None)
            for n, piece in enumerate(pieces)
            if piece
        ]


def train_small(
    texts: Iterable[str], folder: str | pathlib.Path, vocab_size: int = 512
) -> Tokenizer:
    """Train a byte-level BPE in Qwen2.5's format on `texts`, save it to `folder`, and load it.

    Same normaliser, pre-tokenizer, special tokens and ChatML as Qwen2.5, only fewer merges. The
    same texts give the same files. EOS is `<|im_end|>`, padding `<|endoftext|>`.

    Args:
      vocab_size: ids at most, the 256 bytes and 3 special tokens included.

    Raises:
      ValueError: `vocab_size` leaves no room for the bytes and the special tokens.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if vocab_size < 256 + len(special):
        raise ValueError(
            f"vocab_size is {vocab_size}, expected at least {256 + len(special)}: "
            "every byte and three special tokens need an id"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(special)

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATES["chatml"],
    }
    backend.save(str(folder / "tokenizer.json"))
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return Tokenizer(TokenizerConfig(str(folder)))


def _load(path: str):
    import transformers

    local = pathlib.Path(path).is_dir()
    try:
        hf = transformers.AutoTokenizer.from_pretrained(
            path, local_files_only=local, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        what = "this folder holds no tokenizer" if local else "no such folder, and no such hub id"
        raise ValueError(
            f"{path}: {what} that transformers can load; expected tokenizer.json and "
            f"tokenizer_config.json ({str(error).splitlines()[0]})"
        ) from error
    if not hf.is_fast:
        raise ValueError(
            f"{path}: {type(hf).__name__} is not backed by the tokenizers library; "
            "save it with a tokenizer.json"
        )
    return hf


def _template_text(name: str) -> str:
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    return pathlib.Path(name).read_text(encoding="utf-8")


def _without_added_tokens(backend):
    """A copy of the backend that sees only text: `encode_special_tokens` alone would still turn
    added tokens that are not "special", such as Qwen2.5's `<tool_call>`, into ids."""
    import tokenizers

    spec = json.loads(backend.to_str())
    spec.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def _end_of_turn(parts, begin: int, end: int) -> int:
    """Where the last control token within [begin, end) ends; `end` if there is none."""
    ends, position = [], 0
    for text, control_id in parts:
        position += len(text)
        if control_id is not None and begin < position <= end:
            ends.append(position)
    return ends[-1] if ends else end


def _ids_and_starts(parts, encodings: Iterator) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a chat, i32, and the index of each one's first character in the rendered chat.

    Args:
      encodings: of the texts among the parts, in order; so many are taken.
    """
    ids, starts, position = [], [], 0
    for text, control in parts:
        if control is not None:
            ids.append([control])
            starts.append([position])
        else:
            encoding = next(encodings)
            ids.append(encoding.ids)
            starts.append([position + start for start, _ in encoding.offsets])
        position += len(text)
    flat = lambda lists, dtype: np.fromiter(itertools.chain.from_iterable(lists), dtype)  # noqa: E731
    return flat(ids, np.int32), flat(starts, np.int64)
