import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core.decoding.settings import DecodeSettings
from core.decoding.strategies import strategies
from core.errors import ConfigError
from tests.core.decoding.tiny import TinyDenoiser

shares = st.sampled_from([0.05, 0.1, 0.25, 0.5, 1.0])
refining = st.builds(
    DecodeSettings,
    tokens_per_step=st.integers(1, 512),
    extra_steps=st.integers(0, 20),
    block_length=st.none() | st.integers(1, 512),
    policy=st.just("refine"),
    start=shares,
    topk=shares,
    margin=st.sampled_from([0.0, 0.05, 1e-05]),
)
keeping = st.builds(
    DecodeSettings,
    policy=st.sampled_from(["freeze", "refine"]),
    block_length=st.none() | st.integers(1, 512),
    cache=st.sampled_from(["prefix", "dual"]),
    refresh=st.integers(1, 64),
)
frozen = st.builds(
    DecodeSettings,
    tokens_per_step=st.integers(1, 512),
    block_length=st.none() | st.integers(1, 512),
    policy=st.just("freeze"),
)

tokens = st.lists(st.integers(0, 200_000) | st.text('a5é ,=<|>-"\\\n', min_size=1), max_size=3).map(tuple)
optional = st.builds(
    DecodeSettings,
    steps=st.none() | st.integers(1, 64),
    schedule=st.sampled_from(["even", "linear", "dream"]),
    threshold=st.none() | st.sampled_from([0.5, 0.9, 1e-05]),
    softmax=st.sampled_from(["allowed", "all"]),
    grid_bits=st.integers(1, 24),
    cfg_scale=st.sampled_from([0.0, 1.5]),
    temperature=st.sampled_from([0.7, 1e-05]),
    seed=st.integers(0, 2**40),
    suppress=tokens,
    late=tokens,
    stop=tokens,
    beginning=tokens,
    suffix=tokens,
    predict_mask=st.booleans(),
)


@given(refining | frozen | keeping | optional)
def test_a_name_stands_for_its_settings(settings: DecodeSettings) -> None:
    assert DecodeSettings.parse(settings.name) == settings


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (DecodeSettings(tokens_per_step=8, policy="freeze"), "8 freeze"),
        (DecodeSettings(tokens_per_step=8, extra_steps=4), "8+4 refine"),
        (DecodeSettings(tokens_per_step=2, margin=0.1, block_length=16), "2 refine block_length=16 margin=0.1"),
        (
            DecodeSettings(steps=9, extra_steps=2, schedule="dream", eps=0.01),
            "steps=9+2 refine schedule=dream eps=0.01",
        ),
        (DecodeSettings(suppress=("<|eot_id|>", 7), stop=("\n", "5")), '4 refine suppress=<|eot_id|>,7 stop="\\n","5"'),
        (DecodeSettings(policy="freeze", predict_mask=True), "4 freeze predict_mask=true"),
    ],
)
def test_names_read_as_written_in_tables(settings: DecodeSettings, name: str) -> None:
    assert settings.name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "refine",
        "8",
        "8 melt",
        "0 refine",
        "8+4 freeze",
        "8 refine margin=2",
        "8 refine speed=3",
        "8 refine start",
        "8 refine refresh=2",
        "8 refine cache=all",
        "8 refine cache=dual refresh=0",
    ],
)
def test_a_name_that_means_nothing_is_a_clear_error(name: str) -> None:
    with pytest.raises(ConfigError, match="decoder setting"):
        DecodeSettings.parse(name)


def test_freezing_refuses_the_options_of_refining() -> None:
    with pytest.raises(ValidationError, match="leave out margin, topk"):
        DecodeSettings(policy="freeze", margin=0.5, topk=0.5)


def test_reading_settings_does_not_load_torch() -> None:
    code = "import sys, core.decoding.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "name",
    [
        "steps=8 freeze tokens_per_step=2",
        '8 freeze stop="x',
        "8 refine eps=0.1",
        "8 freeze seed=3",
        "8 freeze policy=refine",
        "8 freeze confidence=margin threshold=0.5",
        "8 freeze schedule=origin threshold=0.5",
    ],
)
def test_options_that_would_do_nothing_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="decoder setting"):
        DecodeSettings.parse(name)


def test_the_names_of_the_published_codes_are_understood() -> None:
    published = "8 refine block_size=16 revise_start=0.5 revise_topk=0.25 cfg=1.5 stopping_criteria=7 fake_ans=1,2"
    ours = "8 refine block_length=16 start=0.5 topk=0.25 cfg_scale=1.5 stop=7 beginning=1,2"
    assert DecodeSettings.parse(published).name == ours


def test_steps_stand_for_a_pace() -> None:
    assert DecodeSettings(steps=10).pace(48) == 5
    assert DecodeSettings(tokens_per_step=3).pace(48) == 3


def test_the_readme_writes_settings_as_they_are_called() -> None:
    page = (Path(__file__).parents[3] / "README.md").read_text()
    names = re.findall(r'"((?:steps=)?\d\S* (?:freeze|refine)[^"]*)"', page)
    assert names
    for name in names:
        assert DecodeSettings.parse(name).name == name


def test_of_all_tokens_one_has_to_be_left_to_write() -> None:
    model = TinyDenoiser()
    ids = range(len(model.tokenizer))
    never = {model.tokenizer.mask_token_id, model.tokenizer.pad_token_id}
    left = next(token for token in ids if token not in never)
    most = ",".join(str(token) for token in ids if token != left)
    strategies(DecodeSettings.parse(f"4 freeze suppress={most}"), model)
    for names in (f"suppress={most} late={left}", f"late={most},{left}"):
        with pytest.raises(ConfigError, match="leave no token to write"):
            strategies(DecodeSettings.parse(f"4 freeze {names}"), model)
