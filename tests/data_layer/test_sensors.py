import io
import re
import struct
import tracemalloc
import zlib

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


def with_declared_size(content: bytes, form: str, size: int) -> bytes:
    """An image whose header declares `size` x `size` pixels."""
    if form == "PNG":
        header = b"IHDR" + struct.pack(">II", size, size) + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    frame = re.search(rb"\xff\xc0\x00\x11\x08", content)
    assert frame is not None
    return content[: frame.end()] + struct.pack(">HH", size, size) + content[frame.end() + 4 :]


def encoded(form: str, pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("form", "size"), [("PNG", 10_000), ("PNG", 100_000), ("JPEG", 10_000), ("JPEG", 65_000)]
)
def test_an_image_that_declares_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, form, size):
    path = tmp_path / "bomb.jpg"
    path.write_bytes(with_declared_size(encoded(form, picture()[:64, :64]), form, size))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"(pixels, got 10000 x 10000|not a readable image).*bomb\.jpg"):
            read_image(tmp_path, "bomb.jpg")
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "EPS", "WEBP", "PPM"])
def test_only_jpeg_and_png_are_read(tmp_path, form):
    """Pillow would run Ghostscript for an EPS."""
    (tmp_path / "a.jpg").write_bytes(encoded(form, picture()[:64, :64]))
    with pytest.raises(DataError, match=r"not a readable image.*a\.jpg"):
        read_image(tmp_path, "a.jpg")


def test_a_png_is_read_as_it_is_and_refused_when_it_ends_early(tmp_path):
    content = encoded("PNG", picture())
    (tmp_path / "a.png").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path, "a.png"), picture())
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"not a readable image.*a\.png"):
        read_image(tmp_path, "a.png")


def test_a_jpeg_with_thousands_of_passes_is_refused(tmp_path):
    content = encoded("JPEG", picture()[:64, :64])
    scan = content[content.index(b"\xff\xda") : -2]
    (tmp_path / "slow.jpg").write_bytes(content[:-2] + scan * 1000 + b"\xff\xd9")
    with pytest.raises(DataError, match=r"100 scans, got 1001: .*slow\.jpg"):
        read_image(tmp_path, "slow.jpg")


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
