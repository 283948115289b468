import pytest

from core.metrics.overlap import overlap_f1


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("a red ring", "a red ring", 1.0),
        ("A red ring.", "ring, RED a", 1.0),
        ("a red ring", "", 0.0),
        ("a red ring", "blue boxes only", 0.0),
        ("a red ring", "a red red box", 2 * 2 / 7),
        ("...", "", 1.0),
    ],
)
def test_overlap_of_bags_of_words(reference: str, text: str, expected: float) -> None:
    assert overlap_f1(reference, text) == pytest.approx(expected)


def test_repeating_words_does_not_pay() -> None:
    assert overlap_f1("a red ring", "red red red") < overlap_f1("a red ring", "red")
