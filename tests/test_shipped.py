"""Shipped files, found by their names."""

from sinkjax import shipped


def test_a_flag_file_is_found_from_any_folder_and_ones_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in shipped.names("", ".flags"):
        assert shipped.find(f"{name}.flags") == shipped.find(f"configs/{name}.flags")
        assert shipped.find(f"{name}.flags").is_file()
    own = tmp_path / "quickstart.flags"
    assert shipped.find("quickstart.flags") != own
    own.write_text("")
    assert shipped.find("quickstart.flags").resolve() == own, "what is there goes first"
    assert not shipped.find("elsewhere/quickstart.flags").exists()
