"""Stores over URLs: a real S3 server and a plain range server, also with the connection cut."""

import multiprocessing
import os
import pickle
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from gridvlp.store import DamagedMap, FeatureStore, StoreError, StoreUnreachable, StoreWriter
from gridvlp.store.summary import summarize
from gridvlp.store.verification import verify
from tests.store.test_faults import C, grid_map

pytest.importorskip("moto")
KEYS = range(8)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three shards, of which the packed index has two."""
    path = tmp_path_factory.mktemp("local") / "s.zarr"
    with StoreWriter.create(path, channels=C, encoder={"name": "e"}) as writer:
        for seed in KEYS:
            if seed in (3, 6):
                writer.flush()
            if seed == 6:
                writer.close()
                writer = StoreWriter.open(path)
                packed = (path / "index.bin").read_bytes()
            writer.add(f"photo{seed}", grid_map(seed), seed=seed)
        writer.flush()
        writer.close()
    (path / "index.bin").write_bytes(packed)
    return path


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridvlp.store.files.PAUSE", 0.001)


def assert_same(url: str, local: Path) -> None:
    store, plain = FeatureStore(url), FeatureStore(local)
    assert store.keys() == plain.keys() == [f"photo{seed}" for seed in KEYS]
    assert store.fingerprint == plain.fingerprint
    for seed, key in enumerate(store.keys()):
        np.testing.assert_array_equal(store.map(key), grid_map(seed))
        np.testing.assert_array_equal(
            store.sample(key, 30, np.random.default_rng(1)),
            plain.sample(key, 30, np.random.default_rng(1)),
        )
        assert store.record(key) == {"seed": seed}
    assert verify(store, threads=1) == {}


# A plain server that answers range requests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        file = server.root / unquote(self.path.split("?")[0]).lstrip("/")
        # the paths of Google's JSON interface, for gs://
        google = re.fullmatch(r"/download/storage/v1/b/([^/]+)/o/([^?]+)\??.*", self.path)
        if google:
            file = server.root / google[1] / unquote(google[2])
        server.asked.append((self.path, self.headers.get("Range")))
        fault = server.faults.pop(0) if server.faults else server.always
        if server.at_first and server.asked.count(server.asked[-1]) == 1:
            fault = server.at_first  # and right when it is asked again
        if fault == "gone":
            self.close_connection = True
            return
        if fault in (403, 500, 503):
            self.send_error(fault)
            return
        if server.query is not None and self.path.partition("?")[2] != server.query:
            self.send_error(401)
            return
        if not file.is_file():
            self.send_error(server.missing)
            return
        content, status = file.read_bytes(), 200
        whole = len(content)
        if fault == "short":
            content, whole = content[:100], 100
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match and not server.ignores_ranges:
            first = int(match[1]) if match[1] else max(0, whole - int(match[2]))
            last = int(match[2]) + 1 if match[1] and match[2] else whole
            if first >= whole:
                self.send_error(416)
                return
            content, status = content[first:last], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{whole}")
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        server.sent += len(content)
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(local: Path) -> Iterator[Any]:
    running: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.root, running.asked, running.faults, running.always = local.parent, [], [], None
    running.at_first, running.missing, running.query = None, 404, None
    running.ignores_ranges, running.sent = False, 0
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.url = f"http://127.0.0.1:{running.server_port}/s.zarr"
    yield running
    running.shutdown()
    running.server_close()


def test_a_store_reads_the_same_over_http(server: Any, local: Path) -> None:
    assert_same(server.url, local)
    assert_same(server.url + "/", local)


def test_only_the_chunks_that_are_needed_come_over_the_wire(server: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with StoreWriter.create(tmp_path / "s.zarr", channels=256) as writer:
        for key in "ab":
            writer.add(key, rng.standard_normal((256, 19, 32)).astype(np.float32))
    server.root = tmp_path
    store = FeatureStore(server.url)
    store.map("b")  # the shard's index is known from here on
    server.sent, server.asked[:] = 0, []
    store.map("a")
    whole = server.sent
    assert len(server.asked) == 1
    server.sent, server.asked[:] = 0, []
    for _ in range(10):
        store.sample("a", 100, rng)
    assert server.sent / 10 < whole / 5
    assert 10 < len(server.asked) <= 60  # five or six chunks, of which some adjoin
    assert all(asked and "c/0/0" in path for path, asked in server.asked)


def test_an_index_without_a_packed_file_and_a_shard_that_does_not_count(
    server: Any, local: Path, tmp_path: Path
) -> None:
    shutil.copytree(local, tmp_path / "s.zarr")
    server.root = tmp_path
    (tmp_path / "s.zarr" / "index.bin").unlink()
    assert_same(server.url, local)
    (tmp_path / "s.zarr" / "index" / "000001.jsonl").unlink()
    assert FeatureStore(server.url).keys() == [f"photo{n}" for n in (0, 1, 2, 6, 7)]
    (tmp_path / "s.zarr" / "index" / "000002.jsonl").write_text("{}\n{}\n")
    with pytest.raises(StoreError, match=r"000002\.jsonl is damaged"):
        FeatureStore(server.url)


@pytest.mark.parametrize("fault", ["cut", 500, 503])
def test_a_request_that_fails_is_tried_again(server: Any, local: Path, fault: Any) -> None:
    server.at_first = fault
    assert_same(server.url, local)


@pytest.mark.parametrize("fault", ["cut", 500])
def test_a_connection_that_is_always_cut_is_an_error_and_never_numbers(
    server: Any, fault: Any
) -> None:
    store = FeatureStore(server.url)
    server.always = fault
    for read in (store.map, store.sample, store.record):
        with pytest.raises(StoreUnreachable, match=r"cannot be read .*tried 4 times"):
            read("photo1")
    with pytest.raises(StoreUnreachable):
        verify(store)  # what cannot be reached is not called damaged
    with pytest.raises(StoreError, match="cannot be read"):
        FeatureStore(server.url)
    server.always = None
    np.testing.assert_array_equal(store.map("photo1"), grid_map(1))


def test_a_cut_at_any_request_gives_the_right_numbers_or_an_error(server: Any) -> None:
    rng = np.random.default_rng(0)
    right = wrong = 0
    for _ in range(40):
        server.faults = [("cut", None)[int(rng.integers(4)) == 0] for _ in range(30)]
        try:
            store = FeatureStore(server.url)
            np.testing.assert_array_equal(store.map("photo4"), grid_map(4))
            right += 1
        except StoreError:
            wrong += 1
    assert right + wrong == 40
    assert wrong > 0


def test_a_server_without_ranges_is_refused(server: Any) -> None:
    server.ignores_ranges = True
    with pytest.raises(StoreError, match="does not answer range requests"):
        FeatureStore(server.url).map("photo0")


def test_a_server_that_is_gone_and_a_store_that_is_not_there(server: Any) -> None:
    with pytest.raises(StoreError, match="no feature store at http://"):
        FeatureStore(server.url + "-other")
    store = FeatureStore(server.url)
    server.always = "gone"  # for connections that are kept open
    server.shutdown()
    server.server_close()
    with pytest.raises(StoreError, match="see to the network or the server"):
        store.map("photo0")
    with pytest.raises(StoreError, match="see to the network or the server"):
        FeatureStore(server.url)


def test_a_server_that_refuses_says_credentials(server: Any) -> None:
    server.always = 403
    with pytest.raises(StoreError, match=r"may not be read .*give credentials"):
        FeatureStore(server.url)


# Servers that do not say what is missing, signatures, other kinds of URL


def test_a_server_that_refuses_what_is_missing_reads_the_same(
    server: Any, local: Path, tmp_path: Path
) -> None:
    """As S3 does to those who may not list the bucket."""
    server.missing = 403
    assert_same(server.url, local)  # one shard is not in the packed index
    shutil.copytree(local, tmp_path / "s.zarr")
    server.root = tmp_path
    (tmp_path / "s.zarr" / "index.bin").unlink()
    assert_same(server.url, local)
    (tmp_path / "s.zarr" / "index" / "000002.jsonl").unlink()
    assert FeatureStore(server.url).keys() == [f"photo{n}" for n in range(6)]
    with StoreWriter.create(tmp_path / "parts.zarr", channels=C, part=(3, 8)) as writer:
        writer.add("photo1", grid_map(1))
    other = FeatureStore(server.url.replace("s.zarr", "parts.zarr"))
    np.testing.assert_array_equal(other.map("photo1"), grid_map(1))


def test_an_index_that_is_refused_as_a_whole_is_not_an_empty_store(
    server: Any, local: Path, tmp_path: Path
) -> None:
    shutil.copytree(local, tmp_path / "s.zarr")
    server.root, server.missing = tmp_path, 403
    shutil.rmtree(tmp_path / "s.zarr" / "index")
    (tmp_path / "s.zarr" / "index.bin").unlink()
    with pytest.raises(StoreUnreachable, match=r"index/00000\d\.jsonl may not be read"):
        FeatureStore(server.url)
    (tmp_path / "s.zarr" / "grids" / "zarr.json").unlink()
    with pytest.raises(StoreUnreachable, match=r"grids/zarr\.json may not be read"):
        FeatureStore(server.url)


@pytest.mark.parametrize("query", ["sig=abc", "sv=2024&sig=a%2Fb%2Bc%3D&se=2030", "x"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_signature_in_the_url_is_sent_for_every_file_and_never_shown(
    server: Any, local: Path, query: str, slash: str
) -> None:
    server.query = query
    assert_same(f"{server.url}{slash}?{query}", local)
    for wrong in (server.url, f"{server.url}?other"):
        with pytest.raises(StoreUnreachable, match="may not be read"):
            FeatureStore(wrong)
    store = FeatureStore(f"{server.url}?{query}")
    messages = []
    for fault in ("gone", 403, "short"):
        server.always = fault
        with pytest.raises(StoreError) as caught:
            store.map(f"photo{len(messages)}")
        messages.append(str(caught.value))
    with pytest.raises(StoreError) as caught:
        store.map("zebra")
    for message in [*messages, str(caught.value)]:
        assert f"?{query}" not in message


def test_requests_are_few(server: Any, local: Path) -> None:
    store = FeatureStore(server.url)
    opened = [path.split("s.zarr/")[1] for path, _ in server.asked]
    # the group, the array, the packed index, and the one shard that it lacks
    assert opened == ["zarr.json", "grids/zarr.json", "index.bin", "index/000002.jsonl"]
    server.asked.clear()
    store.map("photo0")
    assert len(server.asked) == 2  # the shard's end and the map's chunks, which adjoin
    server.asked.clear()
    store.map("photo1")
    store.record("photo1")
    store.record("photo2")
    assert [path.split("s.zarr/")[1] for path, _ in server.asked] == [
        "grids/c/0/0", "facts/000000.jsonl",
    ]  # fmt: skip
    server.asked.clear()
    assert "zebra" not in store
    assert store.shape("photo7") == grid_map(7).shape
    store.sample("photo1", 0)
    assert server.asked == []


def test_regions_open_with_a_request_for_each_array(server: Any, tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "s.zarr", channels=2, kind="regions") as writer:
        writer.add("a", np.ones((2, 1, 3), np.float32), np.zeros((3, 4)))
    server.root = tmp_path
    store = FeatureStore(server.url)
    assert len(server.asked) == 6
    assert store.regions("a").classes_N is None


def test_a_file_that_is_shorter_than_the_index_says_is_damage(server: Any) -> None:
    store = FeatureStore(server.url)
    server.always = "short"  # the place of its end is beyond the file's: 416
    with pytest.raises(DamagedMap, match=r"photo0.*cut short"):
        store.map("photo0")
    assert len(server.asked) == 5  # and is not asked for again


def test_a_file_url_is_a_local_folder(local: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a b%é"
    odd.mkdir()
    shutil.copytree(local, odd / "s.zarr")
    for url in (
        (odd / "s.zarr").as_uri(),
        (odd / "s.zarr").as_uri().replace("file://", "file://localhost"),
    ):
        assert_same(url, local)
        assert summarize(FeatureStore(url)).stored_bytes
    with StoreWriter.open((odd / "s.zarr").as_uri()) as writer:
        writer.add("late", grid_map(9))
    assert "late" in FeatureStore(odd / "s.zarr")
    with pytest.raises(StoreError, match="no feature store at"):
        FeatureStore((tmp_path / "none").as_uri())


@pytest.mark.parametrize("kind", ["az", "abfs", "abfss"])
def test_azure_is_read_through_its_own_package(
    local: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    url = f"{kind}://container/s.zarr"
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(StoreError, match=r"fsspec and adlfs: pip install 'gridvlp.remote.' adlfs"):
        FeatureStore(url)

    class Azure(LocalFileSystem):
        """A stand-in that finds the container in a folder."""

        def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
            content = (local / path.removeprefix(f"{kind}://container/s.zarr/")).read_bytes()
            assert start is None or start >= 0  # Azure has no ranges from the end
            return content[start:end]

    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: Azure())
    assert_same(url, local)


@pytest.mark.parametrize("url", ["ftp://host/s.zarr", "nonsense://x", "memory://a"])
def test_other_kinds_of_url_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="begins with s3://"):
        FeatureStore(url)


def test_damage_over_a_url_is_named(server: Any, local: Path, tmp_path: Path) -> None:
    shutil.copytree(local, tmp_path / "s.zarr")
    server.root = tmp_path
    shard = tmp_path / "s.zarr" / "grids" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    store = FeatureStore(server.url)
    with pytest.raises(DamagedMap, match="photo0"):
        store.map("photo0")
    shard.write_bytes(content[:200])
    assert set(verify(FeatureStore(server.url))) == {"photo0", "photo1", "photo2"}


def test_threads_forks_and_pickles(server: Any) -> None:
    store = FeatureStore(server.url)

    def right(seed: int) -> bool:
        return np.array_equal(store.map(f"photo{seed % 8}"), grid_map(seed % 8))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(48)))
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.map("photo3"), grid_map(3))
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            import signal

            signal.alarm(20)  # a hang ends as a failure
            status = 1
            try:
                status = 0 if all(map(right, KEYS)) else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert right(2)


def _read_in_child(store: FeatureStore, results: Any) -> None:
    results.put(store.map("photo5"))


def test_a_spawned_process_reads(server: Any) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_read_in_child, args=(FeatureStore(server.url), results))
    process.start()
    np.testing.assert_array_equal(results.get(timeout=60), grid_map(5))
    process.join()


def test_local_and_url_read_as_one(server: Any, local: Path, tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "more.zarr", channels=C, encoder={"name": "e"}) as writer:
        writer.add("photo1", grid_map(100))
        writer.add("other", grid_map(101))
    both = FeatureStore([tmp_path / "more.zarr", server.url])
    assert len(both) == len(KEYS) + 1
    assert both.keys()[:3] == ["photo1", "other", "photo0"]
    np.testing.assert_array_equal(both.map("photo1"), grid_map(100))  # the first store wins
    np.testing.assert_array_equal(both.map("photo2"), grid_map(2))
    assert "not known over a URL" in "\n".join(summarize(both).lines())


def test_a_store_is_not_written_to_a_url() -> None:
    for begin in (StoreWriter.create, StoreWriter.open):
        with pytest.raises(StoreError, match="local folder"):
            begin("s3://bucket/s.zarr")


# S3


@pytest.fixture(scope="module")
def bucket(local: Path) -> Iterator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3: Any = boto3.client("s3")
        s3.create_bucket(Bucket="bucket")
        for file in local.rglob("*"):
            if file.is_file():
                name = f"features/{file.relative_to(local.parent)}"
                s3.put_object(Bucket="bucket", Key=name, Body=file.read_bytes())
        yield "s3://bucket/features/s.zarr"
    running.stop()


def test_a_store_reads_the_same_over_s3(bucket: str, local: Path) -> None:
    assert_same(bucket, local)


def test_s3_without_the_store_or_the_bucket(bucket: str) -> None:
    for url in ("s3://bucket/none.zarr", "s3://no-such-bucket/s.zarr"):
        with pytest.raises(StoreError, match="no feature store at s3://"):
            FeatureStore(url)


def test_s3_without_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StoreError, match=r"may not be read .*give credentials"):
        FeatureStore(bucket)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_an_s3_server_that_is_gone(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StoreError, match="see to the network or the server"):
        FeatureStore(bucket)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_cut_s3_connection_is_tried_again(server: Any, local: Path, monkeypatch: Any) -> None:
    """The range server stands in for S3: a bucket's objects are paths there."""
    import fsspec

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.rsplit("/", 1)[0])
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.root = local.parent.parent
    url = f"s3://{local.parent.name}/s.zarr"
    server.at_first = "cut"
    assert_same(url, local)
    store = FeatureStore(url)
    server.always = "cut"
    with pytest.raises(StoreError, match="cannot be read"):
        store.map("photo1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


# Google


def test_a_store_reads_the_same_over_gs(server: Any, local: Path, monkeypatch: Any) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("gcsfs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url.rsplit("/", 1)[0])
    server.root = local.parent.parent
    url = f"gs://{local.parent.name}/s.zarr"
    assert_same(url, local)
    server.faults = ["cut"]
    np.testing.assert_array_equal(FeatureStore(url).map("photo1"), grid_map(1))
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    with pytest.raises(StoreError, match="no feature store at gs://"):
        FeatureStore(url + "-other")


def test_the_command_line_takes_urls(server: Any, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from gridvlp.cli import cli

    found = CliRunner().invoke(cli, ["inspect", server.url])
    assert found.exit_code == 0, found.output
    assert "encoder name" in found.output
    found = CliRunner().invoke(cli, ["verify", server.url])
    assert f"All {len(KEYS)} maps in {server.url} are whole." in found.output
    found = CliRunner().invoke(cli, ["export", server.url, "--to", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "photo1.npy"), grid_map(1))


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(StoreError, match=r"pip install 'gridvlp\[remote\]'"):
        FeatureStore("s3://bucket/s.zarr")
