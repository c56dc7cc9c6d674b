"""Reinforcement learning of DriveFine: flat scripts and the modules they use."""
