"""The training of every agent: stages of gradient steps, behind SB3's `learn`.

A stage is a generator that does one gradient step per `yield`, so that `learn` can count steps, call SB3's callbacks,
write logs and stop between any two of them. What a stage needs to resume is saved with the agent.
"""

import contextlib
import itertools
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from ld_agents.common.divergence import CHECK_STEPS, DivergedError, bad_loss, bad_tensor, bad_weight
from ld_agents.common.memory import free_memory
from ld_agents.common.offline_policy import OfflinePolicy
from ld_agents.data.dataset import OfflineDataset

Losses = dict[str, Tensor]

_WITHOUT_END = 1 << 52  # gradient steps; a double still counts them
# of gradient steps that are timed in bfloat16 and in float32 by turns; actors that wait for every second or third step
# get the same number of updates in each
_BLOCKS, _BLOCK_STEPS = 8, 6


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Args:
        name: prefix of its losses in the log.
        gradient_steps: its full budget in the preset.
        train: yields the losses (scalars on the device) after each gradient step.
        needs: says how many bytes it keeps on the device beside the dataset and the networks; asked before training.
    """

    name: str
    gradient_steps: int
    train: Callable[[], Iterator[Losses]]
    needs: Callable[[], int] = lambda: 0


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


class StagedTraining(BaseAlgorithm):
    """The half of `OfflineAlgorithm` that trains.

    Attributes:
        data: while training, the dataset on the device, as it is stored; see `states` and `actions`.
        generator: of all random numbers of training that no other generator draws; saved with the agent.
        stage_budget, stage_steps, stage_seconds: gradient steps to do, those done and their time, by name of the stage.
        stage_in_bfloat16: with `cpu_bf16`, by name of the stage, whether bfloat16 turned out faster and is used.
    """

    settings: Any
    policy: OfflinePolicy
    dataset: OfflineDataset | None
    data: OfflineDataset
    generator: torch.Generator
    cpu_bf16: bool
    _dataset_identity: dict[str, str]
    max_weight: ClassVar[float] = 1e3
    """Size of a weight above which training has diverged. Adam moves a weight by about its learning rate, so a million
    steps of 3e-4 could not take it there."""

    def _begin_untrained(self) -> None:
        self.generator = self.derived_generator("training")
        self.stage_budget: dict[str, int] = {}
        self.stage_steps: dict[str, int] = {}
        self.stage_seconds: dict[str, float] = {}
        self.stage_in_bfloat16: dict[str, bool] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._resumable: dict[str, Tensor] = {}
        self._resumed: dict[str, Tensor] = {}  # read from a file and not asked for yet
        self._show_progress = False

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The training stages in order."""

    @property
    def can_act(self) -> bool:
        """Whether the last stage has begun. Before, part of what chooses actions has learned nothing."""
        return self.stage_steps.get(self.stages()[-1].name, 0) > 0

    @property
    def full_budget(self) -> int:
        """Gradient steps of the whole training, all stages together."""
        return sum(stage.gradient_steps for stage in self.stages())

    def derived_generator(self, purpose: str) -> torch.Generator:
        """A generator that depends on the agent's seed and on `purpose` alone, so that a resumed run draws the same."""
        words = np.random.SeedSequence([self.seed or 0, *purpose.encode()]).generate_state(1, np.uint64)
        return torch.Generator(self.device).manual_seed(int(words[0] >> np.uint64(1)))

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
                preset's full budget or, with `reset_num_timesteps=False`, what an interrupted call left undone. With a
                single stage, `sys.maxsize` trains until a callback stops it.
            callback: SB3 callbacks; `on_step` is called after every gradient step. An `EvalCallback` waits until the
                agent can act (`can_act`), and begins each evaluation from the same seeds.
            log_interval: gradient steps between two log lines; the end of a stage is logged too. None logs nothing.
            tb_log_name: name of the TensorBoard run, by default the agent's name.
            reset_num_timesteps: False continues: stages that are finished are not redone, and the steps go to the
                unfinished ones (if there are none, to the last). The networks keep their weights either way.
            progress_bar: show one.

        Raises:
            DivergedError: a loss or weight is not finite, or a weight is above `max_weight`.
        """
        if self.dataset is None:
            raise ValueError(
                f"This agent has no dataset. Load it with one: {type(self).__name__}.load(path, dataset=data). The "
                f"data are the OfflineDataset that it learned from ({self._dataset_identity.get('id')}), made anew."
            )
        if total_timesteps is not None:
            if not total_timesteps >= 0:
                raise ValueError(f"total_timesteps must be a number that is not negative, got {total_timesteps}.")
            total_timesteps = min(total_timesteps, _WITHOUT_END)
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
        self._show_progress = progress_bar or self.verbose > 0
        if self.verbose > 0:
            left = {name: budget - self.stage_steps[name] for name, budget in self.stage_budget.items()}
            stages_left = ", ".join(f"{name} {steps:,}" for name, steps in left.items())
            print(f"{type(self).__name__} learns for {remaining:,} gradient steps: {stages_left}")
        self._last_log = self.num_timesteps, time.perf_counter()
        self._prepare_data(self.dataset)
        callback.on_training_start(locals(), globals())
        stages = [s for s in self.stages() if self.stage_steps[s.name] < self.stage_budget[s.name]]
        self._check_memory(stages)
        for stage in stages:
            if not self._run_stage(stage, callback, log_interval):
                break
            if stage is not stages[-1]:
                self._optimizers.pop(stage.name, None)
        self._release_data()
        callback.on_training_end()
        return self

    def _check_memory(self, stages: list[Stage]) -> None:
        """A stage that does not fit is told of before the first one starts."""
        free = free_memory(self.device)
        for stage in stages:
            if (needed := stage.needs()) > free:
                raise ValueError(
                    f'The stage "{stage.name}" keeps {needed / 1e9:.1f} GB beside the dataset, and {self.device} '
                    f"has {free / 1e9:.1f} GB left. Lower the settings that say how much it keeps "
                    "(q_windows; prior_windows, support_states, support_size), or take a larger machine."
                )

    def _run_stage(self, stage: Stage, callback: Any, log_interval: int | None) -> bool:
        self.policy.set_training_mode(True)
        steps = self._in_bfloat16_if_faster(stage) if self.cpu_bf16 and self.device.type == "cpu" else stage.train()
        unchecked: list[Losses] = []
        while True:
            started = time.perf_counter()
            losses = next(steps, None)
            self.stage_seconds[stage.name] = self.stage_seconds.get(stage.name, 0.0) + time.perf_counter() - started
            if losses is None:
                return True
            self.stage_steps[stage.name] += 1
            self.num_timesteps += 1
            ended = self.stage_steps[stage.name] == self.stage_budget[stage.name]
            if ended:
                started = time.perf_counter()
                next(steps, None)  # what a stage does after its last gradient step must be in a checkpoint taken there
                self.stage_seconds[stage.name] += time.perf_counter() - started
            unchecked.append(losses)
            if len(unchecked) == CHECK_STEPS or ended:
                self._check_step(stage.name, unchecked)
                unchecked = []
            self._n_updates += 1
            self._last_losses = stage.name, losses
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            if log_interval is not None and (ended or self.num_timesteps % log_interval == 0):
                self.dump_logs()
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            if not self.policy.training:  # a callback has evaluated
                self.policy.set_training_mode(True)

    def _in_bfloat16_if_faster(self, stage: Stage) -> Iterator[Losses]:
        """The stage's gradient steps, with matrix products in bfloat16 if they take less time with it on this machine.

        The first ones are taken both ways by turns. With AMX, LDCQ's VAE takes .66 of its time in float32, and
        LatentDiffuser's, of many small products, 1.7 times that. A processor without instructions for bfloat16 computes
        in float32 either way.
        """
        steps, chosen, marks = stage.train(), self.stage_in_bfloat16, list[float]()
        for step in itertools.count():
            if stage.name not in chosen and step % _BLOCK_STEPS == 0:
                marks.append(self.stage_seconds.get(stage.name, 0.0))
                if len(marks) > _BLOCKS:
                    blocks = np.diff(marks)
                    # least, not mean: first calls and other processes only ever add time
                    ratio = blocks[::2].min() / blocks[1::2].min()
                    chosen[stage.name] = bool(ratio < 1)
                    if self.verbose > 0:
                        use = "bfloat16" if ratio < 1 else "float32"
                        print(f"{stage.name} goes on in {use}; with bfloat16 a step takes {ratio:.2f} of its time")
            rounded = chosen.get(stage.name, step // _BLOCK_STEPS % 2 == 0)
            with in_bfloat16() if rounded else contextlib.nullcontext():
                losses = next(steps, None)
            if losses is None:
                return
            yield losses

    def _check_step(self, stage: str, unchecked: list[Losses]) -> None:
        loss, weight = bad_loss(unchecked), bad_weight(self.policy, self.max_weight)
        if loss is None and weight is None:
            return
        step = self.stage_steps[stage] - len(unchecked) + 1 + (loss[0] if loss else 0)
        when = f"at gradient step {step}: {loss[1]}" if loss else f"by gradient step {self.stage_steps[stage]}"
        raise DivergedError(
            f"{type(self).__name__} diverged in stage {stage} {when}; first bad tensor: {weight or 'none'}. Lower the "
            "learning rate, or look for extreme values in the data. What was saved before is good."
        )

    def check_finite(self) -> None:
        """Raises DivergedError if weights or optimizers hold what must not be saved."""
        optimizers = {name: value for name, value in self.training_state().items() if ".optimizer." in name}
        if (bad := bad_weight(self.policy, self.max_weight) or bad_tensor(optimizers)) is not None:
            begun = [f" in stage {stage} by gradient step {step}" for stage, step in self.stage_steps.items() if step]
            raise DivergedError(
                f"{type(self).__name__} diverged{begun[-1] if begun else ''} and is not saved: {bad}. Lower the "
                "learning rate. What was saved before is good."
            )

    def dump_logs(self) -> None:
        """Writes the losses of the last gradient step to the log; SB3's `LogEveryNTimesteps` calls it."""
        stage, losses = self._last_losses
        for name, value in losses.items():
            self.logger.record(f"{stage}/{name}", value.item())
        (steps_then, then), now = self._last_log, time.perf_counter()
        speed = (self.num_timesteps - steps_then) / max(now - then, 1e-9)
        self._last_log = self.num_timesteps, now
        self.logger.record("time/stage", stage, exclude="tensorboard")
        self.logger.record("time/stage_seconds", self.stage_seconds[stage])
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.record("time/fps", round(speed, 1))
        self.logger.record("time/eta_seconds", round((self._total_timesteps - self.num_timesteps) / max(speed, 1e-9)))
        self.logger.dump(self.num_timesteps)

    def _plan_budget(self, total: int | None, reset: bool) -> None:
        full = {stage.name: stage.gradient_steps for stage in self.stages()}
        if reset or not self.stage_budget:
            self.stage_budget = _share_out(sum(full.values()) if total is None else total, full)
            self.stage_steps = dict.fromkeys(full, 0)
            self.stage_seconds, self.stage_in_bfloat16 = {}, {}
        elif total is not None:
            left = {name: budget - self.stage_steps[name] for name, budget in self.stage_budget.items()}
            for name, more in _share_out(total, left).items():
                self.stage_budget[name] = self.stage_steps[name] + more

    def remaining_steps(self, stage: str) -> range:
        """The gradient steps of a stage that are still to do, counted from the stage's own start."""
        return range(self.stage_steps[stage], self.stage_budget[stage])

    def _prepare_data(self, dataset: OfflineDataset) -> None:
        """`self.data`: the dataset on the device, read through `states` and `actions`: only batches are copied."""
        self.data = dataset.to(self.device)
        low, high = self.policy.action_bounds()
        # a dimension that never moves has no width: its scaled action is -1
        self._scale_actions = None if (low == -1).all() and (high == 1).all() else (low, (high - low).clamp(min=1e-12))

    def states(self, rows: Tensor) -> Tensor:
        """Normalized observations. Shapes [...], rows of `observation_rows` -> [..., S]."""
        return self.policy.normalize(self.raw_rows(rows))

    def raw_rows(self, rows: Tensor) -> Tensor:
        """Observations as the data hold them. Shapes [...], rows of `observation_rows` -> [..., S]."""
        return _take(self.data.observation_rows, rows)

    def actions(self, rows: Tensor) -> Tensor:
        """Actions scaled to [-1, 1]. Shapes [...] -> [..., A]."""
        actions = _take(self.data.actions, rows)
        if self._scale_actions is None:
            return actions
        low, width = self._scale_actions
        return 2 * (actions - low) / width - 1

    def random_indices(self, n: int, batch_size: int) -> Tensor:
        """Numbers below n, drawn with replacement. Shape [batch_size]."""
        return torch.randint(n, (batch_size,), generator=self.generator, device=self.device)

    def in_proportion(self, n: int, stage: str) -> int:
        """How many of n things a stage prepares: fewer, but 1,000, where `learn` gave it less than its full budget."""
        full = {each.name: each.gradient_steps for each in self.stages()}[stage]
        return min(n, max(1000, math.ceil(n * self.stage_budget[stage] / max(1, full))))

    def most_rows(self, n: int | None, stage: str) -> int:
        """How many rows of the data a stage prepares at most, of which a setting allows n; None allows all."""
        return self.in_proportion(min(n or self.data.n_steps, self.data.n_steps), stage)

    def random_subset(self, starts: Tensor, n: int | None, purpose: str, stage: str | None = None) -> Tensor:
        """n of some rows in their order, drawn by seed and purpose alone; None is all. Shapes [W] -> [min(n, W)].

        With a stage they are fewer where it has less than its full budget (`in_proportion`).
        """
        n = len(starts) if n is None else min(n, len(starts))
        n = n if stage is None else self.in_proportion(n, stage)
        if n == len(starts):
            return starts
        order = torch.randperm(len(starts), generator=self.derived_generator(purpose), device=self.device)
        return starts[order[:n].sort().values]

    def _release_data(self) -> None:
        """Frees what only training needs."""
        del self.data

    def optimizer(self, stage: str, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        """The Adam optimizer of a stage; continues where an interrupted run of that stage stopped."""
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

    def cosine_decay(self, stage: str, step: int) -> float:
        """Factor of a learning rate that falls from 1 to 0 over the budget of a stage."""
        return 0.5 * (1 + math.cos(math.pi * step / max(1, self.stage_budget[stage])))

    @staticmethod
    def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

    def training_state(self) -> dict[str, Tensor]:
        """What `learn` needs to resume: optimizer states, resumable tensors, the state of the generator."""
        state = {**self._resumed, **self._resumable, "generator": self.generator.get_state()}
        for stage, optimizer in self._optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                state |= {f"{stage}.optimizer.{index}.{name}": value for name, value in values.items()}
        return {name: value.contiguous() for name, value in state.items()}


@contextlib.contextmanager
def in_bfloat16() -> Iterator[None]:
    """Within it the CPU computes float32 matrix products in bfloat16."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _check_training_state(where: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The fused optimizer writes wherever a wrong shape leads it, so nothing unchecked may reach it."""
    shapes = {name: (value.shape, value.dtype) for name, value in found.items()}
    if shapes != {name: (value.shape, value.dtype) for name, value in expected.items()}:
        raise ValueError(f"The training state of this agent does not fit its networks at {where}. Train it anew.")


def _share_out(total: int, weights: dict[str, int]) -> dict[str, int]:
    """Whole numbers in the proportions of `weights` that add up to `total`. Without weights the last takes all."""
    if not any(weights.values()):
        weights = {name: int(name == list(weights)[-1]) for name in weights}
    ends = np.round(np.cumsum(list(weights.values())) / sum(weights.values()) * total).astype(int)
    return dict(zip(weights, np.diff(ends, prepend=0).tolist(), strict=True))


def _take(columns: Tensor, rows: Tensor) -> Tensor:
    """`columns[rows]`, three times as fast on a CPU. Shapes [N, D], [...] -> [..., D]."""
    return columns.index_select(0, rows.reshape(-1)).view(*rows.shape, columns.shape[1])
