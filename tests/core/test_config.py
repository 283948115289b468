import pytest
from pydantic import ValidationError

from core.config import DraftSettings, EvaluateSettings, RoundSettings
from core.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvaluateSettings(settings=("foo",)), "decoder setting 'foo'"),
        (lambda: EvaluateSettings(settings=("8 refine",)), "must be frozen"),
        (lambda: EvaluateSettings(settings=()), "at least one decoder setting"),
        (lambda: EvaluateSettings(settings=("8 freeze", "8 freeze")), "there twice"),
        (lambda: DraftSettings(settings=("8  refine",)), "expected e.g."),
        (lambda: DraftSettings(settings=("8+0 refine",)), "as '8 refine'"),
        (lambda: RoundSettings(promote_on="garbage"), "decoder setting 'garbage'"),
    ],
)
def test_a_wrong_decoder_setting_is_refused_before_anything_is_trained(make, message):
    with pytest.raises((ConfigError, ValidationError), match=message):
        make()


def test_a_frozen_setting_may_have_options():
    assert EvaluateSettings(settings=("8 refine", "8 freeze block_length=16")).settings[1] == "8 freeze block_length=16"
