"""What several test files share: a tiny environment, data recorded in it, and tiny agents.

One thread per test process: with more, processes that run side by side slow each other down.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from ld_agents import BC, CQL, GCBC, IQL, LDCQ, LDGC, TD3BC, LatentDiffuser, OfflineDataset, ReBRAC
from ld_agents.common.offline_algorithm import OfflineAlgorithm

torch.set_num_threads(1)
os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray looks once, when it is imported; TorchRL imports it, too

# Whatever a test relies on is set here, so that tuning the preset breaks no test.
TINY_LDCQ: dict[str, Any] = {
    "preset": "fast",
    "latent_dim": 3,
    "horizon": 5,
    "exec_horizon": 3,
    "vae_hidden": 16,
    "encoder": "mlp",
    "decoder": "joint",
    "decoded_steps": 2,
    "denoiser_hidden": 16,
    "denoiser_widths": (16, 8),
    "critic_hidden": 16,
    "critic_latent_hidden": 16,
    "normalize_observations": True,
    "standardize_latents": True,
    "learning_rates": "cosine",
    "vae_learning_rate": 1e-3,
    "vae_batch_size": 32,
    "vae_steps": 12,
    "diffusion_steps": 30,
    "prior_learning_rate": 1e-3,
    "prior_batch_size": 32,
    "prior_steps": 8,
    "solver": "dpm++2m",
    "solver_steps": 4,
    "noise_scale": 1.0,
    "candidates_stored": 6,
    "candidates_per_target": 6,
    "candidates_acting": 8,
    "q_windows": None,
    "q_learning_rate": 5e-4,
    "q_batch_size": 32,
    "q_steps": 20,
}

_OF_CRITICS = ("critic_", "candidates_", "q_")
TINY_LDGC: dict[str, Any] = {
    **{name: value for name, value in TINY_LDCQ.items() if not name.startswith(_OF_CRITICS)},
    "goals": "hindsight",
    "goal_dim": 2,
    "goal_start": 0,
    "goal_dropout": 0.1,
    "guidance_scale": 2.0,
}

TINY_LATENT_DIFFUSER: dict[str, Any] = {
    "preset": "fast",
    "horizon": 8,
    "steps_per_latent": 2,
    "steps_per_token": 2,
    "exec_horizon": 3,
    "latent_dim": 3,
    "latent_space": True,
    "width": 16,
    "blocks": 1,
    "heads": 2,
    "dropout": 0.0,
    "decoder": "shared",
    "return_inputs": "step",
    "return_targets": "bootstrapped",
    "action_decoder": "plan",
    "return_scale": "state",
    "weight_limit": None,
    "denoiser_width": 8,
    "denoiser_multipliers": (1, 2),
    "denoiser_blocks": 1,
    "denoiser_activation": "silu",
    "energy_hidden": 16,
    "energy_layers": 3,
    "discount": 0.9,
    "normalize_observations": True,
    "standardize": True,
    "vae_learning_rate": 2e-3,
    "vae_batch_size": 32,
    "vae_steps": 12,
    "weight_decay": 0.0,
    "learning_rates": "cosine",
    "value_batch_size": 32,
    "value_steps": 10,
    "prior_windows": None,
    "prior_learning_rate": 2e-3,
    "prior_batch_size": 32,
    "prior_steps": 8,
    "average_rate": 0.01,
    "guidance": "exact",
    "energy_loss": "contrastive",
    "weights": "independent",
    "inverse_temperature": 1.0,
    "plan_return": "sum",
    "return_steps": None,
    "scale_states": 64,
    "support_states": 64,
    "support_size": 4,
    "energy_learning_rate": 1e-3,
    "energy_batch_size": 16,
    "energy_steps": 20,
    "guidance_scale": 1.0,
    "solver": "dpm++2m",
    "solver_grid": "log-snr",
    "solver_steps": 4,
    "n_candidates": 1,
}

TINY_REBRAC: dict[str, Any] = {
    "preset": "fast",
    "hidden": (16, 16),
    "batch_size": 32,
    "steps": 30,
    "actor_learning_rate": 1e-2,
    "normalize_observations": True,
}

TINY_IQL: dict[str, Any] = {
    "preset": "fast",
    "hidden": (16, 16),
    "dropout": 0.1,
    "batch_size": 32,
    "steps": 30,
    "normalize_observations": True,
}

TINY_CQL: dict[str, Any] = {
    "preset": "fast",
    "hidden": (16, 16),
    "critic_hidden": (16, 16),
    "n_actions": 3,
    "target_action_gap": 1.0,
    "batch_size": 32,
    "steps": 30,
    "actor_learning_rate": 3e-4,
    "normalize_observations": True,
}

TINY_IMAGES: dict[str, Any] = {
    "image_code": 4,
    "image_widths": (8, 8),
    "image_batch_size": 32,
    "image_learning_rate": 3e-3,
    "image_steps": 16,
}

AGENTS: dict[str, tuple[type[OfflineAlgorithm], dict[str, Any]]] = {
    "LDCQ": (LDCQ, TINY_LDCQ),
    "LDCQ-gaussian": (LDCQ, {**TINY_LDCQ, "prior": "gaussian"}),
    "LDGC": (LDGC, TINY_LDGC),
    "LatentDiffuser": (LatentDiffuser, TINY_LATENT_DIFFUSER),
    "BC": (
        BC,
        {"preset": "fast", "hidden": (16, 16), "batch_size": 32, "steps": 30, "normalize_observations": True},
    ),
    "GCBC": (
        GCBC,
        {"preset": "fast", "hidden": (16, 16), "batch_size": 32, "steps": 30, "normalize_observations": True},
    ),
    "TD3BC": (
        TD3BC,
        {"preset": "fast", "hidden": (16, 16), "batch_size": 32, "steps": 30, "normalize_observations": True},
    ),
    "ReBRAC": (ReBRAC, TINY_REBRAC),
    "IQL": (IQL, TINY_IQL),
    "CQL": (CQL, TINY_CQL),
}

BOX = spaces.Box(np.array([0.0, -3.0], np.float32), np.array([2.0, 1.0], np.float32))  # not [-1, 1], not square


class Drift(gym.Env[Any, Any]):
    """A point that drifts by a tenth of its action until it is 2 away from the start, or for `max_steps` steps.

    The observation is (x, y, 100 + x): the last one is far from the others in scale. The reward is minus the distance
    to (1, -1). `start` fixes where the point begins; by default the reset draws it. Actions outside `BOX` raise.
    """

    action_space = BOX
    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, start: tuple[float, float] | None = None, max_steps: int = 10) -> None:
        self.start, self.max_steps = start, max_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2) if self.start is None else np.array(self.start)
        self.origin, self.steps = self.position, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        self.position = self.position + 0.1 * action
        self.steps += 1
        reward = -float(np.linalg.norm(self.position - (1, -1)))
        away = bool(np.linalg.norm(self.position - self.origin) > 2)
        return self.observe(), reward, away, self.steps >= self.max_steps, {}

    def observe(self) -> Any:
        return np.array([*self.position, 100 + self.position[0]], np.float32)


class GoalDrift(Drift):
    """The same with a dictionary: the goal (1, -1) beside the observation."""

    observation_space = spaces.Dict(
        {
            "achieved_goal": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "desired_goal": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "observation": spaces.Box(-np.inf, np.inf, (3,), np.float32),
        }
    )

    def observe(self) -> Any:
        return {
            "achieved_goal": self.position.astype(np.float32),
            "desired_goal": np.array([1, -1], np.float32),
            "observation": super().observe(),
        }


def record(*, keys: tuple[str, ...] | None = None, keep_goal: bool = False, seed: int = 0) -> OfflineDataset:
    """30 episodes of 20 random steps in `Drift`, with `observation_keys=keys`."""
    rng = np.random.default_rng(seed)
    env = (GoalDrift if keep_goal else Drift)(max_steps=20)
    observations, actions, rewards, terminals, timeouts, final = [], [], [], [], [], []
    for episode in range(30):
        observation, done = env.reset(seed=1000 * seed + episode)[0], False
        taste = rng.uniform(BOX.low, BOX.high)
        while not done:
            action = np.clip(taste + rng.normal(0, 0.3, 2), BOX.low, BOX.high).astype(np.float32)
            flat = np.concatenate([observation[k] for k in keys or ()]) if keep_goal else observation
            observation, reward, terminal, timeout, _ = env.step(action)
            done = terminal or timeout
            for values, value in zip(
                (observations, actions, rewards, terminals, timeouts),
                (flat, action, reward, terminal, timeout),
                strict=True,
            ):
                values.append(value)
        final.append(np.concatenate([observation[k] for k in keys or ()]) if keep_goal else observation)
    return OfflineDataset(
        np.array(observations),
        np.array(actions),
        np.array(rewards, np.float32),
        np.array(terminals),
        np.array(timeouts),
        observation_space=env.observation_space,
        action_space=BOX,
        final_observations=np.array(final),
        observation_keys=keys,
    )


Trained = Callable[[str], OfflineAlgorithm]


class StopAt(BaseCallback):
    """Stops training after so many gradient steps: what a kill after a checkpoint amounts to."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


def make_agent(name: str, dataset: OfflineDataset, *, seed: int = 0, **settings: Any) -> OfflineAlgorithm:
    """An untrained tiny agent by its name in `AGENTS`."""
    agent_class, tiny = AGENTS[name]
    policy = "MultiInputPolicy" if isinstance(dataset.observation_space, spaces.Dict) else "MlpPolicy"
    if dataset.has_frames:
        policy, tiny = "CnnPolicy", {**tiny, **TINY_IMAGES}
    return agent_class(policy, dataset, seed=seed, **{**tiny, **settings})


def saved(agent: OfflineAlgorithm) -> bytes:
    stream = io.BytesIO()
    agent.save(stream)
    return stream.getvalue()


def weights(agent: OfflineAlgorithm) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in agent.policy.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not bit-equal."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def steps_of(agent: OfflineAlgorithm) -> dict[str, int]:
    return {stage.name: stage.gradient_steps for stage in agent.stages()}


def seen_by(agent: OfflineAlgorithm, n: int, seed: int = 0) -> np.ndarray:
    """Observations like those of the data, float32 [n, S]."""
    assert agent.dataset is not None
    rows = np.random.default_rng(seed).choice(agent.dataset.n_steps, n, replace=False)
    return agent.dataset.observations.numpy()[rows]


@pytest.fixture(scope="session")
def dataset() -> OfflineDataset:
    return record()


@pytest.fixture(scope="session")
def goal_dataset() -> OfflineDataset:
    """The goal stays in the observation; the keys are not in alphabetical order."""
    return record(keys=("observation", "desired_goal"), keep_goal=True)


@pytest.fixture(params=list(AGENTS))
def name(request: pytest.FixtureRequest) -> str:
    """The name of an agent: a test that takes it runs for all."""
    return str(request.param)


def trained_on(dataset: OfflineDataset) -> Trained:
    """What makes a fresh copy of a trained agent, by its name."""
    files: dict[str, bytes] = {}

    def load(name: str) -> OfflineAlgorithm:
        if name not in files:
            files[name] = saved(make_agent(name, dataset).learn())
        return AGENTS[name][0].load(io.BytesIO(files[name]), dataset=dataset)

    return load


@pytest.fixture(scope="session")
def trained(dataset: OfflineDataset) -> Trained:
    return trained_on(dataset)


@pytest.fixture(scope="session")
def blob(dataset: OfflineDataset) -> bytes:
    """LDCQ, stopped in the middle of Q-learning, so that the file holds all there can be."""
    return saved(make_agent("LDCQ", dataset).learn(callback=StopAt(30)))


@pytest.fixture(scope="session")
def by_hand() -> OfflineDataset:
    """Observation = row number. Six steps that time out, then five that end in a terminal. Rows 11 and 12 are final."""
    rewards = [0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 1]
    ends = np.arange(11)
    return OfflineDataset(
        np.arange(11.0)[:, None],
        np.linspace(-1, 1, 11)[:, None],
        rewards,
        ends == 10,
        ends == 5,
        final_observations=[[11.0], [12.0]],
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Minari folder of its own, for tests that record data."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    return tmp_path
