"""Train the SAC agents whose actors record our locomotion data, as D4RL's medium and medium-replay sets were made.

One training of Stable-Baselines3's SAC per robot, with its default settings, ends when the stochastic policy returns
what D4RL's medium data return on average, to 15 %. Where it leaps past that, it continues in smaller steps until it is
near. Actors are stored along the way in benchmarks/policies/ROBOT_sac.npz: the last one is the medium policy, all of
them in turn record what the replay buffer of such a training holds. A killed training resumes at its last evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

from ld_agents.data.storage import whole
from ld_agents.evaluation.eval_env import ENVIRONMENTS
from recording.behaviors import POLICIES

# Mean return of D4RL's -v2 medium data (Fu et al. 2020; figures of the files themselves).
ROBOTS = {"halfcheetah": 4770.0, "hopper": 1422.0, "walker2d": 2852.0}

SEED = 1_000  # one training per robot, fixed before the first one was seen
EVERY = 10_000  # environment steps between two actors
FINE = 2_500  # and between two evaluations once the target has been passed
TOLERANCE = 0.15  # of the target
EPISODES = 20  # per evaluation
CONFIRMING = 100  # of the evaluation that ends the training
ACTOR = (128, 128)  # half of D4RL's width: the stored actors stay small
LIMIT = 1_000_000
_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_PROGRESS = ("returns", "steps", "passed", "finished")


def actor_arrays(agent: Any) -> dict[str, NDArray[Any]]:
    """Weights of the actor in half precision, named as `LocomotionActor` reads them."""
    layers = [*(m for m in agent.actor.latent_pi if isinstance(m, torch.nn.Linear)), agent.actor.mu]
    named = {f"w{i}": layer.weight for i, layer in enumerate(layers)} | {f"b{i}": m.bias for i, m in enumerate(layers)}
    named |= {"log_std_w": agent.actor.log_std.weight, "log_std_b": agent.actor.log_std.bias}
    return {name: value.detach().numpy().astype(np.float16) for name, value in named.items()}


class Training:
    """One SAC training with the actors that it has stored so far."""

    def __init__(self, robot: str, work: Path) -> None:
        self.env_id, self.target = ENVIRONMENTS[robot], ROBOTS[robot]
        self.file, self.state = POLICIES / f"{robot}_sac.npz", work / f"{robot}_sac.pt"
        self.robot = robot
        net_arch = {"pi": list(ACTOR), "qf": [256, 256]}
        self.agent: Any = SAC(
            "MlpPolicy",
            gym.make(self.env_id),
            policy_kwargs={"net_arch": net_arch},
            seed=SEED,
            device="cpu",
            buffer_size=LIMIT,
            learning_starts=EVERY,
        )
        self.actors: list[dict[str, NDArray[Any]]] = []
        self.returns: list[float] = []
        self.steps: list[int] = []  # of the training, when each actor was stored
        self.passed = self.finished = False

    def resume(self) -> None:
        """Resume at the last evaluation. The episode that was under way then is dropped."""
        if not self.state.exists():
            return
        stored = torch.load(self.state, weights_only=True)
        self.agent.set_parameters(stored["parameters"])
        self.agent.log_ent_coef.data.copy_(stored["log_ent_coef"])
        buffer: Any = self.agent.replay_buffer
        buffer.pos = len(stored["observations"])
        for name in _BUFFER:
            getattr(buffer, name)[: buffer.pos] = stored[name].numpy()
        self.agent.num_timesteps = stored["num_timesteps"]
        for name in _PROGRESS:
            setattr(self, name, stored[name])
        self.actors = [{k: v.numpy() for k, v in arrays.items()} for arrays in stored["actors"]]

    def save(self) -> None:
        buffer: Any = self.agent.replay_buffer
        state = {
            "parameters": self.agent.get_parameters(),
            "log_ent_coef": self.agent.log_ent_coef.detach(),
            **{name: torch.from_numpy(getattr(buffer, name)[: buffer.pos]) for name in _BUFFER},
            "num_timesteps": self.agent.num_timesteps,
            **{name: getattr(self, name) for name in _PROGRESS},
            "actors": [{k: torch.from_numpy(v) for k, v in arrays.items()} for arrays in self.actors],
        }
        with whole(self.state) as unfinished:
            torch.save(state, unfinished)

    def near(self, mean: float) -> bool:
        """Whether a mean return is that of D4RL's medium data, to the tolerance."""
        return abs(mean / self.target - 1) <= TOLERANCE

    def evaluate(self, env: gym.Env[Any, Any], episodes: int) -> tuple[float, float]:
        """Mean and standard deviation of the returns of the stochastic policy."""
        mean, spread = evaluate_policy(self.agent, env, episodes, deterministic=False, warn=False)
        return float(np.mean(mean)), float(np.mean(spread))

    def run(self) -> None:
        self.resume()
        evaluation = gym.make(self.env_id)
        while not self.finished and self.agent.num_timesteps < LIMIT:
            self.agent.learn(FINE if self.passed else EVERY, reset_num_timesteps=False, log_interval=None)
            evaluation.reset(seed=SEED + self.agent.num_timesteps)
            mean, spread = self.evaluate(evaluation, EPISODES)
            if self.near(mean):
                mean, spread = self.evaluate(evaluation, CONFIRMING)
            self.finished = self.near(mean)
            if self.finished or not self.passed:
                self.returns.append(mean)
                self.steps.append(self.agent.num_timesteps)
                self.actors.append(actor_arrays(self.agent))
            self.passed |= mean > self.target
            self.save()
            print(f"{self.robot}: {self.agent.num_timesteps} steps, return {mean:.0f} +- {spread:.0f}", flush=True)
        stacked: dict[str, Any] = {name: np.stack([actor[name] for actor in self.actors]) for name in self.actors[0]}
        with whole(self.file) as unfinished, unfinished.open("wb") as stream:
            np.savez_compressed(
                stream,
                **stacked,
                steps=np.array(self.steps),
                returns=np.array(self.returns),
                n_layers=np.array(len(ACTOR) + 1),
                activation=np.array("relu"),
                squash=np.array("tanh"),
            )


def train(robots: Sequence[str]) -> None:
    """Train the agents of the robots, of all where none is named, and write their actors.

    Raises:
        ValueError: an unknown robot.
    """
    unknown = sorted(set(robots) - set(ROBOTS))
    if unknown:
        raise ValueError(f"There is no robot {unknown[0]!r}. Choose from: {', '.join(ROBOTS)}.")
    torch.set_num_threads(1)
    for robot in robots or ROBOTS:
        Training(robot, Path.home() / ".cache" / "ld_agents" / "sac").run()
