"""Every error that a user can get, and its exit code.

FtlabError               1   the run failed
├── InputError           2   something that the user wrote or named is wrong
│   ├── ConfigError      2   the configuration: key, value, rule, remedy
│   ├── DataError        2   the data: file, line, remedy
│   ├── WeightsError     2   weights or tokenizer that cannot be found or read
│   └── RunDirError      2   the run folder: locked, of another configuration, not writable
├── TrainingError        1   training cannot go on (NaN loss, too little memory)
├── Pruned               1   a sweep ended a trial early; its run has the status pruned and reports no error
└── Stopped             75   stopped by a signal; the same command resumes from the last checkpoint
"""


class FtlabError(Exception):
    """The run failed for a reason that ftlab recognises; shown without a traceback."""

    exit_code = 1


class InputError(FtlabError):
    """Something that the user wrote or named is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """One or more rules of the configuration are broken; `problems` has a line for each."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(InputError):
    """A row, file or split that cannot be used."""


class WeightsError(InputError):
    """Weights or a tokenizer that cannot be found, read or combined as asked."""


class RunDirError(InputError):
    """A run folder that is in use, belongs to another configuration, or cannot be written."""


class TrainingError(FtlabError):
    """Training cannot go on; the last good checkpoint stays."""


class Pruned(FtlabError):
    """Raised by `Trial.on_evaluation` to end a run early. `experiment.run` never raises it."""


class Stopped(FtlabError):
    """A signal stopped the run; if training had begun, a complete checkpoint is on disk."""

    exit_code = 75


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
