"""Hydra plugin: makes DriveFine's agents known to every Hydra application of the environment."""
