"""Speed and latency of the agents."""
