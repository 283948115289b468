"""Which tokens of a published tokenizer are the mask, the padding and the ends, and what stands for an image.

Nothing is hard-coded: they are read from config.json and the tokenizer, and written into the tokenizer, which is saved
with the model: whoever loads it later needs nothing else.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError

from core.errors import InputError

if TYPE_CHECKING:  # importing transformers takes seconds, which the reference expert's rules have no use for
    from transformers import PreTrainedTokenizerBase

_MASK_NAME = re.compile(r"(^|[^0-9a-z])mask[^0-9a-z]*$", re.IGNORECASE)
_PLACEHOLDER_KEY, _TURN_KEY, _SYSTEM_KEY = "image_placeholder_id", "end_of_turn_id", "system_turn"
_OWN_KEYS = (_PLACEHOLDER_KEY, _TURN_KEY, _SYSTEM_KEY)
"""What tokenizer_config.json says of a tokenizer here, and transformers has no word for."""
_QUESTION, _ANSWER = "What is this?", "\ufffc"
_TOKEN_KEYS = ("mask_token", "eos_token", "pad_token")
_TOKENIZER_CONFIG, _LEGACY_MAP = "tokenizer_config.json", "special_tokens_map.json"

LLAVA_PLACEHOLDER = -200
"""What LLaVA's code puts where an image goes: no token of any vocabulary, and no key of its config.json."""


def set_special_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    config: Mapping[str, Any],
    *,
    vocabulary: int,
    placeholder: int | None,
    system: str = "",
) -> None:
    """Give `tokenizer` its mask, end of text and padding.

    Args:
        tokenizer: changed in place.
        config: config.json of the model: its mask_token_id decides; else the tokenizer's own mask token; else the only
            added token that is called a mask, as `<|mdm_mask|>`.
        vocabulary: rows of the token embedding.
        placeholder: id that stands for an image in a prompt; None for a model without vision.
        system: what the published code begins each conversation with; a tokenizer that was saved here knows better.

    Raises:
        InputError: if a token cannot be told, an id is no number, or the tokenizer has more tokens than the model.
    """
    if len(tokenizer) > vocabulary:
        raise InputError(f"the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}: not its own tokenizer")
    mask = _given_id(config, "mask_token_id")
    if mask is None and tokenizer.mask_token_id is None:
        mask = _called_mask(tokenizer)
    if mask is not None:
        tokenizer.mask_token = _token(tokenizer, mask, "mask_token_id")
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = _end_of_text(tokenizer, config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if system and tokenizer.chat_template and _PLACEHOLDER_KEY not in tokenizer.init_kwargs:
        tokenizer.init_kwargs.setdefault(_SYSTEM_KEY, system)
    if placeholder is not None:
        tokenizer.init_kwargs[_PLACEHOLDER_KEY] = placeholder
    turn = _end_of_turn(tokenizer)
    if turn is not None:
        tokenizer.init_kwargs[_TURN_KEY] = turn


def with_special_tokens(files: Mapping[str, bytes], tokenizer: "PreTrainedTokenizerBase") -> dict[str, bytes]:
    """The published files of a tokenizer, which say what `set_special_tokens` found; all else is left as it was.

    transformers would write them in the form of its own version, which older ones, and the published code, cannot read.
    """
    tokens = {key: str(token) for key, token in tokenizer.special_tokens_map.items() if key in _TOKEN_KEYS}
    own = {key: tokenizer.init_kwargs[key] for key in _OWN_KEYS if key in tokenizer.init_kwargs}
    changed = {_TOKENIZER_CONFIG: _with(files.get(_TOKENIZER_CONFIG), tokens | own)}
    if _LEGACY_MAP in files:  # decides about what it names, if tokenizer_config.json lists no added tokens
        named = tokens.keys() & _parsed(files[_LEGACY_MAP]).keys()
        changed[_LEGACY_MAP] = _with(files[_LEGACY_MAP], {key: tokens[key] for key in named})
    return {**files, **changed}


def _with(published: bytes | None, said: Mapping[str, Any]) -> bytes:
    """A JSON file that says this; the same bytes if it did before."""
    config = _parsed(published or b"{}")
    new = {key: value for key, value in said.items() if _content(config.get(key)) != value}
    if published is not None and not new:
        return published
    return (json.dumps(config | new, indent=2, ensure_ascii=False) + "\n").encode()


def _parsed(data: bytes) -> dict[str, Any]:
    """Empty if it is no JSON: transformers does not read all of a tokenizer's files."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _content(token: Any) -> Any:
    """The text of a token, which may be written with the way it is to be split."""
    return token["content"] if isinstance(token, dict) and "content" in token else token


def _called_mask(tokenizer: "PreTrainedTokenizerBase") -> int:
    named = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if _MASK_NAME.search(str(token))}
    if len(named) != 1:
        found = (
            f"{len(named)} special tokens are called one: {', '.join(named.values())}"
            if named
            else "none is called one"
        )
        raise InputError(
            f'the tokenizer does not say which token is the mask ({found}): set "mask_token" in tokenizer_config.json '
            "or mask_token_id in config.json"
        )
    return next(iter(named))


def _end_of_text(tokenizer: "PreTrainedTokenizerBase", config: Mapping[str, Any]) -> str:
    several = isinstance(config.get("eos_token_id"), list)  # transformers lets a text have several ends
    end = None if several else _given_id(config, "eos_token_id")
    if end is not None:
        return _token(tokenizer, end, "eos_token_id")
    if tokenizer.sep_token is not None:
        return str(tokenizer.sep_token)
    raise InputError('the tokenizer has no end-of-text token: set "eos_token" in tokenizer_config.json')


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The special token that the chat template writes right after an answer, as `<|eot_id|>`; None without one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    text = in_chat_template(tokenizer, turns)
    after = text.partition(_ANSWER)[2].lstrip()
    special = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    written = [token for token in special if after.startswith(token)]
    return special[max(written, key=len)] if written else None


def in_chat_template(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], *, answering: bool = False
) -> str:
    """What the tokenizer's chat template makes of messages.

    A processor's template (ModernVBert's, SmolVLM's) takes a content in parts, and passes over one that is a text:
    which of them it is, is tried with a question that no template has of its own.

    Args:
        tokenizer: has a chat template.
        messages: each a role and a content.
        answering: whether the start of an answer follows.

    Raises:
        InputError: the template cannot be applied, or leaves the question out.
    """
    failed: Exception | None = None
    for form in (str, _in_parts):
        try:
            if _ANSWER in _applied(tokenizer, [{"role": "user", "content": form(_ANSWER)}], answering=True):
                formed = [{**message, "content": form(message["content"])} for message in messages]
                return _applied(tokenizer, formed, answering=answering)
        except (TemplateError, TypeError, ValueError) as error:
            failed = failed or error
    if failed is not None:
        raise InputError(f"the tokenizer's chat template cannot be applied: {failed}") from failed
    raise InputError("the tokenizer's chat template leaves out the question that it is given")


def _in_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _applied(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], *, answering: bool) -> str:
    made: Any = tokenizer.apply_chat_template(cast(Any, messages), add_generation_prompt=answering, tokenize=False)
    return str(made)


def _given_id(config: Mapping[str, Any], key: str) -> int | None:
    """The id that config.json gives a token, None if it gives none. Raises InputError if it is no whole number."""
    token_id = config.get(key)
    if token_id is None:
        return None
    if not isinstance(token_id, int) or isinstance(token_id, bool):
        raise InputError(f"config.json: {key} = {token_id!r} is no id of a token: a whole number is needed")
    return token_id


def _token(tokenizer: "PreTrainedTokenizerBase", token_id: int, key: str) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(tokenizer) else None
    if not isinstance(token, str):
        raise InputError(f"config.json: {key} = {token_id}, but the tokenizer has no such token")
    return token


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that ends an answer, before the end-of-text fill: that of the chat template, else end of text itself."""
    found = tokenizer.init_kwargs.get(_TURN_KEY)
    return found if isinstance(found, int) else int(tokenizer.eos_token_id)


def set_system_turn(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    """Begin each conversation with this system turn, or, if it is empty, without one.

    Raises:
        InputError: the tokenizer has no chat template that could have one.
    """
    if text and not tokenizer.chat_template:
        raise InputError("model.system: the checkpoint's tokenizer has no chat template, so no system turn")
    tokenizer.init_kwargs[_SYSTEM_KEY] = text


def system_turn(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What each conversation begins with; empty: with the prompt."""
    found = tokenizer.init_kwargs.get(_SYSTEM_KEY)
    return found if isinstance(found, str) else ""


def image_token(config: Mapping[str, Any]) -> int:
    """The id that config.json gives images, else LLaVA's. Raises InputError if it is no number."""
    said = [_given_id(config, key) for key in ("image_token_id", "image_token_index")]
    return next((token_id for token_id in said if token_id is not None), LLAVA_PLACEHOLDER)


def image_placeholder(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id that stands for an image in a prompt; None if the model reads no images, or has them elsewhere."""
    found = tokenizer.init_kwargs.get(_PLACEHOLDER_KEY)
    return found if isinstance(found, int) else None
