"""The networks of the agents: pure `torch` modules that know no data set and no algorithm."""
