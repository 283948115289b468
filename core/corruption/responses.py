"""Text -> the fixed-length response region: text tokens, then end-of-text up to the last position. Done once per text.

A tokenizer whose chat template ends an answer with a token of its own (LLaDA's `<|eot_id|>`) has one of it first.

Shapes: N texts, L positions of the response, P distinct prompts, K special or ordinary ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import polars as pl
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.errors import InputError
from core.models.special_tokens import end_of_turn, image_placeholder, in_chat_template, system_turn

_CHUNK = 4096
_IMAGE = "\ufffc"
"""Where the image goes while the chat template is applied: the object replacement character."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The ids that corruption needs. `ordinary_K` (sorted) are all ids a text can consist of: no special one.

    turn_end: what ends an answer, before the fill with eos; the same as eos in most tokenizers.
    """

    mask: int
    eos: int
    turn_end: int
    unknown: int | None
    special_K: NDArray[np.int32]
    ordinary_K: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Encoded responses. Offsets are chars of the text, -1 from the first end-of-text on.

    `reason_N` says why a text cannot be used (empty, unknown_token, special_token, too_long), None where it can;
    `detail_N` names the culprit. The ids of an unusable text are meaningless.
    """

    ids_NL: NDArray[np.int32]
    length_N: NDArray[np.int64]
    start_NL: NDArray[np.int32]
    end_NL: NDArray[np.int32]
    reason_N: list[str | None]
    detail_N: list[str]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Distinct prompts, encoded once; `index_N` is the prompt of each row, `reason_P` why one cannot be used."""

    ids_P: list[NDArray[np.int32]]
    index_N: NDArray[np.int64]
    reason_P: list[str | None]


def mask_and_eos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of the mask and of end-of-text; `vocabulary` takes a tenth of a second where there are many ids.

    Raises:
        InputError: the tokenizer has no mask or no end-of-text.
    """
    mask, eos = tokenizer.mask_token_id, tokenizer.eos_token_id
    if not isinstance(mask, int) or not isinstance(eos, int):
        raise InputError("the tokenizer needs a mask token and an eos token: set tokenizer.mask_token and .eos_token")
    return mask, eos


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The ids of a tokenizer by role.

    Raises:
        InputError: the tokenizer has no mask, no end-of-text or fewer than two ordinary tokens.
    """
    mask, eos = mask_and_eos(tokenizer)
    marked = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = marked | set(tokenizer.all_special_ids) | {mask, eos}
    ordinary = set(tokenizer.get_vocab().values()) - special
    if len(ordinary) < 2:
        raise InputError(f"the tokenizer has {len(ordinary)} ordinary tokens: a text needs at least two")
    unknown = tokenizer.unk_token_id
    return Vocabulary(
        mask=mask,
        eos=eos,
        turn_end=end_of_turn(tokenizer),
        unknown=unknown if isinstance(unknown, int) else None,
        special_K=np.array(sorted(special), dtype=np.int32),
        ordinary_K=np.array(sorted(ordinary), dtype=np.int32),
    )


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, *, with_image: bool = False) -> list[int]:
    """Ids of a prompt as the model sees it: through the tokenizer's chat template if it has one, else as plain text.

    A model that has images inside its text gets its placeholder in front, on a line of its own, as LLaVA does. A chat
    template is given the system turn of the tokenizer, if there is one.
    """
    placeholder = image_placeholder(tokenizer) if with_image else None
    text = prompt if placeholder is None else f"{_IMAGE}\n{prompt}"
    if tokenizer.chat_template:
        system = system_turn(tokenizer)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        text = in_chat_template(tokenizer, messages, answering=True)
    if placeholder is None:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(_IMAGE, 1))
    return [*before, placeholder, *after]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: pl.Series,
    response_length: int,
    *,
    with_image: pl.Series | None = None,
) -> Prompts:
    """Encode each distinct prompt of a column once; `with_image` says which rows have an image.

    Reasons: special_token, unknown_token, prompt_too_long (with the response it exceeds the tokenizer's
    `model_max_length`).
    """
    seen = False if with_image is None or image_placeholder(tokenizer) is None else with_image
    rows = pl.DataFrame({"prompt": prompts}).with_columns(with_image=seen)
    table = rows.unique(maintain_order=True).with_row_index("index")
    index = rows.join(table, on=rows.columns, how="left", maintain_order="left")["index"]
    distinct = table["prompt"]
    ids = [
        np.array(prompt_ids(tokenizer, prompt, with_image=image), dtype=np.int32)
        for prompt, image in table.select("prompt", "with_image").iter_rows()
    ]
    vocab = vocabulary(tokenizer)
    room = tokenizer.model_max_length - response_length
    marks = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    reasons = [
        "special_token" if any(mark in prompt for mark in marks)  # a chat template's reader would take it for one
        else "prompt_too_long" if len(row) > room else _prompt_reason(vocab, row)
        for prompt, row in zip(distinct, ids, strict=True)
    ]  # fmt: skip
    return Prompts(ids_P=ids, index_N=index.to_numpy().astype(np.int64), reason_P=reasons)


def _prompt_reason(vocab: Vocabulary, ids: NDArray[np.int32]) -> str | None:
    if vocab.mask in ids:
        return "special_token"
    return "unknown_token" if vocab.unknown is not None and vocab.unknown in ids else None


def encode_responses(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], response_length: int) -> Responses:
    """Encode texts into regions of `response_length` tokens, at least the last of which is end-of-text.

    'a red ring' in 5 -> ids [a, red, ring, EOS, EOS], starts [0, 2, 6, -1, -1], ends [1, 5, 10, -1, -1].
    """
    vocab, n = vocabulary(tokenizer), len(texts)
    ids_NL = np.full((n, response_length), vocab.eos, dtype=np.int32)
    offsets_NLC = np.full((n, response_length, 2), -1, dtype=np.int32)
    lengths: list[NDArray[np.int64]] = []
    for first in range(0, n, _CHUNK):
        length, flat_ids, flat_offsets = _encode_flat(tokenizer, texts[first : first + _CHUNK])
        row = np.repeat(np.arange(first, first + len(length)), length)
        column = np.arange(len(flat_ids)) - np.repeat(np.cumsum(length) - length, length)
        fits = column < response_length
        ids_NL[row[fits], column[fits]] = flat_ids[fits]
        offsets_NLC[row[fits], column[fits]] = flat_offsets[fits]
        lengths.append(length)
    length_N = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
    ended = np.flatnonzero(length_N < response_length)
    ids_NL[ended, length_N[ended]] = vocab.turn_end
    start_NL, end_NL = np.ascontiguousarray(offsets_NLC[..., 0]), np.ascontiguousarray(offsets_NLC[..., 1])
    reasons, details = _reasons(vocab, texts, ids_NL, length_N, offsets_NLC)
    return Responses(
        ids_NL=ids_NL, length_N=length_N, start_NL=start_NL, end_NL=end_NL, reason_N=reasons, detail_N=details
    )


def _encode_flat(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Token counts (N,), all ids one after another (T,), all offsets (T, 2)."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # transformers leaves the settings of its last call here, and sets them again at the next
    backend.no_truncation()
    backend.encode_special_tokens = True  # text that spells a control token stays text
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    length = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, int(length.sum()))
    flat = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    return length, ids, np.fromiter(flat, np.int32, 2 * len(ids)).reshape(-1, 2)


def _reasons(
    vocab: Vocabulary,
    texts: Sequence[str],
    ids_NL: NDArray[np.int32],
    length_N: NDArray[np.int64],
    offsets_NLC: NDArray[np.int32],
) -> tuple[list[str | None], list[str]]:
    """Why each text cannot be used (None: it can), and the culprit."""
    reasons: list[str | None] = [None] * len(texts)
    details = [""] * len(texts)
    response_length = ids_NL.shape[1]
    written_NL = np.arange(response_length)[None, :] < length_N[:, None]
    special_NL = np.isin(ids_NL, vocab.special_K) & written_NL
    for row in np.flatnonzero(special_NL.any(axis=1) | (length_N == 0) | (length_N >= response_length)).tolist():
        if length_N[row] == 0:
            reasons[row] = "empty"
        elif special_NL[row].any():
            column = int(special_NL[row].argmax())
            start, end = offsets_NLC[row, column]
            reasons[row] = "unknown_token" if ids_NL[row, column] == vocab.unknown else "special_token"
            details[row] = texts[row][start:end]
        else:
            reasons[row] = "too_long"
            details[row] = f"{length_N[row]} tokens, at most {response_length - 1} fit"
    return reasons, details
