"""Artifacts, checkpoints and logs at URIs: a real S3 server on loopback, and fsspec's own places.

Nothing is seen before the manifest; a damaged object is refused; the last of two writers wins.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import polars as pl
import pytest
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner

from prerank import remote
from prerank.artifacts import ItemEmbeddings
from prerank.cli import app
from prerank.errors import ArtifactError, ConfigError, MissingExtraError
from prerank.pipeline import run_recipe
from prerank.recipe import STAGES, load_recipe
from prerank.remote import Mirror, Place, RemoteStore, bring
from prerank.sources import source_files
from prerank.store import Manifest, Store, fingerprint, load, save

MARK = "0123456789abcdef"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Run a server; the environment tells every client of S3 about it."""
    serving = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    serving.start()
    _, port = serving.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",  # pragma: allowlist secret
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables["AWS_ENDPOINT_URL"]
    serving.stop()


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest) -> str:
    """Return the URI of a new, empty bucket."""
    name = "b" + str(abs(hash(request.node.nodeid)))
    client().create_bucket(Bucket=name)
    return f"s3://{name}"


def client() -> Any:
    return boto3.client("s3")


def objects(bucket: str) -> dict[str, bytes]:
    """Return key -> content of every object, asked for without fsspec."""
    s3, name = client(), bucket.removeprefix("s3://")
    found = s3.list_objects_v2(Bucket=name).get("Contents", [])
    keys = [one["Key"] for one in found]
    return {key: s3.get_object(Bucket=name, Key=key)["Body"].read() for key in keys}


def embeddings(n: int) -> ItemEmbeddings:
    return ItemEmbeddings(np.eye(n, dtype=np.float32))


def manifest(mark: str = MARK) -> Manifest:
    return Manifest("encode", mark, {"embedding_dim": 3}, 0, {"dataset": "d"})


def make(store: RemoteStore, n: int = 3, mark: str = MARK) -> None:
    with store.publish("embeddings", manifest(mark)) as out:
        save(out, embeddings(n))


def read(store: RemoteStore, mark: str = MARK) -> int:
    made: ItemEmbeddings = load(store.checked("embeddings", mark), ItemEmbeddings)
    return len(made.vectors)


def test_another_machine_sees_and_fetches_what_one_published(bucket: str, tmp_path: Path) -> None:
    one = RemoteStore(tmp_path / "one", f"{bucket}/runs/a")
    two = RemoteStore(tmp_path / "two", f"{bucket}/runs/a")
    assert not two.has("embeddings", MARK)
    make(one)
    assert two.has("embeddings", MARK, {"dataset": "d"})
    assert not two.has("embeddings", MARK, {"dataset": "other"})
    assert not two.has("embeddings", "another")
    assert read(two) == 3
    first, second = (
        (root / "embeddings" / "manifest.json").read_bytes() for root in (one.root, two.root)
    )
    assert first == second
    assert not list((two.root / ".work").iterdir())


@pytest.mark.parametrize("scheme", ["memory://place", "file://{folder}/there"])
def test_other_places_of_fsspec(scheme: str, tmp_path: Path) -> None:
    uri = scheme.format(folder=tmp_path) + "/run"
    make(RemoteStore(tmp_path / "one", uri))
    two = RemoteStore(tmp_path / "two", uri)
    assert two.has("embeddings", MARK) and read(two) == 3


@pytest.mark.parametrize("slash", ["", "/"])
def test_commands_take_a_uri_of_three_slashes(
    tmp_path: Path, slash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"file://{tmp_path}/there/run"
    make(RemoteStore(tmp_path / "one", uri))
    for place, told in ((uri, '"key": "embeddings"'), (f"{uri}/embeddings", MARK)):
        shown = CliRunner().invoke(app, ["show", place + slash, "--json"])
        assert shown.exit_code == 0 and told in shown.stdout, shown.exception
    for command in (["verify", uri], ["export", uri, "--out", "b"], ["skew", uri]):
        refused = CliRunner().invoke(app, command).exception  # there is no recipe.toml
        assert isinstance(refused, ConfigError) and refused.what == "no run here", command
    compared = CliRunner().invoke(app, ["compare", uri]).exception
    assert isinstance(compared, ArtifactError) and compared.where.endswith("/report")


def test_without_a_manifest_nothing_is_there(bucket: str, tmp_path: Path) -> None:
    make(RemoteStore(tmp_path / "one", bucket))
    (Place(bucket) / "embeddings/manifest.json").delete()
    assert any("vectors.safetensors" in key for key in objects(bucket))
    two = RemoteStore(tmp_path / "two", bucket)
    assert not two.has("embeddings", MARK) and two.manifest("embeddings") is None
    with pytest.raises(ArtifactError, match="not there"):
        two.checked("embeddings", MARK)


def test_a_manifest_cut_short_at_any_byte_is_none(tmp_path: Path) -> None:
    uri = f"memory://{tmp_path.name}"
    make(RemoteStore(tmp_path / "one", uri))
    place, two = Place(uri) / "embeddings/manifest.json", RemoteStore(tmp_path / "two", uri)
    whole = place.read()
    for size in range(0, len(whole), 7):
        place.write(whole[:size])
        assert two.published("embeddings") is None
    place.write(whole)
    assert two.has("embeddings", MARK)


PUBLISHER = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from prerank import remote
from test_remote import RemoteStore, make
def slow(self, file, upload=remote.Place.upload):
    upload(self, file)
    print("one object", flush=True)
    time.sleep(60)
remote.Place.upload = slow
make(RemoteStore(Path(sys.argv[1]), sys.argv[2]))
"""


def test_a_kill_in_the_middle_of_publishing_shows_nothing(bucket: str, tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(remote.__file__).parents[1])]
    command = [sys.executable, "-c", PUBLISHER.format(paths=paths), str(tmp_path / "one"), bucket]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "one object\n"
        process.send_signal(signal.SIGKILL)
    left = objects(bucket)
    assert left and not any(key.endswith("manifest.json") for key in left)
    two = RemoteStore(tmp_path / "two", bucket)
    assert not two.has("embeddings", MARK)
    # The killed machine had finished the artifact on its own disk: it publishes that next time.
    one = RemoteStore(tmp_path / "one", bucket)
    assert not one.has("embeddings", MARK)
    one.catch_up("embeddings", MARK)
    assert read(two) == 3


def test_a_damaged_object_is_refused(bucket: str, tmp_path: Path) -> None:
    make(RemoteStore(tmp_path / "one", bucket))
    key = next(key for key in objects(bucket) if key.endswith("vectors.safetensors"))
    content = bytearray(objects(bucket)[key])
    content[-1] ^= 1
    client().put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=bytes(content))
    two = RemoteStore(tmp_path / "two", bucket)
    with pytest.raises(ArtifactError, match="damaged") as caught:
        two.checked("embeddings", MARK)
    assert caught.value.where.startswith(f"{bucket}/embeddings/g-")
    assert not (two.root / "embeddings").exists()
    client().delete_object(Bucket=bucket.removeprefix("s3://"), Key=key)
    with pytest.raises(ArtifactError, match="missing"):
        two.checked("embeddings", MARK)


def test_of_two_writers_the_last_manifest_wins_with_files_of_its_own(
    bucket: str, tmp_path: Path
) -> None:
    one, two = (RemoteStore(tmp_path / name, bucket) for name in ("one", "two"))
    with two.publish("embeddings", manifest()) as out:
        save(out, embeddings(5))
        make(one)  # while the other is at work
        assert read(RemoteStore(tmp_path / "early", bucket)) == 3
    assert read(RemoteStore(tmp_path / "late", bucket)) == 5
    generations = {key.split("/")[1] for key in objects(bucket) if "/g-" in key}
    assert len(generations) == 1  # what nobody can name any more is gone


def test_a_reader_whose_files_are_replaced_starts_again(bucket: str, tmp_path: Path) -> None:
    one, two = (RemoteStore(tmp_path / name, bucket) for name in ("one", "two"))
    make(one)
    old = two.published("embeddings")
    assert old is not None
    make(one, 5)
    two.fetch("embeddings", old)  # its generation was deleted
    assert read(two) == 5


READER = """
import sys
from pathlib import Path
from prerank.remote import bring
from prerank.store import Store
uri, folder = sys.argv[1], Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
bring(uri, folder)
for number in range(12):
    Store(folder).checked(f"e{number}")
"""


def test_many_processes_that_fetch_one_run_at_once_all_have_it(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/there/run"
    for number in range(12):
        with RemoteStore(tmp_path / "one", uri).publish(f"e{number}", manifest()) as out:
            save(out, embeddings(40))
    command = [sys.executable, "-c", READER, uri, str(tmp_path / "two")]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    readers = [subprocess.Popen(command, text=True, **pipes) for _ in range(6)]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    for reader in readers:
        reader.stdin.write("go\n")
        reader.stdin.flush()
    assert [reader.communicate()[1] for reader in readers] == [""] * 6
    assert [reader.returncode for reader in readers] == [0] * 6
    assert not list((tmp_path / "two" / ".work").iterdir())


@pytest.mark.parametrize("damage", ["missing", "damaged", "no manifest", "half a manifest"])
def test_what_is_not_whole_here_is_fetched_again(tmp_path: Path, damage: str) -> None:
    """A local copy of what lies at a URI is no reason to stop."""
    uri = f"memory://{tmp_path.name}"
    make(RemoteStore(tmp_path / "one", uri))
    two = RemoteStore(tmp_path / "two", uri)

    def harm() -> None:
        file = two.checked("embeddings", MARK) / "vectors.safetensors"
        if damage == "missing":
            file.unlink()
        elif damage == "damaged":
            file.write_bytes(file.read_bytes()[:-1] + b"x")
        elif damage == "no manifest":
            (file.parent / "manifest.json").unlink()
        else:
            (file.parent / "manifest.json").write_text("{")

    harm()
    assert two.manifest("embeddings") is not None
    assert read(two) == 3
    harm()
    here = bring(uri, two.root)
    assert len(load(Store(here).checked("embeddings"), ItemEmbeddings).vectors) == 3
    harm()
    assert len(load(bring(f"{uri}/embeddings", two.root), ItemEmbeddings).vectors) == 3


@pytest.mark.parametrize("name", ["../out.txt", "/etc/x", "a/../../out.txt"])
def test_a_name_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    uri = f"memory://{tmp_path.name}"
    make(RemoteStore(tmp_path / "one", uri))
    place = Place(uri) / "embeddings/manifest.json"
    values = json.loads(place.read())
    inner = json.loads(values["manifest"])
    inner["files"] = {name: "0" * 64}
    place.write(json.dumps({**values, "manifest": json.dumps(inner)}).encode())
    with pytest.raises(ArtifactError, match="not there"):  # such a manifest is none
        RemoteStore(tmp_path / "two", uri).checked("embeddings", MARK)
    place.write(json.dumps({**values, "generation": name}).encode())
    with pytest.raises(ArtifactError, match="leads out"):
        RemoteStore(tmp_path / "two", uri).has("embeddings", MARK)


def test_finished_work_is_mirrored_and_found_by_another_machine(
    bucket: str, tmp_path: Path
) -> None:
    one = RemoteStore(tmp_path / "one", bucket)
    work = one.work("anchor_model", MARK)
    mirror = Mirror(work, one.place / ".work" / work.name)
    (work / "epoch-1.safetensors").write_bytes(b"one")
    (work / "state.json").write_text('{"file": "epoch-1.safetensors"}')
    (work / "half.part").write_text("not whole")
    mirror.sync()
    (work / "epoch-2.safetensors").write_bytes(b"two")
    (work / "state.json").write_text('{"file": "epoch-2.safetensors"}')
    (work / "epoch-1.safetensors").unlink()
    mirror.sync()
    found = RemoteStore(tmp_path / "two", bucket).work("anchor_model", MARK)
    assert {p.name: p.read_text() for p in found.iterdir()} == {
        "epoch-2.safetensors": "two",
        "state.json": '{"file": "epoch-2.safetensors"}',
    }


def test_a_failed_step_leaves_its_finished_work_and_a_published_one_none(
    bucket: str, tmp_path: Path
) -> None:
    one = RemoteStore(tmp_path / "one", bucket)
    with pytest.raises(RuntimeError), one.publish("embeddings", manifest()):
        (one.work("embeddings", MARK) / "shard-0.safetensors").write_bytes(b"shard")
        raise RuntimeError("the machine is called back")
    assert list(objects(bucket)) == [f".work/embeddings-{MARK}/shard-0.safetensors"]
    two = RemoteStore(tmp_path / "two", bucket)
    assert (two.work("embeddings", MARK) / "shard-0.safetensors").read_bytes() == b"shard"
    make(two)
    assert not any(key.startswith(".work/") for key in objects(bucket))


def test_logs_are_listed_like_a_local_folder_and_fetched_once(bucket: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    (logs / "exposures").mkdir(parents=True)
    pl.DataFrame({"item": ["a", "b"]}).write_parquet(logs / "items.parquet")
    (logs / "exposures" / "0.csv").write_text("user,item\n1,a\n")
    for file in (p for p in logs.rglob("*") if p.is_file()):
        (Place(bucket) / f"logs/{file.relative_to(logs)}").upload(file)

    def listed(path: str) -> list[list[Any]]:
        return source_files(path, tmp_path / "run", [])

    far, near = listed(f"{bucket}/logs"), listed(str(logs))
    assert [one[:2] for one in far] == [one[:2] for one in near]
    assert far == listed(f"{bucket}/logs")
    here = remote.fetch_folder(f"{bucket}/logs", tmp_path / "here")
    assert (here / "exposures" / "0.csv").read_text() == "user,item\n1,a\n"
    before = (here / "items.parquet").stat().st_mtime_ns
    changed = Place(bucket) / "logs/exposures/0.csv"
    changed.write(b"user,item\n1,b\n2,b\n")
    assert listed(f"{bucket}/logs") != far
    remote.fetch_folder(f"{bucket}/logs", tmp_path / "here")
    assert (here / "exposures" / "0.csv").read_text() == "user,item\n1,b\n2,b\n"
    assert (here / "items.parquet").stat().st_mtime_ns == before
    changed.delete()
    remote.fetch_folder(f"{bucket}/logs", tmp_path / "here")
    assert not (here / "exposures" / "0.csv").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"items.csv": 5}', '{"items.csv": [1]}', '{"../precious": [1, "2"]}']
)
def test_an_odd_memory_of_fetched_logs_is_made_anew(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("prerank.store.log", said.append)
    uri, here = f"memory://{tmp_path.name}-logs", tmp_path / "cache" / "logs"
    (Place(uri) / "items.csv").write(b"item\na\n")
    remote.fetch_folder(uri, here)
    whole = (here / ".fetched.json").read_text()
    (here / ".fetched.json").write_text(text)
    (tmp_path / "cache" / "precious").write_text("not ours")
    assert (remote.fetch_folder(uri, here) / "items.csv").read_text() == "item\na\n"
    assert (here / ".fetched.json").read_text() == whole
    assert (tmp_path / "cache" / "precious").read_text() == "not ours"
    assert len(said) == ("precious" not in text)
    assert sorted(path.name for path in here.parent.iterdir()) == ["logs", "precious"]


def test_messages_name_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not known"):
        Place("nonsense://x").read()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match=r"prerank\[gcs\]"):
        Place("gs://bucket/x").read()
    with pytest.raises(ConfigError, match="not there"):
        remote.source_files(f"memory://{tmp_path.name}-none")
    with pytest.raises(ArtifactError, match="no artifact"):
        bring(f"memory://{tmp_path.name}-none", tmp_path)


def test_an_unreachable_server_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    remote._connect.cache_clear()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ArtifactError, match="cannot be used"):
        Place("s3://bucket/x").write(b"")
    s3fs.S3FileSystem.clear_instance_cache()
    remote._connect.cache_clear()


def test_verify_reads_every_byte_that_lies_at_the_uri(bucket: str, tmp_path: Path) -> None:
    """What an earlier command brought here proves nothing."""
    uri, config = f"{bucket}/runs/a", {"embedding_dim": 3}
    one = RemoteStore(tmp_path / "one", uri)
    whole = Manifest("encode", fingerprint("encode", config, 0, {}), config, 0, {})
    with one.publish("embeddings", whole) as out:
        save(out, embeddings(3))
    (one.place / "recipe.toml").write(b'name = "a"')
    ask = ["verify", uri, "--users", "0", "--json"]
    done = CliRunner().invoke(app, ask)
    assert done.exit_code == 0, done.output
    states = {one["key"]: one["state"] for one in json.loads(done.stdout)["artifacts"]}
    assert states == {"embeddings": "sound"}
    key = next(key for key in objects(bucket) if key.endswith("vectors.safetensors"))
    content = bytearray(objects(bucket)[key])
    content[-1] ^= 1
    client().put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=bytes(content))
    refused = CliRunner().invoke(app, ask).exception
    assert isinstance(refused, ArtifactError) and refused.exit_code == 3
    assert refused.where == f"{bucket}/{key}"
    with pytest.raises(ArtifactError, match="no artifact"):
        CliRunner().invoke(app, ["verify", f"{bucket}/nothing"], catch_exceptions=False)


TINY = """
name = "tiny"
out = "{bucket}/runs"
cache = "{cache}"
seeds = [0]
prepare.world.n_users = 100
prepare.world.n_items = 200
encode.embedding_dim = 8
tokenize.codebook_size = 8
finetune = {{ hidden_size = 8, n_layers = 1, n_heads = 1, epochs = 1 }}
generate.n_anchors = 4
train.epochs = 1
evaluate.n_resamples = 20
[methods.exposed-only]
label.source = "none"
[methods.gpl]
anchors = "llm"
"""


def test_a_second_machine_resumes_a_run_at_a_uri_without_redoing(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine is a local folder of its own; all of one's is gone when the other starts."""
    recipes = {}
    for machine in ("one", "two"):
        text = TINY.format(bucket=bucket, cache=tmp_path / machine)
        (tmp_path / f"{machine}.toml").write_text(text)
        recipes[machine] = load_recipe(tmp_path / f"{machine}.toml")
    before = tuple(stage for stage in STAGES if stage != "evaluate")
    made = run_recipe(recipes["one"], before)
    assert {step["status"] for step in made} == {"made"}
    shutil.rmtree(tmp_path / "one")

    again = run_recipe(recipes["two"])
    status = {step["key"]: step["status"] for step in again}
    assert status == {step["key"]: "done before" for step in made} | {"report": "made"}
    marks = {step["key"]: step["fingerprint"] for step in again}
    assert {step["key"]: step["fingerprint"] for step in made}.items() <= marks.items()
    # Any command may read the run from its URI.
    monkeypatch.chdir(tmp_path)
    uri = f"{bucket}/runs/tiny"
    shown = CliRunner().invoke(app, ["show", uri, "--json"])
    assert {one["key"] for one in json.loads(shown.stdout)["artifacts"]} == set(status)
    one = CliRunner().invoke(app, ["show", f"{uri}/embeddings", "--json"])
    assert marks["embeddings"] in one.stdout
    # The last words of a run are the report of these settings, made here or elsewhere.
    (tmp_path / "three.toml").write_text(TINY.format(bucket=bucket, cache=tmp_path / "three"))
    for size in (10, 5):
        metrics = {}
        for machine in ("two", "three"):
            ask = ["run", f"{machine}.toml", "--json", "--set", f"evaluate.list_size={size}"]
            ran = CliRunner().invoke(app, ask, catch_exceptions=False)
            metrics[machine] = {record["metric"] for record in json.loads(ran.stdout)["records"]}
        assert metrics["two"] == metrics["three"] and f"hr@{size}" in metrics["three"]
