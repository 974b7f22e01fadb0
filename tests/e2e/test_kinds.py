"""Architectures beyond Llama: each trains, is scored, saved and loaded again, or is refused with a reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kinds import KINDS

from ftlab.errors import InputError

# Architectures that may be refused: none is today.
REFUSED: set[str] = set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_trains_and_answers_alike_when_loaded_again(
    kind: str, make_kind: Callable[..., Path], fit: Callable[..., Any]
) -> None:
    from ftlab.composition import load_tree, typed_from_tree
    from ftlab.evaluate import answer, ready
    from ftlab.experiment import load_finished, make_accelerator
    from ftlab.run_dir import RunDir

    base = make_kind(kind)
    few = ["model.dtype=float32", f"model.id={base}", "eval.every=4", "eval.max_rows=2", "trainer.micro_batch_size=4"]
    try:
        outcome = fit(*few)
    except InputError:
        assert kind in REFUSED
        return
    assert kind not in REFUSED
    assert outcome.summary.step == 4
    config = typed_from_tree(load_tree(outcome.folder / "config.yaml"))
    accelerator = make_accelerator(config)
    tokenizer, model, decoder, _ = load_finished(outcome.folder, config, accelerator)
    rows = RunDir(outcome.folder).read_rows("predictions.jsonl")
    prompts = [tokenizer(f"{row['context']}\n{row['question']}\n").input_ids for row in rows]
    with ready(model, decoder, accelerator) as fast:
        assert answer(model, fast, tokenizer, prompts, config.eval) == [row["pred"] for row in rows]
