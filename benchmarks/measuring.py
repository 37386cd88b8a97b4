"""What is measured on a trained agent beside its score, while it is there: the key `measured` of a run file.

| key | what |
| --- | --- |
| `plan_ms`, `plan_mflop` | a decision for one observation: milliseconds, millions of floating point operations |
| `action_error` | share of the variance of the data's actions that decoded latents of the data leave unexplained |
| `draws` | the next four of the agent's own draws, other start noises, the VAE's prior, uniform latents, Q's choice |
| `outside` | share of draws, or of the policy's actions, that lie outside the data's support |
| `unlikely` | share of draws whose decoder makes the actions of the nearest window of the data unlikely |
| `covered` | share of the data's latents near which one of 16 draws at their state lies |
| `action_spread` | variance among the actions that 16 draws at a state decode to, over that of the data's actions |
| `same_task` | Kitchen: share of windows whose nearest latent of another episode goes before the same task |
| `latent_map` | Kitchen: latents in the planes of two principal components and of t-SNE, and the task that comes next |
| `tilt` | mean standardized return of guided plans, less that of unguided ones |
| `value`, `discounted_return` | Q of what is chosen where episodes start, and the discounted return that came |
| `overestimation` | the difference of these two |

Support: the data's episodes are halved. Points are states and latents (or actions) side by side, each part scaled to a
variance of 1 in total. Outside is what lies farther from the nearest point of one half than 95 % of the other half do,
so that 5 % of the data themselves are outside; in the same way 5 % are unlikely. States are those of the other half.
"""

from __future__ import annotations

import time
from statistics import fmean, median
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ld_agents.common.actor_policy import ActorPolicy
from ld_agents.data.dataset import OfflineDataset
from ld_agents.evaluation.rollouts import evaluate
from ld_agents.evaluation.scores import family
from ld_agents.latent_diffuser import LatentDiffuser
from ld_agents.latent_prior import LatentPriorTraining
from ld_agents.ldcq import LDCQ

REFERENCE, HELD_OUT, DRAWS = 8192, 512, 16
INSIDE = 0.95
EPISODES = 25
DECISIONS = 20
MAPPED = 1000


def measure(agent: Any, dataset: OfflineDataset, seed: int) -> dict[str, Any]:
    """Everything that can be measured on an agent that has learned from the dataset. `seed`: of the episodes."""
    rng = torch.Generator().manual_seed(0)
    measured = planning_cost(agent, dataset) | value_of_starts(agent, dataset, seed)
    agent.policy.set_training_mode(False)
    agent._prepare_data(dataset)
    with torch.no_grad():
        if isinstance(agent, LatentPriorTraining):
            measured |= latent_measures(agent, rng)
        elif isinstance(agent, LatentDiffuser):
            measured |= plan_measures(agent, rng)
        else:
            measured |= action_support(agent, dataset, rng)
    agent._release_data()
    return measured


# Costs


def planning_cost(agent: Any, dataset: OfflineDataset) -> dict[str, float]:
    """What one decision for one observation costs."""
    observation, seconds = dataset.observations[:1].numpy(), []
    agent.predict(observation, deterministic=True)  # computes what later decisions share
    with FlopCounterMode(display=False) as counter:
        agent.predict(observation, deterministic=True)
    for _ in range(DECISIONS):
        started = time.perf_counter()
        agent.predict(observation, deterministic=True)
        seconds.append(time.perf_counter() - started)
    return {"plan_ms": 1000 * median(seconds), "plan_mflop": counter.get_total_flops() / 1e6}


# Values


class _DiscountedReturn(gym.Wrapper[Any, Any, Any, Any]):
    """Sums up the discounted rewards of its episode."""

    def __init__(self, env: gym.Env[Any, Any], discount: float) -> None:
        super().__init__(env)
        self.discount, self.weight, self.total = discount, 1.0, 0.0

    def step(self, action: Any) -> Any:
        result = super().step(action)
        self.total += self.weight * float(result[1])
        self.weight *= self.discount
        return result


def value_of_starts(agent: Any, dataset: OfflineDataset, seed: int) -> dict[str, float]:
    """Q of what is chosen where episodes start, and the discounted return that came; {} without Q in these units.

    A return ends with its episode, Q does not: with the step limit T, Q may be larger by discount^T of a value.
    """
    s = agent.settings
    if not hasattr(agent.policy, "critics") or getattr(s, "normalize_rewards", False):
        return {}
    if isinstance(agent.policy, ActorPolicy) and (s.reward_scale, s.reward_shift) != (1, 0):
        return {}
    envs: list[_DiscountedReturn] = []
    starts: list[NDArray[Any]] = []

    def make_env() -> gym.Env[Any, Any]:
        envs.append(_DiscountedReturn(dataset.make_eval_env(), s.discount))
        return envs[-1]

    class Watched:
        def predict(
            self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
        ) -> tuple[Any, Any]:
            if not starts:
                starts.append(dataset.flatten_observation(observation))
            return agent.predict(observation, state, episode_start, deterministic)

    evaluate(Watched(), make_env, EPISODES, seed=seed, n_envs=EPISODES)  # an environment for each episode
    values = chosen_values(agent, torch.as_tensor(starts[0], device=agent.device))
    found = {"value": float(values.mean()), "discounted_return": fmean(env.total for env in envs)}
    return found | {"overestimation": found["value"] - found["discounted_return"]}


def chosen_values(agent: Any, observations: Tensor) -> Tensor:
    """min_i Q_i of what is chosen at observations, in units of reward. Shapes [n, S] -> [n]."""
    policy = agent.policy
    with torch.no_grad():
        if isinstance(agent, LDCQ):
            return policy.propose(observations)[1].amax(1)
        states = policy.states_of(observations)
        return torch.minimum(*(critic(states, policy.action(states, None)) for critic in policy.critics))


# Support


class Support(NamedTuple):
    """Points of the data, and how far from the nearest of them a point may lie."""

    points: Tensor  # [R, D]
    limit: Tensor  # []

    @classmethod
    def of(cls, points: Tensor, held_out: Tensor) -> Support:
        return cls(points, nearest(held_out, points)[0].quantile(INSIDE))

    def outside(self, points: Tensor) -> float:
        """Share of points [Q, D] that lie too far away."""
        return float((nearest(points, self.points)[0] > self.limit).float().mean())


def nearest(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the nearest points, and which these are. Shapes [Q, D], [R, D] -> two of [Q]."""
    found = [torch.cdist(chunk, points).min(1) for chunk in queries.split(1024)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def beside(states: Tensor, values: Tensor, like: tuple[Tensor, Tensor]) -> Tensor:
    """States and values as points, each scaled to variance 1 in total over `like`. [Q, S], [Q, D] -> [Q, S + D]."""
    parts = []
    for x, data in zip((states, values), like, strict=True):
        parts.append((x - data.mean(0)) / (data.std(0).clamp(min=1e-3) * data.shape[1] ** 0.5))
    return torch.cat(parts, 1)


def halves(rows: Tensor, data: OfflineDataset, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of rows [W], some from every other episode, and some from the episodes between them. [R], [Q] int64."""
    rows = rows.long().cpu()
    odd = torch.searchsorted(data.episode_ends.cpu(), rows, right=True) % 2 == 1
    some = []
    for half, n in ((rows[~odd], REFERENCE), (rows[odd], HELD_OUT)):
        some.append(half[torch.randperm(len(half), generator=rng)[:n]].to(data.rewards.device))
    return some[0], some[1]


def action_support(agent: Any, dataset: OfflineDataset, rng: torch.Generator) -> dict[str, Any]:
    """How many of a policy's actions lie outside the data's support."""
    reference, held_out = halves(torch.arange(dataset.n_steps), agent.data, rng)
    like = agent.states(reference), agent.actions(reference)
    states = agent.states(held_out)
    support = Support.of(beside(*like, like), beside(states, agent.actions(held_out), like))
    actions = torch.as_tensor(agent.predict(agent.raw_rows(held_out).cpu().numpy(), deterministic=True)[0])
    low, high = agent.policy.action_bounds()
    scaled = 2 * (actions.to(low).flatten(1) - low) / (high - low) - 1
    return {"outside": support.outside(beside(states, scaled, like))}


# Agents with latents


def latent_measures(agent: LatentPriorTraining, rng: torch.Generator) -> dict[str, Any]:
    """Reconstruction, and draws from several places against the data's support. Latents are standardized."""
    reference, held_out = halves(agent._window_starts(), agent.data, rng)
    points, targets = (agent._standardized(agent._encode(starts)) for starts in (reference, held_out))
    states, like = agent.conditions(held_out), (agent.conditions(reference), points)
    data = beside(states, targets, like)
    support = Support.of(beside(*like, like), data)

    def surprise(latents: Tensor, placed: Tensor) -> Tensor:
        """-log pi(a | s, z) of the nearest window's actions under latents, per step. [Q, Z], [Q, S + Z] -> [Q]."""
        found = []
        for some, at in zip(latents.split(1024), placed.split(1024), strict=True):
            starts = reference[nearest(at, support.points)[1]]
            window_states, actions = agent._windows(starts)
            seen = window_states[..., : agent.policy.vae_state_dim]
            steps = agent.policy.vae.action(seen, agent.policy._raw(some)[:, None], actions)
            recorded = agent.data.window_rows(starts, agent.settings.horizon)[1]
            found.append((steps.negative_log_density(actions) * recorded).sum(1) / recorded.sum(1))
        return torch.cat(found)

    usual = surprise(targets, data).quantile(INSIDE)
    states_in, actions = agent._windows(held_out)
    seen = states_in[..., : agent.policy.vae_state_dim]
    draws: dict[str, dict[str, float]] = {}
    for name, latents in latents_at(agent, states, points, rng).items():
        n = latents.shape[1]
        flat = latents.flatten(0, 1)
        placed = beside(states.repeat_interleave(n, 0), flat, like)
        near = (placed.view(len(data), n, -1) - data[:, None]).norm(dim=2).amin(1) <= support.limit
        unlikely = (surprise(flat, placed) > usual).float().mean()
        draws[name] = {"outside": support.outside(placed), "unlikely": float(unlikely)}
        if n == DRAWS:
            decoded = agent.policy.vae.action.act(seen[:, :1].expand(-1, n, -1), agent.policy._raw(latents), None)
            draws[name] |= {"covered": float(near.float().mean()), "action_spread": spread(decoded, actions[:, 0])}
    recorded = agent.data.window_rows(held_out, agent.settings.horizon)[1]
    decoded = agent.policy.vae.action.act(seen, agent.policy._raw(targets)[:, None].expand(-1, seen.shape[1], -1), None)
    measured = {"action_error": unexplained(decoded[recorded], actions[recorded]), **draws["own"], "draws": draws}
    if family(agent.data.info.id) == "kitchen":
        tasks = next_tasks(agent.data.observations, agent.data.episode_ends)
        same = tasks[reference][nearest(targets, points)[1]] == tasks[held_out]
        measured["same_task"] = float(same.float().mean())
        measured["latent_map"] = latent_map(points[:MAPPED], tasks[reference][:MAPPED])
    return measured


def latents_at(agent: LatentPriorTraining, states: Tensor, points: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    """Draws at states from the agent's own prior and others, and the one that Q chooses. [Q, S], [R, Z] -> [Q, n, Z].

    `points` are latents of the data, whose box the uniform ones fill.
    """
    policy = agent.policy

    def noise() -> Tensor:
        return torch.randn(len(states), DRAWS, points.shape[1], generator=rng).to(states.device)

    def prior(scale: float) -> Tensor:  # beside that of the settings
        return policy.draw_latents(states, lambda _: scale / policy.settings.noise_scale * noise())

    draws = {"own": prior(policy.settings.noise_scale)}
    if policy.has_denoiser:
        draws |= {"start noise 1": prior(1.0), "start noise 1.5": prior(1.5)}
        gaussian = policy.vae.prior(states[:, None, : policy.vae_state_dim])
        draws["Gaussian"] = agent._standardized(gaussian.sample(noise()))
    low, high = points.amin(0), points.amax(0)
    draws["uniform"] = low + (high - low) * torch.rand(noise().shape, generator=rng).to(states.device)
    if isinstance(agent, LDCQ):
        best = agent.policy.score(states[:, None], draws["own"]).argmax(1)
        draws["chosen"] = draws["own"][torch.arange(len(best)), best][:, None]
    return draws


def next_tasks(observations: Tensor, ends: Tensor) -> Tensor:
    """Which task of the kitchen an episode does next; their number where none comes. Shapes [N, 59], [E] -> [N]."""
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env

    offset = 9  # of the joints' velocities, which observations hold before the objects
    done = torch.stack(
        [
            (observations[:, kitchen_env.OBS_ELEMENT_INDICES[task] + offset] - torch.as_tensor(goal).to(observations))
            .norm(dim=1)
            .lt(kitchen_env.BONUS_THRESH)
            for task, goal in kitchen_env.OBS_ELEMENT_GOALS.items()
        ],
        1,
    )  # [N, tasks]
    found = torch.full((len(observations),), done.shape[1])
    for begin, end in zip([0, *ends.tolist()[:-1]], ends.tolist(), strict=True):
        coming = done.shape[1]
        for row in range(end - 2, begin - 1, -1):
            begun = (done[row + 1] & ~done[row]).nonzero()
            coming = int(begun[0]) if len(begun) else coming
            found[row] = coming
    return found


def latent_map(latents: Tensor, tasks: Tensor) -> dict[str, Any]:
    """Latents [W, Z] in two planes: of their principal components, with the share of variance of each, and of t-SNE."""
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env
    from sklearn.manifold import TSNE

    centered = latents - latents.mean(0)
    _, sizes, directions = torch.linalg.svd(centered, full_matrices=False)
    places = centered @ directions[:2].T
    embedded = TSNE(perplexity=min(30, len(latents) / 4), random_state=0).fit_transform(latents.cpu().numpy())
    return {
        "places": [[round(x, 3) for x in place] for place in places.tolist()],
        "tsne": [[round(x, 2) for x in place] for place in embedded.tolist()],
        "variance": (sizes**2 / (sizes**2).sum())[:2].tolist(),
        "tasks": tasks.tolist(),
        "names": [*kitchen_env.OBS_ELEMENT_GOALS, "none"],
    }


def unexplained(decoded: Tensor, actions: Tensor) -> float:
    """Squared error of decoded actions over the variance of actions. Shapes [N, A], [N, A]."""
    return float((decoded - actions).square().sum() / (actions - actions.mean(0)).square().sum())


def spread(decoded: Tensor, actions: Tensor) -> float:
    """Variance among the n actions of each state over the variance of the data's. Shapes [Q, n, A], [Q, A].

    Where it is 0, there is nothing to choose from.
    """
    return float(decoded.var(1).sum(1).mean() / actions.var(0, correction=0).sum())


def plan_measures(agent: LatentDiffuser, rng: torch.Generator) -> dict[str, Any]:
    """Reconstruction, and how far guidance moves the returns of plans, in standard deviations of the prior's."""
    policy = agent.policy
    _, starts = halves(agent.window_starts, agent.data, rng)
    tokens, inside = agent.windows(starts)
    states, first = tokens[..., : policy.state_dim], policy.state_dim
    actions = tokens[..., first : first + policy.action_dim]
    decoded = policy.vae.decode(agent._encode(starts), states[:, 0])
    measured = {"action_error": unexplained(decoded.actions[inside], actions[inside])}
    start = torch.randn(len(starts) * DRAWS, *policy.latent_shape, generator=rng).to(agent.device)
    at = states[:, 0].repeat_interleave(DRAWS, 0)
    latents = policy.draw_latents(states[:, 0], start, guided=False)
    # the first action is taken in the state that is seen, not in the one that is decoded
    drawn = policy.vae.decode(policy._raw(latents), at, at[:, None].expand(-1, policy.settings.horizon, -1))
    measured["action_spread"] = spread(drawn.actions[:, 0].unflatten(0, (-1, DRAWS)), actions[:, 0])
    if policy.settings.guidance == "none" or not policy.settings.guidance_scale:
        return measured | {"tilt": 0.0}
    guided = policy.draw_latents(states[:, 0], start)
    returns = [policy.standard_returns(each, at).mean() for each in (guided, latents)]
    return measured | {"tilt": float(returns[0] - returns[1])}
