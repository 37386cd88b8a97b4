"""What makes an agent behind Stable-Baselines3's API: base class, policy, file format, repeatable noise, replay.

May import `data` and `evaluation`; knows no agent.
"""
