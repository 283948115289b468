"""Tokenizers with the four control tokens of a mask-diffusion model: `<mask>`, `<eos>`, `<pad>`, `<unk>`.

The control tokens are no part of the text model: text that spells "<mask>" is encoded as ordinary text.
Nothing is added to what is encoded (no begin, no end), so that ids and character offsets are those of the text.
"""

import json
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core.errors import ConfigError, InputError

MASK_TOKEN = "<mask>"  # noqa: S105 - the name of a token, not a password
EOS_TOKEN = "<eos>"  # noqa: S105
PAD_TOKEN = "<pad>"  # noqa: S105
UNK_TOKEN = "<unk>"  # noqa: S105
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""What tokenizer_config.json calls a tokenizer that is wholly in tokenizer.json."""

CONTROL_TOKENS = (MASK_TOKEN, EOS_TOKEN, PAD_TOKEN, UNK_TOKEN)


def build_word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that splits on whitespace: one token a word, `<unk>` for any other; decoding joins by single spaces.

    Ids follow the order of `words`; the control tokens come after them.

    Raises:
        ConfigError: if a word is empty, holds whitespace, appears twice or is a control token.
    """
    for word in words:
        if word.split() != [word] or word in CONTROL_TOKENS:
            raise ConfigError(f"not a word that a word tokenizer can hold: {word!r}")
    if len(set(words)) != len(words):
        raise ConfigError("the words of a word tokenizer must differ from each other")
    vocabulary = {word: index for index, word in enumerate((*words, UNK_TOKEN))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK_TOKEN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _with_control_tokens(backend)


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens, learned from `texts`; decoding gives the text back.

    Raises:
        ConfigError: if `vocab_size` cannot hold the 256 bytes and the control tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned = vocab_size - len(CONTROL_TOKENS)
    if learned < len(alphabet):
        raise ConfigError(f"a byte-level vocabulary has at least {len(alphabet) + len(CONTROL_TOKENS)} tokens")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=learned, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return _with_control_tokens(backend)


def _with_control_tokens(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True) for token in CONTROL_TOKENS])
    # split_special_tokens: the control tokens are never looked for in text, whoever wrote it
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers'
        tokenizer_object=backend,
        mask_token=MASK_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        unk_token=UNK_TOKEN,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, by transformers' own code alone.

    A folder that asks for code of its own (Dream's) is read from its tokenizer.json, or, if it has none, from
    vocab.json and merges.txt as Qwen2's, which it is.

    Raises:
        InputError: if there is none.
    """
    folder = Path(path)
    try:
        kind = _class_of(folder)
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder} has no usable tokenizer: {error}") from error
    return tokenizer


def _class_of(folder: Path) -> Any:
    """The class that reads a folder's tokenizer. Modules that take seconds to import are asked last."""
    has_tokenizer = (folder / "tokenizer.json").is_file()
    if has_tokenizer and _read(folder / "tokenizer_config.json").get("tokenizer_class") in _GENERIC:
        return PreTrainedTokenizerFast
    names = import_module("transformers.models.auto.tokenization_auto").TOKENIZER_MAPPING_NAMES
    if _read(folder / "config.json").get("model_type") in names:
        return import_module("transformers").AutoTokenizer
    if not has_tokenizer and (folder / "merges.txt").is_file():
        return import_module("transformers").Qwen2Tokenizer
    return PreTrainedTokenizerFast


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; empty if it is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
