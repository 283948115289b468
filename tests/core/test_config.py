import pytest
from pydantic import ValidationError

from core.config import DraftSettings, EvaluateSettings, RoundSettings, RunConfig, parse_config
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


ADAMW = {"optimizer": "adamw", "steps": 1}


@pytest.mark.parametrize(
    ("muon", "name"),
    [
        ({"base": {}}, "base"),
        ({"stage1": {"steps": 1}}, "stage1"),
        ({"stage2": {"steps": 1}}, "stage2"),
        ({"control": {}}, "control"),
    ],
)
def test_muon_in_several_processes_is_refused_before_anything_is_trained(muon, name):
    values = {"base": ADAMW, "stage1": ADAMW, "stage2": ADAMW, "control": ADAMW, "compute": {"processes": 2}}
    with pytest.raises(ConfigError, match=rf"{name}\.optimizer = 'adamw'"):
        parse_config(values | muon, "this test").check_trainings()
    parse_config(values | muon | {"compute": {"processes": 1}}, "this test").check_trainings()
    parse_config(values, "this test").check_trainings()


def test_a_training_that_is_not_done_may_have_any_optimizer():
    values = {"base": {"steps": 0}, "stage1": ADAMW, "control": ADAMW, "rounds": {"n": 0}}
    config = RunConfig.model_validate(values | {"compute": {"processes": 2}})
    assert set(config.trainings) == {"stage1", "control"}
