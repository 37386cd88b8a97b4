"""The base of every agent: Stable-Baselines3's `BaseAlgorithm`, learning from a fixed data set.

An agent is a policy (`offline_policy.py`: how it acts) and a list of training stages (`Stage`). A stage is a generator
that does one gradient step per `yield`, so that `learn` can count steps, call SB3's callbacks, write logs and stop
between any two of them.
"""

import dataclasses
import io
import pathlib
import platform
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import ValidationError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from ld_agents.common import agent_file
from ld_agents.common.offline_policy import OfflinePolicy, State
from ld_agents.common.settings import explained
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.load import load_dataset
from ld_agents.evaluation import scores

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Args:
        name: prefix of its losses in the log.
        gradient_steps: its full budget in the preset.
        train: yields the losses (scalars on the device) after each gradient step.
    """

    name: str
    gradient_steps: int
    train: Callable[[], Iterator[Losses]]


class _SpacesOnlyEnv(gym.Env[Any, Any]):
    """Stands where SB3's callbacks expect a training environment."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if isinstance(self.observation_space, spaces.Dict):
            return {k: np.zeros(s.shape, s.dtype) for k, s in self.observation_space.spaces.items()}, {}
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype), {}

    def step(self, action: Any) -> Any:
        raise RuntimeError("Offline agents learn from a data set. Evaluate on an environment of your own.")


class _GradientStepBar(ProgressBarCallback):
    """SB3's bar adds the number of environments at each step; training counts gradient steps."""

    def _on_step(self) -> bool:
        self.pbar.update(1)
        return True


def _with_progress_bar(callback: MaybeCallback) -> list[BaseCallback]:
    if callback is None:
        return [_GradientStepBar()]
    if isinstance(callback, list):
        return [*callback, _GradientStepBar()]
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback), _GradientStepBar()]


class OfflineAlgorithm(BaseAlgorithm):
    """Learns from a fixed data set, behind the API of Stable-Baselines3.

    Args:
        policy: "MlpPolicy" for vectors, "MultiInputPolicy" where the goal stays in a dictionary.
        dataset: a Minari id, the path of a D4RL .hdf5 file, or an `OfflineDataset`.
        preset: "fast" (minutes on a CPU) or "paper" (published sizes). None: "paper" on a GPU, else "fast".
        family: the benchmark family whose settings (`family_settings`) go on top of the preset. "auto": that of the
            dataset's name, if it has one; None: no family's.
        seed: of weights, training and acting. None draws one.
        device: "auto", "cpu", "cuda", ...
        verbose: 0 silent, 1 logs to the terminal.
        tensorboard_log: folder of TensorBoard logs, or None.
        cpu_bf16: on a CPU, compute the matrix products of training in bfloat16. Weights stay float32, and so does all
            acting. Faster where the processor has AMX or AVX512-BF16; needs torch 2.9.
        **settings: override single settings of preset and family; see the settings class of the agent.

    Attributes:
        settings: the resolved settings.
        settings_origin: for each setting, where its value comes from: "preset", "family" or "user".
        family: the family whose settings apply, or None.

    Raises:
        TypeError: for an unknown setting.
        ValueError: for an unknown family, a setting out of range, or a policy name that does not fit the observations.
    """

    settings: Any
    policy: OfflinePolicy
    dataset: OfflineDataset | None
    _dataset_identity: dict[str, str]

    def __init__(
        self,
        policy: str,
        dataset: str | pathlib.Path | OfflineDataset,
        *,
        preset: str | None = None,
        family: str | None = "auto",
        seed: int | None = None,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | None = None,
        cpu_bf16: bool = False,
        **settings: Any,
    ) -> None:
        if not isinstance(dataset, OfflineDataset):
            dataset = load_dataset(dataset)
        self._initialise(
            policy,
            observation_space=dataset.observation_space,
            action_space=dataset.action_space,
            observation_keys=dataset.observation_keys,
            state_dim=dataset.observation_dim,
            preset=preset,
            family=scores.family(dataset.info.id) if family == "auto" else family,
            seed=int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed,
            device=device,
            verbose=verbose,
            tensorboard_log=tensorboard_log,
            cpu_bf16=cpu_bf16,
            settings=settings,
        )
        self.dataset = dataset
        self._dataset_identity = {"id": dataset.info.id, "hash": dataset.content_hash}
        self.policy = self._make_policy().to(self.device)
        if getattr(self.settings, "normalize_observations", False):
            observations = dataset.observations
            self.policy.observation_mean.copy_(observations.mean(0))
            self.policy.observation_std.copy_(observations.std(0, correction=0).clamp(min=1e-3))

    def _initialise(
        self,
        policy: str,
        *,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        observation_keys: tuple[str, ...] | None,
        state_dim: int,
        preset: str | None,
        family: str | None,
        seed: int,
        device: torch.device | str,
        verbose: int,
        tensorboard_log: str | None,
        cpu_bf16: bool,
        settings: dict[str, Any],
    ) -> None:
        """Everything but the networks."""
        if policy == "CnnPolicy":
            raise ValueError(f"{type(self).__name__} takes vectors: encode images first and pass their codes.")
        if policy == "MultiInputPolicy" and observation_keys is None:
            raise ValueError("These observations are vectors, not dictionaries: use 'MlpPolicy'.")
        if (n_actions := int(np.prod(action_space.shape))) > 1000:
            raise ValueError(f"Agents take at most 1,000 action dimensions, got {n_actions}.")
        stub = DummyVecEnv([lambda: _SpacesOnlyEnv(observation_space, action_space)])
        super().__init__(policy, stub, 0.0, tensorboard_log=tensorboard_log, verbose=verbose, device=device, seed=seed)
        self.policy_name = policy
        self.observation_keys = observation_keys
        self.state_dim = state_dim
        if cpu_bf16 and not hasattr(torch.backends.mkldnn, "matmul"):
            raise ValueError(f"cpu_bf16 needs torch 2.9 or newer, this is {torch.__version__}. Leave it out.")
        self.cpu_bf16 = cpu_bf16
        self.preset = preset or ("paper" if self.device.type == "cuda" else "fast")
        self.family = family
        self.settings, self.settings_origin = self._resolve(self.preset, family, settings)
        self.dataset = None
        self._dataset_identity = {}
        self.stage_budget: dict[str, int] = {}
        self.stage_steps: dict[str, int] = {}
        self.stage_seconds: dict[str, float] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._resumable: dict[str, Tensor] = {}
        self._resumed: dict[str, Tensor] = {}
        self._show_progress = False
        # Freeing one block of just under 32 MB makes glibc keep freed memory from then on. Without that, every larger
        # activation is given back to the kernel and faulted in anew, which can double the time of a plan.
        torch.empty((32 << 20) - 8192, dtype=torch.uint8)
        self._setup_model()

    def _setup_model(self) -> None:
        self.set_random_seed(self.seed)
        self.generator = self.derived_generator("training")

    @classmethod
    @abstractmethod
    def presets(cls) -> dict[str, Any]:
        """The settings of "fast" and "paper"."""

    @classmethod
    def family_settings(cls) -> dict[str, dict[str, Any]]:
        """What is set otherwise for each family of datasets (`scores.family`). By default nothing."""
        return {}

    def _make_policy(self) -> OfflinePolicy:
        """The networks, freshly initialised from torch's global generator, which the seed has just set."""
        return self.policy_class(  # type: ignore[return-value]
            self.observation_space,
            self.action_space,
            observation_keys=self.observation_keys,
            state_dim=self.state_dim,
            seed=self.seed,
            settings=self.settings,
        )

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The training stages in order."""

    @classmethod
    def _resolve(cls, preset: str, family: str | None, settings: dict[str, Any]) -> tuple[Any, dict[str, str]]:
        """The settings, and where each comes from."""
        presets = cls.presets()
        if preset not in presets:
            raise ValueError(f"Unknown preset {preset!r}. {cls.__name__} has {sorted(presets)}.")
        known = [field.name for field in dataclasses.fields(presets[preset])]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise TypeError(f"{cls.__name__} has no setting {', '.join(unknown)}. It has: {', '.join(known)}.")
        families = {*cls.family_settings(), *scores.FAMILIES}
        if family is not None and family not in families:
            raise ValueError(
                f"Unknown family {family!r}. Choose from {sorted(families)}, or None for the plain preset."
            )
        of_family = cls.family_settings().get(family or "", {})
        origin = dict.fromkeys(known, "preset") | dict.fromkeys(of_family, "family") | dict.fromkeys(settings, "user")
        try:
            return dataclasses.replace(presets[preset], **{**of_family, **settings}), origin
        except ValidationError as error:
            raise ValueError(explained(error)) from None

    @property
    def full_budget(self) -> int:
        """Gradient steps of the whole training, all stages together."""
        return sum(stage.gradient_steps for stage in self.stages())

    def config(self) -> dict[str, Any]:
        """The resolved configuration, ready for JSON."""
        return {
            "class": type(self).__name__,
            "policy": self.policy_name,
            "preset": self.preset,
            "family": self.family,
            "seed": self.seed,
            "cpu_bf16": self.cpu_bf16,
            "settings": dataclasses.asdict(self.settings),
            "settings_origin": self.settings_origin,
        }

    def derived_generator(self, purpose: str) -> torch.Generator:
        """A generator that depends on the agent's seed and on `purpose` alone, so that a resumed run draws the same."""
        words = np.random.SeedSequence([self.seed or 0, *purpose.encode()]).generate_state(1, np.uint64)
        return torch.Generator(self.device).manual_seed(int(words[0] >> np.uint64(1)))

    # ---------------------------------------------------------------- acting

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State | None]:
        """Acts on one observation or on a batch.

        What an agent keeps between steps, such as the latent that is held, is in `state`: pass what the last call
        returned. `state=None` and `episode_start[i]=True` mean: decide anew. Leaving `state` out is correct but slow,
        since every call then plans.

        An action is a function of the seed, the observation and the state of its own environment. With
        `deterministic=True` the same input always gives the same action; otherwise each call draws fresh noise.

        Args:
            observation: [S], [n, S], or a dictionary of such arrays.
            state: one row per environment, or None.
            episode_start: [n] booleans, or None.

        Returns:
            actions [A] or [n, A] within the action space, and the next state.
        """
        return self.policy.predict(observation, state, episode_start, deterministic)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Attaches an environment, for callbacks and `get_env`. Training never steps it."""
        vec_env = self._wrap_env(env, self.verbose)
        if not self._takes_dictionaries_of(vec_env.observation_space):
            check_for_correct_spaces(vec_env, self.observation_space, self.action_space)
        self.n_envs, self.env = vec_env.num_envs, vec_env

    def _takes_dictionaries_of(self, space: spaces.Space) -> bool:
        return isinstance(space, spaces.Dict) and set(self.observation_keys or ["\0"]) <= set(space.spaces)

    # ---------------------------------------------------------------- learning

    def learn(
        self,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 500,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Trains all stages.

        Args:
            total_timesteps: gradient steps over all stages, shared out in the proportions of the preset. None is the
                preset's full budget or, with `reset_num_timesteps=False`, what an interrupted call left undone.
            callback: SB3 callbacks; `on_step` is called after every gradient step.
            log_interval: gradient steps between two log lines. None logs nothing.
            tb_log_name: name of the TensorBoard run, by default the agent's name.
            reset_num_timesteps: False continues: stages that are finished are not redone, and the steps go to the
                unfinished ones (if there are none, to the last). The networks keep their weights either way.
            progress_bar: show one.
        """
        if self.dataset is None:
            raise ValueError(
                f"This agent has no data set. Load it with one: {type(self).__name__}.load(path, "
                f"dataset={self._dataset_identity.get('id', '...')!r})."
            )
        if total_timesteps is not None and total_timesteps < 0:
            raise ValueError(f"total_timesteps must not be negative, got {total_timesteps}.")
        if log_interval is not None and log_interval < 1:
            raise ValueError(f"log_interval must be at least 1, or None for no log, got {log_interval}.")
        self._plan_budget(total_timesteps, reset_num_timesteps)
        remaining = sum(self.stage_budget.values()) - sum(self.stage_steps.values())
        if reset_num_timesteps:
            self._optimizers, self._resumable, self._resumed = {}, {}, {}
        if progress_bar:
            callback = _with_progress_bar(callback)
        total_timesteps, callback = self._setup_learn(
            remaining, callback, reset_num_timesteps, tb_log_name or type(self).__name__
        )
        self._show_progress = progress_bar
        self._prepare_data(self.dataset)
        callback.on_training_start(locals(), globals())
        stages = self.stages()
        for stage in stages:
            if self.stage_steps[stage.name] >= self.stage_budget[stage.name]:
                continue
            if not self._run_stage(stage, callback, log_interval):
                break
            if stage is not stages[-1]:
                self._optimizers.pop(stage.name, None)
        self._release_data()
        callback.on_training_end()
        return self

    def _run_stage(self, stage: Stage, callback: Any, log_interval: int | None) -> bool:
        self.policy.set_training_mode(True)
        steps = in_bfloat16(stage.train()) if self.cpu_bf16 else stage.train()
        while True:
            started = time.perf_counter()
            losses = next(steps, None)
            self.stage_seconds[stage.name] = self.stage_seconds.get(stage.name, 0.0) + time.perf_counter() - started
            if losses is None:
                return True
            self.stage_steps[stage.name] += 1
            self.num_timesteps += 1
            if self.stage_steps[stage.name] == self.stage_budget[stage.name]:
                started = time.perf_counter()
                next(steps, None)  # what a stage does after its last gradient step must be in a checkpoint taken there
                self.stage_seconds[stage.name] += time.perf_counter() - started
            self._n_updates += 1
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            if log_interval is not None and self.num_timesteps % log_interval == 0:
                for name, value in losses.items():
                    self.logger.record(f"{stage.name}/{name}", value.item())
                self.logger.record("time/stage_seconds", self.stage_seconds[stage.name])
                self.logger.dump(self.num_timesteps)
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            if not self.policy.training:  # a callback has evaluated
                self.policy.set_training_mode(True)

    def _plan_budget(self, total: int | None, reset: bool) -> None:
        full = {stage.name: stage.gradient_steps for stage in self.stages()}
        if reset or not self.stage_budget:
            self.stage_budget = _share_out(sum(full.values()) if total is None else total, full)
            self.stage_steps = dict.fromkeys(full, 0)
            self.stage_seconds = {}
        elif total is not None:
            left = {name: budget - self.stage_steps[name] for name, budget in self.stage_budget.items()}
            for name, more in _share_out(total, left).items():
                self.stage_budget[name] = self.stage_steps[name] + more

    def remaining_steps(self, stage: str) -> range:
        """The gradient steps of a stage that are still to do, counted from the stage's own start."""
        return range(self.stage_steps[stage], self.stage_budget[stage])

    def _prepare_data(self, dataset: OfflineDataset) -> None:
        """`self.data`: the data set on the device, observations normalised, actions scaled to [-1, 1]."""
        self.data = copy(dataset.to(self.device))
        if getattr(self.settings, "normalize_observations", False):
            self.data.observation_rows = self.policy.normalize(self.data.observation_rows)
        low, high = self.policy.action_bounds()
        if not (torch.all(low == -1) and torch.all(high == 1)):
            # a dimension that never moves has no width: its scaled action is -1
            self.data.actions = 2 * (self.data.actions - low) / (high - low).clamp(min=1e-12) - 1

    def _release_data(self) -> None:
        """Drops what was only needed for training."""
        del self.data

    def optimizer(self, stage: str, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        """The Adam optimiser of a stage; continues where an interrupted run of that stage stopped."""
        if stage in self._optimizers:
            return self._optimizers[stage]
        optimizer = torch.optim.Adam(list(parameters), learning_rate, fused=True)
        prefix = f"{stage}.optimizer."
        state: dict[int, dict[str, Tensor]] = {}
        for key in [key for key in self._resumed if key.startswith(prefix)]:
            index, _, name = key.removeprefix(prefix).partition(".")
            state.setdefault(int(index) if index.isdigit() else -1, {})[name] = self._resumed.pop(key)
        if state:
            for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
                like = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
                _check_training_state(f"{prefix}{i}", state.get(i, {}), like)
            if len(state) != len(optimizer.param_groups[0]["params"]):
                raise ValueError(
                    f"The training state of this agent has too many tensors under {prefix}. Train it anew."
                )
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self._optimizers[stage] = optimizer
        return optimizer

    def resumable(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor that changes during training and is saved with the agent. `make` is called for a fresh start."""
        if name not in self._resumable:
            value = make()
            if name in self._resumed:
                resumed = self._resumed.pop(name)
                _check_training_state(name, {name: resumed}, {name: value})
                value = resumed.to(self.device)
            self._resumable[name] = value
        return self._resumable[name]

    # ---------------------------------------------------------------- saving

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Writes the agent to a zip of JSON and safetensors, whole or not at all. No pickle.

        Args:
            path: file name (".zip" is added where there is no suffix) or a binary stream.
            exclude, include: accepted for SB3's sake; the format is fixed, so they must be None.
        """
        if exclude is not None or include is not None:
            raise ValueError("The file format is fixed: save takes no exclude and no include.")
        training = {f"{name}": value.contiguous() for name, value in {**self._resumed, **self._resumable}.items()}
        for stage, optimizer in self._optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                training |= {f"{stage}.optimizer.{index}.{k}": v.contiguous() for k, v in values.items()}
        training["generator"] = self.generator.get_state()
        description = {
            **self.config(),
            "observation_space": agent_file.space_to_json(self.observation_space),
            "action_space": agent_file.space_to_json(self.action_space),
            "observation_keys": self.observation_keys,
            "state_dim": self.state_dim,
            "dataset": self._dataset_identity,
            "progress": {
                "num_timesteps": self.num_timesteps,
                "stage_budget": self.stage_budget,
                "stage_steps": self.stage_steps,
                "stage_seconds": self.stage_seconds,
                "noise_calls": self.policy.noise_calls,
                "generator_device": self.device.type,
            },
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "stable_baselines3": stable_baselines3.__version__,
            },
        }
        weights = {name: value.contiguous() for name, value in self.policy.state_dict().items()}
        agent_file.write(path, description, weights, training)

    @classmethod
    def load(  # type: ignore[override]  # the keywords are named, where SB3 takes any
        cls,
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        dataset: str | pathlib.Path | OfflineDataset | None = None,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> Self:
        """Reads an agent. Runs nothing from the file: it may come from anywhere.

        Args:
            path: what `save` wrote.
            env: attached with `set_env`, if given.
            device: where the networks go.
            custom_objects: accepted for SB3's sake and not needed.
            print_system_info: print the versions the file was written with.
            dataset: needed to go on with `learn`; must be the data the agent was trained on.

        Raises:
            ValueError: the file is damaged, holds another agent, or does not fit its own description.
        """
        description, weights, training = agent_file.read(path)
        if description.get("class") != cls.__name__:
            raise ValueError(
                f"{agent_file.source_name(path)} holds an agent of class {description.get('class')!r}: "
                f"load it with that class, not with {cls.__name__}."
            )
        if print_system_info:
            print(f"Saved with {description.get('versions')}")
        agent = cls.__new__(cls)
        try:
            agent._initialise(
                description["policy"],
                observation_space=agent_file.space_from_json(description["observation_space"]),
                action_space=agent_file.space_from_json(description["action_space"]),  # type: ignore[arg-type]
                observation_keys=tuple(description["observation_keys"]) if description["observation_keys"] else None,
                state_dim=int(description["state_dim"]),
                preset=description["preset"],
                family=None,
                seed=int(description["seed"]),
                device=device,
                verbose=verbose,
                tensorboard_log=tensorboard_log,
                cpu_bf16=description.get("cpu_bf16") is True,
                settings=description["settings"],
            )
            agent.family, agent.settings_origin = agent._origins_in(description)
            # shapes are compared before any memory is taken for them
            with torch.device("meta"):
                agent.policy = agent._make_policy()
            agent_file.check_tensors(weights, agent.policy.state_dict(), path)
            trained = {name: parameter.requires_grad for name, parameter in agent.policy.named_parameters()}
            agent.policy.load_state_dict(weights, assign=True)
            for name, parameter in agent.policy.named_parameters():
                parameter.requires_grad_(trained[name])
            agent.policy.to(agent.device).set_training_mode(False)
            progress = description["progress"]
            agent.num_timesteps = int(progress["num_timesteps"])
            agent.stage_budget = {str(k): int(v) for k, v in progress["stage_budget"].items()}
            agent.stage_steps = {str(k): int(v) for k, v in progress["stage_steps"].items()}
            agent.stage_seconds = {str(k): float(v) for k, v in progress["stage_seconds"].items()}
            agent.policy.noise_calls = int(progress["noise_calls"])
            if not 0 <= agent.policy.noise_calls < 1 << 62:
                raise OverflowError(f"noise_calls is {agent.policy.noise_calls}")
            agent._dataset_identity = dict(description["dataset"])
            state = training.pop("generator", None)
            if state is not None and progress["generator_device"] == agent.device.type:
                agent.generator.set_state(state)
            agent._check_progress()
        except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError, AssertionError) as error:
            raise ValueError(f"{agent_file.source_name(path)} is not a valid {cls.__name__} file: {error}") from error
        agent._resumed = training
        if dataset is not None:
            agent._attach(dataset if isinstance(dataset, OfflineDataset) else load_dataset(dataset))
        if env is not None:
            agent.set_env(env)
        return agent

    def _origins_in(self, description: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
        """Family and origins of settings in a saved agent. Of one saved without them, only the preset's are told."""
        preset = self.presets()[self.preset]
        compared = {
            n: "preset" if getattr(preset, n) == getattr(self.settings, n) else "user" for n in self.settings_origin
        }
        family, origin = description.get("family"), description.get("settings_origin", compared)
        if not isinstance(family, str | None) or origin.keys() != self.settings_origin.keys():
            raise KeyError("family or origins of settings")
        return family, {name: str(value) for name, value in origin.items()}

    def _check_progress(self) -> None:
        names = {stage.name for stage in self.stages()} if self.stage_budget else set()
        if set(self.stage_budget) != names or set(self.stage_steps) != names:
            raise KeyError(f"progress of the stages {sorted({*self.stage_budget, *self.stage_steps})}")
        for name, steps in self.stage_steps.items():
            if not 0 <= steps <= self.stage_budget[name] < 1 << 53:
                raise OverflowError(f"{steps} of {self.stage_budget[name]} steps of the stage {name} are done")

    def _attach(self, dataset: OfflineDataset) -> None:
        if dataset.content_hash != self._dataset_identity.get("hash"):
            raise ValueError(
                f"This agent was trained on {self._dataset_identity.get('id')} "
                f"(hash {self._dataset_identity.get('hash', '')[:12]}), not on {dataset.info.id} "
                f"(hash {dataset.content_hash[:12]}). Train a new agent for other data."
            )
        self.dataset = dataset

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: Any = "auto") -> None:
        """Sets the networks' weights from a dictionary (`get_parameters`) or from a saved agent."""
        if not isinstance(load_path_or_dict, dict):
            load_path_or_dict = {"policy": agent_file.read(load_path_or_dict)[1]}
        super().set_parameters(load_path_or_dict, exact_match, device)


def in_bfloat16(steps: Iterator[Any]) -> Iterator[Any]:
    """The same steps; while one is taken, the CPU computes float32 matrix products in bfloat16."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    while True:
        before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
        try:
            losses = next(steps, None)
        finally:
            matmul.fp32_precision = before
        if losses is None:
            return
        yield losses


def _check_training_state(where: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The fused optimiser writes wherever a wrong shape leads it, so nothing unchecked may reach it."""
    shapes = {name: (value.shape, value.dtype) for name, value in found.items()}
    if shapes != {name: (value.shape, value.dtype) for name, value in expected.items()}:
        raise ValueError(f"The training state of this agent does not fit its networks at {where}. Train it anew.")


def _share_out(total: int, weights: dict[str, int]) -> dict[str, int]:
    """Whole numbers in the proportions of `weights` that add up to `total`. Without weights the last takes all."""
    if not any(weights.values()):
        weights = {name: int(name == list(weights)[-1]) for name in weights}
    ends = np.round(np.cumsum(list(weights.values())) / sum(weights.values()) * total).astype(int)
    return dict(zip(weights, np.diff(ends, prepend=0).tolist(), strict=True))
