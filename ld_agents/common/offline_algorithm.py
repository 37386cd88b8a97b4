"""The base of every agent: Stable-Baselines3's `BaseAlgorithm`, learning from a fixed dataset.

An agent is a policy (`offline_policy.py`: how it acts) and a list of training stages (`staged_training.py`). This file
has what is around them: settings and saving; acting and evaluation are in `acting.py`.
"""

import contextlib
import dataclasses
import io
import pathlib
import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from ld_agents.common import agent_file
from ld_agents.common.acting import ActingAgent
from ld_agents.common.attached import SpacesOnlyEnv
from ld_agents.common.divergence import DivergedError, bad_tensor
from ld_agents.common.offline_policy import OfflinePolicy
from ld_agents.common.onnx_export import ONNXExport
from ld_agents.common.settings import layered
from ld_agents.common.staged_training import Losses, Stage, in_bfloat16
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.frames import is_frame_space
from ld_agents.data.load import load_dataset
from ld_agents.data.returns import moments
from ld_agents.evaluation import scores

__all__ = ["DivergedError", "Losses", "OfflineAlgorithm", "Stage", "in_bfloat16"]


@contextlib.contextmanager
def _global_generators_kept() -> Iterator[None]:
    """Agents seed the global generators when they are made or given a seed; loading leaves them as they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    started = torch.cuda.is_initialized()  # asking a GPU for its state would start CUDA, which a forked process cannot
    with torch.random.fork_rng(range(torch.cuda.device_count()) if started else ()):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
    if not started:
        torch.cuda.manual_seed_all(torch.initial_seed())  # the caller's again, of a CUDA that starts later


class OfflineAlgorithm(ONNXExport, ActingAgent):
    """Learns from a fixed dataset, behind the API of Stable-Baselines3.

    Args:
        policy: "MlpPolicy" for vectors, "MultiInputPolicy" where the goal stays in a dictionary, "CnnPolicy" for
            images (LDCQ and BC).
        dataset: an `OfflineDataset`, or whatever `load_dataset` takes.
        preset: one of `presets()`, such as "fast" (minutes on a CPU), which None is too, and "paper" (published sizes:
            days, on a GPU).
        family: the benchmark family whose settings (`family_settings`) go on top of the preset. "auto": that of the
            dataset's name, if it has one; None: no family's.
        seed: of weights, training and acting. None draws one.
        device: "auto", "cpu", "cuda", ...
        verbose: 0 silent, 1 logs to the terminal.
        tensorboard_log: folder of TensorBoard logs, or None.
        cpu_bf16: on a CPU, compute the matrix products of training in bfloat16, in those stages in which that turns out
            faster: each begins with 48 gradient steps that time both, and `stage_in_bfloat16` tells what came out. So
            equal seeds give equal weights only where the measurements agree. Weights stay float32, and so does all
            acting. It gains where the processor has AMX; without instructions for bfloat16 it changes nothing. Needs
            torch 2.9.
        **settings: override single settings of preset and family; see the settings class of the agent.

    Attributes:
        settings: the resolved settings.
        settings_origin: for each setting, where its value comes from: "preset", "family" or "user".
        family: the family whose settings apply, or None.

    Raises:
        TypeError: for an unknown setting.
        ValueError: for an unknown family, a setting out of range, or a policy name that does not fit the observations.
    """

    retired_settings: ClassVar[dict[str, Any]] = {}  # switches of earlier versions, with the one value that is left

    def __init__(
        self,
        policy: str,
        dataset: Any,
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
        settings = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
        self._initialize(
            policy,
            observation_space=dataset.observation_space,
            action_space=dataset.action_space,
            observation_keys=dataset.observation_keys,
            state_dim=dataset.observation_dim,
            preset=preset,
            family=scores.family(dataset.info.id) if family == "auto" else family,
            # numpy's global generator, as in SB3: whoever seeds it gets the same agent again
            seed=int(np.random.randint(1 << 32, dtype=np.uint32) if seed is None else seed),
            device=device,
            verbose=verbose,
            tensorboard_log=tensorboard_log,
            cpu_bf16=cpu_bf16,
            settings=settings,
        )
        self.dataset = dataset
        self._dataset_identity = {"id": dataset.info.id, "hash": dataset.content_hash}
        if dataset.info.eval_env is not None and dataset.info.eval_env.is_plain():
            self._dataset_identity["env"] = dataset.info.eval_env.id
        self.policy = self._make_policy().to(self.device)
        if getattr(self.settings, "normalize_observations", False) and not dataset.has_frames:
            self._normalize_as(dataset)

    def _normalize_as(self, dataset: OfflineDataset) -> None:
        """Observations are normalized by mean and deviation of the data."""
        mean, std = moments(dataset.observations)
        self.policy.observation_mean.copy_(mean)
        self.policy.observation_std.copy_(std.clamp(min=1e-3))

    def _initialize(
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
        if (dtype := torch.get_default_dtype()) != torch.float32:
            raise ValueError(
                f"Agents compute in float32, but torch makes {dtype} by default. Call "
                "torch.set_default_dtype(torch.float32) before you make or load one."
            )
        policy = self._alias(policy, is_frame_space(observation_space))
        if policy == "CnnPolicy" and policy not in self.policy_aliases:
            raise ValueError(f"{type(self).__name__} takes vectors: encode images first and pass their codes.")
        if (policy == "CnnPolicy") != is_frame_space(observation_space):
            instead = "use 'MlpPolicy'" if policy == "CnnPolicy" else "images: use 'CnnPolicy', with LDCQ or BC"
            raise ValueError(f"Observations are in {observation_space}: {instead}.")
        if policy == "MultiInputPolicy" and observation_keys is None:
            raise ValueError("These observations are vectors, not dictionaries: use 'MlpPolicy'.")
        if (n_actions := int(np.prod(action_space.shape))) > 1000:
            raise ValueError(f"Agents take at most 1,000 action dimensions, got {n_actions}.")
        stub = DummyVecEnv([lambda: SpacesOnlyEnv(observation_space, action_space)])
        super().__init__(policy, stub, 0.0, tensorboard_log=tensorboard_log, verbose=verbose, device=device, seed=seed)
        self.policy_name = policy
        self.observation_keys = observation_keys
        self.state_dim = state_dim
        if cpu_bf16 and not hasattr(torch.backends.mkldnn, "matmul"):
            raise ValueError(f"cpu_bf16 needs torch 2.9 or newer, this is {torch.__version__}. Leave it out.")
        self.cpu_bf16 = cpu_bf16
        self.preset = preset or "fast"
        self.family = family
        self.settings, self.settings_origin = self._resolve(self.preset, family, settings)
        self.dataset, self._dataset_identity = None, {}
        # Freeing one block of just under 32 MB makes glibc keep freed memory from then on. Without that, every larger
        # activation is given back to the kernel and faulted in anew, which can double the time of a plan.
        torch.empty((32 << 20) - 8192, dtype=torch.uint8)
        self._setup_model()

    def _alias(self, policy: Any, frames: bool) -> str:
        """The name of a policy, which files and settings know it by, also where its class was given."""
        names = [name for name, cls in self.policy_aliases.items() if cls is policy] or [policy]
        name = "CnnPolicy" if frames and "CnnPolicy" in names else names[0]
        if name not in ("MlpPolicy", "MultiInputPolicy", "CnnPolicy"):
            raise ValueError(
                f"{type(self).__name__} has no policy {policy!r}. Use one of {sorted(self.policy_aliases)}."
            )
        return str(name)

    def _setup_model(self) -> None:
        self.set_random_seed(self.seed)
        self._begin_untrained()

    @classmethod
    @abstractmethod
    def presets(cls) -> dict[str, Any]:
        """The settings of "fast" and "paper"."""

    @classmethod
    def family_settings(cls, preset: str = "fast") -> dict[str, dict[str, Any]]:
        """What is set otherwise for each family of datasets (`scores.family`). By default nothing."""
        return {}

    @classmethod
    def complete_older_file(cls, settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Adds, in place, what an agent saved by an earlier version lacks, so that it acts as it did then."""

    def _make_policy(self) -> OfflinePolicy:
        """The networks, freshly initialized from torch's global generator, which the seed has just set."""
        return self.policy_class(  # type: ignore[return-value]
            self.observation_space,
            self.action_space,
            observation_keys=self.observation_keys,
            state_dim=self.state_dim,
            seed=self.seed,
            settings=self.settings,
        )

    @classmethod
    def _resolve(cls, preset: str, family: str | None, settings: dict[str, Any]) -> tuple[Any, dict[str, str]]:
        """The settings, and where each comes from."""
        presets = cls.presets()
        if preset not in presets:
            raise ValueError(f"Unknown preset {preset!r}. {cls.__name__} has {sorted(presets)}.")
        by_family = cls.family_settings(preset)
        families = {*by_family, *scores.FAMILIES}
        if family is not None and family not in families:
            raise ValueError(f"Unknown family {family!r}. Choose from {sorted(families)}, or None.")
        return layered(cls.__name__, presets[preset], by_family.get(family or "", {}), settings)

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

    # ---------------------------------------------------------------- saving

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Writes the agent atomically to a zip of JSON and safetensors. No pickle.

        Args:
            path: file name (".zip" is added where there is no suffix) or a binary stream.
            exclude, include: part of SB3's signature; the format is fixed, so they must be None.

        Raises:
            DivergedError: weights or optimizers are not finite, or weights above `max_weight`.
        """
        if exclude is not None or include is not None:
            raise ValueError("The file format is fixed: save takes no exclude and no include.")
        self.check_finite()
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
                "stage_in_bfloat16": self.stage_in_bfloat16,
                "noise_calls": self.policy.noise_calls,
                "generator_device": self.device.type,
            },
            **({"inference_only": True} if self.policy.inference_only else {}),
        }
        # of a module under torch.compile the names begin with _orig_mod
        state = self.policy.state_dict().items()
        weights = {name.replace("_orig_mod.", ""): value.contiguous() for name, value in state}
        agent_file.write(path, description, weights, self.training_state())

    @classmethod
    @torch.inference_mode(False)  # weights that were made in that mode are of no use outside
    @_global_generators_kept()
    def load(  # type: ignore[override]  # the keywords are named, where SB3 takes any
        cls,
        path: str | pathlib.Path | io.BufferedIOBase,
        env: gym.Env[Any, Any] | VecEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        dataset: Any = None,
        seed: int | None = None,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> Self:
        """Reads an agent. Executes nothing from the file, which may come from an untrusted source.

        Args:
            path: what `save` wrote.
            env: attached with `set_env`, if given.
            device: where the networks go.
            custom_objects: part of SB3's signature; ignored.
            print_system_info: print the versions the file was written with.
            dataset: needed to resume `learn`; must be the data that the agent was trained on.
            seed: of the noise of acting from now on. None: that of the agent.

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
            cls._drop_retired_settings(description)
            cls.complete_older_file(description["settings"], weights)
            agent._initialize(
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
                settings={**description["settings"], **description.get("image_settings", {})},
            )
            agent.family, agent.settings_origin = agent._origins_in(description)
            # shapes are compared before any memory is taken for them
            with torch.device("meta"):
                agent.policy = agent._make_policy()
            if description.get("inference_only") is True:
                agent.policy.drop(agent.policy.state_dict().keys() - weights.keys())
            agent_file.check_tensors(weights, agent.policy.state_dict(), path)
            optimizers = {name: value for name, value in training.items() if ".optimizer." in name}
            if (bad := bad_tensor(weights | optimizers)) is not None:
                raise ValueError(f"{agent_file.source_name(path)}: {bad}. Train the agent anew.")
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
            agent.stage_in_bfloat16 = {str(k): v is True for k, v in progress.get("stage_in_bfloat16", {}).items()}
            if not 0 <= (calls := int(progress["noise_calls"])) < 1 << 62:
                raise OverflowError(f"noise_calls is {calls}")
            agent.policy.noise_calls = calls
            agent._dataset_identity = dict(description["dataset"])
            state = training.pop("generator", None)
            if state is not None and progress["generator_device"] == agent.device.type:
                agent.generator.set_state(state)
            agent._check_progress()
        except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError, AssertionError) as error:
            raise ValueError(f"{agent_file.source_name(path)} is not a valid {cls.__name__} file: {error}") from error
        agent._resumed = training
        agent.set_random_seed(seed)
        if dataset is not None:
            agent._attach(dataset if isinstance(dataset, OfflineDataset) else load_dataset(dataset))
        if env is not None:
            agent.set_env(env)
        return agent

    @classmethod
    def _drop_retired_settings(cls, description: dict[str, Any]) -> None:
        for name, left in cls.retired_settings.items():
            description.get("settings_origin", {}).pop(name, None)
            if (saved := description["settings"].pop(name, left)) != left:
                raise ValueError(
                    f"The file has {name}={saved!r}; only {left!r} is left. Load it with an older version."
                )

    def _origins_in(self, description: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
        """Family and origins of settings in a saved agent; of settings that are newer than it, as the preset tells."""
        preset = self.presets()[self.preset]
        compared = {
            n: "preset" if getattr(preset, n) == getattr(self.settings, n) else "user" for n in self.settings_origin
        }
        family, origin = description.get("family"), description.get("settings_origin", compared)
        newer = self.settings_origin.keys() - description["settings"].keys()
        if not isinstance(family, str | None) or origin.keys() | newer != self.settings_origin.keys():
            raise KeyError("family or origins of settings")
        return family, {name: str(value) for name, value in (compared | origin).items()}

    def _check_progress(self) -> None:
        names = {stage.name for stage in self.stages()} if self.stage_budget else set()
        if set(self.stage_budget) != names or set(self.stage_steps) != names:
            raise KeyError(f"progress of the stages {sorted({*self.stage_budget, *self.stage_steps})}")
        for name, steps in self.stage_steps.items():
            if not 0 <= steps <= self.stage_budget[name] < 1 << 53:
                raise OverflowError(f"{steps} of {self.stage_budget[name]} steps of the stage {name} are done")

    def _attach(self, dataset: OfflineDataset) -> None:
        if self.policy.inference_only:
            raise ValueError("This file holds what acting needs and no more. Load it without a dataset, or train anew.")
        if not dataset.has_hash(self._dataset_identity.get("hash", "")):
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
