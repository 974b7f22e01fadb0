import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftlab import data
from ftlab.config import DataConfig
from ftlab.data import hub
from ftlab.errors import DataError
from ftlab.tasks.sql import TASK

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = DataConfig(name="h", source="table", hub_id="some-org/some-rows", hub_revision="main", validation=2, test_size=4)
ROWS = [{"question": f"q{i}", "context": f"c{i}", "answer": f"SELECT {i}"} for i in range(30)]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `datasets` cache that holds some-org/some-rows, as a download leaves it, and no Hub."""
    import datasets

    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    built = datasets.load_dataset("json", data_files=str(source), cache_dir=str(tmp_path / "built"))
    arrow = Path(built["train"].cache_files[0]["filename"])
    folder = tmp_path / "cache/some-org___some-rows/default/0.0.0" / COMMIT
    folder.mkdir(parents=True)
    (folder / "some-rows-train.arrow").write_bytes(arrow.read_bytes())
    info = json.loads((arrow.parent / "dataset_info.json").read_text())
    info |= {"dataset_name": "some-rows", "config_name": "default"}
    info["splits"]["train"]["dataset_name"] = "some-rows"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def failing_hub() -> Iterator[str]:
    """A server that answers every request with 503."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_unreachable_hub_fails_within_seconds_and_says_what_to_do(run_python: Callable[..., str]) -> None:
    program = (
        "import time\n"
        "from ftlab import data\nfrom ftlab.config import DataConfig\nfrom ftlab.errors import DataError\n"
        "from ftlab.tasks.sql import TASK\n"
        "began = time.perf_counter()\n"
        "try:\n"
        "    data.load(DataConfig(name='h', source='table', hub_id='some-org/some-rows'), TASK)\n"
        "except DataError as error:\n"
        "    print(error)\n"
        "print(time.perf_counter() - began < 15)\n"
    )
    # Port 9 (discard) of this machine: nothing listens, as with no network.
    out = run_python(program, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    for part in (
        "data.hub_id=some-org/some-rows: the Hub cannot be reached",
        "data.path=FOLDER, a folder with train.jsonl",
        '"question": ..., "context": ..., "answer": ...',
        "data=sql_synth",
        "True",
    ):
        assert part in out


def test_the_cached_copy_is_used_without_a_hub(cached: Path) -> None:
    splits = data.load(HUB, TASK)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (24, 2, 4)
    assert any(f"some-org/some-rows@{COMMIT[:12]}, the local cache" in note for note in splits.notes)


def test_a_pinned_revision_is_not_replaced_by_another_cached_one(cached: Path) -> None:
    tables, _ = hub.tables("some-org/some-rows", COMMIT)
    assert tables["train"] == ROWS
    other = "f" * 40
    with pytest.raises(DataError, match=f"data.hub_revision={other}.*is of {COMMIT}") as caught:
        hub.tables("some-org/some-rows", other)
    assert "data.hub_revision=main" in str(caught.value)


def test_faults_in_hub_rows_name_data_set_split_and_row(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [*ROWS, {**ROWS[0], "answer": None}]
    monkeypatch.setattr(hub, "tables", lambda *_: ({"train": broken}, "the Hub"))
    with pytest.raises(DataError, match=r"some-org/some-rows \(train\): 1 of 31 rows") as caught:
        data.load(HUB, TASK)
    assert "row 31: answer is null" in str(caught.value)


def test_a_failing_hub_counts_as_unreachable(failing_hub: str) -> None:
    began = time.perf_counter()
    assert not hub._answers(failing_hub)
    assert time.perf_counter() - began < hub.PATIENCE + 2


def test_the_offline_switch_of_datasets_is_put_back(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_answers", lambda _: False)
    assert len(hub.tables("some-org/some-rows", "main")[0]["train"]) == 30
    assert datasets.config.HF_HUB_OFFLINE is False
