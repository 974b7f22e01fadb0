"""A sweep's report is correct and states its uncertainty; best.yaml composes to the best trial's configuration."""

import io
import json
import math
import re
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ftlab.composition import Composition, composition, flatten
from ftlab.config import SweepConfig
from ftlab.run_dir import RunDir
from ftlab.sql.intervals import wilson
from ftlab.summary import Summary
from ftlab.sweep import tables
from ftlab.sweep.best import kept
from ftlab.sweep.entry import Answer, Entry, Parameter, front
from ftlab.sweep.figures import Sweep
from ftlab.sweep.statistics import against, importance, mover, over_seeds, rung_checks, saved, spearman, student
from ftlab.sweep.study_report import Report, gathered, report_study
from ftlab.sweep.svg import axis
from ftlab.terminal import Terminal

MATCH = "eval/sql_exact_match"
FIXED = ["experiment=quickstart", "tracker=none"]
SPACE = ["trainer.lr=tag(log,interval(1e-4,1e-2))", "lora.r=4,8,16", "lora.target_modules=all-linear,[q_proj,v_proj]"]
PARAMS = {"trainer.lr": 1e-3, "lora.r": 8, "lora.target_modules": "all-linear"}


def entry(number: int, right: int | None = None, rows: int = 200, **more: Any) -> Entry:
    """A complete trial with `right` of `rows`, or one in another state."""
    if right is None:
        return Entry(number, **more)
    return Entry(number, "complete", (right / rows,), interval=wilson(right, rows), **more)


@cache
def composed(overrides: tuple[str, ...]) -> Composition:
    return composition(overrides)


class Maker:
    """A study with trials as workers leave them."""

    def __init__(self, folder: Path, objectives: list[str], space: list[str], **cfg: Any) -> None:
        from ftlab.sweep.space import Space
        from ftlab.sweep.study import Study

        found, _ = Space.read(space, {})
        self.study = Study.open(folder.name, folder, SweepConfig(n_trials=6, **cfg), found, objectives, FIXED)

    def trial(
        self,
        state: str,
        values: list[float] | None = None,
        rungs: dict[int, float] | None = None,
        overrides: list[str] | None = None,
        params: dict[str, Any] | None = None,
        **attrs: Any,
    ) -> int:
        """Add a trial; a complete one gets a run folder, composed of `overrides` or of its parameters."""
        from optuna.trial import TrialState, create_trial

        params = {**PARAMS, **(params or {})}
        params = {key: params[key] for key in self.study.space.keys}
        if "origin" in attrs:
            attrs["from"] = attrs.pop("origin")
        owner = {"host": "host-a/1234/pid", "pid": 11, "started": "5"}
        trial = create_trial(
            state=TrialState[state.upper()],
            values=values,
            params=params,
            distributions=self.study.space.distributions(),
            intermediate_values={s: self.study.reported(v) for s, v in (rungs or {}).items()},
            user_attrs={"owner": owner, **attrs},
        )
        number = len(self.study.optuna.trials)
        trial.datetime_start = datetime(2026, 1, 1) + timedelta(minutes=number)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=50) if trial.state.is_finished() else None
        self.study.optuna.add_trial(trial)
        if values and "same_as" not in attrs and "from" not in attrs:
            self.run(
                number, overrides if overrides is not None else [*FIXED, *self.study.space.overrides(params)], values[0]
            )
        return number

    def run(self, number: int, overrides: list[str], value: float) -> None:
        folder = RunDir(self.study.folder / str(number))
        found = composed((*overrides, "run_dir=outputs/s/0", "run_name=s-0", "tracker.group=s"))
        folder.path.mkdir()
        folder.record(found)
        ends = {MATCH: wilson(round(200 * min(1, value)), 200), "test/sql_exact_match": (0.4, 0.6)}
        tuned = {MATCH: value, "test/sql_exact_match": 0.5}
        Summary.of({"tuned": tuned, "intervals": {"tuned": ends}, "step": 100, "planned_steps": 100}).write(
            folder / "summary.json"
        )


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Maker]:
    monkeypatch.chdir(tmp_path)

    def made(objectives: list[str] | None = None, space: list[str] | None = None, **cfg: Any) -> Maker:
        return Maker(tmp_path / "outputs" / "s", objectives or [MATCH], space or SPACE, **cfg)

    return made


def told(made: Maker) -> tuple[Report, str]:
    out = io.StringIO()
    found = report_study(made.study, Terminal(out))
    assert_whole(made.study.folder / "report.html")
    return found, out.getvalue()


def assert_whole(file: Path) -> None:
    """The page loads nothing, and its drawings are well-formed, with every number a number."""
    page = file.read_text()
    assert not re.search(r"src=|url\(|@import|<script", page)
    assert all(re.fullmatch(r"\d+/", place) for place in re.findall(r'href="([^"]*)"', page))  # folders beside it
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
        assert not re.search(r"\b(?:nan|inf)\b", re.sub(r"<title>.*?</title>", "", svg, flags=re.DOTALL))


# --- how surely -------------------------------------------------------------------------------------------------


def test_a_difference_within_the_intervals_is_a_tie_and_a_clear_one_is_not() -> None:
    best = entry(0, 180)
    close, far = against(best, entry(1, 174)), against(best, entry(2, 130))
    assert close is not None
    assert close.tie
    assert close.by == "intervals"
    assert far is not None
    assert not far.tie


def test_the_difference_of_two_rates_has_newcombes_interval() -> None:
    # 56/70 and 48/80, Newcombe (1998), table II, method 10.
    low, high = mover(56 / 70, wilson(56, 70), 48 / 80, wilson(48, 80))
    assert low == pytest.approx(0.0524, abs=1e-4)
    assert high == pytest.approx(0.3339, abs=1e-4)


def test_trials_that_answered_the_same_rows_are_paired() -> None:
    """96 against 90 of 100 is a tie by the intervals, but not by the paired test: no row favours the worse trial."""
    rows = {str(i): i for i in range(100)}
    best = entry(0, 96, 100, answers={key: Answer(i < 96, key) for key, i in rows.items()})
    other = entry(1, 90, 100, answers={key: Answer(i < 90, key) for key, i in rows.items()})
    found = against(best, other)
    assert found is not None
    assert (found.tie, found.by) == (False, "rows")
    unpaired = against(entry(0, 96, 100), entry(1, 90, 100))
    assert unpaired is not None
    assert unpaired.tie


def test_without_an_interval_nothing_is_called_a_tie() -> None:
    assert against(Entry(0, "complete", (0.41,)), Entry(1, "complete", (0.42,))) is None
    sweep = Sweep([Entry(0, "complete", (0.41,)), Entry(1, "complete", (0.42,))], [], ["eval/loss"], ["minimize"])
    board = tables.leaderboard(sweep)
    assert [row[board.head.index("vs best")] for row in board.rows] == ["best", "?"]
    assert any("sweep.seeds" in note for note in board.notes)


def test_the_interval_over_seeds_is_students() -> None:
    low, high = over_seeds(0.5, 0.1, 4) or (0, 0)
    assert (low, high) == pytest.approx((0.5 - 3.182 * 0.05, 0.5 + 3.182 * 0.05))
    assert over_seeds(0.5, 0.0, 1) is None
    quantiles = {2: 4.303, 10: 2.228, 11: 2.201, 14: 2.145, 29: 2.045, 100: 1.984}  # any table of t
    assert {n: round(student(n), 3) for n in quantiles} == quantiles


def test_seeds_that_agree_by_chance_do_not_make_a_score_sure() -> None:
    """Two seeds with 10 of 20 rows do not make 50 % certain: the interval is at least that of the rows."""
    ends = wilson(10, 20)
    reach = (0.5 - ends[0], ends[1] - 0.5)
    assert over_seeds(0.5, 0.0, 2, [reach, reach], rate=True) == pytest.approx(ends)
    low, high = over_seeds(0.5, 0.05, 3, [reach] * 3, rate=True) or (0, 0)
    assert low < ends[0]
    assert high > ends[1]
    assert over_seeds(0.5, 0.3, 2, [reach, reach], rate=True) == (0, 1)
    assert over_seeds(0.41, 0.0, 2) is None  # a loss without an interval of its rows: nothing is known
    loss = over_seeds(0.2, 0.3, 2) or (0, 0)
    assert loss[0] < 0  # only rates have bounds


def test_a_duplicate_counts_in_no_statistic() -> None:
    runs = [entry(i, 10 * i, rungs={5: 3 - i / 10}) for i in range(1, 4)]
    duplicates = [entry(i, 30, rungs={5: 2.7}, same_as=3) for i in range(4, 10)]
    check = rung_checks([*runs, *duplicates], metric_up=False, direction="maximize")[0]
    assert (check.trials, check.rho) == (3, pytest.approx(1))
    assert "too few" in check.words
    assert [e.number for e in Sweep([*duplicates, *runs], [], [MATCH], ["maximize"]).done] == [3, 2, 1]
    assert [e.number for e in front([*runs, *duplicates], ["maximize"])] == [3]
    board = tables.leaderboard(Sweep([*duplicates, *runs], [], [MATCH], ["maximize"]))
    assert [row[:2] for row in board.rows if row[0] != "-"] == [["1", "3"], ["2", "2"], ["3", "1"]]
    assert "9 of 9 trials finished: 9 complete, 0 pruned; 3 were run, 6 copied" in tables.counts(
        [*runs, *duplicates], 9
    )


def test_rank_correlation_shares_ranks_among_equals() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9487, abs=1e-4)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_a_loss_that_falls_as_the_match_rises_foretells_it() -> None:
    entries = [entry(i, 10 * i, rungs={5: 3 - i / 10, 10: float(i % 2)}) for i in range(1, 9)]
    first, second = rung_checks([*entries, Entry(9, "pruned", rungs={5: 9.0})], metric_up=False, direction="maximize")
    assert (first.step, first.trials) == (5, 8)
    assert first.rho == pytest.approx(1)
    assert first.words == "yes"
    assert "may be due to chance" in second.words
    few = rung_checks(entries[:3], metric_up=False, direction="maximize")[0]
    assert "too few" in few.words


def test_pruning_saved_the_steps_not_taken() -> None:
    entries = [
        entry(0, 100, step=100, planned=100),
        Entry(1, "pruned", step=20, planned=100),
        Entry(2, "pruned", rungs={30: 1.0}),  # what it planned is unknown: as the complete one
        Entry(3, "failed", step=5, planned=100),
        Entry(4, "pruned", step=10, planned=100, same_as=1),  # was not run
    ]
    found = saved(entries)
    assert (found.done, found.planned) == (150, 300)
    assert "150 of 300 optimizer steps (50 %)" in tables.pruning(found)
    assert tables.pruning(saved(entries[:1])) == ""


def test_importance_names_what_matters_and_keeps_silent_on_few_trials() -> None:
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: Any) -> float:
        trial.suggest_float("idle", 0, 1)
        trial.suggest_int("fixed", 4, 4)
        return float((trial.suggest_float("telling", 0, 1) - 0.3) ** 2)

    study.optimize(objective, n_trials=4)
    assert importance(study) == {}
    study.optimize(objective, n_trials=36)
    found = importance(study)
    assert list(found) == ["telling", "idle"]
    assert found["telling"] > 0.8
    for trial in study.get_trials():  # the same again, of another study or as duplicates
        more = {"from": "old/1"} if trial.number % 2 else {"same_as": 0}
        system = {"values": [trial.values[0] * (trial.params["idle"] > 0.5)], "user_attrs": more}
        state, spread = trial.state, trial.distributions
        study.add_trial(optuna.trial.create_trial(state=state, params=trial.params, distributions=spread, **system))
    assert importance(study) == found


def test_the_front_holds_what_nothing_else_beats() -> None:
    values = {0: (0.9, 8.0), 1: (0.8, 4.0), 2: (0.7, 5.0), 3: (0.8, 4.0), 4: (0.5, 3.0)}
    entries = [Entry(number, "complete", pair) for number, pair in values.items()]
    assert [e.number for e in front(entries, ["maximize", "minimize"])] == [0, 1, 3, 4]


def test_the_best_is_on_the_front_and_one_rule_names_it(make: Callable[..., Maker]) -> None:
    made = make([MATCH, "vram/peak_allocated_gib"])
    made.trial("complete", [0.9, 9.0])
    made.trial("complete", [0.9, 4.0], params={"lora.r": 4})
    made.trial("complete", [0.9, 4.0], same_as=1)
    found, out = told(made)
    best = made.study.best()
    assert best is not None
    assert found.best is not None
    assert best.number == found.best.number == 1
    assert "the Pareto front is trial 1 alone" in out
    assert "there is no single best" not in out
    assert "trial 1 " in (made.study.folder / "experiment" / "best.yaml").read_text()


# --- the whole report ---------------------------------------------------------------------------------------------


def test_a_sweep_is_told_whole(make: Callable[..., Maker]) -> None:
    made = make(pruner="median")
    made.trial("complete", [0.90], {50: 0.5, 100: 0.3})
    made.trial("complete", [0.88], {50: 0.6, 100: 0.4}, params={"lora.r": 4})
    made.trial("complete", [0.30], {50: 2.0, 100: 1.9}, params={"trainer.lr": 1e-4})
    made.trial("pruned", None, {50: 3.0}, params={"lora.r": 16})
    made.trial("fail", cause="CUDA out of memory <here>", vram_peak_gib=70.1)
    made.trial("fail", surplus=True)
    found, out = told(made)
    assert "4 of 6 trials finished: 3 complete, 1 pruned; 1 failed" in out
    board = [line.split() for line in out.splitlines() if re.match(r"[123] ", line)]
    assert board[0][:7] == ["1", "0", "90.0", "%", "85.1", "to", "93.4"]
    assert [row[7] for row in board[:3]] == ["best", "tie", "worse"]
    assert "pruning saved 50 of 400 optimizer steps" in out
    assert re.search(r"^4 +1 +70\.1 GiB +CUDA out of memory <here>$", out, re.MULTILINE)
    assert (
        "on the test split, which was not used to choose it: test/sql_exact_match 50.0 % (95 % interval: 40.0 to 60.0)"
        in out
    )
    assert "python -m ftlab --config-dir outputs/s experiment=best" in out
    assert "optuna-dashboard sqlite:///outputs/s/study.db" in out
    page = (made.study.folder / "report.html").read_text()
    for title in ("Parallel coordinates", "Learning curves", "History", "Timeline", "by parameter"):
        assert title in page
    assert "&lt;here&gt;" in page
    assert "host-a 11" in page
    markdown = (made.study.folder / "report.md").read_text()
    assert "| 1 | 0 | 90.0 % |" in markdown
    assert found.best is not None
    assert found.best.number == 0


def test_a_sweep_for_two_objectives_has_a_front(make: Callable[..., Maker]) -> None:
    made = make([MATCH, "vram/peak_allocated_gib"])
    made.trial("complete", [0.8, 4.0])
    made.trial("complete", [0.9, 9.0])
    made.trial("complete", [0.5, 8.0], params={"lora.r": 4})
    _, out = told(made)
    assert "there is no single best: the Pareto front is trials 1, 0" in out
    assert "experiment=best: trial 1, eval/sql_exact_match 90.0 % (95 % interval: 85.1 to 93.4), vram/" in out
    assert "Pareto front" in (made.study.folder / "report.html").read_text()
    assert "trial 1 " in (made.study.folder / "experiment" / "best.yaml").read_text()


@pytest.mark.parametrize("states", [[], ["running"], ["fail", "fail"], ["pruned"], ["complete"]])
def test_a_sweep_that_has_hardly_begun_is_told_too(make: Callable[..., Maker], states: list[str]) -> None:
    made = make()
    for state in states:
        made.trial(state, [0.5] if state == "complete" else None)
    found, out = told(made)
    complete = states == ["complete"]
    assert ("no trial is complete yet" in out) is not complete
    assert (made.study.folder / "experiment" / "best.yaml").exists() is complete
    assert (found.best is not None) is complete


def test_parameters_that_never_change_have_no_column(make: Callable[..., Maker]) -> None:
    made = make()
    for value in (0.5, 0.5, 0.5):
        made.trial("complete", [value])
    _, out = told(made)
    assert "the same in all trials: trainer.lr=0.001, lora.r=8, lora.target_modules=all-linear" in out
    assert "Parameter importance" not in (made.study.folder / "report.html").read_text()


def test_a_score_without_end_is_no_best(make: Callable[..., Maker]) -> None:
    made = make(["eval/loss"])
    made.trial("complete", [math.inf], {10: math.nan, 20: 1.0})
    made.trial("complete", [0.5], {10: 1.0, 20: 0.9}, params={"lora.r": 4})
    found, _ = told(made)
    assert found.best is not None
    assert found.best.number == 1


def test_a_repeated_trial_has_the_interval_over_its_seeds(make: Callable[..., Maker]) -> None:
    made = make(seeds=2)
    number = made.trial("complete", [0.6], deviation=[0.1 * math.sqrt(2)], seed_values=[[0.5], [0.7]])
    run = made.study.folder / str(number)
    for seed, value in ((0, 0.5), (1, 0.7)):
        folder = RunDir(run / f"seed-{seed}")
        folder.path.mkdir()
        folder.record(composition([*FIXED, f"seed={seed}", f"run_dir={folder.path}"]))
        Summary.of({"tuned": {MATCH: value}, "step": 50, "planned_steps": 50}).write(folder / "summary.json")
    for name in ("config.yaml", "summary.json"):
        (run / name).unlink()
    found = gathered(made.study).best
    assert found is not None
    assert found.interval == (0, 1)  # 12.706 * 0.1 to both sides
    assert (found.note, found.step, found.folder) == ("2 seeds", 100, run / "seed-0")


def test_answers_of_another_evaluation_are_not_paired(make: Callable[..., Maker]) -> None:
    made = make()
    verdict = {"exact_string": True, "ast_equal": True, "exec_equal": True, "valid": True}
    rest = {"vacuous": None, "gold_broken": False, "databases": 0, "reason": "", "split": "eval"}
    for value in (0.5, 1.0):
        number = made.trial("complete", [value])
        folder = made.study.folder / str(number) / "evaluations"
        folder.mkdir()
        rows = [json.dumps({"id": i, **verdict, **rest}) for i in range(4)]  # all right: a rate of 1
        (folder / "20260101-000000.jsonl").write_text("\n".join(rows))
    entries = gathered(made.study).sweep.entries
    assert [len(one.answers) for one in entries] == [0, 4]


def test_each_trial_links_to_its_folder(make: Callable[..., Maker]) -> None:
    made = make()
    for value in (0.5, 0.9):
        made.trial("complete", [value])
    made.trial("fail", cause="disk full")
    (made.study.folder / "2").mkdir()
    told(made)
    page = (made.study.folder / "report.html").read_text()
    assert sorted(re.findall(r'<td><a href="(\d+)/">\1</a></td>', page)) == ["0", "1", "2"]


def tied(made: Maker, *losses: float | None) -> None:
    for loss in losses:
        made.trial("complete", [0.5], **({} if loss is None else {"loss": loss}))


def test_of_equal_trials_the_lower_validation_loss_is_the_best(make: Callable[..., Maker]) -> None:
    made = make()
    tied(made, 0.9, 0.3, 0.6)
    found, out = told(made)
    assert [entry.number for entry in found.sweep.done] == [1, 2, 0]
    assert [row.number for row in made.study.leaderboard()] == [1, 2, 0]
    best = made.study.best()
    assert best is not None
    assert best.number == found.best.number == 1  # type: ignore[union-attr]
    assert "trial 1 of the sweep" in (made.study.folder / "experiment" / "best.yaml").read_text()
    board = next(line for line in out.splitlines() if line.split()[:1] == ["rank"])
    assert "validation loss" in board


def test_a_study_without_losses_is_ordered_by_number(make: Callable[..., Maker]) -> None:
    made = make()
    tied(made, None, None)
    found, out = told(made)
    assert [entry.number for entry in found.sweep.done] == [0, 1]
    assert "validation loss" not in out
    tied(made, 0.4)  # gone on with
    assert [row.number for row in made.study.leaderboard()] == [2, 0, 1]


def sources(made: Maker, number: int, **parts: str) -> None:
    """Record these hashes in a trial's run."""
    run = RunDir(made.study.folder / str(number))
    Summary.of(
        {**run.summary.tree(), "sources": {part: {"rows": 60, "sha256": text} for part, text in parts.items()}}
    ).write(run / "summary.json")


def test_trials_on_other_rows_are_told_and_their_answers_not_paired(make: Callable[..., Maker]) -> None:
    made = make()
    verdict = {"exact_string": True, "ast_equal": True, "exec_equal": True, "valid": True}
    rest = {"vacuous": None, "gold_broken": False, "databases": 0, "reason": "", "split": "eval"}
    for number, rows in enumerate("aab"):
        made.trial("complete", [1.0])
        sources(made, number, train="t", validation=rows, template="p", tokenizer="k")
        folder = made.study.folder / str(number) / "evaluations"
        folder.mkdir()
        (folder / "validation.jsonl").write_text(json.dumps({"id": 1, **verdict, **rest}))
    found, out = told(made)
    assert "WARNING: validation data differs between trials, so their values are not comparable" in out
    assert ": trials 0, 1; trials 2\n" in out
    assert out.count("WARNING") == 1
    entries = found.sweep.entries
    assert entries[0].answers.keys() == entries[1].answers.keys()
    assert not entries[0].answers.keys() & entries[2].answers.keys()


def test_trials_that_were_to_have_other_data_are_told_nothing(make: Callable[..., Maker]) -> None:
    made = make(space=["data.validation=60,80"])
    for number, size in enumerate((60, 80)):
        made.trial("complete", [0.5], params={"data.validation": size})
        sources(made, number, validation=str(size))
    assert "WARNING" not in told(made)[1]


def test_imported_trials_are_counted_and_listed_nowhere(make: Callable[..., Maker]) -> None:
    made = make()
    made.trial("complete", [0.5])
    made.trial("complete", [0.9], origin="old/3")
    made.trial("complete", [0.5], same_as=0)
    found, out = told(made)
    assert (
        "2 of 6 trials finished: 2 complete, 0 pruned; 1 were run, 1 copied the result of a trial with equal parameters"
        in out
    )
    assert "complete (same as 0)" in out
    assert "trials imported from another study for the sampler, listed in no table: 1" in out
    assert found.best is not None
    assert found.best.number == 0
    assert "90.0 %" not in out
    assert "tied" not in out  # with itself
    assert "trial 0 " in (made.study.folder / "experiment" / "best.yaml").read_text()


def test_seeds_that_agree_have_the_interval_of_their_rows(make: Callable[..., Maker]) -> None:
    made = make(seeds=2)
    number = made.trial("complete", [0.5], deviation=[0.0], seed_values=[[0.5], [0.5]])
    run = made.study.folder / str(number)
    for name in ("config.yaml", "summary.json"):
        (run / name).unlink()
    for seed in (0, 1):
        folder = RunDir(run / f"seed-{seed}")
        folder.path.mkdir()
        folder.record(composed((*FIXED, f"seed={seed}", "run_dir=outputs/s/0", "run_name=s-0")))
        ends = {"intervals": {"tuned": {MATCH: wilson(10, 20)}}}
        Summary.of({"tuned": {MATCH: 0.5}, **ends, "step": 50, "planned_steps": 50}).write(folder / "summary.json")
    found = gathered(made.study).best
    assert found is not None
    assert found.interval == pytest.approx(wilson(10, 20))


def test_a_space_of_which_all_was_run_is_called_exhausted(make: Callable[..., Maker]) -> None:
    made = make(space=["lora.r=4,8"], sampler="tpe")
    made.trial("complete", [0.5], params={"lora.r": 4})
    assert "configurations of the space were run" not in told(made)[1]
    made.trial("pruned", params={"lora.r": 8})
    assert "all 2 configurations of the space were run: more trials would only repeat them" in told(made)[1]


def test_failed_points_of_a_grid_come_with_the_remedy(make: Callable[..., Maker]) -> None:
    made = make(space=["lora.r=4,8"])
    made.trial("complete", [0.5], params={"lora.r": 4})
    made.trial("fail", params={"lora.r": 8}, cause="disk full")
    assert "1 point of the grid failed: the same command with sweep.max_failures=6 runs it again" in told(made)[1]


def test_rungs_are_judged_in_the_direction_of_the_sweep(make: Callable[..., Maker]) -> None:
    """If the loss is both the rung metric and an objective to maximise, its rank correlation is positive."""
    made = make(["eval/loss"], direction="maximize")
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        made.trial("complete", [value], {10: value})
    table = tables.rungs(gathered(made.study).sweep)
    assert table is not None
    assert table.rows[0][1] == "+1.00"


# --- best.yaml -------------------------------------------------------------------------------------------------------

CONFIGURATIONS = {
    "groups": ["experiment=quickstart", "lora=pissa", "quant=none", "tracker=none"],
    "a list": ["experiment=quickstart", "lora.target_modules=[q_proj,v_proj]"],
    "nulls": ["experiment=smollm2_sql", "eval.every=null", "model.package=null", "data.path=rows"],
    "an option for the whole": ["model=tiny", "quant=none", "trainer=tutorial", "trainer.optim=adamw"],
    "an option that wants more": ["model=tiny", "data=jsonl", "data.path=rows.jsonl"],
    "text like a number or a key": ["experiment=quickstart", 'tracker.tags=["1e-4","null","a: b"]'],
    "text like an interpolation": ["experiment=quickstart", r"data.prompt='{question}\${seed} \\x'"],
    "a seed": ["experiment=quickstart", "seed=7", "trainer.lr=1.234567890123e-05"],
    "the defaults": [],
    "several trackers": ["experiment=quickstart", "tracker=[csv,wandb]", "tracker.wandb.mode=offline"],
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_best_configuration_composes_again(make: Callable[..., Maker], name: str) -> None:
    overrides = CONFIGURATIONS[name]
    made = make()
    made.trial("complete", [0.9], overrides=overrides)
    found, out = told(made)
    assert "does not set" not in out
    wanted = composition([*overrides, "tracker.group=s"]).tree
    again = composition(["experiment=best"], config_dir=str(made.study.folder)).tree
    assert kept(again) == kept(wanted)
    assert again["tracker"]["group"] is None
    assert again["run_name"] != wanted["run_name"] or again["run_dir"].startswith("outputs/")
    assert found.best is not None


def test_the_command_line_still_wins_over_the_best(make: Callable[..., Maker]) -> None:
    made = make()
    made.trial("complete", [0.9])
    told(made)
    folder = str(made.study.folder)
    again = composition(["experiment=best", "trainer.lr=5e-5", "lora=r64"], config_dir=folder).config
    assert again.trainer.lr == 5e-5
    assert again.quant.load_in_4bit  # of quickstart


def test_the_best_file_is_short(make: Callable[..., Maker]) -> None:
    """It names options, and only what differs from them."""
    made = make()
    made.trial("complete", [0.9])
    told(made)
    text = (made.study.folder / "experiment" / "best.yaml").read_text()
    assert "override /model: tiny" in text
    assert len(text.splitlines()) < 40
    assert "run_dir" not in text
    assert "sweep:" not in text


def test_without_its_run_folder_the_best_is_composed_of_its_overrides(make: Callable[..., Maker]) -> None:
    made = make()
    number = made.trial("complete", [0.9], params={"lora.target_modules": "[q_proj,v_proj]"})
    shutil.rmtree(made.study.folder / str(number))
    _, out = told(made)
    again = composition(["experiment=best"], config_dir=str(made.study.folder))
    assert again.config.lora.target_modules == ["q_proj", "v_proj"]
    assert "does not set" not in out
    assert flatten(again.tree)["model.id"] == "embedded:tiny"


def test_axes_of_few_numbers_are_in_their_order() -> None:
    sweep = Sweep(
        [entry(i, 10 * i, params={"k": k}) for i, k in enumerate(("b", "a", "c"), 1)], [], [MATCH], ["maximize"]
    )
    parameter = Parameter("k", "choice", ("a", "b", "c"))
    assert parameter.of(sweep.entries) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["linear", "log", "choice"])
@pytest.mark.parametrize(
    "values",
    [
        [1e-5, 3e-3],
        [5.0],
        [0.0],
        [0.0, 1.0],
        [-3.0, 2.0],
        [4, 8, 16],
        [1e-9, 1e9],
        [0.30000001, 0.30000002],
        [1e12, 3e12],
    ],
)
def test_an_axis_holds_its_values_and_tells_its_ticks_apart(kind: Any, values: list[float]) -> None:
    one = axis(values, kind)
    assert all(0 <= one.place(value) <= 1 for value in values)
    places, labels = zip(*one.ticks, strict=True)
    assert list(places) == sorted(places)
    assert 0 <= places[0] <= places[-1] <= 1
    assert len(set(labels)) == len(labels)


def test_a_narrow_terminal_says_what_it_leaves_out(make: Callable[..., Maker]) -> None:
    made = make()
    made.trial("complete", [0.5])
    made.trial("complete", [0.6], params={"lora.target_modules": "[q_proj,v_proj]", "lora.r": 4})
    board = tables.leaderboard(gathered(made.study).sweep).fitting(60)
    assert {"rank", "trial", MATCH, "vs best", "r"} <= set(board.head)
    assert "seconds" not in board.head
    assert board.notes[0].startswith("columns left out to fit the terminal: ")
    assert "seconds" in board.notes[0]
