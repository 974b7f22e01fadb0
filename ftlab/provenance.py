"""Hashes of what a run is trained and scored on: the rows of each split, the prompt template, the tokenizer.

The hashes are of content, not of files: of the rows as read, and of the parts of the tokenizer's files that determine
token ids. Touching, compressing or reformatting a file does not change them. No torch.
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
# Parts of tokenizer.json that only store the settings of its last use.
STATE = ("truncation", "padding")
# Keys of the other files that determine token ids.
MARKERS = ("bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "add_eos_token", "add_prefix_space")


def read(cfg: ExperimentConfig) -> Sources:
    """Return the hashes of what a configuration refers to now.

    Raises:
        InputError: data or tokenizer cannot be read.
    """
    return record(data.load(cfg.data, tasks.get(cfg.data.task)), cfg, weights.find(cfg.model, what="tokenizer").folder)


def check_reported(folder: RunDir, cfg: ExperimentConfig, terminal: Terminal) -> None:
    """Refuse to show a finished run as the result of other data, another template or tokenizer than it had. What cannot
    be read any more is not compared; a note says so.

    Raises:
        RunDirError: lists every difference.
    """
    try:
        now = read(cfg)
    except InputError as error:
        terminal.note(f"cannot check whether the data have changed since the run: {str(error).splitlines()[0]}")
        return
    folder.check_sources(now)


def record(splits: Splits, cfg: ExperimentConfig, tokenizer: Path) -> Sources:
    """Return the hashes of rows, of the prompt template and of the tokenizer in a folder."""
    return {
        **rows_record(splits),
        "template": {"sha256": _hash(cfg.data.prompt.encode(errors="surrogatepass"))},
        "tokenizer": {"sha256": _hash(*_tokenizer(tokenizer))},
    }


def rows_record(splits: Splits) -> Sources:
    """Return the hashes of the rows: of each split, and of all rows together."""
    rows = {name: getattr(splits, name) for name in SPLITS}
    each = {name: {"rows": len(part), "sha256": fingerprint(part)} for name, part in rows.items()}
    return {"data": {"sha256": splits.sha256}, **each}


def _tokenizer(folder: Path) -> list[bytes]:
    """Return the parts of a tokenizer's files that determine token ids: tokenizer.json or, without one, the older
    vocabulary files; and the special tokens."""
    whole = folder / "tokenizer.json"
    others = [] if whole.is_file() else [file for pattern in VOCABULARIES for file in sorted(folder.glob(pattern))]
    markers: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        markers |= {key: _text(value) for key, value in _node(folder / name).items() if key in MARKERS}
    state = {key: value for key, value in _node(whole).items() if key not in STATE}
    nodes = [json.dumps(node, sort_keys=True).encode() for node in (state, markers)]
    return [*(file.read_bytes() for file in others), *nodes]


def _node(file: Path) -> dict[str, Any]:
    """Return the values of a JSON file; none if it is absent or holds something else."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(marker: Any) -> Any:
    """Return the text of a special token, which may be stored with properties."""
    return marker.get("content") if isinstance(marker, dict) else marker


def _hash(*parts: bytes) -> str:
    digest = sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
