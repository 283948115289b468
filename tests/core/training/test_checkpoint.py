import pytest
import torch

from core.errors import StoreError
from core.training.checkpoint import TrainingState, load_latest, save_state


def state(step):
    tensors = {"w": torch.full((3,), float(step)), "strided": torch.arange(6.0).view(2, 3).T}
    return TrainingState(step=step, model=tensors, optimizer={"w/momentum": torch.ones(3)}, about={"lr": 0.1})


def steps_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_to_the_bit(tmp_path):
    save_state(tmp_path, state(7))
    loaded = load_latest(tmp_path)
    assert (loaded.step, loaded.about) == (7, {"lr": 0.1})
    assert all(torch.equal(loaded.model[key], value) for key, value in state(7).model.items())
    assert torch.equal(loaded.optimizer["w/momentum"], torch.ones(3))


def test_no_checkpoint_is_no_error(tmp_path):
    assert load_latest(tmp_path / "never made") is None


def test_the_newest_two_are_kept(tmp_path):
    for step in (5, 10, 100, 20):
        save_state(tmp_path, state(step))
    assert steps_in(tmp_path) == ["step-00000020", "step-00000100"]
    assert load_latest(tmp_path).step == 100


@pytest.mark.parametrize("damage", ["truncate", "flip", "no json", "no optimizer"])
def test_a_damaged_checkpoint_is_skipped_and_can_be_written_again(tmp_path, damage):
    save_state(tmp_path, state(5))
    newest = save_state(tmp_path, state(10))
    weights = newest / "model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "flip":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif damage == "no json":
        (newest / "state.json").write_text("{")
    else:
        (newest / "optimizer.safetensors").unlink()
    assert load_latest(tmp_path).step == 5
    save_state(tmp_path, state(10))
    assert load_latest(tmp_path).step == 10


def test_a_write_that_was_cut_off_leaves_no_checkpoint(tmp_path):
    save_state(tmp_path, state(5))
    unfinished = tmp_path / ".writing-step-00000010"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    assert load_latest(tmp_path).step == 5
    save_state(tmp_path, state(10))
    assert steps_in(tmp_path) == ["step-00000005", "step-00000010"]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="could not be written"):
        save_state(tmp_path / "file", state(5))
