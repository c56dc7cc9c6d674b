import numpy as np
import pytest
import torch

from drivefine_agent.data.types import Observation
from drivefine_agent.model.tiles import TileSpec, tile_image
from drivefine_agent.training.augmentation import jitter_light, mirror_motion, mirror_poses, mirror_tiles


@pytest.mark.parametrize(
    "spec", [TileSpec(2, 1, 32, interpolation="area"), TileSpec(4, 2, 24, interpolation="area")]
)
def test_mirrored_tiles_are_the_tiles_of_the_mirrored_image(spec: TileSpec) -> None:
    image = np.random.default_rng(0).integers(0, 256, size=(108, 192, 3), dtype=np.uint8)
    mirrored = mirror_tiles(tile_image(image, spec), spec)
    expected = tile_image(np.ascontiguousarray(image[:, ::-1]), spec)
    difference = np.abs(mirrored.astype(int) - expected.astype(int))
    assert difference.max() <= 1, "averages of the same pixels, summed from the other side"


def test_mirroring_twice_changes_nothing() -> None:
    spec = TileSpec(3, 2, 8)
    tiles = np.random.default_rng(0).integers(0, 256, size=(5, 6, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(mirror_tiles(mirror_tiles(tiles, spec), spec), tiles)


def test_a_left_turn_becomes_a_right_turn() -> None:
    observation = Observation(
        image=np.zeros((1, 1, 3), np.uint8),
        history_poses=np.array([[-3.0, 0.2, -0.1], [-2.0, 0.1, -0.05], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        velocity=np.array([5.0, 0.5]),
        acceleration=np.array([1.0, -0.25]),
        driving_command=np.array([1, 0, 0, 0]),
    )
    mirrored = mirror_motion(observation)
    assert mirrored.driving_command.tolist() == [0, 0, 1, 0]
    assert mirrored.velocity.tolist() == [5.0, -0.5]
    assert mirrored.acceleration.tolist() == [1.0, 0.25]
    np.testing.assert_allclose(mirrored.history_poses[0], [-3.0, -0.2, 0.1])
    np.testing.assert_allclose(mirror_poses(np.array([[10.0, 2.0, 0.3]])), [[10.0, -2.0, -0.3]])


@pytest.mark.parametrize("command", [1, 3], ids=["straight", "unknown"])
def test_commands_without_a_side_stay(command: int) -> None:
    one_hot = np.eye(4, dtype=np.int64)[command]
    observation = Observation(
        np.zeros((1, 1, 3), np.uint8), np.zeros((4, 3)), np.zeros(2), np.zeros(2), one_hot
    )
    np.testing.assert_array_equal(mirror_motion(observation).driving_command, one_hot)


def test_jitter_changes_each_image_by_one_line_per_channel() -> None:
    """Within an image and channel the new value is a straight line of the old one, cut and rounded."""
    levels = (
        torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(4, 1, 16, 16, 3).contiguous()
    )
    changed = jitter_light(levels, 0.2, torch.Generator().manual_seed(0))
    assert changed.dtype == torch.uint8
    for image in changed.flatten(1, 3).double():  # (256, 3)
        for channel in image.T:
            inside = (channel > 0) & (channel < 255)
            steps = channel[inside].diff()
            assert steps.max() - steps.min() <= 1
            slope = (channel[inside][-1] - channel[inside][0]) / (inside.sum() - 1)
            assert 0.8 * 0.9 - 0.01 <= slope <= 1.2 * 1.1 + 0.01
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 4, "each image has its own light"


def test_no_jitter_changes_nothing() -> None:
    tiles = torch.randint(0, 256, (2, 1, 4, 4, 3), dtype=torch.uint8)
    assert torch.equal(jitter_light(tiles, 0.0, torch.Generator()), tiles)
