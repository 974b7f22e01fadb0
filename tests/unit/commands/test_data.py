import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftlab.commands import data as command
from ftlab.config import DataConfig, ExperimentConfig, ModelConfig
from ftlab.errors import DataError


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte; its only special token ends, begins and pads, as in GPT-2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<|end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|end|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def config(max_length: int = 512, **fields: Any) -> ExperimentConfig:
    rows = [
        {
            "question": f"How many [bold]{i}[/bold]?",
            "context": f"CREATE TABLE t{i} (a INTEGER)" + " " * i,
            "answer": "SELECT 1",
        }
        for i in range(60)
    ]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made: dict[str, Any] = {
        "name": "my rows",
        "source": "table",
        "path": ".",
        "max_length": max_length,
        "validation": 6,
    } | fields
    return ExperimentConfig(data=DataConfig(**made), model=ModelConfig(name="org/tiny", id="x"))


def show(capsys: pytest.CaptureFixture[str], cfg: ExperimentConfig, tokenizer: Any) -> str:
    assert command.main(cfg, tokenizer) == 0
    return capsys.readouterr().out


def test_splits_notes_hash_and_lengths_are_shown(capsys: pytest.CaptureFixture[str], tokenizer: Any) -> None:
    out = show(capsys, config(), tokenizer)
    assert "my rows, tokenized for org/tiny" in out
    assert re.search(r"train +48 +0 +0 +\d+ +\d+ +\d+ +\d+", out)
    assert re.search(r"validation +6 ", out)
    assert re.search(r"test +6 ", out)
    assert "60 rows from train.jsonl" in out
    assert "taken from train in whole groups (6 groups by context)" in out
    assert re.search(r"sha256 of all rows: [0-9a-f]{64}", out)
    counts = [int(n) for n in re.findall(r"^ +\d+ to \d+ +[█▏▎▍▌▋▊▉]* (\d+)$", out, re.MULTILINE)]
    assert sum(counts) == 48, "the histogram holds every row of train"
    assert "data.max_length=512" in out
    assert "would keep" not in out


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_three_samples_mark_what_is_trained(capsys: pytest.CaptureFixture[str], tokenizer: Any, loss_on: str) -> None:
    cfg = config()
    cfg.trainer.loss_on = loss_on
    out = show(capsys, cfg, tokenizer)
    assert "marked: ⟦trained tokens⟧" in out
    marked = re.findall(r"⟦([^⟧]+)⟧", out)[1:]
    assert len(marked) == 3
    for text in marked:
        if loss_on == "completion":
            assert text == "SELECT 1<|end|>", "answer and end marker, nothing else"
        else:
            assert text.startswith("## Schema"), "all but the first token"
    assert "How many [bold]" in out, "text of the data is no markup"


def test_a_terminal_gets_colours_in_place_of_marks(
    capsys: pytest.CaptureFixture[str], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = show(capsys, config(), tokenizer)
    assert "⟦" not in out
    assert "\x1b[1;32mSELECT 1\x1b[0m" in out
    assert re.search(r"\x1b\[[0-9;]*35m<\|end\|>", out), "special tokens have a colour of their own"


def test_truncated_and_dropped_rows_are_counted_with_a_length_that_keeps_them(
    capsys: pytest.CaptureFixture[str], tokenizer: Any
) -> None:
    out = show(capsys, config(max_length=110), tokenizer)
    cells = re.search(r"train +48 +(\d+) \([\d.]+%\)", out)
    assert cells
    assert int(cells[1]) > 0
    suggested = re.search(r"data\.max_length=(\d+) would truncate no row", out)
    assert suggested
    assert re.search(r"train +48 +0 +0 ", show(capsys, config(max_length=int(suggested[1])), tokenizer))


def test_the_plot_is_written_under_the_names_of_data_and_model(
    capsys: pytest.CaptureFixture[str], tokenizer: Any
) -> None:
    pytest.importorskip("matplotlib")
    out = show(capsys, config(), tokenizer)
    assert "Plot: outputs/data-my_rows-org_tiny.png" in out
    assert Path("outputs/data-my_rows-org_tiny.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_line_says_how_to_get_the_plot(
    capsys: pytest.CaptureFixture[str], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    out = show(capsys, config(), tokenizer)
    assert "needs matplotlib: pip install 'ftlab[plots]'" in out
    assert not Path("outputs").exists()


def test_a_plot_that_cannot_be_written_does_not_end_the_command(
    capsys: pytest.CaptureFixture[str], tokenizer: Any
) -> None:
    pytest.importorskip("matplotlib")
    Path("outputs").write_text("a file")
    assert "No plot: outputs/data-my_rows-org_tiny.png cannot be written" in show(capsys, config(), tokenizer)


def test_everything_is_shown_before_no_row_fits_ends_it(capsys: pytest.CaptureFixture[str], tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"data\.max_length=16 leaves no row to train on"):
        command.main(config(max_length=16), tokenizer)
    out = capsys.readouterr().out
    assert re.search(r"train +48 +0 +48 \(100\.0%\)", out)


def test_bad_data_is_an_error_of_the_data(tokenizer: Any) -> None:
    cfg = config()
    Path("train.jsonl").write_text("{}\nx\n")
    with pytest.raises(DataError, match=r"train\.jsonl"):
        command.main(cfg, tokenizer)


def test_generated_data_are_shown_too(capsys: pytest.CaptureFixture[str], tokenizer: Any) -> None:
    cfg = config()
    cfg.data = DataConfig(name="s", source="sql_synth", train_rows=20, validation=4, test_rows=5, max_length=2048)
    assert re.search(r"train +20 ", show(capsys, cfg, tokenizer))


def test_only_control_tokens_are_coloured_as_such_and_not_text_that_spells_one(tokenizer: Any) -> None:
    from ftlab.data.encode import Encoded

    ids = [0, *tokenizer("a", add_special_tokens=False)["input_ids"]]
    spelled = [id for char in "<|end|>" for id in tokenizer(char, add_special_tokens=False)["input_ids"]]
    row = [*ids, *spelled, 0]
    text = command._sample(Encoded("1", row, ((3, 5), (6, len(row)))), tokenizer, coloured=True)
    assert text.plain == "<|end|>a<|end|><|end|>"
    assert [(span.start, span.end) for span in text.spans if span.style == command.SPECIAL] == [(0, 7), (15, 22)]
    plain = command._sample(Encoded("1", row, ((3, 5), (6, len(row)))), tokenizer, coloured=False).plain
    assert plain == "<|end|>a<⟦|e⟧n⟦d|><|end|>⟧"


def test_rows_of_every_split_that_do_not_fit_are_told_of(capsys: pytest.CaptureFixture[str], tokenizer: Any) -> None:
    row = {"question": "q" * 120, "context": "CREATE TABLE t (a INTEGER)", "answer": "SELECT 1"}
    cfg = config(max_length=170)
    for name in ("validation", "test"):
        Path(f"{name}.jsonl").write_text(json.dumps(row | {"question": "short"}) + "\n" + json.dumps(row))
    out = show(capsys, cfg, tokenizer)
    assert "data.max_length=170: of 2 validation rows, 1 are truncated and 0 left out of the loss" in out
    assert "would truncate no row of validation and test" in out
