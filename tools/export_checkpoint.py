"""Writes a DriveFine checkpoint's weights under the names of LLaDA or LaViDa, bit by bit.

    python tools/export_checkpoint.py runs/sft/model --output llada_sft
    python tools/export_checkpoint.py runs/sft/model --layout lavida --output lavida_sft

The way back from tools/import_checkpoint.py: the language model with the generation expert's blocks, with
`--layout lavida` also the vision tower, projector and newline. Action rows and refinement blocks have no
place there and are named as left out. Put the original's config.json and tokenizer files beside the result.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from drivefine_agent.errors import DriveFineError
from drivefine_agent.model.conversion import plan_export, write_export
from drivefine_agent.model.tensor_files import PlannedTensor, list_tensors


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, plans, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a DriveFine checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--layout", choices=("llada", "lavida"), default="llada")
    parser.add_argument(
        "--vocab-rows", type=int, help="rows of embeddings and head, e.g. 126349; default: all of them"
    )
    parser.add_argument("--max-shard-gb", type=float, default=5.0)
    arguments = parser.parse_args(argv)
    exported = plan_export(arguments.checkpoint, arguments.layout, arguments.vocab_rows)
    kept = {tensor.name for tensor in exported.values()}
    for tensor in list_tensors(arguments.checkpoint):
        if tensor.name not in kept:
            print(f"left out: {tensor.name}")
    num_bytes = sum(PlannedTensor(n, t.shape, t.dtype).num_bytes for n, t in exported.items())
    with tqdm(total=num_bytes, desc="Export", unit="B", unit_scale=True) as bar:
        write_export(exported, arguments.output, int(arguments.max_shard_gb * 1e9), bar.update)
    print(f"{len(exported)} tensors: {arguments.output}")


if __name__ == "__main__":
    try:
        main()
    except DriveFineError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; remove the output folder (--output) before starting again")
