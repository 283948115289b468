"""Reading JSON value by value gives what reading it whole gives, wherever the chunks end."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ingest.json_stream import JsonStream

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
_CHUNKS = st.integers(1, 7)
_STYLES = st.sampled_from([None, 0, 2])


def _stream(text: str, chunk: int) -> JsonStream:
    return JsonStream(io.StringIO(text), chunk=chunk)


@given(values=st.lists(_VALUES, max_size=5), chunk=_CHUNKS, indent=_STYLES, ascii_=st.booleans())
def test_elements_are_those_of_the_array(values: list[object], chunk: int, indent: int | None, ascii_: bool) -> None:
    stream = _stream(f" {json.dumps(values, indent=indent, ensure_ascii=ascii_)}\n", chunk)
    assert list(stream.elements()) == values
    stream.end()


@given(members=st.dictionaries(st.text(), _VALUES, max_size=4), chunk=_CHUNKS, indent=_STYLES)
def test_members_are_those_of_the_object(members: dict[str, object], chunk: int, indent: int | None) -> None:
    stream = _stream(json.dumps(members, indent=indent), chunk)
    expected = [(key, one) for key, value in members.items() for one in (value if isinstance(value, list) else [value])]
    assert list(stream.members()) == expected
    stream.end()


@given(values=st.lists(_VALUES, min_size=1, max_size=4), chunk=_CHUNKS, cut=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off_is_an_error(values: list[object], chunk: int, cut: float) -> None:
    text = json.dumps(values)
    with pytest.raises(ValueError, match=r"at line 1 column \d+"):
        list(_stream(text[: int(cut * len(text))], chunk).elements())


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_place_of_an_error_is_that_of_the_whole_file(chunk: int) -> None:
    text = '[\n {"a": 1},\n  {"b": oops}\n]'
    with pytest.raises(json.JSONDecodeError) as whole:
        json.loads(text)
    with pytest.raises(ValueError, match=f"line {whole.value.lineno} column {whole.value.colno}$"):
        list(_stream(text, chunk).elements())


def test_text_after_the_end_is_an_error() -> None:
    stream = _stream("[1] [2]", 2)
    assert list(stream.elements()) == [1]
    with pytest.raises(ValueError, match="more after the end of the value at line 1 column 5"):
        stream.end()


def test_memory_is_that_of_an_element() -> None:
    class Endless(io.StringIO):
        """A billion rows, made as they are read."""

        longest = 0

        def read(self, size: int | None = -1) -> str:
            assert size is not None
            opening = "[" * (self.longest == 0)
            self.longest = max(self.longest, size)
            return opening + '{"a": 1}, ' * (size // 10)

    file = Endless()
    elements = JsonStream(file, chunk=1000).elements()
    assert all(next(elements) == {"a": 1} for _ in range(20_000))
    assert file.longest <= 2000
