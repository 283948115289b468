"""Keeps the API key out of what an endpoint says: some repeat the request's headers, in words of their own."""

import base64
import html
import json
import re
import urllib.parse
from collections.abc import Iterator

_SECRET_CHARS = 8
"""A key of fewer characters, or of letters alone, may be a word of a reply: local servers take "none" or "EMPTY"."""

_HALF = re.compile(r"[\ud800-\udfff]")


class Redaction:
    """Replaces a key, in every spelling that is likely, by three stars. Empty: there is no key."""

    def __init__(self, key: str) -> None:
        self._key = key
        is_word = len(key) < _SECRET_CHARS or key.isalpha()
        self._spellings = () if is_word else tuple(sorted(set(_spellings(key)), key=len, reverse=True))

    def fault(self, text: str) -> str:
        """What an endpoint says of a fault, without the key, whatever the key is."""
        return self.reply(text.replace(self._key, "***") if self._key else text)

    def reply(self, text: str) -> str:
        """A reply, without the key; a key that may be a word stays, for there it is one.

        Without NUL as well, which PostgreSQL's text cannot hold, and halves of surrogate pairs, which no text can.
        """
        for spelling in self._spellings:
            text = text.replace(spelling, "***")
        return _HALF.sub("\ufffd", text).replace("\0", "\ufffd")


def _spellings(key: str) -> Iterator[str]:
    yield from (key, html.escape(key), repr({"": key})[6:-2], json.dumps(key)[1:-1], json.dumps(json.dumps(key))[3:-3])
    yield from (urllib.parse.quote(key), urllib.parse.quote(key, safe=""), urllib.parse.quote_plus(key))
    for before in range(3):  # base64 of a longer text: the characters that nothing else has a part in
        data, last = bytes(before) + key.encode(), (before + len(key)) * 8 // 6
        yield base64.b64encode(data).decode()[-(-before * 8 // 6) : last]
        yield base64.urlsafe_b64encode(data).decode()[-(-before * 8 // 6) : last]
