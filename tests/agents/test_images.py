"""Agents that learn from images: what "CnnPolicy" owes beside the contracts of every agent, and what its codes are."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frame_drift import SHAPE, FrameDrift, record_frames
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from conftest import AGENTS, StopAt, differing, make_agent, saved, weights
from ld_agents import BC, IQL, LDCQ, OfflineDataset, evaluate
from ld_agents.common.inference_file import save_for_inference
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.images import ImageSettings
from ld_agents.networks.image_encoder import ImageVAE


@pytest.fixture(scope="module")
def frames() -> OfflineDataset:
    return record_frames()


@pytest.fixture(params=["LDCQ", "BC"], scope="module")
def agent_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def file(agent_name: str, frames: OfflineDataset) -> bytes:
    return saved(make_agent(agent_name, frames).learn())


def load(name: str, file: bytes, **arguments: Any) -> OfflineAlgorithm:
    return AGENTS[name][0].load(io.BytesIO(file), **arguments)


# ---------------------------------------------------------------- contracts of every agent


def test_what_is_loaded_is_what_was_saved(agent_name: str, file: bytes, frames: OfflineDataset) -> None:
    agent = load(agent_name, file)
    assert agent.observation_space == frames.observation_space == FrameDrift.observation_space
    assert agent.config()["image_settings"]["image_widths"] == (8, 8)
    again = load(agent_name, saved(agent))
    assert not differing(weights(agent), weights(again))
    assert again.config() == agent.config()
    seen = frames.observations.numpy()[:5]
    for deterministic in (True, False):
        np.testing.assert_array_equal(
            agent.predict(seen, deterministic=deterministic)[0], again.predict(seen, deterministic=deterministic)[0]
        )


@pytest.mark.parametrize("stop", [0, 1, 7, 15, 16, 17, 30, 40])
def test_resumed_training_is_bit_equal(agent_name: str, file: bytes, frames: OfflineDataset, stop: int) -> None:
    """In the stage of images, at its end, where all frames are encoded, and in the stages after it."""
    agent = make_agent(agent_name, frames)
    if stop:
        agent.learn(callback=StopAt(stop))
    resumed = load(agent_name, saved(agent), dataset=frames).learn(reset_num_timesteps=False)
    assert not differing(weights(resumed), weights(load(agent_name, file)))


def test_a_seed_makes_it_repeatable(agent_name: str, file: bytes, frames: OfflineDataset) -> None:
    torch.manual_seed(5)
    assert not differing(weights(make_agent(agent_name, frames).learn()), weights(load(agent_name, file)))
    other = weights(make_agent(agent_name, frames, seed=1).learn(3))
    assert "image_encoder.mean.weight" in differing(other, weights(load(agent_name, file)))


def test_one_frame_and_many_and_frames_that_sb3_turned(agent_name: str, file: bytes, frames: OfflineDataset) -> None:
    agent, seen = load(agent_name, file), frames.observations.numpy()[:6]
    together, _ = agent.predict(seen, deterministic=True)
    assert together.shape == (6, 2)
    for i in range(6):
        np.testing.assert_allclose(agent.predict(seen[i], deterministic=True)[0], together[i], atol=1e-4)
    turned, _ = agent.predict(seen.transpose(0, 3, 1, 2), deterministic=True)
    np.testing.assert_allclose(turned, together, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((96, 96, 2), np.uint8),
        np.zeros(SHAPE, np.float32),
        np.zeros((1, 1, *SHAPE), np.uint8),
        np.zeros(9 * 12 * 2, np.uint8),
        {"image": np.zeros(SHAPE, np.uint8)},
    ],
)
def test_wrong_frames_are_explained(file: bytes, agent_name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected a uint8 frame of shape \(9, 12, 2\).*as they are in the data"):
        load(agent_name, file).predict(wrong)


def test_policies_that_do_not_fit_the_observations(frames: OfflineDataset, dataset: OfflineDataset) -> None:
    for agent_class in (LDCQ, BC, IQL):
        with pytest.raises(ValueError, match="images: use 'CnnPolicy', with LDCQ or BC"):
            agent_class("MlpPolicy", frames)
    with pytest.raises(ValueError, match="encode images first"):
        IQL("CnnPolicy", frames)
    with pytest.raises(TypeError, match="no setting image_steps"):
        BC("MlpPolicy", dataset, image_steps=3)
    with pytest.raises(ValueError, match="image_code: Input should be greater"):
        BC("CnnPolicy", frames, image_code=0)
    with pytest.raises(ValueError, match=r"9 x 12 pixels cannot be halved 4 times. Give fewer image_widths"):
        BC("CnnPolicy", frames, image_widths=(8, 8, 8, 8))


def test_evaluation_here_and_by_sb3_agree(agent_name: str, file: bytes) -> None:
    agent = load(agent_name, file)
    starts = [(0.1, 0.2), (-0.4, 0.3)]
    ours = [evaluate(agent, lambda s=s: FrameDrift(s), 1, seed=0).returns[0] for s in starts]
    envs = [DummyVecEnv([lambda s=s: Monitor(FrameDrift(s))]) for s in starts]
    for wrap in (lambda env: env, VecTransposeImage):
        theirs = [evaluate_policy(agent, wrap(env), 1)[0] for env in envs]
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_environments_of_sb3_and_its_callbacks(agent_name: str, frames: OfflineDataset, tmp_path: Path) -> None:
    agent = make_agent(agent_name, frames)
    callback = EvalCallback(Monitor(FrameDrift()), eval_freq=10, n_eval_episodes=2, log_path=str(tmp_path), verbose=0)
    agent.learn(callback=callback)
    assert (tmp_path / "evaluations.npz").is_file()
    agent.set_env(FrameDrift())
    env = agent.get_env()
    assert env is not None
    assert env.observation_space == FrameDrift.observation_space  # not turned
    assert env.action_space.contains(agent.predict(env.reset())[0][0])


def test_onnx_graph_acts_as_predict(agent_name: str, file: bytes, frames: OfflineDataset, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    agent = load(agent_name, file)
    agent.export(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["ld_agents"])
    for n in (1, 5):
        held = {name: np.zeros((n, *shape), dtype) for name, (dtype, shape) in about["state"].items()}
        state: Any = None
        for t in range(4):
            seen = frames.observations.numpy()[7 * t : 7 * t + n]
            expected, state = agent.predict(seen, state, deterministic=True)
            noise = {name: np.zeros((n, *shape), np.float32) for name, shape in about["noise"].items()}
            if "noise" in noise:
                noise["noise"] = agent.policy.draw_noise(torch.as_tensor(state[-1])).numpy()
            found, *after = session.run(None, {"observation": seen, **noise, **held})
            held = dict(zip(about["state"], after, strict=True))
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_file_for_acting_leaves_the_decoder_out(agent_name: str, file: bytes, frames: OfflineDataset) -> None:
    agent, stream = load(agent_name, file), io.BytesIO()
    save_for_inference(agent, stream)
    small = load(agent_name, stream.getvalue())
    names = {name for name in small.policy.state_dict() if name.startswith("image_encoder.")}
    assert {"image_encoder.mean.weight", "image_encoder.pixel_mean", "image_encoder.encoder.0.weight"} <= names
    assert not [name for name in names if "decode" in name or "log_std" in name]
    seen = frames.observations.numpy()[:4]
    expected, found = (a.predict(seen, deterministic=True)[0] for a in (agent, small))
    np.testing.assert_allclose(found, expected, atol=0.05)


# ---------------------------------------------------------------- codes


def test_a_trained_encoder_shows_more_than_the_mean_frame_and_where_the_spot_is(frames: OfflineDataset) -> None:
    agent = make_agent("BC", frames, image_steps=200, steps=1).learn()
    encoder = agent.policy.image_encoder
    assert isinstance(encoder, ImageVAE)
    with torch.no_grad():
        pixels, codes = encoder.standardized(frames.observations), encoder(frames.observations)
        left = ((encoder.decode(codes) - pixels) ** 2).sum() / (pixels**2).sum()  # the mean frame leaves 1
    assert left < 0.1
    rows, columns = np.linspace(-3, 3, SHAPE[0]), np.linspace(-3, 3, SHAPE[1])
    light = frames.observations.double().numpy()[..., 0] - frames.observations.double().numpy()[..., 0].min(0)
    where = np.stack([(light.sum(2) * rows).sum(1), (light.sum(1) * columns).sum(1)], 1) / light.sum((1, 2))[:, None]
    inputs = np.concatenate([codes.numpy(), codes.numpy() ** 2, np.ones((len(codes), 1))], 1)
    residual = where - inputs @ np.linalg.lstsq(inputs, where, rcond=None)[0]
    assert (residual.var(0) < 0.1 * where.var(0)).all()


def test_codes_do_not_depend_on_the_size_of_the_batch_and_are_standardized(frames: OfflineDataset) -> None:
    agent = make_agent("BC", frames).learn()
    one_by_one = torch.cat([agent.policy.states_of(frame[None]) for frame in frames.observation_rows]).detach()
    together = agent.policy.states_of(frames.observation_rows).detach()
    torch.testing.assert_close(one_by_one, together, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(together.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_stages_see_the_codes_of_the_frames_that_the_policy_sees(frames: OfflineDataset) -> None:
    """Frames are encoded once, after the stage of images, and not at all where that is not reached."""
    agent = make_agent("LDCQ", frames)
    seen: dict[str, torch.Tensor] = {}

    class Look(StopAt):
        def _on_step(self) -> bool:
            seen["states"] = agent.states(torch.tensor([0, 5, agent.data.n_steps]))  # type: ignore[attr-defined]
            return super()._on_step()

    agent.learn(callback=Look(14))
    assert not seen["states"].any()
    agent.learn(callback=Look(20), reset_num_timesteps=False)
    rows = frames.observation_rows[[0, 5, frames.n_steps]]
    torch.testing.assert_close(seen["states"], agent.policy.states_of(rows).detach(), atol=1e-4, rtol=0)


def test_the_loss_is_that_of_a_beta_vae() -> None:
    """By hand: two frames that differ in all 16 pixels, which one principal component tells apart."""
    vae, frames = ImageVAE((4, 4, 1), 2, (3,)), torch.zeros(2, 4, 4, 1, dtype=torch.uint8)
    frames[1] = 100
    vae.pixel_mean.fill_(50.0)
    vae.pixel_std.fill_(50.0)
    losses = vae.losses(frames, torch.zeros(2, 2))  # the code is N(0, 1), and every pixel one deviation off
    assert {name: loss.item() for name, loss in losses.items()} == {"reconstruction": 8.0, "kl": 0.0}
    vae.mean.bias.data.fill_(2.0)
    assert vae.losses(frames, torch.zeros(2, 2))["kl"].item() == pytest.approx(0.5 * 2 * 2**2)
    vae.mean.bias.data.zero_()
    vae.fit_components(frames)
    torch.testing.assert_close(vae(frames).abs(), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), atol=1e-5, rtol=0)
    losses = vae.losses(frames, torch.zeros(2, 2))
    assert losses["reconstruction"].item() == pytest.approx(0, abs=1e-8)
    # mean 1, variance 1 / (1 + 16)
    assert losses["kl"].item() == pytest.approx(0.5 * (1 / 17 + math.log(17)), rel=1e-5)


def test_untrained_codes_are_principal_components(frames: OfflineDataset) -> None:
    """What they leave is what a singular value decomposition says, and they are uncorrelated with variance 1."""
    vae = ImageVAE(SHAPE, 4, (8, 8))
    vae.fit_components(frames.observations)
    with torch.no_grad():
        pixels, codes = vae.standardized(frames.observations), vae(frames.observations)
        left = ((vae.decode(codes) - pixels) ** 2).sum()
    singular = torch.linalg.svdvals(pixels.flatten(1).double())
    assert left.item() == pytest.approx((singular[4:] ** 2).sum().item(), rel=1e-3)
    torch.testing.assert_close(codes.T @ codes / len(codes), torch.eye(4), atol=1e-3, rtol=0)


def test_settings_of_the_paper_preset_are_larger(frames: OfflineDataset) -> None:
    agents = [BC("CnnPolicy", frames, preset=preset, image_widths=(4,)) for preset in ("fast", "paper")]
    assert agents[1].config()["image_settings"] == dataclasses.asdict(ImageSettings(image_widths=(4,)))
    assert agents[0].config()["image_settings"]["image_steps"] < ImageSettings().image_steps
