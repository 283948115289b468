"""What a trained checkpoint says of its training."""

import json

import pytest

from core.training.loop import train
from tasks.finetune import curves_of
from tests.core.training.test_loop import SETTINGS, Copies, Killed, kill_at, small_model


def test_a_killed_and_resumed_training_leaves_the_bytes_of_one_that_was_not(tmp_path):
    whole = train(small_model(), Copies(), SETTINGS)
    with pytest.raises(Killed):
        train(small_model(), Copies(), SETTINGS, checkpoint_dir=tmp_path, on_metrics=kill_at(12))
    resumed = train(small_model(), Copies(), SETTINGS, checkpoint_dir=tmp_path)
    assert resumed.resumed_at == 10
    assert curves_of(resumed) == curves_of(whole)
    assert [step for step, _ in json.loads(curves_of(resumed))] == [4, 8, 12]
    assert not {"steps_per_second", "padding"} & json.loads(curves_of(whole))[0][1].keys()
