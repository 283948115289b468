"""From token ids to text with a character span per token, once; no later stage matches text again.

Three kinds of tokenizers, told apart by their decoder:
- word-level (no decoder): tokens joined by single spaces, which belong to no token;
- byte-level BPE: the tokens' bytes are joined and decoded, a leading space belongs to its token, and a character whose
  bytes lie in several tokens belongs to each of them;
- any other (Metaspace, WordPiece): spans are found by decoding prefixes, which costs a decode per token.
Special tokens before the end of text (a mask, padding, the unknown word) are shown as they are written, e.g. "[UNK]":
the text hides nothing that stands in the response.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile

from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

from core.models.special_tokens import end_of_turn


@dataclass(frozen=True, kw_only=True)
class ResponseText:
    """The text of a response up to its first end-of-text or end-of-turn token.

    Token i covers text[char_start[i]:char_end[i]]; both are -1 from the end of text on. Spans never move back.
    """

    text: str
    char_start: list[int]
    char_end: list[int]


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> ResponseText:
    """E.g. the ids of "a", "red", "ring", EOS, EOS -> "a red ring", starts 0 2 6 -1 -1, ends 1 5 10 -1 -1."""
    ends = (tokenizer.eos_token_id, end_of_turn(tokenizer))
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    shown = list(ids[:end])
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        text, spans = _join_words(_tokens(tokenizer, shown))
    elif isinstance(decoder, decoders.ByteLevel):
        text, spans = _join_bytes(_tokens(tokenizer, shown))
    else:
        text, spans = _by_prefixes(tokenizer, shown)
    past = [-1] * (len(ids) - end)
    return ResponseText(
        text=text, char_start=[start for start, _ in spans] + past, char_end=[stop for _, stop in spans] + past
    )


Spans = list[tuple[int, int]]


def _join_words(tokens: list[str]) -> tuple[str, Spans]:
    spans: Spans = []
    start = 0
    for token in tokens:
        spans.append((start, start + len(token)))
        start += len(token) + 1
    return " ".join(tokens), spans


def _byte_of() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary (GPT-2's alphabet).

    Printable bytes stand for themselves; the others are 256, 257, ... in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _join_bytes(tokens: list[str]) -> tuple[str, Spans]:
    """Join the tokens' bytes and decode them; a sequence that is no UTF-8 becomes one U+FFFD, as in `bytes.decode`."""
    pieces = [_token_bytes(token) for token in tokens]
    raw = b"".join(pieces)
    text, char_of = "", []  # char_of: per byte the index of its character
    while raw:
        try:
            good, bad = len(raw), 0
            valid = raw.decode()
        except UnicodeDecodeError as error:
            good, bad = error.start, error.end - error.start
            valid = raw[:good].decode()
        for char in valid:
            char_of += [len(text)] * len(char.encode())
            text += char
        if bad:
            char_of += [len(text)] * bad
            text += "\ufffd"
        raw = raw[good + bad :]
    spans: Spans = []
    start = 0
    for piece in pieces:
        spans.append((char_of[start], char_of[start + len(piece) - 1] + 1))
        start += len(piece)
    return text, spans


def _token_bytes(token: str) -> bytes:
    """A token written in the byte alphabet stands for those bytes; any other (an added token) for its own text."""
    if all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return token.encode()


def _by_prefixes(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[str, Spans]:
    """A token covers what its prefix of the text has in common with the text beyond the prefix before it.

    A token that holds only a part of a character covers that character.
    """
    prefixes = [_decode(tokenizer, ids[:count]) for count in range(len(ids) + 1)]
    text = prefixes[-1]
    agreeing = (
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prefix, text, strict=False)))
        for prefix in prefixes
    )
    bounds = list(accumulate(agreeing, max))
    return text, [(start, max(stop, min(start + 1, len(text)))) for start, stop in pairwise(bounds)]


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
