import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core.decoding.settings import DecodeSettings
from core.errors import ConfigError

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


@given(refining | frozen | keeping)
def test_a_name_stands_for_its_settings(settings: DecodeSettings) -> None:
    assert DecodeSettings.parse(settings.name) == settings


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (DecodeSettings(tokens_per_step=8, policy="freeze"), "8 freeze"),
        (DecodeSettings(tokens_per_step=8, extra_steps=4), "8+4 refine"),
        (DecodeSettings(tokens_per_step=2, margin=0.1, block_length=16), "2 refine block_length=16 margin=0.1"),
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
