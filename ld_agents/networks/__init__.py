"""The networks of the agents: pure `torch` modules that know no dataset and no algorithm."""
