"""What infra/vllm.md tells users to write is what Redraft reads."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from core.expert.settings import ExpertSettings

INFRA = Path(__file__).parents[2] / "infra"


def test_the_configuration_of_the_note_is_one_and_fits_its_command():
    note = (INFRA / "vllm.md").read_text(encoding="utf-8")
    (toml,) = re.findall(r"```toml\n(.*?)```", note, re.DOTALL)
    (command,) = re.findall(r"serve\.sh (\S+/\S+) (\S+) (\d+)", note)
    written = tomllib.loads(toml)["expert"]
    expert = ExpertSettings(**written)
    assert expert.model_dump(include=set(written)) == written
    assert (expert.model, expert.base_url) == (command[1], f"http://127.0.0.1:{command[2]}/v1")
    assert f"--max-num-seqs {expert.concurrency}" in note


@pytest.mark.parametrize("script", sorted(path.name for path in (INFRA / "vllm").glob("*.sh")))
def test_a_script_without_its_arguments_says_which_and_does_nothing(script, tmp_path):
    asked = subprocess.run([INFRA / "vllm" / script], cwd=tmp_path, capture_output=True, text=True)
    assert asked.returncode != 0
    assert re.search(r"FOLDER|MODEL", asked.stderr)
    assert list(tmp_path.iterdir()) == []
