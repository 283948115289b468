"""The committed checkpoints in published layouts, with a tokenizer: theirs were published elsewhere."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).parents[2] / "data" / "checkpoints"
SPECIAL = {490: "<|startoftext|>", 491: "<|endoftext|>", 492: "<|start_header_id|>", 493: "<|end_header_id|>",
           494: "<|eot_id|>", 500: "<|mdm_mask|>"}  # fmt: skip
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PARTS_CHAT = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<|eot_id|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""As SmolVLM's: a content is a list of parts, and a text is none."""


def published(tmp_path: Path, name: str, *, learned_from: Sequence[str] = (), **config: object) -> Path:
    """A copy of a checkpoint that a test may change, with a tokenizer; `config` changes keys of its config.json.

    learned_from: texts that the tokenizer's merges are learned from; without any it has one token a byte.
    """
    folder = tmp_path / name
    shutil.copytree(DATA / name, folder, ignore=shutil.ignore_patterns("golden.npz", "cases.json", "*.png"))
    _tokenizer(learned_from, 512).save_pretrained(folder)
    if config:
        write_config(folder, **config)
    return folder


def write_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def byte_tokenizer(size: int = 512) -> PreTrainedTokenizerFast:
    """One token a byte, fillers up to `size`, and the special tokens at the ids of the checkpoints."""
    return _tokenizer((), size)


def _tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: bytes, then merges learned from `texts` below the special tokens, then fillers up to `size`."""
    trainer = BpeTrainer(
        vocab_size=min(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    learning = Tokenizer(models.BPE())
    learning.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learning.train_from_iterator(texts, trainer)
    learned = json.loads(learning.to_str())["model"]
    tokens = [*learned["vocab"], *(f"<unused{index}>" for index in range(len(learned["vocab"]), size))]
    for index, token in SPECIAL.items():
        tokens[index] = token
    merges = [tuple(merge) for merge in learned["merges"]]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        system_turn="",  # a token a byte makes it longer than all else
        bos_token=SPECIAL[490],
        eos_token=SPECIAL[491],
        pad_token=SPECIAL[491],
        chat_template=CHAT,
        model_max_length=1024,
    )


def as_transformers_4(folder: Path, **keys: object) -> dict[str, object]:
    """Write tokenizer_config.json as version 4 did, with the chat template inside; what it says is returned."""
    (folder / "chat_template.jinja").unlink()
    added = {
        str(index): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                     "special": True}
        for index, token in SPECIAL.items()
    }  # fmt: skip
    config = {
        "added_tokens_decoder": added,
        "bos_token": SPECIAL[490],
        "chat_template": CHAT,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[491],
        "model_max_length": 1024,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **keys,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return config


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(DATA / name / "golden.npz"))


@cache
def cases(name: str) -> dict[str, Any]:
    return json.loads((DATA / name / "cases.json").read_text())
