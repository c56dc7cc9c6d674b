"""Latency of a plan, stage by stage, against no cache and against the baselines' decoders.

    python tools/bench_latency.py --preset tiny
    python tools/bench_latency.py --preset llada_8b --device cuda --compile --output runs/latency_8b
    python tools/bench_latency.py --checkpoint runs/demo/sft/model

Batch 1. Every time is the median of --repetitions calls after --warmup unmeasured ones, synchronised on a
GPU. `cached` computes the prompt once; `uncached` everything anew in each step, but for the vision tower;
`autoregressive` writes the same 24 tokens from left to right with a growing cache, same blocks, and does not
refine; `diffusion_head` reads the last hidden states of the same prompt and takes 5 DDIM steps with a small
transformer (the configuration's head_width, head_blocks). Writes latency.csv and latency.png (form of the
paper's Figure 7): latency on x; on y the scores of --scores, a CSV with the columns method, steps, score;
without it, the stages of each row.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from drivefine_agent.autoregressive import decode_autoregressively
from drivefine_agent.diffusion.continuous import DDIMOptions, sample_chain
from drivefine_agent.diffusion.decoding import DecodingOptions, decode, read_out
from drivefine_agent.errors import DataError
from drivefine_agent.model.backbone.attention import ATTENTIONS
from drivefine_agent.model.backbone.block import RMSNorm
from drivefine_agent.model.backbone.cache import ContextCache, PromptCache
from drivefine_agent.model.choices import IMAGE_PLACEHOLDER
from drivefine_agent.model.compiled_step import CompiledStep
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.drivefine_model import DriveFineModel, count_parameters
from drivefine_agent.model.memory import TensorMemory
from drivefine_agent.model.pose_head import NUM_STATUS, PoseHead, PromptStates
from drivefine_agent.model.quantization import QUANTIZATIONS, quantize
from drivefine_agent.planner import AnswerStep, refiner_logits

PRESETS = ("tiny", "debug", "llada_8b")
STEPS = (1, 2, 4, 8, 12, 24)
INSTRUCTION_LENGTH = 25  # tokens of the instruction and the reply's header


@dataclass(frozen=True)
class Row:
    """One way to plan; times in ms."""

    method: str
    """cached | uncached | autoregressive | diffusion_head."""
    steps: int
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    refine_ms: float
    total_ms: float
    """Measured as one call, not the sum of the stages."""
    per_step_ms: float
    peak_mb: float
    """Tensors alive at the same time, weights included."""
    prompt_tokens: int
    parameters: int
    device: str
    dtype: str


class Inputs(NamedTuple):
    """One scene of random content."""

    tiles: Tensor
    context_ids: Tensor
    predict_ids: Tensor
    refine_ids: Tensor


class Clock(NamedTuple):
    """How calls are measured."""

    device: torch.device
    repetitions: int
    warmup: int
    read_s: Callable[[], float] = time.perf_counter

    def median_ms(self, call: Callable[[], object]) -> float:
        """Median time of a call [ms], the GPU's work included."""
        for _ in range(self.warmup):
            call()
        times = []
        for _ in range(self.repetitions):
            self._synchronise()
            start = self.read_s()
            call()
            self._synchronise()
            times.append(self.read_s() - start)
        return 1e3 * float(np.median(times))

    def peak_mb(self, call: Callable[[], object], model: nn.Module) -> float:
        """Most memory of tensors during a call [MB]."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            call()
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        with TensorMemory() as memory:
            call()
        return (memory.peak + weight_bytes(model)) / 1e6

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, before any quantization."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def make_config(arguments: argparse.Namespace) -> DriveFineConfig:
    """The preset with the command line's overrides."""
    config: DriveFineConfig = getattr(DriveFineConfig, arguments.preset)()
    text, vision = config.text_config, config.vision_config
    if arguments.width is not None:
        heads = max(1, arguments.width // (text.hidden_size // text.num_attention_heads))
        text.intermediate_size = arguments.width * text.intermediate_size // text.hidden_size
        text.hidden_size, text.num_attention_heads, text.num_key_value_heads = arguments.width, heads, heads
        text.head_dim = arguments.width // heads
    if arguments.layers is not None:
        text.num_hidden_layers = arguments.layers
    if arguments.vocabulary is not None:
        text.vocab_size, config.mask_token_id = arguments.vocabulary, 2
        text.bos_token_id = text.eos_token_id = text.pad_token_id = None
    if arguments.vision_layers is not None:
        vision.num_hidden_layers = arguments.vision_layers
    if arguments.vision_width is not None:
        vision.intermediate_size = arguments.vision_width * vision.intermediate_size // vision.hidden_size
        vision.hidden_size, vision.num_attention_heads = arguments.vision_width, 4
    text.max_position_embeddings = max(text.max_position_embeddings, arguments.text_tokens + 1)
    settings = config.to_dict()
    n_refine = config.n_refine if arguments.n_refine is None else arguments.n_refine
    settings["n_refine"] = min(n_refine, text.num_hidden_layers)
    return DriveFineConfig.from_dict(settings)


def random_model(config: DriveFineConfig, device: torch.device, dtype: torch.dtype) -> DriveFineModel:
    """Random weights made on the device itself: 8 billion of them need no host memory."""
    with torch.device("meta"):
        model = DriveFineModel(config)
    model.to(dtype).to_empty(device=device)
    for name, buffer in model.named_buffers():
        if not name.endswith("position_ids"):
            raise DataError(
                f"buffers of a model made on the meta device must be known, got {name}: give --checkpoint"
            )
        buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
        for module in model.modules():
            if isinstance(module, (RMSNorm, nn.LayerNorm)):
                module.weight.fill_(1.0)
    return model


def random_head(config: DriveFineConfig, device: torch.device, dtype: torch.dtype) -> PoseHead:
    """A diffusion head of random weights, for a model that has none."""
    with torch.device(device):
        head = PoseHead(config)
    head.initialise()
    return head.to(dtype).eval()


def random_inputs(model: DriveFineModel, text_tokens: int) -> Inputs:
    """A scene whose prompt has `text_tokens` tokens of text, the instruction's included."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    num_context = max(2, text_tokens - INSTRUCTION_LENGTH + 1)
    size = config.tiles.size_px
    shape = (1, config.tiles.num_tiles, size, size, 3)

    def ids(*size: int) -> Tensor:
        return torch.randint(3, config.base_vocab_size, size, generator=generator)

    context = ids(1, num_context)
    context[0, 0] = IMAGE_PLACEHOLDER
    instruction_length = min(INSTRUCTION_LENGTH, text_tokens - 1)
    tensors = (
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        context,
        ids(instruction_length),
        ids(instruction_length),
    )
    return Inputs(*(tensor.to(model.device) for tensor in tensors))


def measure(
    model: DriveFineModel,
    inputs: Inputs,
    clock: Clock,
    step: AnswerStep | None,
    methods: Sequence[str],
    steps: Sequence[int],
) -> list[Row]:
    """Rows of all methods and numbers of steps."""
    tiles, context_ids, predict_ids, refine_ids = inputs
    answer_step = step or model.open_slot_logits
    can_refine = model.config.n_refine > 0
    visual = model.encode_images(tiles)
    context = model.encode_context(None, context_ids, None, visual)
    prompt = model.append_instruction(context, predict_ids)
    options = {s: DecodingOptions(num_steps=s, refine=False) for s in steps}
    answer = decode(
        lambda actions: model.open_slot_logits(prompt, actions), 1, options[steps[0]], model.device
    ).actions

    def prefill(visual: Tensor) -> tuple[ContextCache, PromptCache]:
        context = model.encode_context(None, context_ids, None, visual)
        return context, model.append_instruction(context, predict_ids)

    def denoise(prompt: PromptCache, s: int) -> Tensor:
        return decode(lambda actions: answer_step(prompt, actions), 1, options[s], model.device).actions

    def refine(context: ContextCache, answer: Tensor) -> Tensor:
        if not can_refine:
            return answer
        return read_out(refiner_logits(model, context, refine_ids, answer, step), DecodingOptions())

    def cached(s: int) -> Tensor:
        context, prompt = prefill(model.encode_images(tiles))
        return refine(context, denoise(prompt, s))

    def one_pass(instruction: Tensor, actions: Tensor, visual: Tensor, expert: str):
        return model.one_pass_logits(None, context_ids, instruction, actions, expert, visual=visual)

    def denoise_uncached(visual: Tensor, s: int) -> Tensor:
        return decode(
            lambda a: one_pass(predict_ids, a, visual, "generation"), 1, options[s], model.device
        ).actions

    def refine_uncached(visual: Tensor, answer: Tensor) -> Tensor:
        if not can_refine:
            return answer
        return read_out(one_pass(refine_ids, answer, visual, "refinement"), DecodingOptions())

    head = random_head(model.config, model.device, model.dtype) if "diffusion_head" in methods else None
    status = torch.zeros(1, NUM_STATUS, device=model.device)

    def read_prompt(visual: Tensor) -> PromptStates:
        return model.prompt_states(context_ids, predict_ids, None, visual)

    def denoise_poses(states: PromptStates) -> Tensor:
        assert head is not None
        return sample_chain(
            lambda noisy, times: head(states, noisy, times, status), 1, 1, DDIMOptions(), model.device
        )

    def uncached(s: int) -> Tensor:
        visual = model.encode_images(tiles)
        return refine_uncached(visual, denoise_uncached(visual, s))

    def autoregressive() -> Tensor:
        return decode_autoregressively(model, prefill(model.encode_images(tiles))[1], DecodingOptions())

    prompt_tokens, parameters = prompt.length, count_parameters(model)["total"]

    def row(method: str, s: int, prefill_ms: float, decode_ms: float, refine_ms: float, call) -> Row:
        total, peak = clock.median_ms(call), clock.peak_mb(call, model)
        made = Row(
            method, s, vision_ms, prefill_ms, decode_ms, refine_ms, total, decode_ms / s, peak, prompt_tokens,
            parameters, device_name(model.device), str(model.dtype).removeprefix("torch."),
        )  # fmt: skip
        print(format_row(made), flush=True)
        return made

    print(format_header(), flush=True)
    vision_ms = clock.median_ms(lambda: model.encode_images(tiles))
    rows = []
    if "cached" in methods:
        prefill_ms = clock.median_ms(lambda: prefill(visual))
        refine_ms = clock.median_ms(lambda: refine(context, answer)) if can_refine else 0.0
        for s in steps:
            decode_ms = clock.median_ms(lambda s=s: denoise(prompt, s))
            rows.append(row("cached", s, prefill_ms, decode_ms, refine_ms, lambda s=s: cached(s)))
    if "autoregressive" in methods:
        prefill_ms = clock.median_ms(lambda: prefill(visual))
        decode_ms = clock.median_ms(lambda: decode_autoregressively(model, prompt, DecodingOptions()))
        rows.append(row("autoregressive", 24, prefill_ms, decode_ms, 0.0, autoregressive))
    if head is not None:
        prefill_ms, states = clock.median_ms(lambda: read_prompt(visual)), read_prompt(visual)
        decode_ms = clock.median_ms(lambda: denoise_poses(states))
        rows.append(
            row(
                "diffusion_head", DDIMOptions().num_steps, prefill_ms, decode_ms, 0.0,
                lambda: denoise_poses(read_prompt(model.encode_images(tiles))),
            )
        )  # fmt: skip
    if "uncached" in methods:
        refine_ms = clock.median_ms(lambda: refine_uncached(visual, answer)) if can_refine else 0.0
        for s in steps:
            decode_ms = clock.median_ms(lambda s=s: denoise_uncached(visual, s))
            rows.append(row("uncached", s, 0.0, decode_ms, refine_ms, lambda s=s: uncached(s)))
            if "cached" in methods:
                check_equal(cached(s), uncached(s), s, model.dtype)
    return rows


def check_equal(cached: Tensor, uncached: Tensor, s: int, dtype: torch.dtype) -> None:
    """Says whether the cache changed a token: never in float32, possibly by rounding in shorter types."""
    num_different = int((cached != uncached).sum())
    outcome = "tokens equal" if num_different == 0 else f"{num_different} of 24 tokens DIFFER"
    print(f"  s = {s}: {outcome} ({dtype})")


def device_name(device: torch.device) -> str:
    """The GPU's name, or how many CPU threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s)"


def format_header() -> str:
    """Column titles of the table."""
    names = ("vision", "prefill", "steps", "refine", "total", "a step", "peak MB")
    return f"{'method':15} {'s':>3} " + " ".join(f"{name:>8}" for name in names)


def format_row(row: Row) -> str:
    """A line of the table."""
    times = (row.vision_ms, row.prefill_ms, row.decode_ms, row.refine_ms, row.total_ms, row.per_step_ms)
    return f"{row.method:15} {row.steps:3} " + " ".join(f"{t:8.1f}" for t in times) + f" {row.peak_mb:8.0f}"


def read_scores(path: Path) -> dict[tuple[str, int], float]:
    """(method, steps) -> score, of a CSV.

    Raises:
      DataError: it cannot be read, or a column is missing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"scores must be a CSV of text in UTF-8 ({error}): {path}; write it again") from error
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        missing = {"method", "steps", "score"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(
                f"scores need the columns method, steps, score; {path} lacks {', '.join(sorted(missing))}: "
                "write it again"
            )
        try:
            return {(line["method"], int(line["steps"])): float(line["score"]) for line in reader}
        except (TypeError, ValueError, csv.Error) as error:
            raise DataError(
                f"scores need a number of steps and a score per line ({error}): {path}; write it again"
            ) from error


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All rows."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def plot(rows: Sequence[Row], scores: dict[tuple[str, int], float] | None, path: Path) -> None:
    """Score against latency, or the stages of each row where there are no scores."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    if scores is not None:
        for method in dict.fromkeys(row.method for row in rows):
            points = [row for row in rows if row.method == method and (method, row.steps) in scores]
            x, y = [row.total_ms for row in points], [scores[method, row.steps] for row in points]
            axes.plot(x, y, "o-", label=method)
            for row, px, py in zip(points, x, y, strict=True):
                axes.annotate(
                    f"s = {row.steps}", (px, py), xytext=(4, 4), textcoords="offset points", fontsize=8
                )
        axes.set_ylabel("score")
        axes.legend()
    else:
        names = [f"{row.method}, s = {row.steps}" for row in rows]
        left = np.zeros(len(rows))
        for label in ("vision", "prefill", "decode", "refine"):
            widths = np.array([getattr(row, f"{label}_ms") for row in rows])
            axes.barh(names, widths, left=left, label={"decode": "steps"}.get(label, label))
            left += widths
        axes.invert_yaxis()
        axes.legend()
    axes.set_xlabel("latency [ms]")
    axes.set_title(
        f"{rows[0].parameters / 1e6:,.0f} M parameters, prompt {rows[0].prompt_tokens}, {rows[0].device}"
    )
    figure.savefig(path, dpi=150)


def print_counts(config: DriveFineConfig, dtype: torch.dtype, text_tokens: int) -> None:
    """What a model of this shape holds, without making it."""
    with torch.device("meta"):
        counts = count_parameters(DriveFineModel(config))
    text, size = config.text_config, torch.empty(0, dtype=dtype).element_size()
    head = text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_key_value_heads * head * size
    print(f"{counts['total']:,} parameters, {counts['total'] * size / 1e9:.2f} GB in {dtype}")
    print(f"  of them the refinement expert's: {counts['refinement']:,}")
    tokens = config.num_visual_tokens + text_tokens
    for what, layers in (("generation", text.num_hidden_layers), ("refinement", config.n_refine)):
        gigabytes = per_token * layers * tokens / 1e9
        print(f"  keys and values, {what}: {per_token * layers:,} bytes a token, {gigabytes:.3f} GB")
    print(f"  prompt: {config.num_visual_tokens} visual + {text_tokens} text tokens")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="random weights of this size")
    parser.add_argument("--checkpoint", type=Path, help="folder of a trained model, instead of --preset")
    for name in ("layers", "width", "vocabulary", "vision-layers", "vision-width", "n-refine"):
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")
    parser.add_argument("--text-tokens", type=int, default=230, help="of the prompt (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=STEPS, help="denoising steps (default: %(default)s)"
    )
    methods = ("cached", "autoregressive", "diffusion_head", "uncached")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, on a GPU bfloat16"
    )
    parser.add_argument("--attention", choices=ATTENTIONS, default="sdpa")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--compile", action="store_true", help="compile the denoising step")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="the process's time instead of wall time: on a busy machine"
    )
    parser.add_argument("--scores", type=Path, help="CSV with method, steps, score: the plot's y axis")
    parser.add_argument("--count-only", action="store_true", help="print sizes by arithmetic and stop")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/latency"), help="folder (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    scores = None if arguments.scores is None else read_scores(arguments.scores)
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    if arguments.cpu_time and (device.type != "cpu" or arguments.threads != 1):
        raise DataError(
            "--cpu-time sums over threads and knows nothing of GPUs: use it with --threads 1 on the CPU"
        )
    if arguments.checkpoint is None:
        config = make_config(arguments)
        if arguments.count_only:
            print_counts(config, dtype, arguments.text_tokens)
            return
        torch.manual_seed(0)
        model = random_model(config, device, dtype)
    else:
        model = DriveFineModel.from_pretrained(arguments.checkpoint, dtype=dtype, local_files_only=True).to(
            device
        )
    model.eval().use_attention(arguments.attention)
    quantize(model, arguments.quantization)
    step = CompiledStep(model) if arguments.compile else None
    with torch.no_grad():
        inputs = random_inputs(model, arguments.text_tokens)
        read_s = time.process_time if arguments.cpu_time else time.perf_counter
        clock = Clock(device, arguments.repetitions, arguments.warmup, read_s)
        size = f"{count_parameters(model)['total']:,} parameters"
        print(f"{device_name(device)}, {dtype}, {size}, torch {torch.__version__}")
        rows = measure(model, inputs, clock, step, arguments.methods, arguments.steps)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, arguments.output / "latency.csv")
    plot(rows, scores, arguments.output / "latency.png")
    print(f"written: {arguments.output / 'latency.csv'}, {arguments.output / 'latency.png'}")


if __name__ == "__main__":
    main()
