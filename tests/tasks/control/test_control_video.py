import logging
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from rlflow.config import resolve
from tasks.control import video
from tasks.control.engines import spec_of
from tasks.control.evaluation import play


@pytest.fixture(scope="module")
def episodes():
    task = resolve("ppo", "control/Reacher-v5").task
    torch.manual_seed(0)
    return play(spec_of("auto", "Reacher-v5"), task.build_policy(frozenset()), "action", 1, torch.device("cpu"))


def test_sample_file_shows_the_episode(episodes, tmp_path):
    ((name, writer),) = video.sample_files(spec_of("auto", "Reacher-v5"), episodes).items()
    path: Path = tmp_path / name
    writer(path)
    frames = np.stack(imageio.mimread(path))
    # A picture, not a blank: a plot has ink, a frame has a floor and an arm.
    assert frames.std() > 5
    if name.endswith(".mp4"):
        # 50 steps of .02 s at 10 frames a second
        assert len(frames) == 10
        assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).max() > 50


def test_without_a_renderer_a_plot_is_written_and_the_log_says_what_to_install(episodes, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    with caplog.at_level(logging.WARNING):
        ((name, writer),) = video.sample_files(spec_of("auto", "Reacher-v5"), episodes).items()
    assert name == "rollout.png"
    assert "apt-get install libegl1" in caplog.text
    assert "no-such-backend" in caplog.text
    writer(tmp_path / name)
    assert imageio.imread(tmp_path / name).std() > 5
