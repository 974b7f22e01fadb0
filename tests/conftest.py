"""A tiny random model, a few rows, and a run of both that takes half a second."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # two threads on two busy cores are far slower than one
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

ROOT = Path(__file__).resolve().parents[1]
MATERIAL = ROOT / "tests/material"  # what its README.md says
sys.path.insert(0, str(ROOT / "tests"))  # modules that several test files share

# Short, so that a byte tokenizer makes few tokens of them.
PROMPT = "data.prompt='{context}\n{question}\n'"
TABLES = ("cat", "dog", "emu", "fox", "gnu", "hen", "owl", "pig", "ram", "yak")


class Bar:
    def __init__(self, terminal: "Recorder") -> None:
        self.terminal = terminal

    def update(self, step: int, metrics: dict[str, float]) -> None:
        self.terminal.on_update(step, metrics)


class Recorder:
    """Stands in for ftlab.terminal.Terminal: keeps what it is given. `on_update` is called with every metric."""

    lost = ""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.phases: list[str] = []
        self.commands: list[str] = []
        self.on_update: Callable[[int, dict[str, float]], None] = lambda step, metrics: None

    def config(self, tree: dict[str, Any], changed: set[str]) -> None:
        self.changed = changed

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.phases.append(name)
        yield

    @contextmanager
    def progress(self, total: int, start: int = 0, what: str = "train") -> Iterator[Bar]:
        yield Bar(self)

    def scores(self, *columns: Any, **options: Any) -> None:
        self.table = columns

    def predictions(self, rows: list[dict[str, Any]], limit: int = 5) -> None:
        self.rows = rows

    def next_commands(self, commands: list[str]) -> None:
        self.commands = commands


@pytest.fixture
def terminal() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def terminal_of() -> type[Recorder]:
    """What makes such a terminal."""
    return Recorder


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


def byte_tokenizer(pad: str = "<pad>") -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token=pad)


@pytest.fixture(scope="session")
def byte_tokens() -> Any:
    """One token a byte; pad differs from eos."""
    return byte_tokenizer()


def llama(tokenizer: Any, **shape: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    default = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        # Weights this large make a random model's answers differ from prompt to prompt.
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **(default | shape),
        )
    )


@pytest.fixture(scope="session")
def make_llama(byte_tokens: Any) -> Callable[..., Any]:
    """A random Llama of 2 layers and hidden size 64, always the same; keywords change its shape."""
    return lambda **shape: llama(byte_tokens, **shape)


@pytest.fixture(scope="session")
def make_base(
    tmp_path_factory: pytest.TempPathFactory, byte_tokens: Any, make_llama: Callable[..., Any]
) -> Callable[..., Path]:
    """A folder with such a Llama and its tokenizer."""
    made: dict[str, Path] = {}

    def make(**shape: Any) -> Path:
        key = json.dumps(shape, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("base")
            byte_tokens.save_pretrained(folder)
            make_llama(**shape).save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_kind(tmp_path_factory: pytest.TempPathFactory, byte_tokens: Any) -> Callable[..., Path]:
    """A folder with a small random model of an architecture and its tokenizer; keywords change its configuration."""
    from kinds import make_kind

    made: dict[str, Path] = {}

    def make(kind: str, **shape: Any) -> Path:
        key = json.dumps([kind, shape], sort_keys=True)
        if key not in made:
            made[key] = make_kind(kind, byte_tokens, tmp_path_factory.mktemp(kind), **shape)
        return made[key]

    return make


@pytest.fixture(scope="session")
def base_folder(make_base: Callable[..., Path]) -> Path:
    return make_base()


def rows(count: int, offset: int = 0) -> list[dict[str, str]]:
    return [
        {
            "question": f"How many {table}s over {i}?",
            "context": f"CREATE TABLE {table}{i // 10} (age INT)",
            "answer": f"SELECT COUNT(*) FROM {table}{i // 10} WHERE age > {i}",
            "db_id": f"{table}{i // 10}",
        }
        for i in range(offset, offset + count)
        for table in [TABLES[i % 10]]
    ]


@pytest.fixture(scope="session")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty rows to train on and six of other tables to test on."""
    folder = tmp_path_factory.mktemp("rows")
    for name, part in (("train", rows(40)), ("test", rows(6, offset=100))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture(scope="session")
def small(base_folder: Path, rows_folder: Path) -> list[str]:
    """Overrides of an experiment that takes half a second: 4 steps of 4 rows, an evaluation every 2."""
    return [
        "model=tiny",
        f"model.id={base_folder}",
        "quant=none",
        "lora=r4",
        "data=jsonl",
        f"data.path={rows_folder}",
        PROMPT,
        "data.validation=4",
        "data.max_length=128",
        "trainer=quick",
        "trainer.lr=1e-2",
        "trainer.warmup_steps=0",
        "trainer.max_steps=4",
        "trainer.global_batch_size=4",
        "trainer.micro_batch_size=2",
        "trainer.log_every=1",
        "trainer.save_every=2",
        "eval.every=2",
        "eval.max_rows=4",
        "eval.batch_size=4",
        "eval.max_new_tokens=4",
        "tracker=none",
    ]


@pytest.fixture
def fit(small: list[str], tmp_path: Path, terminal: Recorder) -> Callable[..., Any]:
    """Run the small experiment, with overrides added, in this process; its outcome."""

    def fit(*more: str, run_dir: Path | str = tmp_path / "run", terminal: Any = terminal) -> Any:
        from ftlab import run
        from ftlab.composition import composition

        return run(composition([*small, f"run_dir={run_dir}", *more]), terminal)

    return fit


@pytest.fixture(scope="session")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished small run. Only to read."""
    from ftlab import run
    from ftlab.composition import composition

    folder = tmp_path_factory.mktemp("finished") / "run"
    run(composition([*small, f"run_dir={folder}"]), Recorder())  # type: ignore[arg-type]
    return folder


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Installs a package as pip does: a folder on Python's path with its files, and its entry points beside it.

    `install("extra", {"ftlab.tasks": {"shout": "extra.shout:TASK"}}, {"extra/shout.py": TEXT})` returns that folder.
    """
    before = set(sys.modules)

    def install(name: str, points: dict[str, dict[str, str]], files: dict[str, str], version: str = "1.0") -> Path:
        site = tmp_path / f"site-{name}"
        metadata = {
            f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{name}-{version}.dist-info/entry_points.txt": "\n".join(
                "\n".join([f"[{group}]", *(f"{part} = {target}" for part, target in parts.items())])
                for group, parts in points.items()
            ),
        }
        for path, text in (files | metadata).items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(site)
        return site

    yield install
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


class Killed(BaseException):
    """Stands for SIGKILL: nothing that cleans up after errors catches it."""


@pytest.fixture
def killed_at() -> Callable[[int, Callable[[], Any]], bool]:
    """Do something, but end it in place of its `number`th call that changes names on disk or waits for it; whether
    there were as many."""

    def do(number: int, action: Callable[[], Any]) -> bool:
        calls = 0

        def counted(original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise Killed
            return original(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync"):
                patch.setattr(os, name, partial(counted, getattr(os, name)))
            try:
                action()
            except Killed:
                return True
        return False

    return do


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """A command line in this process: exit code, stdout, stderr."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        from ftlab.__main__ import main

        capsys.readouterr()
        code = main(words)
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def ftlab(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A command line in a process of its own, in an empty folder."""

    def call(*words: str, cwd: Path = tmp_path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ftlab", *words],
            cwd=cwd,
            env={**os.environ, "WANDB_MODE": "offline", **env},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return call


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, gzipped or not."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def material() -> Callable[[str], list[dict[str, Any]]]:
    """The rows of a file of tests/material, by its name."""
    return lambda name: read_rows(MATERIAL / name)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """A file of the large data sets by its path in the folder FTLAB_SHARED, by default ../shared; a test that needs one
    which is not there is skipped."""
    folder = Path(os.environ.get("FTLAB_SHARED") or ROOT / "../shared")

    def file(name: str) -> Path:
        if not (folder / name).is_file():
            pytest.skip(f"needs real data: no file {folder / name} (FTLAB_SHARED names the folder)")
        return folder / name

    return file
