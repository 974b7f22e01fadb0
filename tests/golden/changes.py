"""What differs from the commit that the golden tests hold on to, each with its reason. Whatever else does, fails.

Keys are dotted and cover those below them; in "surface" they are the beginnings of the lines that the test reports.
New keys of the configuration, new options of a group and new options of a command need no word here.
"""

# Records that hold more than they did.
NEW: dict[str, dict[str, str]] = {
    "summary.json": {"tracker_ids": "the run's id at each tracker; there may be several"},
    "metrics.jsonl": {},
    "surface": {},
}
# What was wrong, and is gone or another now.
CHANGED: dict[str, dict[str, str]] = {
    "summary.json": {"tracker_id": "it is tracker_ids.wandb, beside the ids at other trackers"},
    "metrics.jsonl": {},
    "surface": {
        "commands: predict: first": "it answers whatever the run's task asks, not SQL alone",
        "keys: tracker.name": "the choice tracker=NAME is the node tracker.NAME, so that several can be chosen",
        "keys: tracker.mode": "it is tracker.wandb.mode: settings of one tracker stand under its name",
        "keys: tracker.entity": "it is tracker.wandb.entity",
        "keys: tracker.job_type": "it is tracker.wandb.job_type; trials and studies need no key for theirs",
        "options: tracker=none": "no option sets tracker.name",
        "records: summary: tracker_id": "it is tracker_ids.wandb, beside the ids at other trackers",
    },
}


def covered(key: str, reasons: dict[str, str]) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in reasons)
