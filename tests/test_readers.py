"""Whatever stands in a file, its reader gives what holds, or an error that names it.

`benchmarks/fuzz.py` looks for more; what it found is kept in `seeds/`, a folder for each reader.
"""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, make_sound, must_be_read_or_refused

SEEDS = sorted(path for path in (Path(__file__).parent / "seeds").rglob("*") if path.is_file())
JSON_READERS = ("extras", "results", "labelme", "via")  # COCO's is tried field by field in data/test_hostile.py

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    make_sound(root)
    return root


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, sound: Path):
    """The name of a reader; its file is sound again afterwards."""
    path = sound / READERS[request.param].file
    content = path.read_bytes()
    yield request.param
    path.write_bytes(content)


def test_what_is_sound_is_read(reader: str, sound: Path) -> None:
    assert must_be_read_or_refused(reader, sound, (sound / READERS[reader].file).read_bytes())


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_changed_cut_and_put_in(reader: str, sound: Path, data: st.DataObject) -> None:
    path = sound / READERS[reader].file
    content = bytearray(path.read_bytes())
    before = bytes(content)
    for _ in range(data.draw(st.integers(1, 4))):
        first = data.draw(st.integers(0, len(content)))
        last = min(len(content), first + data.draw(st.sampled_from([0, 0, 1, 1, 5, 10**6])))
        content[first:last] = data.draw(st.binary(max_size=4) | st.sampled_from([b"NaN", b"-1", b"9" * 30, b'"', b"<"]))
    try:
        must_be_read_or_refused(reader, sound, bytes(content))
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("reader", JSON_READERS, indirect=True)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere(reader: str, sound: Path, data: st.DataObject) -> None:
    """JSON that is sound but for one value."""
    path = sound / READERS[reader].file
    before = path.read_bytes()
    document = json.loads(before)
    place, key = document, None
    while isinstance(place, dict | list) and place and (key is None or data.draw(st.booleans())):
        parent, key = place, data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place = parent[key]
    parent[key] = data.draw(values)
    try:
        must_be_read_or_refused(reader, sound, json.dumps(document).encode())
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_the_fuzzer_found(seed: Path, sound: Path) -> None:
    name = seed.parent.name
    path = sound / READERS[name].file
    before = path.read_bytes()
    try:
        assert not must_be_read_or_refused(name, sound, seed.read_bytes())
    finally:
        path.write_bytes(before)
