"""Several trackers record a run; one that fails costs one line and disturbs neither the run nor the others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftlab.trackers
from ftlab import compose, trackers
from ftlab.composition import composition, load_tree
from ftlab.errors import ConfigError
from ftlab.summary import Summary
from ftlab.trackers import JsonlTracker, Start, Tracker, Trackers

METHODS = ("log", "table", "page", "summary", "tag", "close")
SECRET = "planted-secret-value"


class Memory(Tracker):
    """Keeps which methods were called."""

    name = "memory"
    id = "abc"

    def __init__(self, start: Start, options: Any) -> None:
        self.seen: list[str] = []

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.seen.append(f"log {metrics} {step}")
        metrics.clear()  # what one tracker does with them is no other's business

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        self.seen.append("table")

    def page(self, name: str, file: Path, step: int) -> None:
        self.seen.append("page")

    def summary(self, values: dict[str, object]) -> None:
        self.seen.append("summary")

    def tag(self, name: str) -> None:
        self.seen.append("tag")

    def close(self, exit_code: int = 0) -> str | None:
        self.seen.append("close")
        return f"closed {exit_code}"


def failing(method: str, error: BaseException) -> type[Tracker]:
    """A tracker that raises in one method."""

    def fail(self: Any, *_: Any, **__: Any) -> None:
        raise error

    return type("Failing", (Memory,), {"name": "failing", "id": "failed", method: fail})


@pytest.fixture
def began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Trackers, list[str]]]:
    """Starts trackers of the given classes; what they warn of comes with them."""

    def begin(*classes: type[Tracker]) -> tuple[Trackers, list[str]]:
        known = {one.name: one for one in classes}
        monkeypatch.setattr(ftlab.trackers, "names", lambda: list(known))
        monkeypatch.setattr(ftlab.trackers, "get", lambda name: known[name])
        lines: list[str] = []
        start = Start(tmp_path, "run", {}, warn=lines.append)
        chosen = trackers.settings({name: {} for name in known})
        return Trackers(chosen, start, JsonlTracker(tmp_path / "metrics.jsonl")), lines

    return begin


def use(both: Trackers, tmp_path: Path) -> list[str]:
    """Call every method twice, and close."""
    for step in (1, 2):
        both.log({"a": 1.0}, step)
        both.table("t", ["x"], [[1]], step)
        both.page("p", tmp_path / "p.html", step)
        both.summary({"a": 1})
        both.tag("done")
    return both.close(1)


@pytest.mark.parametrize("error", [RuntimeError(f"no\nroom {SECRET}"), SystemExit(3)], ids=["error", "exit"])
@pytest.mark.parametrize("method", ["__init__", *METHODS])
def test_a_tracker_that_fails_costs_one_line(
    method: str, error: BaseException, began: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    both, lines = began(failing(method, error), Memory)
    ended = use(both, tmp_path)
    (line,) = lines
    assert line.startswith("tracker=failing could not ")
    assert line.endswith("metrics.jsonl is still written")
    assert type(error).__name__ in line
    assert SECRET not in line
    assert both._running["memory"].seen == [  # type: ignore[attr-defined]
        *("log {'a': 1.0} 1", "table", "page", "summary", "tag"),
        *("log {'a': 1.0} 2", "table", "page", "summary", "tag", "close"),
    ]
    assert ended[-1] == "closed 1"
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(one)["a"] for one in written] == [1.0, 1.0]
    assert both.ids["memory"] == "abc"


def test_ids_and_lines_of_any_kind_end_no_run(began: Any) -> None:
    class Odd(Memory):
        name = "odd"
        id = 7  # type: ignore[assignment]

        def close(self, exit_code: int = 0) -> Any:
            return Path("x")

    class Worse(Memory):
        name = "worse"

        @property
        def id(self) -> str:  # type: ignore[override]
            raise RuntimeError("not connected")

    both, lines = began(Odd, Worse, Memory)
    assert both.ids == both.ids == {"odd": "7", "memory": "abc"}
    assert both.close() == ["x", "closed 0", "closed 0"]
    assert lines == [
        "tracker=worse could not report its id (RuntimeError: not connected); metrics.jsonl is still written"
    ]


def test_each_is_given_a_configuration_of_its_own_without_secrets(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    seen: list[Any] = []

    class Greedy(Memory):
        name = "greedy"

        def __init__(self, start: Start, options: Any) -> None:
            super().__init__(start, options)
            seen.append(json.dumps(start.config))
            start.config["lora"].clear()

    known = {"greedy": Greedy, "greedy2": type("Again", (Greedy,), {"name": "greedy2"})}
    monkeypatch.setattr(ftlab.trackers, "names", lambda: list(known))
    monkeypatch.setattr(ftlab.trackers, "get", lambda name: known[name])
    config = {"lora": {"r": 4}, "note": f"x={SECRET}"}
    Trackers(trackers.settings({name: {} for name in known}), Start(tmp_path, "run", config))
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert '"r": 4' in seen[0]
    assert SECRET not in seen[0]
    assert config["lora"] == {"r": 4}


def test_ctrl_c_in_a_tracker_is_the_users(began: Any) -> None:
    both, _ = began(failing("log", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        both.log({"a": 1.0}, 1)
    both.close()


def test_each_resumes_by_its_own_id_and_one_that_is_off_for_a_while_keeps_it(tmp_path: Path) -> None:
    start = Start(tmp_path, "run", {})
    both = Trackers(trackers.settings({"csv": {}}), start, ids={"wandb": "w1"})
    assert both.ids == {"wandb": "w1"}


# --- the configuration ------------------------------------------------------------------------------------------------


def test_none_one_and_several_are_chosen() -> None:
    assert trackers.chosen_names(compose([]).tracker) == ["wandb"]
    assert trackers.chosen_names(compose(["tracker=none"]).tracker) == []
    chosen = trackers.settings(
        compose(["tracker=[wandb,csv]", "tracker.wandb.mode=offline", "tracker.group=g", "tracker.tags=[a,b]"]).tracker
    )
    assert list(chosen.chosen) == ["wandb", "csv"]
    assert chosen.chosen["wandb"].mode == "offline"
    assert (chosen.shared.project, chosen.shared.group, chosen.shared.tags) == ("ftlab", "g", ["a", "b"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tracker.mode=offline"], "tracker.mode has been replaced by tracker.wandb.mode"),
        (["tracker.entity=me"], "tracker.entity has been replaced by tracker.wandb.entity"),
        (["tracker.name=none"], "tracker.name has been replaced by the choice tracker=NAME"),
        (["tracker=[csv,wandbb]"], "tracker=wandbb is not an option of tracker. Did you mean: wandb?"),
        (["tracker=csv", "tracker.wandb.mode=offline"], "tracker.wandb.mode belongs to a tracker that is not chosen"),
        (["tracker.wandb.mod=offline"], "tracker.wandb.mod is not a setting of tracker=wandb. Did you mean"),
        (["tracker.wandb.mode=never"], "tracker.wandb.mode=never must be one of auto, online, offline, disabled"),
        (["tracker.projekt=a"], "Did you mean: tracker.project?"),
        (["tracker.tags=a"], "tracker.tags=a must be of the type"),
        (["wandb.mode=offline"], "Did you mean: tracker.wandb.mode"),
        (["tracker.wandb=a"], "tracker.wandb=a must be a mapping of the tracker's settings"),
        (["+tracker.foo.bar=a"], "tracker.foo.bar is neither a setting that all trackers share nor a tracker"),
    ],
)
def test_a_wrong_choice_or_setting_is_refused_with_its_remedy(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert said in str(caught.value)


def test_an_experiment_of_ones_own_may_hold_settings_and_is_told_of_old_ones(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.write_text(
        "# @package _global_\ndefaults:\n  - override /tracker: [csv, wandb]\ntracker: {wandb: {mode: offline}}\n"
    )
    cfg = compose(["experiment=mine"], config_dir=str(tmp_path))
    assert trackers.settings(cfg.tracker).chosen["wandb"].mode == "offline"
    assert trackers.chosen_names(cfg.tracker) == ["csv", "wandb"]
    mine.write_text("# @package _global_\ntracker: {mode: offline}\n")
    with pytest.raises(ConfigError, match=r"tracker.mode has been replaced by tracker.wandb.mode"):
        compose(["experiment=mine"], config_dir=str(tmp_path))


OLD = {
    "name": "wandb",
    "project": "p",
    "entity": "e",
    "mode": "offline",
    "group": None,
    "job_type": None,
    "tags": ["t"],
}


def test_a_run_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    tree = composition(["tracker=none"]).tree
    for node, chosen in (
        (OLD, {"wandb": {"mode": "offline", "entity": "e", "job_type": None}}),
        ({"name": "none"}, {}),
    ):
        (tmp_path / "config.yaml").write_text(json.dumps({**tree, "tracker": node}))
        read = trackers.settings(load_tree(tmp_path / "config.yaml")["tracker"])
        assert {name: vars(options) for name, options in read.chosen.items()} == chosen
    assert Summary.of({"status": "running", "tracker_id": "w1"}).tracker_ids == {"wandb": "w1"}
    assert Summary.of({"status": "running", "tracker_id": None}).tracker_ids == {}
    assert "tracker_id" not in Summary.of({"status": "running", "tracker_id": "w1"}).tree()


def test_the_best_configuration_that_an_earlier_version_wrote_is_composed(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    best = "# @package _global_\ndefaults:\n- override /tracker: wandb\ntracker:\n  mode: offline\n  tags: [a]\n"
    (tmp_path / "experiment" / "best.yaml").write_text(best)
    for words, chosen in (([], ["wandb"]), (["tracker=csv"], ["csv"])):
        cfg = compose(["experiment=best", *words], config_dir=str(tmp_path))
        assert trackers.chosen_names(cfg.tracker) == chosen
        assert cfg.tracker["tags"] == ["a"]
    cfg = compose(["experiment=best"], config_dir=str(tmp_path))
    assert trackers.settings(cfg.tracker).chosen["wandb"].mode == "offline"


def test_a_tracker_that_is_not_installed_any_more_keeps_nobody_from_reading_its_runs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"tracker": {"project": "p", "gone": {"x": 1}, "csv": {}}}))
    assert load_tree(tmp_path / "config.yaml")["tracker"] == {"project": "p", "csv": {}}


# --- trackers of installed packages -----------------------------------------------------------------------------------

LINES = """
from dataclasses import dataclass
from ftlab.trackers import Tracker

@dataclass
class LinesOptions:
    file: str = "lines.txt"

    def __post_init__(self):
        if "/" in self.file:
            raise ValueError(f"file={self.file} must be a name without /")

class Lines(Tracker):
    name, options = "lines", LinesOptions

    def __init__(self, start, options):
        self.file = start.folder / options.file

    def log(self, metrics, step):
        with self.file.open("a") as file:
            file.write(f"{step} {metrics}\\n")

TRACKER = Lines
"""


@pytest.fixture
def provide(install: Callable[..., Path]) -> Callable[[str, str, str], Path]:
    """Installs a package with one tracker: the package's name, the tracker's and its code."""
    return lambda package, name, code: install(
        package, {"ftlab.trackers": {name: f"{package}:TRACKER"}}, {f"{package}.py": code}
    )


def test_a_package_adds_a_tracker_with_settings(provide: Any, tmp_path: Path) -> None:
    provide("linespackage", "lines", LINES)
    cfg = compose(["tracker=[csv,lines]", "tracker.lines.file=mine.txt"])
    both = Trackers(trackers.settings(cfg.tracker), Start(tmp_path, "run", {}))
    both.log({"a": 1.0}, 3)
    assert (tmp_path / "mine.txt").read_text() == "3 {'a': 1.0}\n"
    assert compose(["tracker=lines"]).tracker["lines"] == {"file": "lines.txt"}
    with pytest.raises(ConfigError, match=r"tracker.lines.file=a/b must be a name without /"):
        compose(["tracker=lines", "tracker.lines.file=a/b"])
    with pytest.raises(ConfigError, match=r"tracker.lines.fil is not a setting of tracker=lines. Did you mean"):
        compose(["tracker=lines", "tracker.lines.fil=a"])


def test_a_setting_without_a_default_must_be_set(provide: Any) -> None:
    provide("linespackage", "lines", LINES.replace('file: str = "lines.txt"', "file: str"))
    assert compose(["tracker=[csv,lines]", "tracker.lines.file=mine.txt"]).tracker["lines"] == {"file": "mine.txt"}
    with pytest.raises(ConfigError, match=r"^tracker.lines.file has no value: set tracker.lines.file=VALUE$"):
        compose(["tracker=lines"])


@pytest.mark.parametrize("name", ["project", "none"])
def test_one_cannot_have_a_name_that_means_something_else(provide: Any, name: str) -> None:
    provide("linespackage", name, LINES.replace('"lines", Lines', f'"{name}", Lines'))
    assert trackers.chosen_names(compose(["tracker=none"]).tracker) == []
    with pytest.raises(ConfigError, match=f"tracker={name}: .*linespackage has a name with another meaning in ftlab"):
        trackers.get(name)


def test_a_broken_one_is_named_with_its_package_and_the_rest_works(provide: Any) -> None:
    provide("linespackage", "lines", "import no_such_module\n")
    assert trackers.chosen_names(compose(["tracker=csv"]).tracker) == ["csv"]
    with pytest.raises(
        ConfigError, match=r"tracker=lines: .*linespackage cannot be imported .*no_such_module.*pip uninstall"
    ):
        compose(["tracker=lines"])


def test_two_packages_with_one_name_are_refused_with_both(provide: Any) -> None:
    provide("linespackage", "lines", LINES)
    provide("otherpackage", "lines", LINES)
    with pytest.raises(ConfigError, match=r"ambiguous: the packages (lines|other)package and (lines|other)package"):
        compose(["tracker=lines"])
    assert compose(["tracker=csv"])
