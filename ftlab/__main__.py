"""The command line. Nothing here imports torch before a run starts.

If the first word is a command, that command runs. Everything else goes to Hydra: overrides are checked, composed,
and run; `--help`, `--cfg`, `--info`, `--multirun` and shell completion are Hydra's own.
"""

import difflib
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab.commands import plain_arguments
from ftlab.disk import room_for
from ftlab.errors import FtlabError, InputError, Stopped
from ftlab.launcher import check_launch, check_numbers, whole_number
from ftlab.redact import redact, redact_message, redact_streams, redact_tree, remember
from ftlab.train.signals import StopSignal

if TYPE_CHECKING:
    from ftlab.config import ExperimentConfig
    from ftlab.terminal import Terminal
    from ftlab.train.ranks import Ranks

PLAIN = ("predict", "eval", "doctor", "runs", "compare", "report")  # commands whose values are plain text
COMPOSED = ("fetch", "data")  # commands whose values are Hydra overrides
DASHED = ("score",)  # commands with options that begin with dashes
COMMANDS = (*PLAIN, *COMPOSED, *DASHED)
ON_A_RUN = ("predict", "eval")  # commands whose first bare word is the run
WITH_WORDS = ("runs", "compare", "report", "doctor")  # commands that accept bare words
COMPLETION = ("--shell-completion", "-sc")
SHOWING = (
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--info",
    "-i",
    *COMPLETION,
)
MULTIRUN = ("--multirun", "-m")
# Hydra's options that take the next word as their value, and the values of `--info`.
TAKING = (*("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),)
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
HYDRAS = (*SHOWING, *MULTIRUN, *TAKING, "--resolve", "--run", "-r")
LAUNCHERS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}  # to their extras

# Environment variables that a launcher sets in each of its processes.
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Idle threads of libgomp spin for milliseconds, which on busy cores takes CPU time from working threads. A short spin
# costs nothing measurable on idle cores. Torch reads the variable when it is imported; a user's own value is kept.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def entry() -> None:
    """The console script."""
    redact_streams()
    code = main(sys.argv[1:])
    StopSignal.end_at_once(code)
    interrupted = code in (Stopped.exit_code, 130) and not any(word in MULTIRUN for word in sys.argv)
    if "RANK" in os.environ or interrupted:  # `launched` keeps RANK for several processes only
        # Everything has been written. A normal exit could be aborted by gloo's threads, and would wait for the threads
        # of a download. A sweep exits normally, since its launcher has to end its own processes.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody reads it any more
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(words: Sequence[str]) -> int:
    """Run one command line and return the exit code. A user's mistake prints one message without a traceback."""
    remember(words)
    try:
        check_folder()
        with room_for("what this command writes", Path()):
            return dispatch(list(words))
    except FtlabError as error:
        return failed(error)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # a launcher interrupts all its processes: one message is enough
            print("ftlab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader closed the pipe, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def check_folder() -> None:
    """Check that the working folder still exists, since relative paths start there, also those of libraries.

    Raises:
        InputError: it was removed while the shell was in it.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(
            f"the working folder is gone ({error.strerror or error}), perhaps removed by another program: cd to a "
            "folder that exists, and run the command again"
        ) from None


def failed(error: FtlabError) -> int:
    """Print the message of a user's mistake; return the exit code."""
    text = redact_message(str(error))
    with suppress(OSError):  # nobody reads it any more, or its disk is full
        print(f"ftlab: {text}" if "\n" not in text else f"ftlab:\n{text}", file=sys.stderr, flush=True)
    return error.exit_code


def dispatch(words: list[str]) -> int:
    """Run the command that the words name; return the exit code."""
    first = words[0] if words else ""
    if launched() > 1 and first in COMMANDS:
        return in_ranks(words)
    if first in PLAIN:
        return plain(first, words[1:])
    if first in COMPOSED:
        return composed(first, words[1:])
    if first in DASHED:
        return dashed(first, words[1:])
    if first and "=" not in first and not first.startswith(("-", "+", "~")):
        near = difflib.get_close_matches(first, COMMANDS, n=1, cutoff=0.0)
        raise InputError(
            f"{first!r} is not a command. Did you mean: {near[0]}? Commands: {', '.join(COMMANDS)}. "
            "A run takes GROUP=OPTION and KEY=VALUE: python -m ftlab --help"
        )
    if any(word.split("=")[0] in SHOWING for word in words):
        return show(words)
    if launched() > 1:
        return in_ranks(words)
    if any(word in MULTIRUN for word in words):
        return multirun(words)
    train(words)
    return 0


def in_ranks(words: list[str]) -> int:
    """Run one training in all processes of a launch."""
    with StopSignal().caught() as stop, stop.at_once():
        from ftlab.train.ranks import run_distributed

    return run_distributed(partial(train, words), failed)


def launched() -> int:
    """The number of processes that a launcher (torchrun, accelerate) has started together. If it is one, the launcher's
    variables are removed: neither this process nor those that it starts have others to communicate with.

    Raises:
        ConfigError: a variable of the launcher is not a number.
    """
    world = whole_number("WORLD_SIZE", 1) if "RANK" in os.environ else 1
    if world == 1:
        for name in LAUNCHED:
            os.environ.pop(name, None)
    return world if world == 1 else check_numbers(world)


def plain(command: str, words: list[str]) -> int:
    """Run a command that takes its values as plain text."""
    if any(word in ("--help", "-h") for word in words):
        return usage(command)
    arguments, bare = plain_arguments(words)
    if command in ON_A_RUN and bare and "run" not in arguments:
        arguments["run"] = bare.pop(0)
    if bare and command not in WITH_WORDS:
        raise InputError(f"{bare[0]!r} is not of the form key=value: {_module(command).__doc__.splitlines()[0]}")
    if command in WITH_WORDS:
        return int(_module(command).main(arguments, bare))
    return int(_module(command).main(arguments))


def dashed(command: str, words: list[str]) -> int:
    """Run a command that parses its words itself."""
    if any(word in ("--help", "-h") for word in words):
        return usage(command)
    return int(_module(command).main(words))


def composed(command: str, words: list[str]) -> int:
    """Run a command that needs a composed experiment."""
    if any(word in ("--help", "-h") for word in words):
        return usage(command)
    overrides, options = split_options(words)
    cfg = _compose(overrides, options).config
    module = _module(command)
    if command == "fetch":
        return int(module.main(cfg))
    from ftlab.models import load_tokenizer
    from ftlab.weights import find

    return int(module.main(cfg, load_tokenizer(find(cfg.model, what="tokenizer"), cfg.model.trust_remote_code)))


def usage(command: str) -> int:
    """Print how a command is used: the docstring of its module."""
    print(_module(command).__doc__.strip())
    return 0


def _module(command: str) -> Any:
    import importlib

    return importlib.import_module(f"ftlab.commands.{command}")


def train(words: list[str], ranks: "Ranks | None" = None) -> None:
    """Compose one experiment and run it, as one of several `ranks` if there are any.

    Raises:
        InputError: several processes for a sweep or a command, or processes that differ in their configuration.
    """
    stop = ranks.stop if ranks else StopSignal()
    ready = nullcontext if ranks else stop.at_once  # several processes leave together
    with stop.caught(), ExitStack() as held:
        with ready():
            run = _prepared(words, ranks, held)
        run()


def _prepared(words: list[str], ranks: "Ranks | None", held: ExitStack) -> Callable[[], Any]:
    """The run to start once the words are parsed; it does nothing for a dry run. `held` keeps the lock on the run's
    folder."""
    if ranks:
        _check_alone(words, ranks.world)
    overrides, options = split_options(words)
    beside = ranks if ranks and not ranks.first else None
    if not words and not beside:
        for line in ("no arguments: running experiment=quickstart (python -m ftlab --help shows everything else)", ""):
            _terminal().note(line)
    composition = _compose(overrides or ["experiment=quickstart"] * (not words), options)
    if ranks:
        ranks.check_same(_shared(composition.tree))
    check_launch(composition.config.model.dtype)
    if options["dry_run"]:
        if not beside:
            terminal = _terminal()
            check_given(composition.config, terminal)
            from ftlab.experiment import dry_run

            dry_run(composition, terminal)
        return _nothing
    if beside:
        from ftlab.experiment import follow

        return partial(follow, composition, beside)
    return _lead(composition, ranks, held)


def _lead(composition: Any, ranks: "Ranks | None", held: ExitStack) -> Callable[[], Any]:
    """The run of the first process. Everything that can be refused or reported without torch is handled before."""
    from ftlab.provenance import check_reported
    from ftlab.run_dir import RunDir
    from ftlab.run_report import report_finished

    cfg, terminal = composition.config, _terminal()
    folder = held.enter_context(RunDir(cfg.run_dir).claim())
    folder.check_same(composition.tree, cfg.force)
    finished = None if cfg.force else folder.done(cfg.trainer.max_steps)
    if finished:
        check_reported(folder, cfg, terminal)
        report_finished(folder, finished, terminal)
        return _nothing
    from ftlab.weights import check_code

    check_code(cfg.model)
    check_given(cfg, terminal)
    from ftlab.experiment import run_in

    lead = partial(run_in, ranks=ranks) if ranks else run_in
    return partial(lead, folder, composition, terminal)


def _nothing() -> None:
    """Do nothing: there is no run to start."""


def _terminal() -> "Terminal":
    from ftlab.terminal import Terminal

    return Terminal()


def check_given(cfg: "ExperimentConfig", terminal: "Terminal") -> None:
    """Check the given files and folders before torch is imported, then print that it is loading, which takes a while.

    Raises:
        InputError: data or a model's folder that cannot be used.
    """
    from ftlab import data, weights

    data.check_source(cfg.data)
    if os.path.exists(os.path.expanduser(cfg.model.id)):
        weights.on_disk(cfg.model, what="tokenizer")
    terminal.note("loading torch and transformers")


def _check_alone(words: list[str], world: int) -> None:
    """Raises InputError where the words are not for several processes."""
    if any(word in MULTIRUN for word in words):
        raise InputError(
            f"--multirun runs each experiment in one process, and the launcher started {world}: start it with "
            "python -m ftlab; sweep.workers=N runs N trials at a time, each on a GPU of its own"
        )
    if words and words[0] in COMMANDS:
        raise InputError(
            f"{words[0]} runs in one process, and the launcher started {world}: start it with "
            f"python -m ftlab {words[0]}"
        )


def _shared(tree: dict[str, Any]) -> dict[str, Any]:
    """The settings that must be the same in all processes of a launch. Those of the records are left out: only the
    first process keeps records, under a name that may contain the time of day."""
    from ftlab.composition import flatten

    settings = flatten(redact_tree(tree))
    return {key: v for key, v in settings.items() if key not in ("run_dir", "run_name") and key[:8] != "tracker."}


def split_options(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Overrides, and the values of the options that a single run has.

    Raises:
        InputError: an unknown option.
    """
    options: dict[str, Any] = {"dry_run": False, "config_dir": None}
    overrides = []
    rest = iter(words)
    for word in rest:
        name, _, value = word.partition("=")
        if word == "--dry-run":
            options["dry_run"] = True
        elif name in ("--config-dir", "-cd"):
            options["config_dir"] = value or next(rest, "")
        elif word.startswith("-"):
            raise _no_option(word, ["--dry-run", "--config-dir", *SHOWING, *MULTIRUN])
        else:
            overrides.append(word)
    return overrides, options


def _no_option(word: str, known: Sequence[str]) -> InputError:
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.0)
    return InputError(f"{word} is not an option. Did you mean: {near[0]}?")


def _compose(overrides: list[str], options: dict[str, Any]) -> Any:
    from ftlab.composition import composition

    found = composition(overrides, config_dir=options["config_dir"])
    sweep = found.hydra["runtime"]["choices"].get("sweep")
    if sweep:
        command = " ".join(["python -m ftlab --multirun", *map(shlex.quote, overrides)])
        raise InputError(f"sweep={sweep} is a sweep: it runs several experiments. Run {command}")
    return found


def show(words: list[str]) -> int:
    """Print what Hydra shows itself: help, the composed configuration, information, completion. Arguments of
    `--multirun` are shown as for a single run."""
    shown = io.StringIO()
    try:
        with redirect_stdout(shown), _root_logger_restored():
            return through_hydra([word for word in words if word not in MULTIRUN])
    finally:
        print(redact(shown.getvalue()), end="")


@contextmanager
def _root_logger_restored() -> Iterator[None]:
    """Remove the log handlers that Hydra adds, since they write to the redirected stdout."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def multirun(words: list[str]) -> int:
    """Several experiments, through ftlab's sweeper; each in a folder of its own."""
    check_launch(None)
    if "--dry-run" in words:
        raise InputError("--dry-run plans one experiment: leave out --multirun and give one value a key")
    with StopSignal().caught() as stop, stop.at_once():  # the sweep listens itself
        return through_hydra([_harmless(word) for word in words], _in_folder)


def _in_folder(overrides: list[str]) -> list[str]:
    """Overrides with `run_dir` replaced by Hydra's key for the folder of several runs. Needs a Hydra session.

    Raises:
        InputError: `run_dir` names no folder, or several.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from ftlab.composition import check_overrides
    from ftlab.shell import quoted

    given = [text for text in overrides if text.lstrip("+").startswith("run_dir=")]
    check_overrides(given, multirun=True)
    for text in given:
        override, written = OverridesParser.create().parse_override(text), text.partition("=")[2]
        if override.is_sweep_override():
            whole = shlex.quote(f"run_dir={quoted(written)}")
            raise InputError(f"{text} names several folders, and a sweep has one. Quote a name with commas: {whole}")
        if override.value() in (None, ""):
            raise InputError(f"{text} names no folder: leave run_dir out for one below outputs/")
    rest = [text for text in overrides if text not in given]
    return [*rest, *(f"hydra.sweep.dir={text.partition('=')[2]}" for text in given[-1:])]


def _harmless(word: str) -> str:
    """The word without the password of a database, since Hydra passes words to launchers, which write them to files."""
    if not word.lstrip("+").startswith("sweep.storage="):
        return word
    from ftlab.sweep.storage import set_password_aside

    return set_password_aside(word)


def through_hydra(words: list[str], changed: Callable[[list[str]], list[str]] = lambda overrides: overrides) -> int:
    """Check the overrides, then call Hydra's main with the words; `changed` maps overrides to Hydra's own keys.
    Hydra prints information or starts the sweeper; it runs no experiment itself."""
    import hydra
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from ftlab.allowlist import guarded
    from ftlab.composition import CONF, explain, normalise, register

    options, overrides = hydras_options(words)
    register()
    if not any(word in COMPLETION for word in options):  # completion has words of its own
        overrides = normalise(overrides)
        overrides = _checked(overrides, options, changed)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises exceptions instead of printing them
    before, sys.argv = sys.argv, [sys.argv[0], *overrides, *options]
    try:
        with guarded():
            hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(run_sweep)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(_missing_launcher(str(error)) or explain(error)) from None
    except ValueError as error:
        if "Only one of --run" not in str(error):  # Hydra's message for, say, --cfg with --info
            raise
        raise InputError(str(error)) from None
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    finally:
        sys.argv = before
    return 0


def run_sweep(*given: Any) -> None:
    """The task function of Hydra's main: ftlab's sweeper calls it, with `--multirun` only."""
    from ftlab.sweep.driver import drive

    drive(*given)


def _checked(overrides: list[str], options: list[str], changed: Callable[[list[str]], list[str]]) -> list[str]:
    """The overrides to pass to Hydra.

    Raises:
        InputError: problems that can be found before the composition.
    """
    from ftlab.composition import check_overrides, hydra_session
    from ftlab.sweep.space import check_syntax, is_swept

    check_syntax(overrides)
    several = [] if any(word in MULTIRUN for word in options) else [*filter(is_swept, overrides)]
    if several:
        asked = next(word for word in options if word.partition("=")[0] in SHOWING)
        raise InputError(f"{several[0]} names several values, and {asked} shows one run: give it one value")
    with hydra_session():
        if not any(word.startswith(("--config-dir", "-cd")) for word in options):
            check_overrides(overrides, multirun=True)
        return changed(overrides)


def hydras_options(words: list[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and overrides, apart: argparse requires Hydra's overrides to stand together.

    Raises:
        InputError: an option that Hydra does not have.
    """
    options: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        value = (before in TAKING and not word.startswith("-")) or (before in ("--info", "-i") and word in INFO)
        if not value and word.startswith("-") and word.partition("=")[0] not in HYDRAS:
            raise _no_option(word, HYDRAS)
        (options if value or word.startswith("-") else overrides).append(word)
    return options, overrides


def _missing_launcher(message: str) -> str:
    """The message that names the package to install, if Hydra did not find the launcher of a package; else empty."""
    for launcher, extra in LAUNCHERS.items():
        if f"'hydra/launcher/{launcher}'" in message:
            return f"hydra/launcher={launcher} needs a package that is not installed: pip install 'ftlab[{extra}]'"
    return ""


if __name__ == "__main__":
    entry()
