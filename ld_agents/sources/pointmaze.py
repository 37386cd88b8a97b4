"""The path under which stored datasets name the wrapper, so that Minari's `recover_environment` still finds it."""

from ld_agents.evaluation.eval_env import FixedGoal

__all__ = ["FixedGoal"]
