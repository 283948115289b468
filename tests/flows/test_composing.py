import pytest
import torch

from core.errors import ConfigError, InputError
from core.models.denoiser import load_denoiser
from flows import cli
from tests.core.models.checkpoints import published
from tests.core.models.test_compose import scores, tower


def composed(*arguments: str) -> int:
    return cli.app.meta(["compose", *arguments], exit_on_error=False, result_action="return_value")


def test_a_tower_and_a_decoder_become_a_checkpoint(tmp_path, capsys):
    tower("siglip").save_pretrained(tmp_path / "eyes")
    decoder, out = published(tmp_path, "dream_tiny"), tmp_path / "both"
    given = [str(tmp_path / "eyes"), str(decoder), "--out"]
    assert composed(*given, str(out)) == composed(*given, str(tmp_path / "same"), "--seed", "0") == 0
    assert f"wrote {out}: its adapter knows nothing yet" in capsys.readouterr().err
    assert torch.equal(scores(load_denoiser(out)), scores(load_denoiser(tmp_path / "same")))
    assert (out / "tokenizer.json").read_bytes() == (decoder / "tokenizer.json").read_bytes()
    with pytest.raises(ConfigError, match="both exists already"):
        composed(*given, str(out))


def test_images_of_a_qwen_tower_have_as_many_pixels_as_is_said(tmp_path, capsys):
    tower("qwen2_5_vl").save_pretrained(tmp_path / "eyes")
    given = [str(tmp_path / "eyes"), str(published(tmp_path, "dream_tiny")), "--out"]
    assert composed(*given, str(tmp_path / "published")) == 0
    assert "A large image takes 1,280 of the" in capsys.readouterr().err
    assert composed(*given, str(tmp_path / "fewer"), "--max-pixels", str(28 * 28 * 200)) == 0
    assert "A large image takes 200 of the" in capsys.readouterr().err
    for name, most in (("published", 1280), ("fewer", 200)):
        assert most * 0.9 < load_denoiser(tmp_path / name).image_positions(4000, 3000) <= most


def test_a_limit_of_pixels_is_for_towers_that_see_images_at_their_own_size(tmp_path):
    tower("siglip").save_pretrained(tmp_path / "eyes")
    given = [str(tmp_path / "eyes"), str(published(tmp_path, "dream_tiny")), "--out", str(tmp_path / "both")]
    with pytest.raises(InputError, match="max_pixels is for a Qwen-VL's tower: siglip"):
        composed(*given, "--max-pixels", "9000")
