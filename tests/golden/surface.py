"""What users' scripts, notebooks and habits hold on to: commands, options, configuration keys, metric keys, columns.

`python surface.py FILE` writes that of the ftlab which is imported, as surface.json was written from an earlier commit.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from golden.make_material import STOPPED, write_rows
from golden.records import leaves, read_json, read_lines

Call = Callable[..., str]  # a command line that must succeed: what it prints

COMMANDS = ("predict", "eval", "doctor", "runs", "compare", "report", "fetch", "data", "score")
# A call for each option that shows something; each must succeed.
SHOWING = (
    ("--version",),
    ("--hydra-help",),
    ("-h",),
    ("-c", "job"),
    ("--cfg", "hydra"),
    ("--cfg", "all"),
    ("--cfg=job", "--resolve"),
    ("--cfg", "job", "--package", "trainer"),
    ("--cfg", "job", "-p", "trainer"),
    ("--cfg", "job", "--config-name", "config"),
    ("--cfg", "job", "-cn", "config"),
    ("--cfg", "job", "--config-dir", "."),
    ("--cfg", "job", "-cd", "."),
    ("--multirun", "--cfg", "job", "sweep=lora_sql"),
    ("-m", "--cfg", "job", "sweep=lora_sql"),
    ("--info", "defaults"),
    ("--info", "defaults-tree"),
    ("--info", "config"),
    ("-i", "searchpath"),
    ("doctor", "--help"),
    ("predict", "-h"),
)
RUN = (*STOPPED, "trainer.max_steps=2", "run_name=surface", "run_dir=surface")
# What a notebook asks of an outcome.
OF_OUTCOME = (
    "outcome.objective",
    "outcome.folder.name",
    "outcome.summary['status']",
    "outcome.summary['base']['eval/loss']",
    "outcome.summary['tuned']['test/sql_exact_match']",
)
OWN_ROWS = ("jsonl", "match")  # options of data that read files of the user
# What an option needs beside itself to compose.
WITH = {"lora=none": ["quant=none"], "lora=pissa": ["quant=none"]} | {
    f"data={own}": ["data.path=rows"] for own in OWN_ROWS
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*|[a-z][a-z_./]*(?==)")


def composed(call: Call, *words: str) -> dict[str, Any]:
    return dict(leaves(yaml.safe_load(call("--cfg", "job", *words))))


def groups(call: Call) -> dict[str, list[str]]:
    """The options of each group, as `--help` lists them."""
    listed = call("--help").partition("== Groups and options")[2].partition("== Keys")[0]
    return {group: names.split(", ") for group, names in re.findall(r"^ *([a-z]+): (.+)$", listed, re.MULTILINE)}


def option_values(call: Call, listed: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """For each GROUP=OPTION the keys that it sets otherwise than the defaults do."""
    default = composed(call)
    found = {}
    for group, names in listed.items():
        for name in names:
            word = f"{group}={name}"
            values = composed(call, word, *WITH.get(word, []))
            found[word] = {key: value for key, value in values.items() if default.get(key) != value}
    return found


def helps(call: Call) -> dict[str, dict[str, Any]]:
    """The first line of each command's help, and all keys and options that it names."""
    texts = {command: call(command, "--help") for command in COMMANDS}
    return {
        command: {"first": text.splitlines()[0], "options": sorted(set(OPTION.findall(text)))}
        for command, text in texts.items()
    }


def records(run: Path) -> dict[str, Any]:
    """Keys and columns of what a finished run recorded, in their order."""
    summary, metrics = read_json(run / "summary.json"), read_lines(run / "metrics.jsonl")
    kinds = {}
    for row in metrics:
        kinds[next(key.partition("/")[0] for key in row if "/" in key)] = list(row)
    return {
        "summary": [key for key, _ in leaves({k: v for k, v in summary.items() if k not in ("base", "tuned")})],
        "metrics.base": list(summary["base"]),
        "metrics.tuned": list(summary["tuned"]),
        "metrics.jsonl": kinds,
        "predictions.jsonl": list(read_lines(run / "predictions.jsonl")[0]),
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()),
    }


def python() -> dict[str, Any]:
    """What `import ftlab` offers, asked for the run that is there: expressions and the kind of their values."""
    import ftlab

    outcome = ftlab.run(ftlab.compose(RUN))
    kinds = {}
    for expression in OF_OUTCOME:
        try:
            kinds[expression] = type(eval(expression, {"outcome": outcome})).__name__
        except Exception as error:
            kinds[expression] = repr(error)
    return {"ftlab": sorted(ftlab.__all__), "outcome": kinds}


def surface(call: Call) -> dict[str, Any]:
    """All of it; the working folder holds rows/ and gets a run."""
    call(*RUN)
    listed = groups(call)
    return {
        "commands": helps(call),
        "showing": [list(words) for words in SHOWING if call(*words)],
        "groups": listed,
        "keys": composed(call),
        "options": option_values(call, listed),
        "records": records(Path("surface")),
        "python": python(),
    }


def main(file: Path) -> None:
    import contextlib
    import io
    import tempfile

    from ftlab.__main__ import main as ftlab

    def call(*words: str) -> str:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            code = ftlab(list(words))
        if code:
            sys.exit(f"{' '.join(words)}: exit code {code}")
        return shown.getvalue()

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_rows(Path("rows"))
        found = surface(call)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
