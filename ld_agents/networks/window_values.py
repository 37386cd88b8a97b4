"""Values over the steps of a window: what Q(s_t, a_t) learns.

| targets        | Q(s_t, a_t) is                                                    | policy whose values these are |
| -------------- | ----------------------------------------------------------------- | ----------------------------- |
| "data"         | G_t, rewards to the end of the episode                            | behavior                      |
| "bootstrapped" | rewards of n steps, then averaged Q of the step after them        | behavior                      |
| "expectile"    | rewards of n steps, then averaged V of the state after them       | in-sample optimal             |

"expectile" is IQL (Kostrikov et al. 2022, arXiv 2110.06169, eqs. 5 and 6) over n steps instead of one, n drawn from
1..T-1, as many as a window of T steps may still hold:

    y_t = sum_{k=t}^{t+n-1} gamma^{k-t} r_k + gamma^n V_average(s_{t+n})
    V   = argmin E |tau - 1(y_t < V(s_t))| (y_t - V(s_t))^2
    Q   = argmin E (y_t - Q(s_t, a_t))^2

At tau = 0.5 V is the behavior's value; as tau goes to 1 it is the best of what the data do after s_t, stitched together
every n steps. Nothing outside the data is ever looked up. Trajectory Transformer and TAP replace returns-to-go by an
IQL critic on AntMaze for the same reason: where the data wander at random, the behavior's values are nearly flat.
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


def n_step_targets(
    returns: Tensor, later_returns: Tensor, value: Tensor, terminal: Tensor, n: Tensor, discount: float
) -> Tensor:
    """Returns-to-go whose part after n steps is a value.

    The discounted rewards of the n steps are G_t less what G_{t+n} adds to it, so no reward is summed here. Where the
    later step is a terminal's, nothing is left to estimate.

    Args:
        returns, later_returns: G of a step and of the one n steps later. Shape [B] each.
        value: of the later step, in the units of `returns`. Shape [B].
        terminal: whether the later step ends its episode in a terminal. Shape [B] bool.
        n: environment steps between the two. Shape [B].
        discount: gamma, per environment step.

    Returns:
        y. Shape [B].
    """
    return returns + discount**n * (value - later_returns) * ~terminal


def expectile_loss(errors: Tensor, expectile: float) -> Tensor:
    """|tau - 1(error < 0)| error^2 (IQL, eq. 5), of targets less predictions. Shapes [...] -> [...]."""
    return torch.where(errors > 0, expectile, 1 - expectile) * errors**2
