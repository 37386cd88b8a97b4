"""Values of a window's steps: what the return module learns, Q(s_t, a_t).

| targets        | Q(s_t, a_t) is                                                    | policy whose values these are |
| -------------- | ----------------------------------------------------------------- | ----------------------------- |
| "data"         | G_t, rewards to the end of the episode                            | behavior                      |
| "bootstrapped" | rewards of the window, then averaged Q of its last step           | behavior                      |
| "expectile"    | rewards of the window, then averaged V of its last state          | in-sample optimal             |

"expectile" is IQL (Kostrikov et al. 2022, arXiv 2110.06169, eqs. 5 and 6) over windows instead of single steps. With T
the last step of the window inside the episode,

    y_t = sum_{k=t}^{T-1} gamma^{k-t} r_k + gamma^{T-t} V_average(s_T),        t < T
    V   = argmin E |tau - 1(y_t < V(s_t))| (y_t - V(s_t))^2
    Q   = argmin E (y_t - Q(s_t, a_t))^2

At tau = 0.5 V is the behavior's value; as tau goes to 1 it is the best of what the data do after s_t, stitched together
at the ends of windows. Nothing outside the data is ever looked up. Trajectory Transformer and TAP replace returns-to-go
by an IQL critic on AntMaze for the same reason: where the data wander at random, the behavior's values are nearly flat.
"""

import torch
from torch import Tensor, nn

from ld_agents.networks.critics import mlp


class StateValue(nn.Module):
    """V(s): linear layers and ReLU."""

    def __init__(self, state_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.net = mlp(state_dim, *hidden, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Shapes [..., S] -> [...]."""
        return self.net(states).squeeze(-1)


def window_targets(returns: Tensor, last: Tensor, value: Tensor, terminal: Tensor, discount: float) -> Tensor:
    """Returns-to-go whose part from the last step on is a value.

    The discounted rewards up to the last step are G_t less what G_last adds to it, so no reward is summed here. A
    terminal leaves nothing to estimate.

    Args:
        returns: G of the steps of windows, [B, T].
        last: index of the last step inside the episode, [B].
        value: of that step, in the units of `returns`, [B].
        terminal: whether the episode ends there in a terminal, [B] bool.
        discount: gamma, per environment step.

    Returns:
        [B, T]; steps behind the last one are not to be used.
    """
    at_last = returns.gather(1, last[:, None])[:, 0]
    steps_left = (last[:, None] - torch.arange(returns.shape[1], device=returns.device)).clamp(min=0)
    return returns + discount**steps_left * ((value - at_last) * ~terminal)[:, None]


def expectile_loss(errors: Tensor, expectile: float) -> Tensor:
    """|tau - 1(error < 0)| error^2 (IQL, eq. 5), of targets less predictions. Shapes [...] -> [...]."""
    return torch.where(errors > 0, expectile, 1 - expectile) * errors**2
