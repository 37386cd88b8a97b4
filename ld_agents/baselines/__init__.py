"""The baselines that the two planners are compared with."""
