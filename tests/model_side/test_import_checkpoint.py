"""Names, accounting, content and files of imported and exported checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foreign_checkpoints import TWIN, llada_tokenizer, save_twin_tokenizer, tool, twin_config, write_hollow
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from drivefine_agent.errors import DataError
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.conversion import model_shapes, plan_import, write_import
from drivefine_agent.model.drivefine_model import DriveFineModel
from drivefine_agent.model.tensor_files import PlannedTensor, read_pieces, write_tensors
from drivefine_agent.model.tensor_files import list_tensors as listed
from drivefine_agent.model.weights import OURS_ALONE, our_name, their_name
from drivefine_agent.planner import Planner
from drivefine_agent.training.config import ModelChoice
from drivefine_agent.training.model_choice import build_planner

import_checkpoint, export_checkpoint = tool("import_checkpoint"), tool("export_checkpoint")
TOWER = "model.vision_tower.vision_tower.vision_model."


def llada_shapes(num_blocks: int = 32, rows: int = 126464) -> dict[str, tuple[int, ...]]:
    """The tensors of a LLaDA checkpoint of 8B's widths, as its index lists them."""
    wide, tall, square = (12288, 4096), (4096, 12288), (4096, 4096)
    in_block = {
        "attn_norm": (4096,), "ff_norm": (4096,), "attn_out": square, "q_proj": square, "k_proj": square,
        "v_proj": square, "ff_proj": wide, "up_proj": wide, "ff_out": tall,
    }  # fmt: skip
    shapes = {f"blocks.{i}.{n}.weight": s for i in range(num_blocks) for n, s in in_block.items()}
    shapes |= {"wte.weight": (rows, 4096), "ln_f.weight": (4096,), "ff_out.weight": (rows, 4096)}
    return {f"model.transformer.{name}": shape for name, shape in shapes.items()}


def tower_shapes(num_layers: int) -> dict[str, tuple[int, ...]]:
    """SigLIP so400m-384 without prefix: 5 tensors and 16 per layer."""
    square, vector = (1152, 1152), (1152,)
    in_layer = {
        "layer_norm1.weight": vector, "layer_norm1.bias": vector, "layer_norm2.weight": vector,
        "layer_norm2.bias": vector, "mlp.fc1.weight": (4304, 1152), "mlp.fc1.bias": (4304,),
        "mlp.fc2.weight": (1152, 4304), "mlp.fc2.bias": vector,
    }  # fmt: skip
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        in_layer |= {f"self_attn.{projection}.weight": square, f"self_attn.{projection}.bias": vector}
    shapes = {f"encoder.layers.{i}.{n}": s for i in range(num_layers) for n, s in in_layer.items()}
    return shapes | {
        "embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "embeddings.patch_embedding.bias": vector,
        "embeddings.position_embedding.weight": (729, 1152),
        "post_layernorm.weight": vector,
        "post_layernorm.bias": vector,
    }


PROJECTOR = {
    "model.mm_projector.0.weight": (4096, 1152),
    "model.mm_projector.0.bias": (4096,),
    "model.mm_projector.2.weight": (4096, 4096),
    "model.mm_projector.2.bias": (4096,),
    "model.image_newline": (4096,),
}


def write_hollow_shards(folder: Path, shapes: dict[str, tuple[int, ...]], count: int) -> int:
    """A checkpoint in shards that takes no room; returns the bytes it pretends to have."""
    folder.mkdir()
    names, weight_map, total = sorted(shapes), {}, 0
    for i in range(count):
        shard = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        total += write_hollow(folder / shard, {n: shapes[n] for n in names[i::count]})
        weight_map |= dict.fromkeys(names[i::count], shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


# ------------------------------------------------------------------------------------------------- names


def test_all_291_llada_names_map_one_to_one_and_back() -> None:
    shapes = llada_shapes()
    assert len(shapes) == 291
    ours = {name: our_name(name) for name in shapes}
    wanted = {
        n: s for n, s in model_shapes(DriveFineConfig.llada_8b()).items() if not n.startswith(OURS_ALONE)
    }
    language = {n: s for n, s in wanted.items() if n.startswith(("embeddings.", "backbone.", "heads."))}
    assert {ours[name]: shape for name, shape in shapes.items()} == language
    assert sum(torch.Size(shape).numel() for shape in language.values()) == 8_015_581_184
    assert all(their_name(name or "") == theirs for theirs, name in ours.items())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.transformer.blocks.3.ff_out.weight", "backbone.layers.3.mlp.down_proj.weight"),
        ("model.transformer.ff_out.weight", "heads.lm_head.weight"),
        ("model.transformer.blocks.31.ff_proj.weight", "backbone.layers.31.mlp.gate_proj.weight"),
        ("model.mm_projector.2.bias", "projector.layers.2.bias"),
        ("model.image_newline", "projector.newline"),
        (TOWER + "encoder.layers.25.mlp.fc1.weight", "vision.tower.encoder.layers.25.mlp.fc1.weight"),
        ("vision_model.post_layernorm.bias", "vision.tower.post_layernorm.bias"),
        ("model.transformer.blocks.3.rotary.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_the_traps_among_the_names(theirs: str, ours: str | None) -> None:
    assert our_name(theirs) == ours


# --------------------------------------------------------------------------------- accounting, full size


def test_llada_and_siglip_at_full_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_hollow_shards(tmp_path / "llada", llada_shapes(), 6) == 16_031_162_368  # as published
    llada_tokenizer().save(tmp_path / "llada")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    head = SiglipModel(SiglipConfig(vision_config=small, text_config=small | {"vocab_size": 8}))
    others = {n: tuple(t.shape) for n, t in head.state_dict().items()}  # names of head and text tower
    extra = {n: s for n, s in others.items() if ".head." in n or n.startswith("text_model.") or "logit" in n}
    tower = {f"vision_model.{n}": s for n, s in tower_shapes(27).items()}
    (tmp_path / "siglip").mkdir()
    write_hollow(tmp_path / "siglip" / "model.safetensors", tower | extra, "F32")
    write_hollow(tmp_path / "projector.safetensors", PROJECTOR)
    sources = [str(tmp_path / "llada"), str(tmp_path / "siglip"), str(tmp_path / "projector.safetensors")]
    import_checkpoint([*sources, "--dry-run", "--names"])
    printed = capsys.readouterr().out
    # 291 of LLaDA, 5 + 16 x 26 of the tower, 5 of the projector; the 4 refinement blocks take 9 each again.
    assert f"{291 + 421 + 5} tensors of the sources fill {717 + 36} of the model's {717 + 36 + 2}" in printed
    assert "left out: 16 tensors, layers after the tower's 26" in printed
    assert "left out: 11 tensors, SigLIP's pooling head" in printed
    assert "left out: 2 tensors, SigLIP's contrastive loss" in printed
    assert "left out: vision_model.encoder.layers.26.mlp.fc1.weight (layers after" in printed
    assert (
        "backbone.refine_layers.0.mlp.up_proj.weight <- model.transformer.blocks.28.up_proj.weight" in printed
    )


def test_lavida_at_full_size_with_its_cut_vocabulary(tmp_path: Path) -> None:
    tower = {TOWER + n: s for n, s in tower_shapes(26).items()}
    write_hollow_shards(tmp_path / "lavida", llada_shapes(rows=126349) | tower | PROJECTOR, 4)
    plan = plan_import(DriveFineConfig.llada_8b(), [tmp_path / "lavida"])
    assert (plan.num_read, len(plan.unused)) == (717, 0)
    assert plan.new == ("embeddings.action_embed.weight", "heads.action_head.weight")
    assert sum(torch.Size(shape).numel() for shape in plan.shapes.values()) == 8_482_350_624 + 872_448_000


# ----------------------------------------------------------------------------------- what is refused


@pytest.fixture
def twin(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A copy of the twin to spoil, its tokenizer and our configuration beside it, and its tensors."""
    folder = tmp_path / "twin"
    folder.mkdir()
    tensors = load_file(TWIN / "model.safetensors")
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((TWIN / "config.json").read_bytes())
    save_twin_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "ours.json").write_text(twin_config().to_json_string(use_diff=False))
    return folder, tensors


def arguments(twin_folder: Path, output: str, *more: str) -> list[str]:
    root = twin_folder.parent
    fixed = ["--output", str(root / output), "--tokenizer", str(root / "tokenizer")]
    return [str(twin_folder), *fixed, "--config", str(root / "ours.json"), *more]


def test_everything_that_is_wrong_is_named_and_nothing_is_written(
    twin: tuple[Path, dict[str, Tensor]],
) -> None:
    folder, tensors = twin
    del tensors["model.transformer.ln_f.weight"], tensors["model.image_newline"]
    tensors["model.transformer.blocks.9.q_proj.weight"] = torch.zeros(2)
    tensors["model.mm_projector.0.bias"] = torch.zeros(33)
    tensors["model.transformer.wte.weight"] = torch.zeros(112, 32)  # the mask token's row is not there
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"rope_theta": 10000.0, "n_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError) as refused:
        import_checkpoint(arguments(folder, "out"))
    message = str(refused.value)
    file = folder / "model.safetensors"
    assert "got 8 problems" in message
    for line in (
        f"rope_theta is 10000.0 in {folder / 'config.json'}, our model needs 500000.0",
        f"n_heads is 8 in {folder / 'config.json'}, our model needs 4",
        f"unexpected: model.transformer.blocks.9.q_proj.weight in {file}",
        f"wrong shape: model.mm_projector.0.bias in {file} is (33,), not (32,)",
        f"wrong shape: model.transformer.wte.weight in {file} is (112, 32), not (128, 32)",
        f"missing: model.transformer.ln_f.weight (backbone.norm.weight) in {folder}",
        f"missing: model.image_newline (projector.newline) in {folder}",
        "embeddings and head must have equally many rows",
    ):
        assert line in message
    assert not (folder.parent / "out").exists()


def test_a_tensor_in_two_sources_is_refused(twin: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = twin
    other = folder.parent / "other.safetensors"
    save_file({"vision_model.post_layernorm.bias": torch.zeros(24)}, other)
    with pytest.raises(
        DataError, match=r"twice: .*post_layernorm\.bias in .*model\.safetensors and in .*other"
    ):
        import_checkpoint([str(other), *arguments(folder, "out")])


def test_index_and_shards_must_agree(twin: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = twin
    index = folder / "model.safetensors.index.json"
    weight_map = dict.fromkeys(tensors, "model.safetensors") | {"model.absent": "model.safetensors"}
    del weight_map["model.image_newline"]
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(DataError) as refused:
        listed(folder)
    assert f"model.absent should be in {folder / 'model.safetensors'}" in str(refused.value)
    assert "model.image_newline is in" in str(refused.value)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors", "b": "lost.safetensors"}}))
    with pytest.raises(DataError, match=r"all 2 shards .* got 2 missing in .*: gone\.safetensors, lost"):
        listed(folder)
    index.write_text(json.dumps({"weight_map": {"a": "x" * 5000 + ".safetensors"}}))
    with pytest.raises(DataError, match=r"1 missing in .*: x{100}; fetch"):
        listed(folder)
    for name in ("../b.safetensors", "/b.safetensors", "..", 3):
        index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": name}}))
        with pytest.raises(DataError, match=r"names of files beside it, got .*index\.json"):
            listed(folder)


def test_damaged_files_are_refused(twin: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = twin
    with pytest.raises(DataError, match=r"no checkpoint at .*nowhere"):
        listed(folder / "nowhere")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"cannot read the tensors in .*model\.safetensors"):
        listed(folder)
    tensors["model.transformer.ln_f.weight"][3] = torch.nan
    save_file(tensors, file)
    with pytest.raises(DataError, match=r"weights must be finite, but model\.transformer\.ln_f\.weight"):
        import_checkpoint(arguments(folder, "out"))
    assert not (folder.parent / "out" / "config.json").exists()


class Harmful:
    """Pickled, it would call print."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_old_bin_files_are_read_without_running_code(
    twin: tuple[Path, dict[str, Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, tensors = twin
    import_checkpoint(arguments(folder, "from_safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    import_checkpoint(arguments(folder, "from_bin"))
    names = [folder.parent / output / "model.safetensors" for output in ("from_safetensors", "from_bin")]
    assert names[0].read_bytes() == names[1].read_bytes()
    torch.save({"weight": Harmful()}, folder / "pytorch_model.bin")
    capsys.readouterr()
    with pytest.raises(DataError, match="cannot read the tensors"):
        listed(folder)
    assert "executed" not in capsys.readouterr().out
    for other in ({"step": 3}, "a text", [torch.zeros(1)], {3: torch.zeros(1)}):
        torch.save(other, folder / "pytorch_model.bin")
        with pytest.raises(DataError, match="tensors by name and nothing else"):
            listed(folder)


def test_a_foreign_tokenizer_is_refused(twin: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = twin
    llada_tokenizer().save(folder.parent / "tokenizer")
    with pytest.raises(DataError, match=r"<\|mdm_mask\|> is 126336, not 112.*269 tokens, the model 128 rows"):
        import_checkpoint(arguments(folder, "out"))


# ------------------------------------------------------------------------------------------- content


def test_content_of_an_import_and_the_way_back(twin: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = twin
    import_checkpoint(arguments(folder, "out", "--max-shard-gb", "5e-5"))
    out = folder.parent / "out"
    planner = Planner.from_pretrained(out, dtype=torch.bfloat16)
    ours = planner.model.state_dict()
    for theirs, tensor in tensors.items():
        got = ours[our_name(theirs) or ""]
        assert torch.equal(got[: len(tensor)], tensor), theirs
        assert not got[len(tensor) :].any()  # the 8 rows that the twin's vocabulary lacks
    for i in range(2):  # the refiner starts as a copy of blocks 2 and 3
        for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"):
            source = ours[f"backbone.layers.{2 + i}.{part}.weight"]
            assert torch.equal(ours[f"backbone.refine_layers.{i}.{part}.weight"], source)
    for table, base in (
        ("embeddings.action_embed.weight", tensors["model.transformer.wte.weight"].float()),
        ("heads.action_head.weight", tensors["model.transformer.ff_out.weight"].float()),
    ):
        rows = ours[table].float()
        digits = base[:12].mean(0)  # the tokenizer's 0 to 9, dot and minus
        assert float((rows - digits).std()) == pytest.approx(float(base.std()), rel=0.25)
        near, far = (rows[1:64] - rows[:63]).norm(dim=1), (rows[32:64] - rows[:32]).norm(dim=1)
        assert near.mean() < 0.7 * far.mean()  # neighbouring values start with neighbouring rows
    assert build_planner(ModelChoice(init_from=str(out)), seed=0).model.config.n_refine == 2

    export_checkpoint(
        [str(out), "--output", str(folder.parent / "back"), "--layout", "lavida", "--vocab-rows", "120"]
    )
    back = {t.name: torch.cat(list(read_pieces(t))) for t in listed(folder.parent / "back")}
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    export_checkpoint([str(out), "--output", str(folder.parent / "llada")])
    language = {t.name: t.shape for t in listed(folder.parent / "llada")}
    assert len(language) == 3 + 9 * 4
    assert language["model.transformer.wte.weight"] == (128, 32)
    with pytest.raises(DataError, match="is not empty"):
        export_checkpoint([str(out), "--output", str(folder.parent / "llada")])


def test_a_separate_siglip_fills_the_tower(twin: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = twin
    tower = {n.removeprefix(TOWER): t for n, t in tensors.items() if n.startswith(TOWER)}
    siglip = {f"vision_model.{n}": t for n, t in tower.items()}
    last = {n.replace("layers.1.", "layers.2."): t.clone() for n, t in siglip.items() if "layers.1." in n}
    file = folder.parent / "siglip.safetensors"
    save_file(siglip | last | {"vision_model.head.probe": torch.zeros(1, 1, 24)}, file)
    save_file({n: t for n, t in tensors.items() if "transformer" in n}, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"missing: model\.mm_projector\.0\.weight"):
        import_checkpoint([str(file), *arguments(folder, "out")])
    import_checkpoint([str(file), *arguments(folder, "out", "--new-projector")])
    ours = load_file(folder.parent / "out" / "model.safetensors")
    for name, tensor in tower.items():
        assert torch.equal(ours[f"vision.tower.{name}"], tensor)
    assert float(ours["projector.layers.0.weight"].float().std()) == pytest.approx(0.02, rel=0.1)
    assert not ours["projector.layers.0.bias"].any()
    record = json.loads((folder.parent / "out" / "import.json").read_text())
    assert len(record["unused"]) == 17
    assert any(line.startswith("vision_model.head.probe (SigLIP's pooling head") for line in record["unused"])


def test_the_seed_decides_what_is_new_and_nothing_else(twin: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = twin
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        import_checkpoint(arguments(folder, name, "--seed", seed))
    a, b, c = (load_file(folder.parent / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    differing = {name for name in a if not torch.equal(a[name], c[name])}
    assert differing == {"embeddings.action_embed.weight", "heads.action_head.weight"}


def test_a_stopped_import_goes_on(twin: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = twin
    more = ("--max-shard-gb", "5e-5")
    import_checkpoint(arguments(folder, "unbroken", *more))
    stopped = folder.parent / "stopped"
    pieces = iter(range(40))

    def stop(num_bytes: int) -> None:
        if next(pieces, None) is None:
            raise KeyboardInterrupt

    plan = plan_import(twin_config(), [folder])
    with pytest.raises(KeyboardInterrupt):
        write_import(plan, stopped, torch.bfloat16, list(range(12)), 0, 50_000, None, stop)
    before = {file.name: file.stat().st_mtime_ns for file in stopped.glob("*.safetensors")}
    assert before
    assert not list(stopped.glob(".*.part"))
    with pytest.raises(DataError, match=r"config\.json is missing"):
        Planner.from_pretrained(stopped)
    with pytest.raises(DataError, match="belongs to an import with other seed"):
        import_checkpoint(arguments(folder, "stopped", *more, "--seed", "1"))
    import_checkpoint(arguments(folder, "stopped", *more))
    for file in stopped.glob("*.safetensors"):
        assert file.read_bytes() == (folder.parent / "unbroken" / file.name).read_bytes()
        assert file.stat().st_mtime_ns == before.get(file.name, file.stat().st_mtime_ns)
    (stopped / "import.json").unlink()
    with pytest.raises(DataError, match="already holds a checkpoint"):
        import_checkpoint(arguments(folder, "stopped", *more))


def test_a_checkpoint_with_a_gap_is_not_filled_at_random(twin: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = twin
    import_checkpoint(arguments(folder, "out"))
    file = folder.parent / "out" / "model.safetensors"
    tensors = load_file(file)
    del tensors["backbone.norm.weight"]
    save_file(tensors | {"surplus": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"got missing ones in .*: backbone\.norm\.weight"):
        DriveFineModel.from_pretrained(file.parent)


def test_zeros_become_holes_and_read_back(tmp_path: Path) -> None:
    tensor = torch.zeros(5, 2**19)  # 10 MiB, of which the last number is not zero
    tensor[-1, -1] = 3.0
    file = tmp_path / "x.safetensors"

    def pieces(name: str) -> Iterator[Tensor]:
        yield from (tensor if name == "x" else torch.zeros(3)).split(2)

    plan = [PlannedTensor("x", (5, 2**19), torch.float32), PlannedTensor("end", (3,), torch.float32)]
    write_tensors(file, plan, pieces)
    read = load_file(file)
    assert torch.equal(read["x"], tensor)
    assert read["end"].tolist() == [0.0, 0.0, 0.0]
    assert file.stat().st_blocks * 512 < 3 * 2**20
