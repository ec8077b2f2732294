"""Published weights are fetched once, gone on with, checked; a network's ill will is survived."""

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from gridvlp.errors import UserError
from gridvlp.extract.backbone import new_architecture
from gridvlp.extract.encoder import read_weights
from gridvlp.extract.published import published_weights


class Server:
    """Serves one file on loopback, as ill as it is told to."""

    def __init__(self) -> None:
        self.content, self.etag = b"", '"one"'
        self.cut: int | None = None  # bytes after which the connection is dropped
        self.status: int | None = None
        self.page: bytes | None = None  # sent in place of the file
        self.ranges, self.validators, self.length = True, True, True
        self.shift = 0
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/grid-feats-vqa"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        if self.status is not None:
            handler.send_error(self.status)
            return
        begin = 0
        if wanted and self.ranges and handler.headers.get("If-Range") == self.etag:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(self.content):
                handler.send_error(416)
                return
        body = self.page if self.page is not None else self.content[begin + self.shift :]
        handler.send_response(206 if begin else 200)
        if begin:
            last = len(self.content) - 1
            told = f"bytes {begin + self.shift}-{last}/{len(self.content)}"
            handler.send_header("Content-Range", told)
        if self.validators:
            handler.send_header("ETag", self.etag)
        if self.length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if self.cut is not None:
            body, self.cut = body[: self.cut], None
            handler.wfile.write(body)
            handler.wfile.flush()
            handler.connection.close()
            return
        handler.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    held = {
        f"backbone.{k}": v for k, v in new_architecture("x101", 0.125).build().state_dict().items()
    }
    held["roi_heads.attribute_predictor.attr_score.weight"] = torch.zeros(4, 4)
    file = io.BytesIO()
    torch.save({"model": held}, file)
    running = Server()
    running.content = file.getvalue()
    monkeypatch.setattr("gridvlp.extract.published.ADDRESS", running.address)
    monkeypatch.setattr("gridvlp.extract.published.PAUSE", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield running
    running.http.shutdown()
    running.http.server_close()


def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights"  # $GRIDVLP_CACHE of these tests


def test_fetched_once_and_recorded(server: Server, tmp_path: Path) -> None:
    weights = read_weights("x101")
    assert weights.architecture == new_architecture("x101", 0.125)
    assert weights.name == "X-101"
    assert server.asked == [("/grid-feats-vqa/X-101/X-101.pth", None)]
    digest = hashlib.sha256(server.content).hexdigest()
    assert weights.sha256 == digest
    record = json.loads((folder(tmp_path) / "X-101.pth.json").read_text())
    assert record == {"url": f"{server.address}/X-101/X-101.pth", "sha256": digest}
    assert {path.name for path in folder(tmp_path).iterdir()} == {
        *("X-101.pth", "X-101.pth.json", ".X-101.pth.lock")
    }
    read_weights("x101")
    assert len(server.asked) == 1
    with (folder(tmp_path) / "X-101.pth").open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    with pytest.raises(UserError, match=r"X-101\.pth is not the file that was downloaded.*delete"):
        read_weights("x101")


@pytest.mark.parametrize("places", [[1000], [1000, 1, 50_000]])
def test_a_lost_connection_is_taken_up_where_it_was(server: Server, places: list[int]) -> None:
    answer = server.answer

    def drop(handler: Any) -> None:
        server.cut = places.pop(0) if places else None
        answer(handler)

    server.answer = drop  # type: ignore[method-assign]
    total, expected = 0, [None]
    for place in places:
        total += place
        expected.append(f"bytes={total}-")
    assert published_weights("x101").read_bytes() == server.content
    assert [wanted for _, wanted in server.asked] == expected


def test_an_interrupted_download_goes_on_in_the_next_call(server: Server, tmp_path: Path) -> None:
    server.cut = 5000
    server.status = None
    answer = server.answer

    def once(handler: Any) -> None:
        if server.asked:
            server.status = 503
        answer(handler)

    server.answer = once  # type: ignore[method-assign]
    with pytest.raises(
        UserError, match=r"503.*is kept, and the same command goes on.*give its path"
    ):
        published_weights("x101")
    assert (folder(tmp_path) / ".X-101.pth.part").stat().st_size == 5000
    assert not (folder(tmp_path) / "X-101.pth").exists()
    server.answer, server.status = answer, None  # type: ignore[method-assign]
    assert published_weights("x101").read_bytes() == server.content
    assert server.asked[-1][1] == "bytes=5000-"


@pytest.mark.parametrize("change", ["another file", "no ranges", "no validators"])
def test_what_cannot_be_gone_on_with_is_fetched_anew(
    server: Server, tmp_path: Path, change: str
) -> None:
    server.cut, server.validators = 5000, change != "no validators"
    answer = server.answer

    def then(handler: Any) -> None:
        if server.asked and change == "another file":
            server.content, server.etag = b"PK" + bytes(9000), '"two"'
        server.ranges = change != "no ranges"
        answer(handler)

    server.answer = then  # type: ignore[method-assign]
    assert published_weights("x101").read_bytes() == server.content
    assert len(server.asked) == 2


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    part = folder(tmp_path) / ".X-101.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.content + b"more")
    part.with_name(f"{part.name}.json").write_text(json.dumps({"version": server.etag}))
    assert published_weights("x101").read_bytes() == server.content


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"status": 404}, "404"),
        ({"status": 403}, "403"),
        ({"status": 500}, "500"),
        ({"page": b"<!DOCTYPE html><p>Please sign in"}, "no checkpoint"),
        ({"page": b""}, "lost"),
    ],
)
def test_wrong_answers(server: Server, tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    for name, value in wrong.items():
        setattr(server, name, value)
    with pytest.raises(UserError, match=rf"X-101\.pth cannot be fetched \(.*{told}.*give its path"):
        read_weights("x101")
    assert not (folder(tmp_path) / "X-101.pth").exists()
    for name in wrong:
        setattr(server, name, None)
    assert published_weights("x101").read_bytes() == server.content


def test_another_part_than_was_asked_for(server: Server, tmp_path: Path) -> None:
    part = folder(tmp_path) / ".X-101.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.content[:100])
    part.with_name(f"{part.name}.json").write_text(json.dumps({"version": server.etag}))
    server.shift = 7
    with pytest.raises(UserError, match="another part"):
        published_weights("x101")


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError) as told:
        read_weights("x152")
    assert f"{server.address}/X-152/X-152.pth" in str(told.value)
    assert "give its path" in str(told.value)


def test_a_file_put_into_the_cache_by_hand(server: Server, tmp_path: Path) -> None:
    folder(tmp_path).mkdir(parents=True)
    path = folder(tmp_path) / "R-50.pth"
    path.write_bytes(server.content)
    assert published_weights("r50") == path
    assert not server.asked
    assert json.loads(path.with_name("R-50.pth.json").read_text())["url"] is None


def test_nobody_published_an_x50() -> None:
    with pytest.raises(UserError, match="r50, x101, x152"):
        read_weights("x50")
