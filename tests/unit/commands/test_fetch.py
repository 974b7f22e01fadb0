"""What `fetch` prints about the weights it found or downloaded."""

from pathlib import Path

import pytest

from ftlab import weights
from ftlab.commands import fetch
from ftlab.composition import compose
from ftlab.errors import WeightsError
from ftlab.weights import WeightsFolder


def lines(output: str) -> dict[str, str]:
    return {line[:10].strip(): line[10:] for line in output.splitlines()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(2_000_000))
    (tmp_path / "unrelated.bin").write_bytes(bytes(9_000_000))
    return tmp_path


def found_at(monkeypatch: pytest.MonkeyPatch, folder: Path, origin: weights.WeightsOrigin) -> None:
    located = WeightsFolder(folder, origin, "abc123", "from where it was")
    monkeypatch.setattr(weights, "find", lambda model: located)


def test_it_says_where_the_files_lie_and_what_comes_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found_at(monkeypatch, folder, "hub")
    assert fetch.main(compose(["model=smollm2_135m"])) == 0
    told = lines(capsys.readouterr().out)
    assert told["model"] == "smollm2_135m (HuggingFaceTB/SmolLM2-135M-Instruct)"
    assert told["origin"] == "downloaded from the Hub"
    assert told["source"] == "from where it was"
    assert told["folder"] == str(folder)
    assert told["size"] == "2 MB"
    assert told["revision"] == "abc123"
    assert told["next"] == "python -m ftlab model=smollm2_135m data=sql_synth"


def test_the_next_command_is_one_that_composes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found_at(monkeypatch, folder, "folder")
    fetch.main(compose([f"model.id={folder}"]))
    words = lines(capsys.readouterr().out)["next"].split()
    assert words[:3] == ["python", "-m", "ftlab"]
    assert compose(words[3:]).model.id == str(folder)


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("ftlab.json", '{"licence": "Apache-2.0"}', "Apache-2.0"),
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# license: mit\n", "apache-2.0"),
        ("README.md", "---\nlanguage: en\n---\nlicense: mit\n", None),
        ("LICENSE.txt", "some text", "see LICENSE.txt"),
        ("config.json", "{}", None),
    ],
)
def test_the_licence_is_what_the_folder_states(tmp_path: Path, file: str, text: str, told: str | None) -> None:
    (tmp_path / file).write_text(text)
    assert fetch.licence(tmp_path) == told


def test_what_cannot_be_found_is_the_users_to_put_right(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no such folder"):
        fetch.main(compose([f"model.id={tmp_path / 'nowhere'}"]))
