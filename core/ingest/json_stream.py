"""JSON of any size, value by value: memory is that of the longest element, not of the file."""

import json
import re
from collections.abc import Iterator
from typing import TextIO, TypeAlias

Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

_CHUNK = 1 << 20
_LONGEST = 1 << 27
_AFTER_VALUE = tuple(",]}: \t\n\r")
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonStream:
    """A cursor over a text file that holds one JSON value.

    Raises (all methods):
        ValueError: what is wrong, and at which line and column.
    """

    def __init__(self, file: TextIO, *, chunk: int = _CHUNK) -> None:
        """`chunk`: characters that are read at once."""
        self._file, self._chunk = file, chunk
        self._decoder = json.JSONDecoder(strict=False)  # a raw tab in a string is no reason to lose a file
        self._text, self._at, self._ended = "", 0, False
        self._lines, self._column = 1, 1  # of the first char of `_text`

    def begins_with(self, char: str) -> bool:
        """Is this the next char?"""
        return self._peek() == char

    def elements(self) -> Iterator[Json]:
        """The elements of the array that begins here."""
        self._expect("[")
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._expect(",]") == "]":
                return

    def members(self) -> Iterator[tuple[str, Json]]:
        """(key, element) for each element of the object's arrays, (key, value) for its other members."""
        self._expect("{")
        if self._peek() == "}":
            self._at += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self._fault("expected a key in double quotes")
            self._expect(":")
            if self._peek() == "[":
                yield from ((key, element) for element in self.elements())
            else:
                yield key, self.value()
            if self._expect(",}") == "}":
                return

    def value(self) -> Json:
        """The whole value that begins here."""
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self._fault(error.msg, error.pos) from error
                continue
            except RecursionError as error:
                raise self._fault("nested too deeply") from error
            except ValueError as error:  # an integer of thousands of digits
                raise self._fault(str(error)) from error
            if self._text[end : end + 1] not in _AFTER_VALUE and self._more():  # 1 may be the beginning of 1.5
                continue
            self._at = end
            return value  # type: ignore[no-any-return]  # it is Json

    def end(self) -> None:
        """Only white space may be left."""
        if self._peek():
            raise self._fault("more after the end of the value")

    def _peek(self) -> str:
        """The next char that is not white space, "" at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _expect(self, chars: str) -> str:
        if (char := self._peek()) and char in chars:
            self._at += 1
            return char
        raise self._fault(f"expected {' or '.join(chars)}, found {char or 'the end of the file'}")

    def _more(self) -> bool:
        """Read on; what is behind the cursor is let go. False at the end of the file."""
        if self._ended:
            return False
        waiting = len(self._text) - self._at
        if waiting > _LONGEST:
            raise self._fault(f"an element of more than {_LONGEST >> 20} million characters, or a quote left open")
        new = self._file.read(max(self._chunk, waiting))  # twice as much each time: a long element costs no square
        if new:
            self._lines, self._column = self._place(self._at)
            self._text, self._at = self._text[self._at :] + new, 0
        self._ended = not new
        return not self._ended

    def _place(self, at: int) -> tuple[int, int]:
        newlines = self._text.count("\n", 0, at)
        column = at - self._text.rfind("\n", 0, at) if newlines else self._column + at
        return self._lines + newlines, column

    def _fault(self, message: str, at: int | None = None) -> ValueError:
        line, column = self._place(self._at if at is None else at)
        return ValueError(f"{message} at line {line} column {column}")
