from core.decoding.costs import positions_run
from core.decoding.settings import DecodeSettings


def positions(name: str) -> int:
    return positions_run(DecodeSettings.parse(name), response_length=4, before=10)


def test_the_positions_of_a_plan_are_counted_before_it_is_run():
    assert positions("2 freeze") == positions("2 freeze cache=dual") == 14 + 14
    assert positions("2 freeze cache=dual refresh=2") == 14 + 4
    assert positions("1 freeze cache=dual refresh=2 block_length=2") == 14 + 2 + 14 + 2
    assert positions("1 freeze cache=prefix refresh=2 block_length=2") == 14 + 4 + 14 + 2
    assert positions("2+3 refine cache=prefix refresh=4") == 14 + 4 + 14 + 4 + 4
