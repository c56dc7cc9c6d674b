"""Image -> tiles."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import SiglipVisionConfig

from drivefine_agent.model.tiles import TileSpec, tile_image


def gradient_image(height: int = 1080, width: int = 1920) -> np.ndarray:
    """Red grows to the right, green downwards."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    image[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    return image


def stitched(tiles: np.ndarray, spec: TileSpec) -> np.ndarray:
    """The canvas, tile by tile."""
    rows = [
        np.concatenate(list(tiles[r * spec.cols : (r + 1) * spec.cols]), axis=1) for r in range(spec.rows)
    ]
    return np.concatenate(rows, axis=0)


@pytest.mark.parametrize("fit", ["resize", "crop", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bicubic", "area"])
def test_tiles_have_the_promised_shape(fit: str, interpolation: str) -> None:
    spec = TileSpec(4, 2, 96, fit, interpolation)
    tiles = tile_image(gradient_image(), spec)
    assert tiles.shape == (8, 96, 96, 3)
    assert tiles.dtype == np.uint8
    assert tiles.flags.c_contiguous


def test_bicubic_resize_is_pillows() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    spec = TileSpec(4, 2, 384)
    expected = np.asarray(Image.fromarray(image).resize((1536, 768), Image.Resampling.BICUBIC))
    assert (stitched(tile_image(image, spec), spec) == expected).all()


def test_pixels_reach_the_model_as_siglips_processor_would_send_them() -> None:
    processor_module = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    image = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    size = SiglipVisionConfig(image_size=384).image_size
    processor = processor_module.SiglipImageProcessorPil(size={"height": size, "width": size})
    expected = np.asarray(processor(Image.fromarray(image), return_tensors="np")["pixel_values"])[0]
    tiles = tile_image(image, TileSpec(1, 1, size))
    got = ((tiles[0].astype(np.float32) / 255.0 - 0.5) / 0.5).transpose(2, 0, 1)
    assert np.abs(got - expected).max() < 1e-6


def test_area_resize_averages() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    spec = TileSpec(2, 1, 16, "resize", "area")
    expected = image.reshape(16, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(stitched(tile_image(image, spec), spec) - expected).max() <= 0.5 + 1e-9


def test_tiles_are_cut_row_by_row() -> None:
    spec = TileSpec(4, 2, 48, "resize", "area")
    tiles = tile_image(gradient_image(), spec)
    red, green = tiles[..., 0].mean(axis=(1, 2)), tiles[..., 1].mean(axis=(1, 2))
    assert (np.diff(red.reshape(2, 4), axis=1) > 40).all()
    assert (green[4:] - green[:4] > 100).all()


def test_crop_cuts_sixty_pixels_above_and_below() -> None:
    image = gradient_image()
    image[:60], image[-60:] = 255, 255  # blue only there
    spec = TileSpec(4, 2, 96, "crop", "area")
    assert tile_image(image, spec)[..., 2].max() == 0


def test_letterbox_bars_are_black_and_the_rest_is_visible() -> None:
    image = np.full((1080, 1920, 3), 200, dtype=np.uint8)
    spec = TileSpec(4, 2, 384, "letterbox")
    canvas = stitched(tile_image(image, spec), spec)
    # 768 / 1080 * 1920 = 1365.33, rounded up as LaViDa does: 1366 columns, 85 black ones on either side.
    assert (canvas[:, :85] == 0).all()
    assert (canvas[:, 85 : 85 + 1366] == 200).all()
    assert (canvas[:, 85 + 1366 :] == 0).all()
    assert spec.visible_cells(14) == (slice(0, 28), slice(3, 53))  # 50 of 56 columns
    tall = TileSpec(1, 1, 384, "letterbox")
    assert tall.visible_cells(14) == (
        slice(3, 11),
        slice(0, 14),
    )  # int(1080 * 14 / 1920) = 7 rows in (14 - 7) // 2


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) of uint8, got \(10, 10\)"):
        tile_image(np.zeros((10, 10), dtype=np.uint8), TileSpec())
    with pytest.raises(ValueError, match="of float64"):
        tile_image(np.zeros((10, 10, 3)), TileSpec())
    with pytest.raises(ValueError, match="must be positive"):
        TileSpec(cols=0)
