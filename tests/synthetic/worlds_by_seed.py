"""Worlds that several test files look at; built once per session."""

from functools import cache

from drivefine_agent.synthetic.world import World, build_neighbourhood, build_world

SEEDS = (3, 5, 11, 12)
DURATION_S = 40.0


@cache
def world(seed: int) -> World:
    return build_world(seed, DURATION_S)


@cache
def neighbourhood(seed: int):
    return build_neighbourhood(seed, DURATION_S)
