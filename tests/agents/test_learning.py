"""LDCQ must solve what behavior cloning cannot, and the diffusion prior must keep what the Gaussian one invents.

A point on a line starts in the middle. The data always walk all the way to one end, 70 % to the left, in steps of 0.8
to 1. Only the right end pays. The mean of the data goes nowhere good; a Gaussian over latents has its mass in between
the two ways; the best way is the rarer one.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from ld_agents import BC, LDCQ, OfflineDataset, evaluate
from ld_agents.diffusion.sampling import Solver, linear_schedule, solver_steps


class TwoWays(gym.Env[Any, Any]):
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.steps = self.np_random.uniform(-0.2, 0.2), 0
        return np.array([self.x], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x += float(action[0])
        self.steps += 1
        return np.array([self.x], np.float32), float(self.x >= 10), abs(self.x) >= 10, self.steps >= 40, {}


def walks(n: int = 300) -> OfflineDataset:
    rng, env = np.random.default_rng(0), TwoWays()
    observations, actions, rewards, terminals, final = [], [], [], [], []
    for episode in range(n):
        observation, done = env.reset(seed=episode)[0], False
        way = 1 if rng.random() < 0.3 else -1
        while not done:
            action = np.array([way * rng.uniform(0.8, 1)], np.float32)
            observations.append(observation)
            actions.append(action)
            observation, reward, done, _, _ = env.step(action)
            rewards.append(reward)
            terminals.append(done)
        final.append(observation)
    return OfflineDataset(
        np.array(observations),
        np.array(actions),
        np.array(rewards),
        np.array(terminals),
        np.zeros(len(terminals)),
        action_space=TwoWays.action_space,
        final_observations=np.array(final),
    )


SETTINGS: dict[str, Any] = {
    "latent_dim": 2,
    "horizon": 5,
    "exec_horizon": 5,
    "vae_hidden": 32,
    "encoder": "mlp",
    "decoder": "joint",
    "decoded_steps": 5,
    "normalize_observations": True,
    "standardize_latents": True,
    "learning_rates": "cosine",
    "solver": "dpm++2m",
    "denoiser_hidden": 32,
    "denoiser_widths": (32, 16),
    "critic_hidden": 32,
    "critic_latent_hidden": 32,
    "vae_learning_rate": 3e-3,
    "vae_batch_size": 64,
    "vae_steps": 250,
    "diffusion_steps": 50,
    "prior_learning_rate": 3e-3,
    "prior_batch_size": 128,
    "prior_steps": 300,
    "solver_steps": 10,
    "noise_scale": 1.0,
    "candidates_stored": 16,
    "candidates_per_target": 16,
    "candidates_acting": 32,
    "discount": 0.9,
    "reward_discount": 0.9,
    "q_learning_rate": 1e-3,
    "q_batch_size": 64,
    "q_steps": 150,
    "target_rate": 0.02,
}


@pytest.fixture(scope="module")
def losses() -> dict[str, list[float]]:
    return {}


@pytest.fixture(scope="module")
def ldcq(losses: dict[str, list[float]]) -> LDCQ:
    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        losses.setdefault(local["stage"].name, []).append(float(local["losses"]["loss"]))
        return True

    return LDCQ("MlpPolicy", walks(), preset="fast", seed=0, **SETTINGS).learn(callback=note)


@pytest.fixture(scope="module")
def gaussian() -> LDCQ:
    return LDCQ("MlpPolicy", walks(), preset="fast", seed=0, prior="gaussian", **SETTINGS).learn()


def middle() -> Tensor:
    return torch.linspace(-0.2, 0.2, 9)[:, None]


def candidate_actions(agent: LDCQ, n: int = 200) -> tuple[Tensor, Tensor]:
    """First actions and scores of candidates drawn in the middle. Shapes [9, n]."""
    states = middle()
    latents, scores = agent.policy.propose(states, n)
    return agent.policy.decode_action(states[:, None].expand(-1, n, -1), latents)[..., 0], scores


def test_ldcq_beats_behavior_cloning(ldcq: LDCQ) -> None:
    bc = BC("MlpPolicy", walks(), preset="fast", seed=0, hidden=(32, 32), steps=500, learning_rate=3e-3).learn()
    assert np.mean(evaluate(bc, TwoWays, 40, seed=0).returns) < 0.4
    # the mean of 70 % of about -0.9 and 30 % of about 0.9, not the median
    assert bc.predict(np.zeros(1))[0] == pytest.approx(-0.34, abs=0.25)
    for deterministic in (True, False):
        result = evaluate(ldcq, TwoWays, 40, seed=0, deterministic=deterministic)
        assert np.mean(result.returns) > 0.9
    # straight there: ten units of way in steps of about 0.9
    assert np.mean(result.lengths) < 16


def test_losses_fall(ldcq: LDCQ, losses: dict[str, list[float]]) -> None:
    assert {stage: len(values) for stage, values in losses.items()} == {"vae": 250, "prior": 300, "q": 150}
    for stage in ("vae", "prior"):
        assert np.mean(losses[stage][-30:]) < 0.5 * np.mean(losses[stage][:10])


def test_critics_prefer_the_way_that_pays(ldcq: LDCQ) -> None:
    actions, scores = candidate_actions(ldcq)
    assert float(scores[actions > 0.5].mean()) > float(scores[actions < -0.5].mean()) + 0.1
    # 12 steps of discount 0.9, within a factor of two
    assert 0.15 < float(scores.amax(1).mean()) < 0.6


def test_diffusion_prior_keeps_to_the_data_and_the_gaussian_prior_does_not(ldcq: LDCQ, gaussian: LDCQ) -> None:
    actions, _ = candidate_actions(ldcq)
    assert float((actions.abs() > 0.75).float().mean()) > 0.95
    invented, _ = candidate_actions(gaussian)
    assert float((invented.abs() > 0.75).float().mean()) < 0.6


def test_diffusion_prior_keeps_the_share_of_the_rare_way(ldcq: LDCQ) -> None:
    actions, _ = candidate_actions(ldcq)
    assert float((actions > 0).float().mean()) == pytest.approx(0.31, abs=0.1)  # 96 of the 300 walks go right


def test_few_steps_draw_like_the_full_chain_on_a_learned_prior(ldcq: LDCQ) -> None:
    """Sets of 400 latents in the middle, by energy distance.

    A prior that was trained for 300 steps has errors, which the noise of the full chain corrects and the deterministic
    solvers do not, however many steps they take. What few steps may add to that is tested, and that it is little.
    """
    policy = ldcq.policy
    states = policy.normalize(torch.zeros(32, 1))
    own, own_steps = policy.settings, policy.steps

    def draw(solver: Solver, n_steps: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        schedule = linear_schedule(own.diffusion_steps, rescaled=own.schedule == "rescaled")
        policy.steps = solver_steps(schedule, solver, n_steps)
        try:
            return policy.draw_latents(states, lambda k: torch.randn(32, 400, 2, generator=generator))
        finally:
            policy.steps = own_steps

    def distances(x: Tensor, y: Tensor) -> Tensor:
        return 2 * torch.cdist(x, y).mean((1, 2)) - torch.cdist(x, x).mean((1, 2)) - torch.cdist(y, y).mean((1, 2))

    full = draw("ddpm", 10, 0)
    noise = float(distances(full, draw("ddpm", 10, 1)).mean())
    converged = float(distances(draw("dpm++2m", 50, 2), full).mean())
    assert converged < 4 * noise
    for solver, n_steps in (("dpm++2m", 10), ("dpm++2m", 20), ("ddim", 20)):
        few = float(distances(draw(solver, n_steps, 2), full).mean())
        assert few < 1.25 * converged, (solver, n_steps)
    assert float(distances(draw("ddim", 1, 2), full).mean()) > 5 * converged  # the test can tell
