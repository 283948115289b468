import pytest
import torch

from core.errors import ConfigError
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
