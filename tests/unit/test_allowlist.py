"""Configuration runs no code. A marker file is the witness: whatever runs leaves it."""

import json
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ftlab import __main__ as command_line
from ftlab.allowlist import LAUNCHERS, GuardedLoader, check
from ftlab.composition import composition
from ftlab.errors import ConfigError

Cli = Callable[..., tuple[int, str, str]]

MARK = "MARK"  # stands for the marker's path, RUN for a Python file, PICKLE and ZIP for one that make it
PATH = {"_target_": "pathlib.Path", "_args_": [MARK]}
# Calls that leave the marker, or a file beside it, if they are made. Hydra's own blocklist lets most of them pass.
CALLS: list[dict[str, Any]] = [
    {"_target_": "pathlib.Path.touch", "_args_": [PATH]},
    {"_target_": "pathlib.PosixPath.touch", "_args_": [PATH]},
    {"_target_": "pathlib.Path.write_text", "_args_": [PATH, "x"]},
    {"_target_": "pathlib.Path.mkdir", "_args_": [PATH]},
    {"_target_": "builtins.open", "file": MARK, "mode": "w"},
    {"_target_": "io.open", "file": MARK, "mode": "w"},
    {"_target_": "_io.open", "file": MARK, "mode": "w"},
    {"_target_": "io.FileIO", "_args_": [MARK, "w"]},
    {"_target_": "codecs.open", "filename": MARK, "mode": "w"},
    {"_target_": "os.mkdir", "path": MARK},
    {"_target_": "posix.mkdir", "path": MARK},
    {"_target_": "os.makedirs", "name": MARK},
    {"_target_": "os.mknod", "path": MARK},
    {"_target_": "os.symlink", "src": "/", "dst": MARK},
    {"_target_": "os.system", "command": f"touch {MARK}"},
    {"_target_": "posix.system", "command": f"touch {MARK}"},
    {"_target_": "os.popen", "cmd": f"touch {MARK}"},
    {"_target_": "subprocess.run", "args": ["touch", MARK]},
    {"_target_": "subprocess.Popen", "args": ["touch", MARK]},
    {"_target_": "subprocess.getoutput", "cmd": f"touch {MARK}"},
    {"_target_": "asyncio.create_subprocess_shell", "cmd": f"touch {MARK}"},
    {"_target_": "pty.spawn", "argv": ["touch", MARK]},
    {"_target_": "shutil.copyfile", "src": "RUN", "dst": MARK},
    {"_target_": "shutil.copy", "src": "RUN", "dst": MARK},
    {"_target_": "shutil.move", "src": "PICKLE", "dst": MARK},
    {"_target_": "shutil.unpack_archive", "filename": "ZIP", "extract_dir": "DIR"},
    {"_target_": "sqlite3.connect", "database": MARK},
    {"_target_": "dbm.dumb.open", "file": MARK, "flag": "n"},
    {"_target_": "shelve.open", "filename": MARK},
    {"_target_": "gzip.open", "filename": MARK, "mode": "w"},
    {"_target_": "bz2.open", "filename": MARK, "mode": "w"},
    {"_target_": "lzma.open", "filename": MARK, "mode": "w"},
    {"_target_": "zipfile.ZipFile", "file": MARK, "mode": "w"},
    {"_target_": "tarfile.open", "name": MARK, "mode": "w"},
    {"_target_": "tempfile.NamedTemporaryFile", "dir": "DIR", "delete": False},
    {"_target_": "logging.FileHandler", "filename": MARK},
    {"_target_": "logging.handlers.RotatingFileHandler", "filename": MARK},
    {"_target_": "logging.config.fileConfig", "fname": "RUN"},
    {"_target_": "torch.load", "f": "PICKLE", "weights_only": False},
    {"_target_": "torch.hub.load", "repo_or_dir": "DIR", "model": "x", "source": "local"},
    {"_target_": "numpy.load", "file": "PICKLE", "allow_pickle": True},
    {"_target_": "numpy.savetxt", "fname": MARK, "X": [1]},
    {"_target_": "pandas.read_pickle", "filepath_or_buffer": "PICKLE"},
    {"_target_": "joblib.load", "filename": "PICKLE"},
    {"_target_": "pickle.load", "_args_": [{"_target_": "builtins.open", "file": "PICKLE", "mode": "rb"}]},
    {"_target_": "cloudpickle.load", "_args_": [{"_target_": "builtins.open", "file": "PICKLE", "mode": "rb"}]},
    {"_target_": "runpy.run_path", "path_name": "RUN"},
    {"_target_": "runpy.run_module", "mod_name": "antigravity"},
    {"_target_": "importlib.import_module", "name": "antigravity"},
    {"_target_": "pydoc.locate", "path": "antigravity"},
    {"_target_": "builtins.exec", "_args_": [f"open({MARK!r}, 'w')"]},
    {"_target_": "builtins.eval", "_args_": [f"open({MARK!r}, 'w')"]},
    {"_target_": "timeit.timeit", "stmt": f"open({MARK!r}, 'w')", "number": 1},
    {"_target_": "cProfile.run", "statement": f"open({MARK!r}, 'w')"},
    {"_target_": "pdb.run", "statement": f"open({MARK!r}, 'w')"},
    {"_target_": "code.InteractiveInterpreter.runsource", "_args_": [{"_target_": "code.InteractiveInterpreter"}, "1"]},
    {"_target_": "functools.partial", "_args_": [{"_target_": "pydoc.locate", "path": "builtins.open"}, MARK, "w"]},
    {"_target_": "builtins.map", "_args_": [{"_target_": "pydoc.locate", "path": "builtins.open"}, [MARK]]},
    {"_target_": "builtins.open", "file": MARK, "mode": "w", "_partial_": True},
    {"_target_": "hydra.utils.instantiate", "config": {"_target_": "builtins.open", "file": MARK, "mode": "w"}},
    {"_target_": "hydra.utils.call", "_args_": [{"_target_": "builtins.open", "file": MARK, "mode": "w"}]},
    {"_target_": "omegaconf.OmegaConf.save", "config": {"a": 1}, "f": MARK},
    {"_target_": "yaml.unsafe_load", "stream": f"!!python/object/apply:os.mkdir [{MARK}]"},
    {"_target_": "ftlab.run_dir.write_atomic", "path": PATH, "text": "x"},
    {"_target_": "ftlab.trackers.jsonl.JsonlTracker", "path": PATH},
    {"_target_": "hydra.experimental.callbacks.PickleJobInfoCallback"},
    {"_target_": "urllib.request.urlretrieve", "url": "file://RUN", "filename": MARK},
    {"_target_": "multiprocessing.Process", "target": {"_target_": "pydoc.locate", "path": "os.abort"}},
    {"_args_": [MARK], "_partial_": True},
]
LISTS: list[list[str]] = [
    ["--multirun", "lora.r=1,2"],
    ["--multirun"],
    ["--cfg", "job"],
    ["--info", "config"],
    ["--help"],
    ["--dry-run"],
    ["data"],
]


class Payload:
    """A pickle that leaves the marker when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder beside the attacker's: `conf`, a pickle, a module."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "run.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    (tmp_path / "payload.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "marker")))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def aimed(folder: Path, node: Any) -> Any:
    """The call with real paths."""
    text = json.dumps(node)
    for word, path in (("MARK", "marker"), ("RUN", "run.py"), ("PICKLE", "payload.pkl"), ("ZIP", "x.zip"), ("DIR", "")):
        text = text.replace(word, str(folder / path))
    return json.loads(text)


def nothing_ran(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["conf", "payload.pkl", "run.py", "work"]
    assert not list((folder / "work").iterdir())


def refused(folder: Path, answer: tuple[int, str, str]) -> str:
    code, out, err = answer
    nothing_ran(folder)
    assert code == 2, out + err
    assert "Traceback" not in out + err
    return err


def write(folder: Path, option: str, node: Any) -> None:
    file = folder / "conf" / f"{option}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# @package _global_\n" + yaml.safe_dump(node))


def test_the_witness_speaks_where_nobody_guards(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftlab.allowlist.guarded", nullcontext)
    monkeypatch.setattr(command_line, "multirun", lambda words: command_line.through_hydra(words))
    write(folder, "experiment/evil", {"hydra": {"callbacks": {"x": aimed(folder, CALLS[9])}}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftlab.sweep.driver.drive", lambda *given: None)
        with pytest.warns(UserWarning, match="on_multirun"):
            cli("--multirun", "experiment=evil", "--config-dir", str(folder / "conf"))
    assert (folder / "marker").exists()


@pytest.mark.parametrize(
    ("call", "words"), list(zip(CALLS, cycle(LISTS), strict=False)), ids=lambda part: str(part)[:50]
)
def test_no_call_of_a_file_is_made(cli: Cli, folder: Path, call: dict[str, Any], words: list[str]) -> None:
    write(folder, "experiment/evil", {"hydra": {"callbacks": {"x": aimed(folder, call)}}})
    said = refused(folder, cli(*words, "experiment=evil", "--config-dir", str(folder / "conf")))
    assert f"hydra.callbacks.x.{next(iter(call))}" in said


TOUCH = {"_target_": "builtins.open", "file": MARK, "mode": "w"}
HANDLER = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}


def logging_node(**parts: Any) -> dict[str, Any]:
    root = {"handlers": ["x"], "level": "INFO"}
    return {"version": 1, "root": root, "handlers": {"x": HANDLER}, "disable_existing_loggers": False} | parts


JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
# Where else a call can stand: the composed tree, and the key that is named.
PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "launcher": ({"hydra": {"launcher": TOUCH}}, "hydra.launcher._target_"),
    "launcher, nested": ({"hydra": {"launcher": {"x": TOUCH}}}, "hydra.launcher.x._target_"),
    "launcher, in a list": ({"hydra": {"launcher": {"x": [[TOUCH]]}}}, "hydra.launcher.x.0.0._target_"),
    "launcher, partial": ({"hydra": {"launcher": {"_partial_": True}}}, "hydra.launcher._partial_"),
    "launcher, a reference": (
        {"hydra": {"launcher": {"x": "${hydra.env.x}"}, "env": {"x": TOUCH}}},
        "hydra.launcher.x._target_",
    ),
    "launcher, wholly a reference": (
        {"hydra": {"launcher": "${hydra.env.x}", "env": {"x": TOUCH}}},
        "BasicLauncherConf",
    ),
    "launcher, a name from elsewhere": (
        {"hydra": {"launcher": {"_target_": "${oc.env:EVIL}"}}},
        "hydra.launcher._target_=${oc.env:EVIL}",
    ),
    "launcher, made by a resolver": (
        {"hydra": {"launcher": {"x": "${oc.create:${oc.env:CALL}}"}}},
        "hydra.launcher.x._target_",
    ),
    "launcher, decoded": ({"hydra": {"launcher": {"x": "${oc.decode:${oc.env:FLOW}}"}}}, "hydra.launcher.x._target_"),
    "launcher, a default": (
        {"hydra": {"launcher": {"x": "${oc.select:nothing,{_target_:builtins.open}}"}}},
        "hydra.launcher.x._target_",
    ),
    "sweeper": ({"hydra": {"sweeper": TOUCH}}, "hydra.sweeper._target_"),
    "sweeper of Hydra": (
        {"hydra": {"sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}}},
        "hydra.sweeper._target_",
    ),
    "sweeper, another setting": ({"hydra": {"sweeper": {"x": 1}}}, "hydra.sweeper.x"),
    "sweeper, a parameter": ({"hydra": {"sweeper": {"params": {"x": TOUCH}}}}, "hydra.sweeper.params.x._target_"),
    "sweep.first": ({"sweep": {"first": [{"lora.r": TOUCH}]}}, "sweep.first.0.lora.r._target_"),
    "an option's value": ({"lora": {"target_modules": [TOUCH]}}, "lora.target_modules.0._target_"),
    "callbacks that are a reference": ({"hydra": {"callbacks": "${hydra.env}"}}, "hydra.callbacks"),
    "handler": (
        {"hydra": {"job_logging": logging_node(handlers={"x": {"class": "logging.FileHandler", "filename": MARK}})}},
        "hydra.job_logging.handlers.x.class",
    ),
    "handler by a function": (
        {"hydra": {"hydra_logging": logging_node(handlers={"x": {"()": "builtins.open", "file": MARK}})}},
        "hydra.hydra_logging.handlers.x.()",
    ),
    "handler by a reference": (
        {"hydra": {"hydra_logging": logging_node(handlers={"x": {"()": "ext://builtins.open", "file": MARK}})}},
        "hydra.hydra_logging.handlers.x.()",
    ),
    "stream": (
        {"hydra": {"job_logging": logging_node(handlers={"x": HANDLER | {"stream": "ext://run.x"}})}},
        "hydra.job_logging.handlers.x.stream",
    ),
    "stream of the configuration": (
        {"hydra": {"job_logging": logging_node(handlers={"x": HANDLER | {"stream": "cfg://handlers"}})}},
        "hydra.job_logging.handlers.x.stream",
    ),
    "formatter": (
        {"hydra": {"job_logging": logging_node(formatters={"f": {"()": "pathlib.Path.touch"}})}},
        "hydra.job_logging.formatters.f.()",
    ),
    "formatter's class": (
        {"hydra": {"job_logging": logging_node(formatters={"f": {"class": "run.Formatter"}})}},
        "hydra.job_logging.formatters.f.class",
    ),
    "filter": (
        {"hydra": {"hydra_logging": logging_node(filters={"f": {"()": "builtins.open", "file": MARK}})}},
        "hydra.hydra_logging.filters.f.()",
    ),
    "an attribute that is set": (
        {"hydra": {"job_logging": logging_node(handlers={"x": HANDLER | {".": {"stream": 1}}})}},
        "hydra.job_logging.handlers.x..",
    ),
    "a queue": (
        {"hydra": {"job_logging": logging_node(handlers={"x": {"class": "logging.handlers.QueueHandler"}})}},
        "hydra.job_logging.handlers.x.class",
    ),
    "logging by a resolver": (
        {"hydra": {"job_logging": {"version": 1, "root": None, "handlers": "${oc.create:${oc.env:LOGGING}}"}}},
        "hydra.job_logging.handlers.x.class",
    ),
    "variables": ({"hydra": {"job": {"env_set": {"LD_PRELOAD": "evil.so"}}}}, "hydra.job.env_set.LD_PRELOAD"),
    "Hydra's record elsewhere": ({"hydra": {"output_subdir": "../../x"}}, "hydra.output_subdir"),
    "places of configuration": ({"hydra": {"searchpath": ["pkg://run"]}}, ""),
}


@pytest.mark.parametrize(("place", "words"), list(zip(PLACES, cycle(LISTS), strict=False)), ids=str)
def test_no_place_of_a_file_calls(
    cli: Cli, folder: Path, place: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", "builtins.open")
    monkeypatch.setenv("FLOW", "{_target_: builtins.open}")
    monkeypatch.setenv("CALL", json.dumps(aimed(folder, TOUCH)))
    monkeypatch.setenv("LOGGING", '{"x": {"class": "logging.FileHandler", "filename": "x"}}')
    node, key = PLACES[place]
    launcher = node.get("hydra", {}).get("launcher")
    if isinstance(launcher, dict):  # an option of its own, which has whatever keys it likes
        write(folder, "hydra/launcher/evil", {"hydra": {"launcher": aimed(folder, {"_target_": JOBLIB} | launcher)}})
        rest = {name: part for name, part in node["hydra"].items() if name != "launcher"}
        node = {"defaults": [{"override /hydra/launcher": "evil"}], "hydra": rest}
    write(folder, "experiment/evil", aimed(folder, node))
    for command in (words, ["--multirun", "lora.r=1,2"]):
        assert key in refused(folder, cli(*command, "experiment=evil", "--config-dir", str(folder / "conf")))


WORDS = [
    ["+hydra.callbacks.x._target_=builtins.open"],
    ["+hydra.callbacks.x={_target_:builtins.open}"],
    ["++hydra.callbacks={x:{_target_:builtins.open,_partial_:true}}"],
    ["hydra.launcher._target_=builtins.open"],
    ["hydra.sweeper._target_=builtins.open"],
    ["++hydra.job_logging={version:1,root:{handlers:[x]},handlers:{x:{class:logging.FileHandler,filename:x}}}"],
    ["hydra/job_logging=default"],
    ["hydra/sweeper=basic"],
    ["++hydra.hydra_logging.handlers.x.class=run.X"],
    ["hydra.searchpath=[pkg://run]"],
    ["sweep.first=[{_target_:builtins.open}]"],
    ["lora.target_modules={_target_:builtins.open}"],
    ["--config-path", "pkg://run"],
    ["--experimental-rerun", "PICKLE"],
    ["--experimental-rerun=PICKLE"],
    ["--experimental-re=PICKLE"],
    ["--cfg", "--experimental-rerun=PICKLE"],
    ["-p", "--experimental-rerun=PICKLE"],
]


@pytest.mark.parametrize(
    ("words", "other"), list(zip(WORDS, cycle([["--hydra-help"], ["--cfg", "job"], []]), strict=False)), ids=str
)
def test_no_word_of_the_command_line_calls(cli: Cli, folder: Path, words: list[str], other: list[str]) -> None:
    for first in (["--multirun", "lora.r=1,2"], other):
        refused(folder, cli(*first, *(word.replace("PICKLE", str(folder / "payload.pkl")) for word in words)))


@pytest.mark.parametrize("how", ["group", "callbacks group", "sweep", "primary", "searchpath", "python"])
def test_no_way_to_a_file_goes_round(cli: Cli, folder: Path, how: str) -> None:
    evil = {"hydra": {"callbacks": {"x": aimed(folder, TOUCH)}}}
    conf = str(folder / "conf")
    if how == "group":
        write(folder, "model/evil", {**evil, "model": {"id": "embedded:tiny", "name": "x"}})
        refused(folder, cli("--multirun", "model=evil", "lora.r=1,2", "--config-dir", conf))
    elif how == "callbacks group":
        (folder / "conf" / "hydra" / "callbacks").mkdir(parents=True)
        (folder / "conf" / "hydra" / "callbacks" / "evil.yaml").write_text(yaml.safe_dump({"x": aimed(folder, TOUCH)}))
        refused(folder, cli("--multirun", "hydra/callbacks=evil", "--config-dir", conf))
    elif how == "sweep":
        write(folder, "sweep/evil", evil)
        refused(folder, cli("--multirun", "sweep=evil", "--config-dir", conf))
    elif how == "primary":
        write(folder, "mine", {"defaults": ["config", "_self_"], **evil})
        refused(folder, cli("--multirun", "--config-path", conf, "--config-name", "mine"))
        refused(folder, cli("--multirun", "--config-dir", conf, "--config-name", "mine", "lora.r=1,2"))
    elif how == "searchpath":
        write(folder, "experiment/evil", evil)
        refused(folder, cli("--multirun", f"hydra.searchpath=[file://{conf}]", "experiment=evil"))
    else:
        write(folder, "experiment/evil", evil)
        with pytest.raises(ConfigError, match=r"hydra\.callbacks\.x"):
            composition(["experiment=evil"], config_dir=conf)
        nothing_ran(folder)


# --- launchers -----------------------------------------------------------------------------------------------------

SHELL = "touch MARK"
COMMANDS = {
    "submitit_slurm": [{"setup": [SHELL]}, {"additional_parameters": {"wrap": SHELL}}, {"partition": f"x\n{SHELL}"}],
    "submitit_local": [{"submitit_folder": "/elsewhere"}, {"comment_": SHELL}],
    "ray": [
        {"ray": {"init": {"address": "ray://elsewhere:1"}}},
        {"ray": {"init": {"runtime_env": {"py_executable": SHELL}}}},
        {"ray": {"remote": {"runtime_env": {"working_dir": "/"}}}},
    ],
    "ray_aws": [{"ray": {"cluster": {"setup_commands": [SHELL]}}}, {"stop_cluster": False}],
    "joblib": [{"pre_dispatch": "__import__('os')"}, {"temp_folder": "/elsewhere"}, {"n_jobs": "${oc.env:N}"}],
}


@pytest.mark.parametrize(
    ("launcher", "settings"), [(name, node) for name, nodes in COMMANDS.items() for node in nodes], ids=str
)
def test_what_a_launcher_runs_counts_only_typed(folder: Path, launcher: str, settings: dict[str, Any]) -> None:
    defaults = {"defaults": [{"override /hydra/launcher": launcher}]}
    write(folder, "experiment/evil", {**defaults, "hydra": {"launcher": settings}})
    with pytest.raises(ConfigError, match=r"(?s)hydra\.launcher\..*( is set in a file| is not a key)"):
        composition(["experiment=evil"], config_dir=str(folder / "conf"))


def test_plain_settings_of_a_launcher_may_stand_in_a_file(folder: Path) -> None:
    node = {"partition": "gpu", "timeout_min": 90, "name": "${hydra.job.name}"}
    write(
        folder,
        "experiment/mine",
        {"defaults": [{"override /hydra/launcher": "submitit_slurm"}]} | {"hydra": {"launcher": node}},
    )
    made = composition(["experiment=mine", "experiment=mine"][:1], config_dir=str(folder / "conf"))
    assert made.hydra["launcher"]["partition"] == "gpu"


@pytest.mark.parametrize(
    "typed",
    [
        "hydra.launcher.setup=[module load cuda]",
        "+hydra.launcher.additional_parameters.wrap=x",
        "hydra.launcher.submitit_folder=/elsewhere",
        "+hydra.job.env_set.HF_HOME=/elsewhere",
        "+hydra.job.env_set={HF_HOME:/elsewhere}",
        "hydra.job.env_copy=[HOME]",
    ],
)
def test_what_is_typed_counts(typed: str) -> None:
    composition(["hydra/launcher=submitit_slurm", typed])


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local", "submitit_slurm", "ray", "ray_aws"])
def test_every_launcher_of_the_extras_is_allowed(launcher: str) -> None:
    made = composition([f"hydra/launcher={launcher}"])
    assert made.hydra["launcher"]["_target_"] in LAUNCHERS
    assert made.hydra["launcher"]["_recursive_"] is False  # Hydra calls nothing inside


@pytest.mark.parametrize("logs", ["none", "disabled", "stdout"])
def test_loggers_to_the_terminal_are_allowed(logs: str) -> None:
    assert composition([f"hydra/job_logging={logs}"]).hydra["job_logging"]["version"] == 1


def test_a_configuration_without_end_is_refused() -> None:
    OmegaConf.register_new_resolver("deeper", lambda: OmegaConf.create({"x": "${deeper:}"}))
    try:
        with pytest.raises(ConfigError, match="levels deep"):
            check(OmegaConf.create({"x": "${deeper:}"}), [])
    finally:
        OmegaConf.clear_resolver("deeper")


def test_a_pickled_loader_still_guards(folder: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra

    from ftlab.composition import hydra_session

    with hydra_session():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
    assert isinstance(loader, GuardedLoader)
    assert OverridesParser.create()  # what a launcher's process makes anew
    with pytest.raises(ConfigError, match="callbacks"):
        pickle.loads(pickle.dumps(loader)).load_configuration(
            "config", ["+hydra.callbacks.x._target_=builtins.open"], run_mode=None
        )
