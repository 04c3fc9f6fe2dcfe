"""Garbage is what no study needs: it is shown before it goes, and nothing else ever goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from oracles.as_user import refused
from pinchpoint.errors import StoreError
from pinchpoint.study import Store, open_store, parse, plan, run
from pinchpoint.study.store.gc import Garbage, delete, find, needed


@pytest.fixture
def store(finished, tmp_path) -> Store:
    """A copy, to be changed."""
    return Store(Path(shutil.copytree(finished.store.root, tmp_path / "store")))


@pytest.fixture
def smaller(edited):
    """The tiny study without one of its families."""
    return parse(edited({"families": [{"name": "rank", "view": "spectral", "grid": {"model.rank": [2]}}]}))


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_store_of_one_study_has_no_garbage_for_it(store, tiny):
    assert find(store, needed([tiny])) == Garbage({})


def test_what_is_not_needed_is_found_with_its_bytes_and_nothing_is_touched(store, tiny, smaller):
    before = files(store.root)
    found = find(store, needed([smaller]))
    assert set(found.sizes) == set(plan(tiny).stages) - set(plan(smaller).stages)
    for (kind, name), size in found.sizes.items():
        inside = [len(content) for path, content in before.items() if path.startswith(f"stages/{kind}/{name}/")]
        assert size == sum(inside) > 0
    assert found.by_kind["train"][0] == 6
    assert found.by_kind["attack"][0] == 12
    assert sum(count for count, _ in found.by_kind.values()) == len(found.sizes) == 60
    assert sum(size for _, size in found.by_kind.values()) == found.bytes
    assert files(store.root) == before


def test_deleting_leaves_what_is_needed_as_it_was_and_a_study_that_can_go_on(store, tiny, smaller):
    before = files(store.root)
    delete(store, find(store, needed([smaller])))
    kept = {f"stages/{kind}/{name}" for kind, name in plan(smaller).stages}
    wanted = {path: content for path, content in before.items() if path.rpartition("/")[0] in kept | {""}}
    assert files(store.root) == wanted
    assert run(smaller, store) == []
    assert find(store, needed([smaller])) == Garbage({})
    assert len(plan(tiny).waiting(store.finished())) == 6


def test_copies_of_deleted_records_go_and_the_others_are_still_read(store, smaller):
    store.compact(above=0)
    assert list((store.root / "segments" / "attack").glob("*.parquet"))
    delete(store, find(store, needed([smaller])))
    store.compact(above=0)
    assert len(store.load(plan(smaller).stages)) == len(plan(smaller).stages)
    assert set(store.table("attack", {name for _, name in store.finished(["attack"])})["id"]) == {
        name for kind, name in plan(smaller).stages if kind == "attack"
    }


def test_failed_stages_count_too(tmp_path, edited, tiny):
    broken = parse(edited({"base/train/learning_rate": 1e30, "seeds": [0]}))
    store = Store(tmp_path)
    assert len(run(broken, store)) == 4
    assert store.failures()
    assert find(store, needed([broken])) == Garbage({})
    found = find(store, needed([tiny]))
    assert set(found.sizes) == store.failures() | store.finished()
    delete(store, found)
    assert store.failures() == store.finished() == set()


def test_nothing_is_deleted_while_a_driver_works_there(store, smaller):
    found = find(store, needed([smaller]))
    key = next(iter(found.sizes))
    claim = store.root / "claims" / f"{key[0]}-{key[1]}"
    claim.parent.mkdir(exist_ok=True)
    claim.write_text("elsewhere 12")
    before = files(store.root)
    rule = f"no driver may work in a store that is cleaned, but got {claim.name} in work by elsewhere 12"
    with refused(StoreError, f"{rule}; wait until that driver has ended."):
        delete(store, found)
    assert files(store.root) == before
    claim.unlink()
    delete(store, found)
    assert store.finished() == set(plan(smaller).stages)


@pytest.mark.parametrize(
    "foreign", ["stages/notes.txt", "stages/train/notes.txt", "failed/unknown/0123456789abcdef/record.parquet"]
)
def test_a_store_with_unknown_files_is_left_alone(store, smaller, foreign):
    path = store.root / foreign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    seen = path if path.name == "notes.txt" else store.root / "failed" / "unknown"
    text = (
        f"a store that is cleaned must hold stages and nothing else, but got {seen}; move it elsewhere, or name the "
        "store's own place with --store."
    )
    with refused(StoreError, text):
        find(store, needed([smaller]))


def test_a_stage_with_a_file_of_somebody_elses_is_left_alone(store, tiny, smaller):
    kind, name = next(iter(set(plan(tiny).stages) - set(plan(smaller).stages)))
    (store.root / "stages" / kind / name / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt; move it elsewhere"):
        find(store, needed([smaller]))
    assert find(store, needed([tiny])) == Garbage({})  # it stays, so what lies in it is of no concern


def test_a_folder_that_is_no_store_is_one_sentence(tmp_path, tiny):
    (tmp_path / "holiday.jpg").write_text("sea")
    with refused(StoreError, f"there must be a store, but got no stages in {tmp_path}; name its place with --store."):
        find(Store(tmp_path), needed([tiny]))


def test_a_store_at_an_address_is_cleaned_likewise(store, tiny, smaller):
    remote = open_store("memory://garbage")
    remote._files.put(str(store.root / "stages"), "/garbage/stages", recursive=True)
    assert find(remote, needed([tiny])) == Garbage({})
    found = find(remote, needed([smaller]))
    assert found == find(store, needed([smaller]))
    delete(remote, found)
    assert remote.finished() == set(plan(smaller).stages)
    assert not any(name in path for path in remote.sizes("stages") for _, name in found.sizes)
    remote._files.pipe_file("/garbage/stages/train/notes.txt", b"mine")
    with pytest.raises(StoreError, match=r"but got memory://garbage/stages/train/notes\.txt; move it elsewhere"):
        find(remote, needed([smaller]))
    with refused(StoreError, "there must be a store, but got no stages in memory://none; name its place with --store."):
        find(open_store("memory://none"), needed([tiny]))
