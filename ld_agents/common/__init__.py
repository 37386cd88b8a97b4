"""What makes an agent behind Stable-Baselines3's API: base class, training stages, policy, settings, saved file, noise.

May import `data` and `evaluation`; knows no agent.
"""
