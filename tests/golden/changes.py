"""What differs from the commit that the golden tests hold on to, each with its reason. Whatever else does, fails.

Keys are dotted and cover those below them; in "surface" they are the beginnings of the lines that the test reports.
New keys of the configuration, new options of a group and new options of a command need no word here.
"""

# Records that hold more than they did.
NEW: dict[str, dict[str, str]] = {
    "summary.json": {},
    "metrics.jsonl": {},
    "surface": {},
}
# What was wrong, and is gone or another now.
CHANGED: dict[str, dict[str, str]] = {
    "summary.json": {},
    "metrics.jsonl": {},
    "surface": {"commands: predict: first": "it answers whatever the run's task asks, not SQL alone"},
}


def covered(key: str, reasons: dict[str, str]) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in reasons)
