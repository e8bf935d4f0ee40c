import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError
from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_json import from_json, read_placement, to_json
from alpa_serve.profiling import ParallelConfig

NAMES = ["m1", "m2", 'odd "name"']
PLACEMENT = ModelPlacement([ParallelConfig(1, 4, 1), ParallelConfig(1, 2, 2)], [[1, 0], [1]])


def changed(**keys):
    return json.dumps({**json.loads(to_json(PLACEMENT, NAMES)), **keys})


def with_group(**keys):
    group = {"dp": 1, "op": 4, "pp": 1, "models": ["m1"], **keys}
    return changed(groups=[{key: value for key, value in group.items() if value is not None}])


@given(
    st.lists(
        st.tuples(
            st.builds(ParallelConfig, *[st.integers(1, 16)] * 3), st.lists(st.integers(0, 3), unique=True, max_size=4)
        ),
        max_size=4,
    ),
    st.lists(st.text(min_size=1), min_size=4, max_size=6, unique=True),
)
def test_a_placement_written_and_read_is_the_same(groups, names):
    placement = ModelPlacement([config for config, _ in groups], [members for _, members in groups])
    assert from_json(to_json(placement, names)) == (placement, tuple(names))


def test_ids_follow_the_names_of_the_caller():
    read = from_json(to_json(PLACEMENT, NAMES), ["m2", 'odd "name"', "m1", "m0"])
    assert read.placement == ModelPlacement(PLACEMENT.group_configs, [[0, 2], [0]])
    assert read.model_names == ("m2", 'odd "name"', "m1", "m0")


def test_a_file_is_read_and_named_in_errors(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(to_json(PLACEMENT, NAMES))
    assert read_placement(path).placement == PLACEMENT
    path.write_text(changed(version=2))
    with pytest.raises(InvalidPlacementError, match=rf"^{re.escape(str(path))}, version: 1 is wanted, got 2$"):
        read_placement(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidPlacementError, match=r"mine.json: cannot be read"):
        read_placement(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: not JSON: "),
        (to_json(PLACEMENT, NAMES)[:-4], "f: not JSON: "),
        ("[" * 10**5, "f: not JSON: "),
        ('{"format": 1, "format": 2}', "f: not JSON: the key 'format' is given twice"),
        ("[]", "f: an object with format, version, models, groups is wanted, got []"),
        ("{}", "f: no key 'format'; found: "),
        (changed(device=1), "f: unknown key 'device'; known: format, version, models, groups"),
        (changed(format="other"), "f, format: 'alpa_serve placement' is wanted, got 'other'"),
        (changed(version=True), "f, version: 1 is wanted, got True"),
        (changed(models="m1"), "f, models: a list of names is wanted, got 'm1'"),
        (changed(models=["m1", 2]), "f, models[1]: a name is wanted, got 2"),
        (changed(models=["m1", "m1"]), "f, models[1]: 'm1' is given twice"),
        (changed(models=["m1", "other"]), "f, models[1]: unknown model 'other'; known: m1, m2"),
        (changed(groups={}), "f, groups: a list is wanted, got {}"),
        (changed(groups=[1]), "f, groups[0]: an object with dp, op, pp, models is wanted, got 1"),
        (with_group(op=None), "f, groups[0]: no key 'op'; found: dp, pp, models"),
        (with_group(op=0), "f, groups[0], op must be a whole number >= 1, got 0"),
        (with_group(pp=1.5), "f, groups[0], pp must be a whole number >= 1, got 1.5"),
        (with_group(dp=True), "f, groups[0], dp must be a whole number >= 1, got True"),
        (with_group(models=["m1", "m3"]), "f, groups[0], models[1]: 'm3' is not among the models: m1, m2"),
        (with_group(models=["m1", "m1"]), "f, groups[0], models[1]: 'm1' is given twice"),
    ],
)
def test_a_malformed_document_is_an_error_that_names_file_and_key(text, message):
    with pytest.raises(InvalidPlacementError) as caught:
        from_json(text, NAMES, source="f")
    assert str(caught.value).startswith(message)


def test_models_without_a_name_of_their_own_cannot_be_written():
    with pytest.raises(InvalidConfigError, match="model names must differ"):
        to_json(PLACEMENT, ["falcon-40b", "falcon-40b"])
    with pytest.raises(InvalidPlacementError, match="group 0: no model 1; models are 0 to 0"):
        to_json(PLACEMENT, ["m1"])
