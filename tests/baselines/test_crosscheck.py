"""The losses of the baselines equal TorchRL's on the same weights and the same batch (extra `crosscheck`).

Both sides get the same random numbers: the seed of torch's global generator where TorchRL draws from it (uniform
actions, TD3's smoothing noise), and a distribution that takes its normal noise from a list where an actor is sampled.

TorchRL's `CQLLoss` differs from the paper in three ways; `test_what_torchrl_takes_for_the_conservative_loss` pins the
first two down. With N actions of each kind, it takes N log-sum-exps over 3 actions instead of one over 3N. The actions
drawn at s' are valued at s', not at s. In the Lagrange version, the multiplier does not enter the critics' loss. The
conservative part is therefore compared for N = 1 and s' = s, where the first two make no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_baselines_td3 import ready
from torch import Tensor, distributions, nn

from ld_agents import OfflineDataset
from ld_agents.baselines.cql import CQL, SquashedGaussian
from ld_agents.baselines.iql import IQL
from ld_agents.baselines.td3_bc import TD3BC
from ld_agents.baselines.transitions import Transitions

objectives = pytest.importorskip("torchrl.objectives")
tensordict = pytest.importorskip("tensordict")
tensordict_nn = pytest.importorskip("tensordict.nn")

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

TOLERANCE = 1e-5
B = 16


def transitions(agent: Any) -> tuple[Tensor, ...]:
    """The first batch; every third step ends in a terminal, every fifth in a timeout (see `as_tensordict`)."""
    batch = next(
        Transitions(agent.data, states=agent.states, actions=agent.actions).batches(
            range(1), B, agent.derived_generator
        )
    )
    batch[1].clamp_(-0.95, 0.95)
    batch[3].copy_(torch.arange(B) % 3 != 0)
    return batch


def as_tensordict(batch: tuple[Tensor, ...]) -> Any:
    """TorchRL calls an episode `done` at its end, and `terminated` where nothing may be bootstrapped."""
    observations, actions, rewards, masks, next_observations = batch
    terminated = masks[:, None] == 0
    after = {
        "observation": next_observations.clone(),
        "reward": rewards[:, None].clone(),
        "terminated": terminated,
        "done": terminated | (torch.arange(B)[:, None] % 5 == 0),
    }
    return tensordict.TensorDict({"observation": observations.clone(), "action": actions.clone(), "next": after}, [B])


class Column(nn.Module):
    """TorchRL wants values as [B, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Tensor:
        values = self.net(*inputs)
        return values if isinstance(self.net, nn.Sequential) else values[..., None]


def critics(networks: Any) -> list[Any]:
    keys = {"in_keys": ["observation", "action"], "out_keys": ["state_action_value"]}
    return [tensordict_nn.TensorDictModule(Column(critic), **keys) for critic in networks]


def set_targets(loss: Any, targets: Any, actor: Any = None) -> None:
    """TorchRL copies the online networks; here the targets are others."""
    loss.target_qvalue_network_params.data.update_(tensordict.TensorDict.from_modules(*critics(targets)).data)
    if actor is not None:
        loss.target_actor_network_params.data.update_(tensordict.TensorDict.from_module(actor).data)


def compare(theirs: Tensor, ours: Tensor) -> None:
    assert theirs.item() == pytest.approx(ours.item(), rel=TOLERANCE, abs=TOLERANCE)


# ---------------------------------------------------------------- TD3+BC


def test_td3bc(dataset: OfflineDataset) -> None:
    agent = ready(TD3BC, dataset, alpha=1.7, discount=0.9, target_noise=0.3, target_noise_clip=0.4)
    batch = transitions(agent)
    actor, target_actor = (
        tensordict_nn.TensorDictModule(net, in_keys=["observation"], out_keys=["action"])
        for net in (agent.policy.actor, agent.policy.target_actor)
    )
    loss = objectives.TD3BCLoss(
        actor,
        critics(agent.policy.critics),
        bounds=(-1.0, 1.0),
        policy_noise=0.3,
        noise_clip=0.4,
        alpha=1.7,
        loss_function="l2",
    )
    loss.make_value_estimator(gamma=0.9)
    set_targets(loss, agent.policy.target_critics, target_actor)
    torch.manual_seed(5)
    theirs = loss(as_tensordict(batch))
    agent.generator.manual_seed(5)
    compare(theirs["loss_qvalue"], agent.critic_loss(batch))
    compare(theirs["loss_actor"], agent.actor_loss(batch))


# ---------------------------------------------------------------- IQL


class MeanAndDeviation(nn.Module):
    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        means = self.actor(observations)
        return means, self.actor.clamped_log_std().exp().expand_as(means)


def independent_normal(loc: Tensor, scale: Tensor) -> distributions.Distribution:
    return distributions.Independent(distributions.Normal(loc, scale), 1)


def stochastic(net: nn.Module, distribution: Callable[..., distributions.Distribution]) -> Any:
    return tensordict_nn.ProbabilisticTensorDictSequential(
        tensordict_nn.TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        tensordict_nn.ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"], out_keys=["action"], distribution_class=distribution
        ),
    )


@pytest.mark.parametrize(("expectile", "temperature"), [(0.7, 20.0), (0.9, 30.0)])
def test_iql(dataset: OfflineDataset, expectile: float, temperature: float) -> None:
    agent = ready(IQL, dataset, expectile=expectile, temperature=temperature, discount=0.9)
    policy, batch = agent.policy, transitions(agent)
    with torch.no_grad():  # advantages of both signs
        policy.value[-1].bias += agent.advantages(batch).median()
    value = tensordict_nn.TensorDictModule(Column(policy.value), in_keys=["observation"], out_keys=["state_value"])
    loss = objectives.IQLLoss(
        stochastic(MeanAndDeviation(policy.actor), independent_normal),
        critics(policy.critics),
        value,
        loss_function="l2",
        temperature=temperature,
        expectile=expectile,
    )
    loss.make_value_estimator(gamma=0.9)
    set_targets(loss, policy.target_critics)
    theirs = loss(as_tensordict(batch))
    advantages = agent.advantages(batch).detach()
    compare(theirs["loss_value"], agent.value_loss(advantages))
    compare(theirs["loss_qvalue"], agent.critic_loss(batch))
    assert 0 < (torch.exp(temperature * advantages) > 100).float().mean() < 1
    compare(theirs["loss_actor"], agent.actor_loss(batch, advantages))


# ---------------------------------------------------------------- CQL


class GivenNoise(distributions.TransformedDistribution):
    """The tanh of a Gaussian that takes its noise, one tensor per sample, from a list."""

    noise: list[Tensor]

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(independent_normal(loc, scale), [distributions.TanhTransform(cache_size=1)])
        self.loc, self.scale = loc, scale

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noise = self.noise.pop(0).view(self.loc.shape)
        return self.transforms[0](self.loc + self.scale * noise)


class MeanAndScale(nn.Module):
    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        means, log_std = self.actor(observations)
        return means, log_std.exp()


def cql_pair(data: OfflineDataset, n_actions: int, **settings: Any) -> tuple[CQL, Any]:
    """An agent of ours and TorchRL's loss on its networks."""
    agent = ready(CQL, data, **{"critic_hidden": (12, 8), "discount": 0.9, "n_actions": n_actions, **settings})
    policy, s = agent.policy, agent.settings
    loss = objectives.CQLLoss(
        stochastic(MeanAndScale(policy.actor), GivenNoise),
        critics(policy.critics),
        loss_function="l2",
        alpha_init=policy.log_entropy.exp().item(),
        target_entropy=-2.0,
        min_q_weight=s.conservative_weight,
        max_q_backup=s.max_target_backup,
        num_random=n_actions,
        with_lagrange=s.target_action_gap is not None,
        lagrange_thresh=s.target_action_gap or 0.0,
    )
    loss.make_value_estimator(gamma=0.9)
    set_targets(loss, policy.target_critics)
    return agent, loss


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def halves(agent: CQL, batch: tuple[Tensor, ...]) -> tuple[SquashedGaussian, SquashedGaussian]:
    return agent.policy.actor(torch.cat([batch[0], batch[4]])).halves()


@pytest.mark.parametrize("max_target_backup", [False, True])
def test_cql_bellman_actor_and_entropy(dataset: OfflineDataset, max_target_backup: bool) -> None:
    """With one action, the largest of N minima and the smallest of two maxima (theirs) are the same."""
    agent, loss = cql_pair(dataset, 1, max_target_backup=max_target_backup)
    batch = transitions(agent)
    current, following = halves(agent, batch)
    epsilon, next_epsilon = normal(B, 2), normal(B, 1, 2)
    # theirs draws a single next action first, which max_q_backup then does not use
    GivenNoise.noise = [*([torch.zeros(B, 2)] if max_target_backup else []), next_epsilon]
    theirs, _ = loss.q_loss(as_tensordict(batch))
    agent._normal = lambda shape: next_epsilon  # type: ignore[method-assign]
    q = agent.q_values(agent.policy.critics, batch[0], batch[1][:, None])
    compare(theirs, agent.bellman_loss(q, agent.targets(batch, following)))

    chosen, log_density = current.sample(epsilon)
    GivenNoise.noise = [epsilon]
    theirs, drawn = loss.actor_loss(as_tensordict(batch))
    compare(theirs, agent.actor_loss(batch[0], chosen, log_density))
    theirs, _ = loss.alpha_loss(drawn)
    compare(theirs, agent.entropy_loss(log_density))
    GivenNoise.noise = [epsilon]
    theirs, _ = loss.actor_bc_loss(as_tensordict(batch))
    compare(theirs, agent.cloning_loss(current, batch[1], log_density))


def conservative(
    agent: CQL, loss: Any, batch: tuple[Tensor, ...], n: int
) -> tuple[Any, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """TorchRL's losses; our Q of the data's and the sampled actions, and the log densities; actions and densities."""
    noise = [normal(B, n, 2), normal(B + 1, n, 2)[:B]]
    GivenNoise.noise = [
        torch.zeros(B, 2),
        *([torch.zeros(B, n, 2)] if agent.settings.max_target_backup else []),
        *noise,
    ]
    data = as_tensordict(batch)
    loss.q_loss(data)
    torch.manual_seed(5)
    theirs = {"conservative": loss.cql_loss(data)[0]}
    if agent.settings.target_action_gap is not None:
        theirs["multiplier"] = loss.alpha_prime_loss(data)[0]
    agent.generator.manual_seed(5)
    agent._normal = lambda shape: noise.pop(0)  # type: ignore[method-assign]
    sampled, log_densities = agent.sampled_actions(*halves(agent, batch))
    q = agent.q_values(agent.policy.critics, batch[0], torch.cat([batch[1][:, None], sampled], 1))
    return theirs, (q, log_densities), (sampled, log_densities)


@pytest.mark.parametrize("conservative_weight", [1.0, 5.0])
def test_cql_conservative_loss(dataset: OfflineDataset, conservative_weight: float) -> None:
    agent, loss = cql_pair(dataset, 1, conservative_weight=conservative_weight)
    observations, actions, rewards, masks, _ = transitions(agent)
    batch = (observations, actions, rewards, masks, observations)
    theirs, ours, _ = conservative(agent, loss, batch, 1)
    compare(theirs["conservative"], agent.conservative_loss(agent.gaps(*ours)))


def test_cql_lagrange_multiplier(dataset: OfflineDataset) -> None:
    """With a weight of 1: theirs compares the weighted gap with the target."""
    agent, loss = cql_pair(dataset, 1, conservative_weight=1.0, target_action_gap=0.6)
    with torch.no_grad():
        loss.log_alpha_prime.copy_(agent.policy.log_multiplier)
    observations, actions, rewards, masks, _ = transitions(agent)
    theirs, ours, _ = conservative(agent, loss, (observations, actions, rewards, masks, observations), 1)
    compare(theirs["multiplier"], agent.multiplier_loss(agent.gaps(*ours)))


def test_what_torchrl_takes_for_the_conservative_loss(dataset: OfflineDataset) -> None:
    """N log-sum-exps over one action of each kind, the third kind valued at s'."""
    n = 4
    agent, loss = cql_pair(dataset, n, conservative_weight=1.0)
    batch = transitions(agent)
    theirs, (q, log_densities), (sampled, _) = conservative(agent, loss, batch, n)
    at_next = agent.q_values(agent.policy.critics, batch[4], sampled[:, 2 * n :])
    values = torch.cat([q[:, :, 1 : 1 + 2 * n], at_next], 2) - log_densities  # [2, B, 3N]
    per_draw = torch.logsumexp(values.view(2, B, 3, n), 2)  # [2, B, N]
    slipped = (per_draw.mean((1, 2)) - q[:, :, 0].mean(1)).sum()
    compare(theirs["conservative"], slipped)
    assert abs(slipped.item() - agent.conservative_loss(agent.gaps(q, log_densities)).item()) > np.log(n)
