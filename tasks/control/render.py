"""Draw stored poses of a MuJoCo model into an MP4; runs as a process of its own with MUJOCO_GL set."""

from __future__ import annotations

import json
import sys

import imageio
import mujoco
import numpy as np

WIDTH, HEIGHT = 240, 160
TRACKING_DISTANCE = 1.5
"""Distance of the free camera in model extents, where the model brings no camera of its own."""


def render(model_path: str, poses: np.ndarray, target: str, fps: float) -> None:
    """Write `poses [F, nq]` as frames of `WIDTH x HEIGHT` pixels.

    Antialiasing and shadows are off: on a software renderer they take 97 % of the time.
    """
    model = mujoco.MjModel.from_xml_path(model_path)
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    data = mujoco.MjData(model)
    camera: int | mujoco.MjvCamera = 0 if model.ncam > 0 else _tracking(model)
    with (
        mujoco.Renderer(model, HEIGHT, WIDTH) as renderer,
        imageio.get_writer(target, fps=fps, macro_block_size=8) as out,
    ):
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        for pose in poses:
            data.qpos[:] = pose
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera=camera)
            out.append_data(renderer.render())


def _tracking(model: mujoco.MjModel) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
    camera.trackbodyid = min(1, model.nbody - 1)
    camera.distance = TRACKING_DISTANCE * model.stat.extent
    return camera


def probe() -> None:
    """Draw one small frame of an empty world; raises where the backend does not work."""
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>")
    with mujoco.Renderer(model, 8, 8) as renderer:
        renderer.update_scene(mujoco.MjData(model))
        renderer.render()


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if job.get("probe"):
        probe()
    else:
        render(job["model"], np.load(job["poses"]), job["target"], job["fps"])
