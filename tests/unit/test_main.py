"""The command line: who gets which words, what is answered, and the exit codes."""

import importlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.__main__ import COMMANDS
from ftlab.sweep.storage import file_of
from ftlab.train.signals import STOPPING

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- answers without torch --------------------------------------------------------------------------------


def light(words: list[str]) -> tuple[int, float, str]:
    """Exit code, CPU seconds and output of a command line that must not import torch."""
    program = (
        "import sys, atexit\n"
        "from ftlab.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "sys.exit(99 if 'torch' in sys.modules else code)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return done.returncode, seconds, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "smollm2_135m"),
        (["--cfg", "job"], 0, "lora_alpha: 32"),
        (["--cfg", "job", "lora=r64"], 0, "r: 64"),
        (["--info", "config"], 0, "trainer"),
        (["experiment=quickstart", "--info", "config", "lora.r=5"], 0, "r: 5"),
        (["experiment=quickstart", "--info", "lora.r=5"], 0, "r: 5"),
        (["-sc", "install=bash"], 0, "complete -o nospace"),
        (["predict", "--help"], 0, "run=DIR"),
        (["modle=tiny"], 2, "model"),
        (["trainer.lrr=1"], 2, "trainer.lr"),
        (["lora.r=abc"], 2, "whole number"),
        (["sweep=lr_search"], 2, "python -m ftlab --multirun sweep=lr_search"),
        (["traain"], 2, "Commands:"),
        (["predict"], 2, "run=DIR"),
        (["predict", "run=absent", "question=x"], 2, "python -m ftlab runs"),
        (["score", "--help"], 0, "score IN.jsonl OUT.jsonl"),
        (["score"], 2, "two files"),
        (["compare", "-h"], 0, "compare RUN_A RUN_B"),
        (["compare", "absent", "absent"], 2, "python -m ftlab runs"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_it_is_answered_at_once_and_without_torch(words: list[str], code: int, said: str) -> None:
    found, seconds, output = light(words)
    assert found == code, output
    assert said in output
    assert "Traceback" not in output
    assert seconds <= 2


# What no answer about configurations needs, however many launchers are installed.
HEAVY = (
    "torch",
    "transformers",
    "optuna",
    "sqlalchemy",
    "ray",
    "submitit",
    "joblib",
    "cloudpickle",
    "asyncio",
    "filelock",
)


@pytest.mark.parametrize("words", [["--help"], ["--hydra-help"], ["--cfg", "job"]], ids=" ".join)
def test_showing_something_imports_no_library_of_runs_and_copies_the_stored_configurations_once(
    words: list[str],
) -> None:
    """Hydra's own loader copies all of them, those of every installed plug-in, for each group that help lists."""
    program = (
        "import sys\n"
        "from hydra._internal.config_repository import CachingConfigRepository\n"
        "from ftlab.__main__ import main\n"
        "made, copies = CachingConfigRepository.__init__, []\n"
        "CachingConfigRepository.__init__ = lambda *given: (copies.append(given), made(*given))[1]\n"
        "main(sys.argv[1:])\n"
        f"print(len(copies), sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "1 []"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("model=smol", {"model=smollm2_135m", "model=smollm2_360m"}),
        ("trainer.lr", {"trainer.lr=", "trainer.lr_scheduler_type="}),
        ("sweep=lora", {"sweep=lora_grid", "sweep=lora_sql"}),
    ],
)
def test_the_shell_completes_options_keys_and_sweeps(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, typed: str, offered: set[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", f"ftlab {typed}")
    monkeypatch.setenv("COMP_POINT", "40")
    code, out, _ = cli("-sc", "query=bash")
    assert (code, set(out.split())) == (0, offered)


def test_help_lists_every_group_and_five_commands(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    for word in ("model:", "quant:", "lora:", "data:", "trainer:", "eval:", "tracker:", "experiment:", "sweep:"):
        assert word in out
    assert sum("python -m ftlab" in line for line in out.split("== Commands ==")[0].splitlines()) >= 6
    assert all(command in out for command in COMMANDS)


def test_cfg_job_works_from_a_folder_of_ones_own_options(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("name: mine\nid: org/mine\n")
    code, out, _ = cli("--cfg", "job", "--config-dir", "conf", "model=mine")
    assert (code, "org/mine" in out) == (0, True)


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=quickstart", "--cfg", "job", "lora.r=5"],
        ["--cfg", "job", "experiment=quickstart", "--config-dir", ".", "lora.r=5"],
        ["lora.r=5", "-c", "job", "--package", "lora", "experiment=quickstart"],
        ["--multirun", "sweep=lr_search", "--cfg", "job", "lora.r=5"],
        ["sweep=lr_search", "-m", "lora.r=5", "-c", "job"],
    ],
    ids=" ".join,
)
def test_options_may_stand_anywhere(cli: Cli, words: list[str]) -> None:
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    assert "r: 5" in out


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pedict", "run=x"], "predict"),
        (["fecth"], "fetch"),
        (["scores"], "score"),
        (["compair", "a", "b"], "compare"),
        (["score", "in.jsonl", "out.jsonl", "--database", "3"], "--databases"),
        (["--dri-run"], "--dry-run"),
        (["model=tinny"], "tiny"),
        (["model=tiny", "+lora.rr=4"], "lora.r"),
        (["--multirun", "lora.rr=4,8"], "lora.r"),
        (["--multirun", "model=tinny,tiny"], "tiny"),
        (["--cfg", "job", "trainer.lrr=1"], "trainer.lr"),
        (["--cfg", "job", "lora.r=x"], "whole number"),
        (["--cfg", "job", "data.path=a(b"], """'data.path="a(b"'"""),
        (["--multirun", "--resume", "lora.r=4,8"], "--resume is not an option. Did you mean:"),
        (["--cfg", "job", "--dri-run"], "--dri-run is not an option. Did you mean:"),
        (["--multirun", "foo"], "'foo' is not of the form key=value"),
        (["--config-dir", ".", "lora.r=4,8", "--cfg", "job"], "--cfg shows one run"),
        (["lora.r=4,8", "--cfg", "job"], "lora.r=4,8 names several values, and --cfg shows one run"),
        (["--multirun", "lora.r=4,8", "--info", "config"], "lora.r=4,8 names several values, and --info shows one run"),
        (["+sweep=lr_search"], "sweep"),
        (["sweep=lr_serach"], "lr_search"),
        (["predict", "run=x", "qestion=y"], "question"),
        (["eval", "nothing"], "not a run folder"),
        (["predict", "run=x", "run=y"], "twice"),
        (["predict", "x", "y"], "key=value"),
        (["doctor", "x"], "run=x is not a run folder"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_bad_input_is_answered_with_exit_code_2(cli: Cli, words: list[str], said: str) -> None:
    code, _, err = cli(*words)
    assert code == 2
    assert said in err
    assert err.startswith("ftlab:")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run_dir=out (1)/a b"], """Quote it: 'run_dir="out (1)/a b"'"""),
        (["run_dir=a=b"], """Quote it: 'run_dir="a=b"'"""),
        (["run_dir=/x#1"], """Quote it: 'run_dir="/x#1"'"""),
        (["run_dir=/x#1", "--config-dir", "."], """Quote it: 'run_dir="/x#1"'"""),
        (["run_dir=a,b"], """Quote a name with commas: 'run_dir="a,b"'"""),
        (["run_dir=null"], "run_dir=null names no folder"),
        (["run_dir="], "run_dir= names no folder"),
        (
            ["force=true", "sweep.study=s"],
            "delete outputs/s/ to start over, or name another study with sweep.study=NAME",
        ),
        (["force=true", "run_dir=s"], "delete s/ to start over"),
        (["run_name=foo"], "use sweep.study=NAME"),
        (["lora.lora_alpha=choice()"], "'lora.lora_alpha=choice(A,B)'"),
        (["lora.target_modules=choice(all-linear,null)"], "write lora.target_modules=all-linear,null"),
        (["lora.lora_alpha=8,-8"], "lora.lora_alpha=-8"),
        (["trainer.lr=0.1,abc"], "trainer.lr=abc must be a number"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_sweep_that_cannot_be_is_refused_in_the_users_words_before_its_study(
    cli: Cli, tmp_path: Path, words: list[str], said: str
) -> None:
    code, out, err = cli("experiment=quickstart", "--multirun", "lora.r=4,8", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "hydra" not in err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_for_bad_input(cli: Cli, tmp_path: Path) -> None:
    cli("model=tinny")
    cli("--multirun", "lora.rr=1,2")
    cli("data.max_length=2", "run_dir=here")
    assert list(tmp_path.iterdir()) == []


# --- plain text -------------------------------------------------------------------------------------------

HARD = [
    "",
    " ",
    "=",
    "a=b",
    'what\'s (this), "that"; and ~/it~?',
    "SELECT * FROM t WHERE a = 'x' -- {${oops}} [1,2]",
    "Wie viele Zeilen? 多少行\uff1f كم صفا؟ \U0001f642",
    "two\nlines\tand\ttabs",
    "--help me",
    "back\\slash\\",
    "!@#$%^&*()|<>",
    "null",
]


def heard(monkeypatch: pytest.MonkeyPatch, command: str) -> list[dict[str, str]]:
    module = importlib.import_module(f"ftlab.commands.{command}")
    calls: list[dict[str, str]] = []

    def main(arguments: dict[str, str]) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(module, "main", main)
    return calls


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_values_of_a_command_on_a_run_are_plain_text(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    calls = heard(monkeypatch, command)
    for text in HARD:
        assert cli(command, "run=somewhere (1)", f"question={text}", f"context={text}")[0] == 0
    assert calls == [{"run": "somewhere (1)", "question": text, "context": text} for text in HARD]


def test_five_hundred_real_questions_and_contexts_arrive_unchanged(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, material: Callable[[str], list[dict[str, Any]]]
) -> None:
    calls = heard(monkeypatch, "predict")
    rows = material("sql_create_context.jsonl.gz")[::4][:500]
    assert len(rows) == 500
    for row in rows:
        words = [f"question={row['question']}", f"context={row['context']}"]
        assert cli("predict", "run=r", *words)[0] == 0
    assert [(call["question"], call["context"]) for call in calls] == [
        (row["question"], row["context"]) for row in rows
    ]


@pytest.mark.parametrize("command", ["predict", "eval"])
def test_the_run_may_be_the_first_word(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    calls = heard(monkeypatch, command)
    cli(command, "outputs/a run", "question=x")
    assert calls == [{"run": "outputs/a run", "question": "x"}]


# --- runs -------------------------------------------------------------------------------------------------


def test_a_run_ends_with_0_and_its_scores_and_next_commands(cli: Cli, small: list[str]) -> None:
    code, out, err = cli(*small, "run_dir=done")
    assert code == 0, err
    assert json.loads(Path("done/summary.json").read_text())["status"] == "finished"
    assert "python -m ftlab predict run=done" in out
    assert "python -m ftlab eval run=done" in out


def test_a_run_that_fails_ends_with_1_and_one_message(cli: Cli, small: list[str]) -> None:
    code, _, err = cli(*small, "run_dir=bad", "trainer.lr=1e30", "trainer.max_grad_norm=0")
    assert code == 1
    assert err.startswith("ftlab: loss=")
    assert json.loads(Path("bad/summary.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_a_run_with_75_and_the_same_command_goes_on(
    number: signal.Signals, cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftlab.train.loop import Trainer

    step = Trainer.update

    def interrupted(self: Any, learner: Any) -> Any:
        if learner.progress.step == 1:
            os.kill(os.getpid(), number)
        return step(self, learner)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        code, _, err = cli(*small, "run_dir=r")
    assert code == 75
    assert f"{number.name}: stopped" in err
    assert json.loads(Path("r/summary.json").read_text())["status"] == "stopped"
    code, out, _ = cli(*small, "run_dir=r")
    assert code == 0
    assert "resumed from step 2 of 4" in out


IMPORTING = """
import os, signal, sys
from importlib.abc import MetaPathFinder

number = int(sys.argv.pop())

class Signalled(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Signalled())
from ftlab.__main__ import entry
entry()
"""


@pytest.mark.parametrize(
    ("sweep", "number"),
    [
        *[([], number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
        (["--multirun", "lora.r=2,4"], signal.SIGTERM),
    ],
)
def test_a_signal_while_torch_is_imported_ends_a_run_with_75(
    sweep: list[str], number: signal.Signals, small: list[str]
) -> None:
    words = [sys.executable, "-c", IMPORTING, *sweep, *small, str(int(number))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 75, done.stderr
    assert f"{number.name}: stopped" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_results_are_written_changes_nothing(
    number: signal.Signals, cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ftlab.experiment.records

    shown = ftlab.experiment.records.report_run

    def signalled(*arguments: Any) -> None:
        os.kill(os.getpid(), number)
        shown(*arguments)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(ftlab.experiment.records, "report_run", signalled)
    code, out, _ = cli(*small, "run_dir=r")
    assert code == 0
    assert "everything is in r/" in out
    assert json.loads(Path("r/summary.json").read_text())["status"] == "finished"


LEAVING = """
import atexit, os, signal, sys, time
from ftlab import __main__ as command_line
command_line.main = lambda words: 1
atexit.register(lambda: os.kill(os.getpid(), int(sys.argv[1])) or time.sleep(60))
command_line.entry()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_interpreter_leaves_keeps_the_exit_code(number: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING, str(int(number))], timeout=30, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize("lost", ["closed reader", pytest.param("full disk", marks=pytest.mark.slow)])
def test_a_run_goes_on_without_whoever_reads_it(lost: str, small: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    output = writer if lost == "closed reader" else os.open("/dev/full", os.O_WRONLY)
    words = [sys.executable, "-m", "ftlab", *small, "run_dir=r"]
    done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("ftlab: no further output here (")
    assert len(done.stderr.splitlines()) == 1
    summary = json.loads(Path("r/summary.json").read_text())
    assert (summary["status"], summary["terminal"][:16]) == ("finished", "lost during the ")


@pytest.mark.parametrize(("rank", "told"), [(None, 1), ("0", 1), ("1", 0)])
def test_of_interrupted_processes_the_first_says_so(
    rank: str | None, told: int, cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    if rank:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("ftlab.__main__.dispatch", interrupted)
    code, _, err = cli(*small)
    assert (code, err.count("ftlab: interrupted")) == (130, told)


def test_a_dry_run_shows_the_plan_and_writes_nothing(cli: Cli, small: list[str], tmp_path: Path) -> None:
    code, out, err = cli("--dry-run", *small, "run_dir=dry")
    assert code == 0, err
    assert "4 rows per step" in out
    assert "micro-batch 2 x 2" in out
    assert list(tmp_path.iterdir()) == []


def test_several_runs_get_a_folder_each(cli: Cli, small: list[str]) -> None:
    code, out, err = cli("--multirun", *small, "seed=0,1", "trainer.max_steps=1", "run_dir=many")
    assert code == 0, err
    found = {int(file.parent.name): file for file in Path("many").glob("*/config.yaml")}
    assert sorted(found) == [0, 1]
    assert "seed: 1" in found[1].read_text()
    assert "trial 1   done" in out
    assert not [path for path in Path().iterdir() if path.name != "many"]


@pytest.mark.parametrize(
    ("word", "folder"),
    [("run_dir=what?x", "what?x"), ("run_dir=per%20cent", "per%20cent"), ("run_dir='a (1)#, b'", "a (1)#, b")],
)
def test_a_sweep_is_in_the_folder_that_was_named(cli: Cli, small: list[str], word: str, folder: str) -> None:
    words = [*small, "--multirun", "trainer.max_steps=1", "seed=0,1", word]
    code, out, err = cli(*words)
    assert code == 0, err
    assert [path.name for path in Path().iterdir()] == [folder]
    assert {path.name for path in Path(folder).iterdir()} >= {"0", "1", "study.db", "report.html"}
    assert cli(*words)[0] == 0
    (command,) = (line for line in out.splitlines() if "optuna-dashboard " in line)
    _, url = shlex.split(command)
    assert file_of(url) == Path(folder) / "study.db"


def test_values_are_tried_once_not_whenever_a_sweep_goes_on(
    cli: Cli, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftlab.sweep import driver

    asked: list[Any] = []
    monkeypatch.setattr(driver, "check_values", lambda space, compose: asked.append(space))
    words = [*small, "--multirun", "trainer.max_steps=1", "seed=0,1", "run_dir=s"]
    assert (cli(*words)[0], len(asked)) == (0, 1)
    assert (cli(*words)[0], len(asked)) == (0, 1)


def test_no_argument_means_the_quickstart(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    module = importlib.import_module("ftlab.experiment")
    monkeypatch.setattr(module, "run_in", lambda folder, composition, terminal: ran.append(composition))
    code, out, _ = cli()
    assert code == 0
    assert "experiment=quickstart" in out
    assert ran[0].config.model.id == "embedded:tiny"
    assert ran[0].config.data.source == "sql_synth"


def test_python_offers_the_same_two_steps(small: list[str], tmp_path: Path) -> None:
    from ftlab import compose, run

    outcome = run(compose([*small, f"run_dir={tmp_path / 'py'}", "trainer.max_steps=1"]))
    assert outcome.folder == tmp_path / "py"
    assert outcome.objective == outcome.summary.tuned["eval/sql_exact_match"]


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import ftlab

    with pytest.raises(AttributeError, match="nothing"):
        _ = ftlab.nothing
