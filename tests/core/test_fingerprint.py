import os

import pytest

from core.config import DataSettings, RunConfig
from core.errors import InputError
from core.fingerprint import checkpoint_digest, file_digest, images_digest, inputs_digest


@pytest.fixture
def config(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(b"1")
    (tmp_path / "rows.json").write_text("[]")
    data = DataSettings(source="llava", path=str(tmp_path / "rows.json"), images=str(tmp_path / "images"))
    return RunConfig(data=data)


def test_scenes_have_no_input():
    assert inputs_digest(RunConfig()) == ""


def test_a_changed_file_or_image_is_other_input(config, tmp_path):
    seen = {inputs_digest(config)}
    (tmp_path / "rows.json").write_text("[1]")
    seen.add(inputs_digest(config))
    (tmp_path / "images" / "two.png").write_bytes(b"2")
    seen.add(inputs_digest(config))
    os.utime(tmp_path / "images" / "one.png", ns=(1, 1))
    seen.add(inputs_digest(config))
    assert len(seen) == 4


def test_a_changed_weight_is_another_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = checkpoint_digest(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert checkpoint_digest(str(tmp_path)) != before
    assert checkpoint_digest("") == ""


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot read the data file"):
        file_digest(tmp_path / "none.json")
    with pytest.raises(InputError, match="image folder"):
        images_digest(str(tmp_path / "none"))
