"""Small tokenizers of the kinds that differ in what they put round a text."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "### Schema:\nCREATE TABLE singer (name VARCHAR, age INTEGER)\n\n### Question:\nHow many are there?",
    "### SQL:\nSELECT COUNT(*) FROM singer WHERE age > 30 ORDER BY name",
] * 20


def _backend(template: str | None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return backend


def _make(kind: str) -> Any:
    template = {"bos": "<s> $A", "bos_eos": "<s> $A </s>"}.get(kind)
    eos = {} if kind == "no_eos" else {"eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=_backend(template), bos_token="<s>", **eos)


_MADE: dict[str, Any] = {}


@pytest.fixture
def make_tokenizer() -> Callable[[str], Any]:
    """bos: as Llama; bos_eos: with an end marker round text; plain: has a bos but never puts it; no_eos."""

    def make(kind: str) -> Any:
        return _MADE.setdefault(kind, _make(kind))

    return make


@pytest.fixture
def tokenizer(make_tokenizer: Callable[[str], Any]) -> Any:
    return make_tokenizer("bos")


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Run a program in a fresh interpreter with an empty home for caches; its standard output."""

    def run(program: str, **environment: str) -> str:
        env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), **environment}
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
