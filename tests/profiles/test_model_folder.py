import json

from alpa_serve.profiles.model_folder import snapshot


def test_a_copy_has_a_path_of_its_own_for_each_content(tmp_path):
    def copy_of(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return snapshot(tmp_path)

    one, other = copy_of({"layers": 1}), copy_of({"layers": 2})
    assert one != other
    assert copy_of({"layers": 1}) == one
    assert json.loads((one / "config.json").read_text()) == {"layers": 1}
    assert json.loads((other / "config.json").read_text()) == {"layers": 2}


def test_only_what_describes_the_model_is_copied(tmp_path):
    for name in ("config.json", "hf_quant_config.json", "weights.bin"):
        (tmp_path / name).write_text("{}")
    assert sorted(path.name for path in snapshot(tmp_path).iterdir()) == ["config.json", "hf_quant_config.json"]
