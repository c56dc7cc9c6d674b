import numpy as np
import pytest
from PIL import Image

from drivefine_agent.constants import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX
from drivefine_agent.data.sensors import image_path, read_image, write_image
from drivefine_agent.errors import DataError

PATH = "log/CAM_F0/token.jpg"


def picture():
    """Left half red, right half blue."""
    pixels = np.zeros((IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, 3), dtype=np.uint8)
    pixels[:, : IMAGE_WIDTH_PX // 2, 0] = 200
    pixels[:, IMAGE_WIDTH_PX // 2 :, 2] = 200
    return pixels


def test_write_then_read_keeps_colours_and_sides(tmp_path):
    path = write_image(tmp_path, PATH, picture())
    assert path == tmp_path / "log" / "CAM_F0" / "token.jpg"
    pixels = read_image(tmp_path, PATH)
    assert pixels.shape == (1080, 1920, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[500, 100].astype(int), [200, 0, 0], atol=4)
    np.testing.assert_allclose(pixels[500, 1800].astype(int), [0, 0, 200], atol=4)


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    one, other = write_image(tmp_path, "a.jpg", picture()), write_image(tmp_path, "b.jpg", picture())
    assert one.read_bytes() == other.read_bytes()


def test_navsim_reads_the_same_pixels(tmp_path):
    path = write_image(tmp_path, PATH, picture())
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.array(image), read_image(tmp_path, PATH))


def test_a_missing_image_is_named_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no image at .*token\.jpg: set original_sensor_path"):
        read_image(tmp_path, PATH)


@pytest.mark.parametrize("content", [b"", b"not a picture", None], ids=["empty", "text", "truncated"])
def test_a_damaged_image_is_named(tmp_path, content):
    path = write_image(tmp_path, PATH, picture())
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(DataError, match=r"not a readable image .*token\.jpg"):
        read_image(tmp_path, PATH)


def test_an_image_of_another_size_is_taken_as_navsim_takes_it(navsim_mini):
    path = next((navsim_mini / "sensor_blobs" / "test").rglob("*.jpg"))
    assert read_image(path.parent, path.name).shape == (270, 480, 3)


@pytest.mark.parametrize("data_path", ["../secret.jpg", "a/../../b.jpg", "/etc/passwd", ""])
def test_a_path_may_not_leave_the_sensor_folder(tmp_path, data_path):
    with pytest.raises(DataError, match="must stay inside the sensor folder"):
        image_path(tmp_path, data_path)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)])
def test_only_rgb_bytes_are_written(tmp_path, pixels):
    with pytest.raises(DataError, match=r"must be \(H, W, 3\) uint8"):
        write_image(tmp_path, PATH, pixels)
