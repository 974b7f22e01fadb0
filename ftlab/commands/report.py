"""python -m ftlab report STUDY [limit=20]: what a sweep found, also while it runs.

STUDY     a study's name below outputs/, or its folder (study=STUDY if it contains a `=`)
limit=20  number of trials shown on the terminal; null: all

Shows the leaderboard with 95 % intervals and ties, how well the rungs predict the final ranking, parameter importance,
failures, and the command that runs the best configuration. Writes report.html (a single file with figures, which loads
nothing else), report.md and experiment/best.yaml into the study's folder.
"""

from ftlab.commands import check_keys
from ftlab.errors import InputError
from ftlab.terminal import Terminal


def main(arguments: dict[str, str], words: list[str]) -> int:
    """Print and write the report of a study.

    Raises:
        InputError: there is no such study, or its database or folder cannot be used.
    """
    check_keys("report", arguments, ("study", "limit"))
    words = [*words, arguments["study"]] if "study" in arguments else words
    if len(words) != 1:
        raise InputError(f"report takes one study, got {len(words) or 'none'}: python -m ftlab report STUDY")
    limit = arguments.get("limit", "20")
    if limit != "null" and not (limit.isdigit() and int(limit)):
        raise InputError(f"limit={limit} must be a whole number above 0, or null for all")
    from ftlab.sweep.study import Study
    from ftlab.sweep.study_report import report_study

    report_study(Study.load(words[0]), Terminal(), None if limit == "null" else int(limit))
    return 0
