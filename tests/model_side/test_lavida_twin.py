"""Our model against a small random twin that LaViDa's own code ran (tests/data/README.md says how).

The twin is a checkpoint in LaViDa's layout and goes through tools/import_checkpoint.py, so that the table of
names is tested with it. Expected numbers are LaViDa's.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import TWIN, TWIN_TEXT_ROWS, save_twin_tokenizer, tool, twin_config
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.tiles import TileSpec, tile_image

GOLDEN = load_file(TWIN / "golden.safetensors")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twin as a DriveFine checkpoint, in several shards."""
    folder = tmp_path_factory.mktemp("twin")
    save_twin_tokenizer(folder / "tokenizer")
    (folder / "config.json").write_text(twin_config().to_json_string(use_diff=False))
    tool("import_checkpoint")(
        [
            str(TWIN),
            "--output", str(folder / "model"),
            "--tokenizer", str(folder / "tokenizer"),
            "--config", str(folder / "config.json"),
            "--max-shard-gb", "1e-4",
            "--dtype", "float32",
        ]
    )  # fmt: skip
    assert (
        len(
            set(
                json.loads((folder / "model" / "model.safetensors.index.json").read_text())[
                    "weight_map"
                ].values()
            )
        )
        > 3
    )
    return folder / "model"


@pytest.fixture
def model(imported: Path, request: pytest.FixtureRequest) -> DriveFineModel:
    """The imported twin with the action rows that LaViDa ran with, in the type that the test asks for."""
    loaded = DriveFineModel.from_pretrained(imported, dtype=torch.float32).eval()
    with torch.no_grad():
        loaded.embeddings.action_embed.weight.copy_(GOLDEN["action_embed"])
        loaded.heads.action_head.weight.copy_(GOLDEN["action_head"])
    return loaded.to(getattr(request, "param", torch.float32))


def logits(model: DriveFineModel, hidden: Tensor) -> Tensor:
    """(..., 120 + 96): text rows that the twin has, then actions."""
    text = model.heads.lm_head(hidden)[..., :TWIN_TEXT_ROWS]
    return torch.cat([text, hidden @ model.heads.action_head.weight.T], dim=-1)


def assert_equal(got: Tensor, name: str, scene: int | slice = slice(None)) -> None:
    """Within 1e-5 in float32; in bfloat16 nearer to LaViDa's bfloat16 than that is to LaViDa's float32.

    On the machine that ran LaViDa both are equal to the bit; other CPUs add up in another order, and the
    layers carry that on: up to 0.70 of the distance was seen (AMD, AVX-512). A model that
    computes in float32 has 1, one that rounds on its own about 1.4.
    """
    exact = GOLDEN[name][scene].float()
    if got.dtype == torch.float32:
        difference = (got - exact).abs().max()
        assert difference <= 1e-5, f"largest difference {difference:.2e}"
        return
    wanted = GOLDEN[f"{name}_bf16"][scene].float()
    share = float((got.float() - wanted).norm() / (wanted - exact).norm())
    assert share <= 0.85, f"the difference is {share:.2f} of that between bfloat16 and float32"


DTYPES = pytest.mark.parametrize(
    "model", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"], indirect=True
)


@DTYPES
@pytest.mark.parametrize(
    ("ids", "name", "last"), [("text_ids", "text_logits", 33), ("long_ids", "long_logits", 6)]
)
@torch.no_grad()
def test_language_model(model: DriveFineModel, ids: str, name: str, last: int) -> None:
    token_ids = GOLDEN[ids].long()
    length = token_ids.shape[1]  # 33, and 1,800: as far as the real prompt reaches
    hidden = model.backbone.one_pass(
        model.embeddings(token_ids),
        torch.arange(length)[None],
        torch.ones(1, length, length, dtype=torch.bool),
    )
    assert_equal(logits(model, hidden[:, -last:]), name)


@DTYPES
@pytest.mark.parametrize("expert", ["generation", "refinement"])
@torch.no_grad()
def test_answers_over_the_prompt_cache(model: DriveFineModel, expert: str) -> None:
    # LaViDa filled its cache with the context, then with the instruction, then read it for each answer: all
    # slots masked, half of them, none. A refiner that is a copy must say the same.
    visual = GOLDEN["eight_tokens"].to(model.dtype)[None]
    actions, instruction = GOLDEN["actions"].long(), GOLDEN["instruction_ids"].long()
    for scene in range(2):
        context = model.encode_context(None, GOLDEN[f"context_ids_{scene}"].long()[None], visual=visual)
        prompt = model.append_instruction(context, instruction, expert)
        got = logits(model, model.answer_hidden(prompt, actions[None]))[0]
        assert_equal(got, "answer_logits", scene)


@torch.no_grad()
def test_contexts_of_different_length_in_one_batch(model: DriveFineModel) -> None:
    contexts = [GOLDEN[f"context_ids_{scene}"].long() for scene in range(2)]
    lengths = torch.tensor([len(ids) for ids in contexts])
    padded = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True, padding_value=111)
    visual = GOLDEN["eight_tokens"][None].expand(2, -1, -1)
    prompt = model.prefill(None, padded, GOLDEN["instruction_ids"].long(), "generation", lengths, visual)
    got = logits(model, model.answer_hidden(prompt, GOLDEN["actions"].long().expand(2, -1, -1)))
    assert_equal(got, "answer_logits")


def picture() -> NDArray[np.uint8]:
    """The 1920 x 1080 image that LaViDa saw: stripes, a product pattern and blocks, from integers alone."""
    y, x, c = np.meshgrid(np.arange(1080), np.arange(1920), np.arange(3), indexing="ij")
    values = x * 5 + y * 3 + (x * y) // (37 + 20 * c) + 90 * c * (x // 160) + 60 * (y // 90)
    return (values % 256).astype(np.uint8)


@DTYPES
@torch.no_grad()
def test_tower_features_and_tiles(model: DriveFineModel) -> None:
    # LaViDa multiplies out its attention and rounds between the products, where the kernel that we use does
    # not: in bfloat16 half a per cent. So here the tower does too, and is equal to the bit where LaViDa ran.
    model.vision.tower.set_attn_implementation("eager")
    # LaViDa's views of the image: the whole, squeezed; then 2 x 2 tiles of the letterboxed one.
    image = picture()
    whole, four = TileSpec(1, 1, 384, "resize"), TileSpec(2, 2, 384, "letterbox")
    tiles = np.concatenate([tile_image(image, whole), tile_image(image, four)])
    features = model.vision(torch.from_numpy(tiles)[None])[0]
    # The output of the second of the twin's three layers, every ninth patch.
    assert_equal(features[:, ::9], "tower_features")


@torch.no_grad()
def test_visual_tokens_of_eight_tiles(model: DriveFineModel) -> None:
    # LaViDa's code with the one canvas 1536 x 768: pooled to 14 x 14, stitched, 50 columns left, newlines.
    tiles = torch.from_numpy(tile_image(picture(), model.config.tiles))[None]
    tokens = model.encode_images(tiles)[0]
    assert tokens.shape == (28 * 51, 32)
    assert_equal(tokens, "eight_tokens")


@torch.no_grad()
def test_visual_tokens_of_lavidas_own_grid(model: DriveFineModel) -> None:
    # 196 tokens of the whole view, without newlines, then the 16 visible rows of 28 with one newline each.
    image = picture()
    stock = GOLDEN["stock_tokens"]
    assert len(stock) == 196 + 16 * 29
    projector = model.projector
    for settings, part in (
        ({"tile_cols": 1, "tile_rows": 1, "tile_fit": "resize"}, slice(196)),
        ({"tile_cols": 2, "tile_rows": 2, "tile_fit": "letterbox"}, slice(196, None)),
    ):
        projector.config = twin_config(**settings)
        tokens = projector(model.vision(torch.tensor(tile_image(image, projector.config.tiles))[None]))[0]
        if part == slice(196):
            tokens = tokens.unflatten(0, (14, 15))[:, :14].flatten(0, 1)  # without our newlines
        assert_equal(tokens, "stock_tokens", part)
