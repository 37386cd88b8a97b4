"""The part of an agent that acts: `predict`, evaluation, and what users attach to it."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from ld_agents.common.attached import adapt_evaluations, check_callbacks, refuse_normalized
from ld_agents.common.offline_policy import State
from ld_agents.common.staged_training import StagedTraining
from ld_agents.data.minari import local_info
from ld_agents.data.storage import is_minari_id
from ld_agents.evaluation.eval_env import EvalEnvSpec, check_env, environment_of
from ld_agents.evaluation.rollouts import Evaluation, evaluate


class ActingAgent(StagedTraining):
    """The part of `OfflineAlgorithm` that meets observations, environments and callbacks."""

    observation_keys: tuple[str, ...] | None

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State | None]:
        """Acts on one observation or on a batch.

        What an agent keeps between steps, such as the latent it is executing, is in `state`: pass what the last call
        returned. `state=None` and `episode_start[i]=True` start a new plan. Omitting `state` is correct but slow, since
        every call then plans.

        An action is a function of the seed, the observation and the state of its own environment. With
        `deterministic=True` the same input always gives the same action; otherwise each call draws fresh noise, and of
        equal observations in one batch each its own.

        Args:
            observation: [S], [n, S], a dictionary of such arrays, or frames [h, w, C] or [n, h, w, C] uint8.
            state: one row per environment, or None.
            episode_start: [n] booleans, or None.

        Returns:
            actions [A] or [n, A] within the action space, and the next state.
        """
        return self.policy.predict(observation, state, episode_start, deterministic)

    def set_random_seed(self, seed: int | None = None) -> None:
        """SB3's, and the noise of acting begins anew: the same seed gives the same actions. Training keeps its seed."""
        seed = None if seed is None else int(seed)  # Python's own generator takes none of numpy's numbers
        super().set_random_seed(seed)
        if seed is not None and hasattr(self, "policy"):
            self.policy.noise_seed, self.policy.noise_calls = seed, 0

    def evaluate(
        self,
        env: Callable[[], gym.Env[Any, Any]] | gym.Env[Any, Any] | str | None = None,
        n_episodes: int = 25,
        *,
        seed: int = 0,
        n_envs: int = 25,
        deterministic: bool = True,
    ) -> Evaluation:
        """Runs episodes, prints the mean return with its interval, and returns what `ld_agents.evaluate` does.

        Args:
            env: an environment, its id or a function that makes one; None: the evaluation environment of the dataset,
                see `eval_env_spec`.
            n_episodes, seed, n_envs, deterministic: see `ld_agents.evaluate`.

        Raises:
            ValueError: no environment is given, and none is known for the dataset.
        """
        if env is None:
            env = self.eval_env_spec().make if self.dataset is None else self.dataset.make_eval_env
        outcome = evaluate(self, env, n_episodes, seed=seed, n_envs=n_envs, deterministic=deterministic)
        print(outcome)
        return outcome

    def eval_env_spec(self) -> EvalEnvSpec:
        """The evaluation environment of the dataset that this agent learned from. The data need not be on this machine.

        Example:
            ld_agents.evaluate(agent, agent.eval_env_spec().make, 10, seed=0)

        Raises:
            ValueError: it is not known.
        """
        dataset_id = str(self._dataset_identity.get("id"))
        spec = environment_of(dataset_id) if self.dataset is None else self.dataset.info.eval_env
        if spec is None and is_minari_id(dataset_id) and (info := local_info(dataset_id)) is not None:
            spec = info.eval_env
        if spec is None and (name := self._dataset_identity.get("env")) is not None:
            spec = EvalEnvSpec(str(name))
        if spec is None:
            raise ValueError(
                f"This agent learned from {dataset_id!r} and has no dataset that names an environment. Pass one to "
                "agent.evaluate(env): an environment, its registered id (--env in a shell) or a function that makes it."
            )
        return spec

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """SB3's, without the wrapper that turns frames: agents take them as they are recorded."""
        wrapped = StagedTraining._wrap_env(env, verbose, monitor_wrapper)
        return wrapped.venv if isinstance(wrapped, VecTransposeImage) else wrapped

    def set_env(self, env: gym.Env[Any, Any] | VecEnv, force_reset: bool = True) -> None:
        """Attaches an environment, for callbacks and `get_env`. Training never steps it.

        Raises:
            ValueError: its spaces are not those of the data, or it normalizes observations or rewards.
        """
        vec_env = self._wrap_env(env, self.verbose)
        refuse_normalized(vec_env)
        try:
            if not self._takes_dictionaries_of(vec_env.observation_space):
                check_for_correct_spaces(vec_env, self.observation_space, self.action_space)
        except ValueError as error:
            raise ValueError(
                f"{error}. If the data are in this environment's units, pass its observation_space and action_space to "
                "OfflineDataset and train on that; otherwise attach the environment that they were recorded in."
            ) from None
        self.n_envs, self.env = vec_env.num_envs, vec_env

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """SB3's, and what the callbacks ask for in vain is said before training."""
        made = super()._init_callback(callback, progress_bar)
        spaces_of_data = self.observation_space, self.action_space, self.observation_keys
        check_callbacks(made, lambda env: check_env(env, *spaces_of_data))
        adapt_evaluations(made, lambda: self.can_act)
        return made

    def _takes_dictionaries_of(self, space: spaces.Space) -> bool:
        return isinstance(space, spaces.Dict) and set(self.observation_keys or ["\0"]) <= set(space.spaces)
