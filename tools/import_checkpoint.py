"""Makes a DriveFine checkpoint of pretrained weights: LaViDa, or LLaDA and SigLIP.

    python tools/import_checkpoint.py LAVIDA_FOLDER --output drivefine_8b
    python tools/import_checkpoint.py LLADA_FOLDER SIGLIP_FOLDER mm_projector.bin --output drivefine_8b
    python tools/import_checkpoint.py LLADA_FOLDER SIGLIP_FOLDER --new-projector --output drivefine_8b

Every tensor of the sources has its place in the model, or is named as left out, with the reason; whatever is
missing, unexpected, there twice or of the wrong shape is named, and nothing is written. Embeddings and head
may have LLaDA's 126,464 rows or the 126,349 that LaViDa's loader keeps (the unused rest becomes zeros).
Refinement blocks start as copies of the last blocks, action rows around those of digits, dot and minus.

Weights pass through in pieces of 64 MB. A stopped import goes on with the same command. The result is what
`model.init_from` of tools/train_sft.py takes; its import.json says where each tensor came from.
tools/export_checkpoint.py is the way back.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from drivefine_agent.data.folder_lock import FolderLock
from drivefine_agent.errors import DataError, DriveFineError
from drivefine_agent.model.config import DriveFineConfig
from drivefine_agent.model.conversion import ImportPlan, plan_import, write_import
from drivefine_agent.model.text_tokenizer import (
    TOKENIZER_FILE_NAME,
    TextTokenizer,
    check_tokenizer,
    number_ids,
)

TOKENIZER_FILES = (TOKENIZER_FILE_NAME, "tokenizer_config.json", "special_tokens_map.json")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="checkpoint folder or file")
    parser.add_argument("--output", type=Path, help="new folder (not needed with --dry-run)")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder with tokenizer.json; default: the first source's"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="of action rows and a new projector")
    parser.add_argument("--config", type=Path, help="config.json of a DriveFine model; default: llada_8b")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="fields of DriveFineConfig, e.g. n_refine=6"
    )
    parser.add_argument(
        "--new-projector", action="store_true", help="start a projector that no source has at random"
    )
    parser.add_argument("--max-shard-gb", type=float, default=2.0)
    parser.add_argument("--dry-run", action="store_true", help="only check names, shapes and tokenizer")
    parser.add_argument("--names", action="store_true", help="print where every tensor goes")
    arguments = parser.parse_args(argv)
    if arguments.output is None and not arguments.dry_run:
        parser.error("--output must be given, or --dry-run, got neither")
    return arguments


def read_config(file: Path | None, settings: list[str]) -> DriveFineConfig:
    """The model that is to come out.

    Raises:
      DataError: the file is missing.
      ValueError: a setting is no `key=value` with a field of the configuration.
    """
    if file is None:
        values = DriveFineConfig.llada_8b().to_dict()
    elif file.is_file():
        values = DriveFineConfig.from_json_file(file).to_dict()
    else:
        raise DataError(f"a configuration must exist, got none at {file}: correct the path")
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or key not in values:
            raise ValueError(f"--set needs key=value with a field of DriveFineConfig, got {setting!r}")
        values[key] = yaml.safe_load(value)
    return DriveFineConfig.from_dict(values)


def find_tokenizer(sources: list[Path], given: Path | None) -> Path | None:
    """Folder with a tokenizer.json: the one given, else the first source that has one."""
    if given is not None:
        return given
    return next((s for s in sources if (s / TOKENIZER_FILE_NAME).is_file()), None)


def report(plan: ImportPlan, show_names: bool) -> None:
    """What comes from where, and what is left out."""
    if show_names:
        for name, tensor in plan.sources.items():
            print(f"  {name} <- {tensor.name} in {tensor.file}")
        for name in plan.new:
            print(f"  {name} is new")
        for name, tensor in plan.unused.items():
            print(f"  left out: {name} in {tensor.file}")
    print(
        f"{plan.num_read} tensors of the sources fill {len(plan.sources)} of the model's {len(plan.shapes)}"
    )
    print(f"new: {', '.join(plan.new)}")
    reasons = Counter(name.partition(" (")[2].removesuffix(")") for name in plan.unused)
    for reason, count in reasons.items():
        print(f"left out: {count} tensors, {reason}")


def main(argv: list[str] | None = None) -> None:
    """Plan, check, write."""
    arguments = parse_arguments(argv)
    config = read_config(arguments.config, arguments.set)
    plan = plan_import(config, arguments.sources, arguments.new_projector)
    report(plan, arguments.names)
    folder = find_tokenizer(arguments.sources, arguments.tokenizer)
    if folder is None:
        if arguments.dry_run:
            print("no source has a tokenizer.json: --tokenizer will be needed")
            return
        raise DataError("no source has a tokenizer.json: name its folder with --tokenizer")
    tokenizer = TextTokenizer.from_file(folder)
    check_tokenizer(tokenizer, config)
    reference_ids = number_ids(tokenizer)
    print(f"tokenizer: {folder}, {len(tokenizer)} tokens")
    if arguments.dry_run:
        return
    dtype = DTYPES[arguments.dtype]
    num_bytes = sum(torch.Size(shape).numel() for shape in plan.shapes.values()) * dtype.itemsize
    with (
        FolderLock(arguments.output),
        tqdm(total=num_bytes, desc="Import", unit="B", unit_scale=True) as bar,
    ):
        is_new = write_import(
            plan,
            arguments.output,
            dtype,
            reference_ids,
            arguments.seed,
            int(arguments.max_shard_gb * 1e9),
            {n: (folder / n).read_bytes() for n in TOKENIZER_FILES if (folder / n).is_file()},
            bar.update,
        )
    print(f"{arguments.output}" + ("" if is_new else " was complete already"))


if __name__ == "__main__":
    try:
        main()
    except (DriveFineError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: run the same command again to go on (--output keeps what is done)")
