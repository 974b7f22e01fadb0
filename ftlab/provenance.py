"""What a run is trained and scored on, as hashes: the rows of each split, the prompt template, the tokenizer.

Rows are hashed as they were read, and the tokenizer by what of its files decides token ids: a file that is touched,
packed otherwise or written in another layout is the same. No torch.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from ftlab import data, tasks, weights
from ftlab.config import ExperimentConfig
from ftlab.data.splits import Splits, fingerprint
from ftlab.errors import InputError
from ftlab.run_dir import SPLITS, RunDir
from ftlab.summary import Sources
from ftlab.terminal import Terminal

VOCABULARIES = ("tokenizer.model*", "vocab.*", "merges.txt", "added_tokens.json", "*.tiktoken")
# What tokenizer.json holds beside the tokenizer: the state of its last use.
STATE = ("truncation", "padding")
# Of the files beside it, what decides ids.
MARKERS = ("bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "add_eos_token", "add_prefix_space")


def read(cfg: ExperimentConfig) -> Sources:
    """The record of what a configuration names now.

    Raises:
        InputError: data or tokenizer that cannot be read.
    """
    return record(data.load(cfg.data, tasks.get(cfg.data.task)), cfg, weights.find(cfg.model, what="tokenizer").folder)


def check_reported(folder: RunDir, cfg: ExperimentConfig, terminal: Terminal) -> None:
    """Refuse to report a run as one of data, template or tokenizer that it was not made of. What cannot be read any
    more is not compared, which a line says.

    Raises:
        RunDirError: lists every difference.
    """
    try:
        now = read(cfg)
    except InputError as error:
        terminal.note(f"whether the data are still those of the run is not known: {str(error).splitlines()[0]}")
        return
    folder.check_sources(now)


def record(splits: Splits, cfg: ExperimentConfig, tokenizer: Path) -> Sources:
    """The record of rows that were read, and of the tokenizer in a folder."""
    return {
        **rows_record(splits),
        "template": {"sha256": _hash(cfg.data.prompt.encode(errors="surrogatepass"))},
        "tokenizer": {"sha256": _hash(*_tokenizer(tokenizer))},
    }


def rows_record(splits: Splits) -> Sources:
    """The record of rows alone: each split's, and that of all together."""
    rows = {name: getattr(splits, name) for name in SPLITS}
    each = {name: {"rows": len(part), "sha256": fingerprint(part)} for name, part in rows.items()}
    return {"data": {"sha256": splits.sha256}, **each}


def _tokenizer(folder: Path) -> list[bytes]:
    """What of a tokenizer's files decides token ids: tokenizer.json alone where there is one, which holds what older
    vocabularies hold as well, and the markers."""
    whole = folder / "tokenizer.json"
    others = [] if whole.is_file() else [file for pattern in VOCABULARIES for file in sorted(folder.glob(pattern))]
    markers: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        markers |= {key: _text(value) for key, value in _node(folder / name).items() if key in MARKERS}
    state = {key: value for key, value in _node(whole).items() if key not in STATE}
    nodes = [json.dumps(node, sort_keys=True).encode() for node in (state, markers)]
    return [*(file.read_bytes() for file in others), *nodes]


def _node(file: Path) -> dict[str, Any]:
    """The values of a JSON file in whatever layout; none where it is absent or holds something else."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(marker: Any) -> Any:
    """A marker that stands with its properties, as its text."""
    return marker.get("content") if isinstance(marker, dict) else marker


def _hash(*parts: bytes) -> str:
    digest = sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
