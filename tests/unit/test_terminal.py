"""What is shown fits, aligns, can be copied, and shows data as it is."""

import gc
import io
import math
import os
import re
import shlex
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

import ftlab.terminal
from ftlab.terminal import Terminal

TRAINING = {
    "train/loss": 0.81234,
    "train/lr": 2.9e-3,
    "train/grad_norm": 1.0,
    "perf/tokens_per_second": 1234.4,
    "vram/peak_reserved_gib": 3.14159,
}
EVALUATION = {
    "eval/sql_string_match": 0.1,
    "eval/sql_ast_match": 0.345,
    "eval/sql_exact_match": 0.345,
    "eval/sql_exec_match": 0.4,
    "eval/sql_valid": 0.9,
    "eval/sql_ast_match/single_table": 0.5,
    "eval/sql_exec_match/single_table": 0.625,
    "eval/sql_gold_broken": 1.0,
    "eval/sql_vacuous": 0.0,
    "eval/loss": 0.5,
}
ROW = {
    "question": "Which [bold]singers[/bold] are there?",
    "gold": "SELECT name FROM [singer]",
    "base_pred": "SELECT\n  x FROM y",
    "pred": "SELECT name FROM [singer]",
    "base_exact_string": False,
    "exact_string": True,
}


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def plain() -> Terminal:
    return Terminal(io.StringIO())


def shown(terminal: Terminal) -> list[str]:
    file = terminal.output.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


# --- configuration ------------------------------------------------------------------------------------------


def test_config_groups_by_node_and_marks_what_was_changed(plain: Terminal) -> None:
    plain.config({"seed": 0, "lora": {"r": 16, "bias": "none"}, "data": {"columns": {"group": "db"}}}, {"lora.r"})
    lines = shown(plain)
    assert lines[:2] == ["experiment", "   seed 0"]
    assert lines[2] == "lora"
    assert re.fullmatch(r"  \*r +16 +bias +none", lines[3])
    assert lines[4:6] == ["data", "   columns.group db"]


def test_config_shows_values_as_one_writes_them(plain: Terminal) -> None:
    plain.config(
        {"a": {"none": None, "yes": True, "lr": 2e-4, "list": ["q", "v"], "text": "x\n{y}", "empty": ""}}, set()
    )
    text = "\n".join(shown(plain))
    for pattern in ("none +null", "yes +true", r"lr +0\.0002", r"list +\[q, v\]", r'text +"x\\n\{y\}"', 'empty +""'):
        assert re.search(pattern, text)


def test_config_masks_secrets_and_reads_nothing_as_markup(plain: Terminal) -> None:
    tree = {
        "hub": {"token": "hunter2"},
        "data": {"path": "https://me:hunter2@host/x", "prompt": "[red]{question}[/red]"},
    }
    plain.config(tree, set())
    text = "\n".join(shown(plain))
    assert "hunter2" not in text
    assert "[red]{question}[/red]" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_config_keeps_to_the_width(width: int) -> None:
    terminal = Terminal(io.StringIO(), width=width)
    node = {f"a_rather_long_key_{i}": "some value" * (i % 3) for i in range(17)}
    terminal.config({"trainer": node}, {"trainer.a_rather_long_key_1"})
    lines = shown(terminal)
    assert max(map(len, lines)) <= width
    assert all(sum(f"a_rather_long_key_{i} " in line for line in lines) == 1 for i in range(17))


# --- phases and progress ------------------------------------------------------------------------------------


def test_a_phase_tells_its_seconds(plain: Terminal) -> None:
    with plain.phase("load"):
        time.sleep(0.11)
    first, last = shown(plain)
    assert first == "load ..."
    assert re.fullmatch(r"load +0\.\d s", last)


def test_a_phase_that_fails_lets_the_error_through_and_claims_nothing(plain: Terminal) -> None:
    with pytest.raises(RuntimeError), plain.phase("load"):
        raise RuntimeError
    assert shown(plain) == ["load ..."]


def test_plain_progress_is_a_line_an_update_with_metrics(plain: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(ftlab.terminal.time, "monotonic", lambda: now)
    with plain.progress(1200, start=20) as bar:
        now = 120.0
        bar.update(40, TRAINING)
        now = 140.0
        bar.update(60, {})
        bar.update(60, EVALUATION)
        now = 1280.0
        bar.update(1200, {"train/loss": math.nan})
    assert shown(plain) == [
        "step 40/1,200  loss 0.8123  lr 2.9e-03  1,234 tok/s  3.1 GiB  eta 19:20",
        "step 60/1,200  validation  loss 0.500  AST 34.5 %  exec 40.0 %  eta 19:00",
        "step 1,200/1,200  loss nan",
    ]


def test_plain_progress_without_metrics_speaks_every_half_minute(
    plain: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(ftlab.terminal.time, "monotonic", lambda: now)
    with plain.progress(200, what="evaluate") as bar:
        for done in range(1, 201):
            now = float(done)
            bar.update(done, {})
    lines = shown(plain)
    assert [line.split("  ")[0] for line in lines[:2]] == ["row 30/200", "row 60/200"]
    assert len(lines) == 6


def test_a_bar_shows_the_numbers_at_80_columns_and_leaves_evaluations_behind() -> None:
    terminal = Terminal(Screen(), width=80)
    with terminal.phase("train"), terminal.progress(120) as bar:
        bar.update(60, TRAINING)
        bar.update(60, {"eval/sql_exact_match": 0.25})
        bar.live.refresh()  # type: ignore[attr-defined]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", "\n".join(shown(terminal)))
    moving = "".join(text.split("\n"))
    assert "60/120 eta 0:00  loss 0.8123  lr 2.9e-03  1,234 tok/s  3.1 GiB" in moving
    assert "step 60/120  validation  AST 25.0 %" in text


@pytest.mark.parametrize("file", [io.StringIO(), Screen()])
def test_an_update_costs_less_than_a_millisecond(file: io.StringIO) -> None:
    terminal = Terminal(file, width=80)
    costs = []
    with terminal.progress(1000) as bar:
        for step in range(200):
            began = time.perf_counter()
            bar.update(step, TRAINING)
            costs.append(time.perf_counter() - began)
    assert sorted(costs)[100] < 1e-3


RIGHT = ["ast_equal", "exact_string"]  # columns that say which answers are right


# --- results ------------------------------------------------------------------------------------------------


def test_scores_show_rates_in_percent_losses_as_they_are_and_splits_apart(plain: Terminal) -> None:
    plain.scores(
        {"eval/loss": 3.2, "eval/sql_exact_match": 0.01, "test/sql_exact_match": 0.0},
        {"eval/loss": 0.4125, "eval/sql_exact_match": 0.63, "test/sql_exact_match": math.nan},
        {"base": {}, "tuned": {"eval/sql_exact_match": (0.561, 0.694)}},
    )
    rows = [line.split() for line in shown(plain) if line]
    assert rows == [
        ["base", "tuned", "difference", "95", "%", "CI", "of", "tuned"],
        ["validation"],
        ["exact", "match", "1.0", "%", "63.0", "%", "+62.0", "pp", "56.1", "to", "69.4"],
        ["loss", "3.200", "0.412", "-2.788"],
        ["test"],
        ["exact", "match", "0.0", "%", "-"],
    ]
    assert all(line == line.rstrip() for line in shown(plain))


def test_scores_stand_in_order_with_the_headline_once_and_kinds_of_query_apart(plain: Terminal) -> None:
    before = {key: 0.0 if key != "eval/sql_gold_broken" else 1.0 for key in EVALUATION}
    plain.scores(before, {**EVALUATION, "test/sql_ast_match/nested": 0.25}, None)
    lines = [line for line in shown(plain) if line]
    assert [line[:22].strip() for line in lines[1:8]] == [
        "validation",
        "string match",
        "AST match (headline)",
        "exec match",
        "valid",
        "loss",
        "gold broken, rows",
    ]
    assert lines[7].split()[-2:] == ["1", "1"]
    assert [line.split() for line in lines[8:]] == [
        ["base", "->", "tuned,", "%", "validation", "AST", "exec", "test", "AST"],
        ["single", "table", "0.0", "->", "50.0", "0.0", "->", "62.5", "-"],
        ["nested", "-", "-", "25.0"],
    ]


def test_the_whole_table_fits_80_columns() -> None:
    terminal = Terminal(io.StringIO(), width=80)
    both = EVALUATION | {key.replace("eval/", "test/"): 1.0 for key in EVALUATION}
    terminal.scores(both, both, {"tuned": dict.fromkeys(both, (0.9, 1.0))})
    assert max(map(len, shown(terminal))) <= 80
    assert sum("single table" in line for line in shown(terminal)) == 1
    assert "…" not in "".join(shown(terminal))


def test_a_table_reads_from_the_left_and_ends_at_the_right(plain: Terminal) -> None:
    plain.table(["", "rows"], [["all", "1,000"], ["[b]of a kind[/b]", "1"]])
    assert shown(plain) == ["", f"{'':16}   rows", f"{'all':16}  1,000", f"{'[b]of a kind[/b]':16}      1"]


def test_scores_take_other_titles_and_missing_sides(plain: Terminal) -> None:
    plain.scores({}, {"test/loss": 0.5}, None, columns=("run", "now"))
    assert [line.split() for line in shown(plain) if line] == [
        ["run", "now", "difference"],
        ["test"],
        ["loss", "-", "0.500"],
    ]


def test_right_is_what_has_an_equal_tree(plain: Terminal) -> None:
    plain.predictions([{**ROW, "ast_equal": False, "base_ast_equal": True}], RIGHT)
    assert [line.split()[1] for line in shown(plain)[3:]] == ["right", "wrong"]


def test_predictions_are_whole_lines_marked_right_or_wrong(plain: Terminal) -> None:
    plain.predictions([ROW, {**ROW, "base_pred": None, "pred": "", "exact_string": None}], RIGHT)
    assert [line for line in shown(plain) if line] == [
        "question       Which [bold]singers[/bold] are there?",
        "gold           SELECT name FROM [singer]",
        "base     wrong SELECT x FROM y",
        "tuned    right SELECT name FROM [singer]",
        "question       Which [bold]singers[/bold] are there?",
        "gold           SELECT name FROM [singer]",
        "tuned    wrong (empty)",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_long_and_wide_answers_are_cut_to_the_width(width: int) -> None:
    terminal = Terminal(io.StringIO(), width=width)
    terminal.predictions(
        [{**ROW, "question": "用户" * 100, "gold": "x" * 500, "pred": "a\x1b[31mb\x07" + "c" * 300}] * 9
    )
    lines = [line for line in shown(terminal) if line]
    assert len(lines) == 20
    assert max(map(cell_len, lines)) <= width
    assert lines[0].endswith("…")
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("file", [io.StringIO(), Screen()])
def test_commands_can_be_copied_from_any_width(file: io.StringIO) -> None:
    words = ["python", "-m", "ftlab", "predict", "run=outputs/x", 'context=CREATE TABLE t ([a b] TEXT, c "d")' * 3]
    terminal = Terminal(file, width=40)
    terminal.next_commands([shlex.join(words), "b", "c", "d", "e"])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(shown(terminal))).splitlines()
    assert shlex.split(lines[2]) == words
    assert lines[3:] == ["b", "c", "d", "e"]


def test_notes_and_warnings_are_one_line_and_masked(plain: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret-value")
    plain.note("rows        [train] 200\nplanted-secret-value")
    plain.warn("x" * 300)
    first, second = shown(plain)
    assert first == "rows        [train] 200 ***"
    assert second == "warning: " + "x" * 300


def test_an_output_that_knows_only_ascii_does_not_fail() -> None:
    raw = io.BytesIO()
    terminal = Terminal(io.TextIOWrapper(raw, encoding="ascii"))
    terminal.predictions([{**ROW, "question": "Ü" * 300}])
    terminal.console.file.flush()
    assert b"question       ???" in raw.getvalue()


# --- nobody reads -------------------------------------------------------------------------------------------


def test_on_a_full_disk_nothing_is_shown_and_all_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:
        terminal = Terminal(full)
        terminal.note("a" * 100_000)
        with terminal.phase("data"), terminal.progress(2) as bar:
            bar.update(1, {"train/loss": 0.5})
    assert terminal.lost == "No space left on device"
    assert capsys.readouterr().err == "ftlab: no further output here (No space left on device); the run continues\n"


def test_without_its_reader_nothing_is_shown_and_all_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        terminal = Terminal(pipe)
        terminal.note("read")
        assert os.read(reader, 9) == b"read\n"
        os.close(reader)
        for _ in range(3):
            terminal.warn("not read")
        other = Terminal(pipe)
        other.note("not read either")
        assert other.lost == "Broken pipe"
    assert terminal.lost == "Broken pipe"
    assert capsys.readouterr().err.count("\n") == 1


def test_a_terminal_freed_after_its_file_was_closed_says_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As that of a trial, whose output.txt is closed before the traceback of a failure lets go of it."""
    with open(tmp_path / "output.txt", "w", encoding="utf-8") as file:
        terminal = Terminal(file)
        terminal.note("a line")
    del terminal
    gc.collect()
    assert capsys.readouterr().err == ""


def test_a_file_that_is_closed_is_no_error() -> None:
    file = io.StringIO()
    terminal = Terminal(file)
    file.close()
    terminal.note("nobody hears")
    assert terminal.lost
