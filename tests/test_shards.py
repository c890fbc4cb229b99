"""The store of prepared volumes returns what was written, whole or not at all, in a folder or an object store."""

import pickle
from pathlib import Path
from urllib.parse import quote

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmh_ray import shards
from mmh_ray.errors import ConfigError, DataError
from mmh_ray.shards import PreparedStore, check_own, shard_entries, write_index, write_shard

pytestmark = pytest.mark.fast
SHAPE = (6, 5, 7)


def row(number: int) -> dict:
    rng = np.random.default_rng(number)
    mask = rng.uniform(size=SHAPE) > 0.4
    return {
        "image_id": f"sub-{number:02d}_T1w",
        "subject": f"{number:02d}",
        "session": None,
        "site": "alder",
        "sequence": "T1w",
        "split": "train",
        "image": (rng.uniform(0, 2, SHAPE) * mask).astype(np.float32),
        "mask": mask,
        "affine": rng.normal(size=(4, 4)),
        "registration": rng.normal(size=(4, 4)) if number % 2 else None,
        "quality": 0.5 if number % 2 else None,
        "low": 0.0,
        "high": 412.5,
        "quantiles": np.sort(rng.uniform(size=257)),
        "tissues": np.sort(rng.uniform(size=257)),
        "steps": ["mask: given", "unit intensity: (0, 412.5) -> (0, 1)"],
        "provenance": f"{number:064x}",
    }


def failed(number: int, reason: str) -> dict:
    facts = ("image_id", "subject", "site", "sequence", "split", "provenance")
    return {key: row(number)[key] for key in facts} | {"status": "failed", "reason": reason}


def fill(uri: str) -> PreparedStore:
    """Two shards of 3 and 2 volumes and a failed image."""
    names = [write_shard(uri, map(row, numbers)) for numbers in ([1, 2, 3], [4, 5])]
    entries = [entry for name in names for entry in shard_entries(uri, name)]
    assert write_index(uri, [*entries, failed(6, "damaged")])
    return PreparedStore(uri)


def check(store: PreparedStore) -> None:
    assert [entry["image_id"] for entry in store.index] == [f"sub-{number:02d}_T1w" for number in range(1, 7)]
    for number, entry in enumerate(store.index[:5], start=1):
        expected, (image, mask) = row(number), store.read(entry)
        assert (image.dtype, mask.dtype) == (np.float32, bool)
        np.testing.assert_allclose(image, expected["image"], atol=2**-11)  # half a step of float16 below 2
        np.testing.assert_array_equal(mask, expected["mask"])
        np.testing.assert_array_equal(entry["affine"], expected["affine"])
        assert (entry["registration"] is None) == (expected["registration"] is None)
        if expected["registration"] is not None:
            np.testing.assert_array_equal(entry["registration"], expected["registration"])
        for name in ("quantiles", "tissues"):
            np.testing.assert_allclose(entry[name], expected[name], rtol=1e-6)
        same = ("subject", "session", "site", "sequence", "split", "low", "high", "steps", "provenance")
        assert {key: entry[key] for key in same} == {key: expected[key] for key in same}
        assert tuple(entry["shape"]) == SHAPE


def test_what_goes_in_comes_out(tmp_path):
    store = fill(str(tmp_path / "store"))
    check(store)
    assert len(list((tmp_path / "store").glob("shard-*.parquet"))) == 2
    assert len(list((tmp_path / "store").iterdir())) == 3
    last = store.index[-1]
    assert (last["status"], last["reason"], last["shard"]) == ("failed", "damaged", None)
    with pytest.raises(DataError, match="damaged"):
        store.read(last)


def test_a_row_group_holds_one_volume(tmp_path):
    store = fill(str(tmp_path))
    with pq.ParquetFile(tmp_path / store.index[0]["shard"]) as shard:
        assert [shard.metadata.row_group(group).num_rows for group in range(shard.num_row_groups)] == [1, 1, 1]


def test_a_store_travels_without_its_open_files(tmp_path):
    store = fill(str(tmp_path))
    store.read(store.index[0])
    check(pickle.loads(pickle.dumps(store)))


def test_few_shards_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_SHARDS", 1)
    store = fill(str(tmp_path))
    check(store)
    open_files = [file.path for file in psutil.Process().open_files()]
    assert len([path for path in open_files if path.startswith(str(tmp_path))]) == 1


def test_an_index_that_says_the_same_is_left_alone(tmp_path):
    store = fill(str(tmp_path))
    before = (tmp_path / "index.parquet").stat().st_mtime_ns
    assert not write_index(str(tmp_path), reversed(store.index))
    assert (tmp_path / "index.parquet").stat().st_mtime_ns == before
    assert write_index(str(tmp_path), store.index[:-1])
    assert len(PreparedStore(str(tmp_path)).index) == 5


def test_the_data_hash_knows_data_and_split_but_not_shards(tmp_path):
    first = fill(str(tmp_path / "a"))
    name = write_shard(str(tmp_path / "b"), map(row, [5, 4, 3, 2, 1]))
    entries = shard_entries(str(tmp_path / "b"), name)
    write_index(str(tmp_path / "b"), entries)
    assert PreparedStore(str(tmp_path / "b")).data_hash == first.data_hash
    for changed in ({"provenance": "other"}, {"split": "test"}):
        write_index(str(tmp_path / "b"), [entries[0] | changed, *entries[1:]])
        assert PreparedStore(str(tmp_path / "b")).data_hash != first.data_hash


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
    def interrupted():
        yield row(1)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(str(tmp_path), interrupted())
    assert write_shard(str(tmp_path), []) is None
    assert list(tmp_path.iterdir()) == []


def test_the_same_volumes_make_the_same_shard(tmp_path):
    assert write_shard(str(tmp_path), [row(1)]) == write_shard(str(tmp_path), [row(1)])
    assert write_shard(str(tmp_path), [row(1) | {"image_id": "sub-99_T1w"}]) != write_shard(str(tmp_path), [row(1)])


def test_keep_only_leaves_what_is_named(tmp_path):
    store = fill(str(tmp_path))
    (tmp_path / ".partial-left").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    kept = store.index[0]["shard"]
    shards.keep_only(str(tmp_path), {kept})
    assert {path.name for path in tmp_path.iterdir()} == {kept, "index.parquet", "notes.txt"}


def test_missing_and_foreign_folders_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="mmh prepare"):
        PreparedStore(str(tmp_path / "absent"))
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        check_own(str(tmp_path))
    with pytest.raises(ConfigError, match="a file"):
        check_own(str(tmp_path / "thesis.txt"))
    with pytest.raises(ConfigError, match="nowhere"):
        PreparedStore("nowhere://user:secret@host/store")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "index.parquet")
    for action in (PreparedStore, check_own):
        with pytest.raises(DataError, match="version none"):
            action(str(tmp_path))
    (tmp_path / "index.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="readable index"):
        PreparedStore(str(tmp_path))


def test_keys_in_a_uri_stay_out_of_messages():
    with pytest.raises(ConfigError) as caught:
        PreparedStore("nowhere://user:secret@host/store?token=secret")
    assert "secret" not in str(caught.value)


def test_a_damaged_shard_is_named(tmp_path):
    store = fill(str(tmp_path))
    path = Path(tmp_path, store.index[0]["shard"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=path.name):
        store.read(store.index[0])


@pytest.mark.slow
def test_round_trip_through_an_object_store(monkeypatch):
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server.start()
    try:
        endpoint = quote(f"127.0.0.1:{server.get_host_and_port()[1]}", safe="")
        options = f"scheme=http&endpoint_override={endpoint}&region=us-east-1&allow_bucket_creation=true"
        uri = f"s3://key:secret@bucket/prepared?{options}"
        assert check_own(uri) == set()
        store = fill(uri)
        check(pickle.loads(pickle.dumps(store)))
        assert check_own(uri) == {entry["shard"] for entry in store.index[:5]}
        shards.keep_only(uri, {store.index[0]["shard"]})
        assert check_own(uri) == {store.index[0]["shard"]}
    finally:
        server.stop()
