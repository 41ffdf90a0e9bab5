"""A second text for whole runs."""

import pytest


@pytest.fixture(scope="session")
def other_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text("\n".join(f"Line {n} of a text, {n * n} steps from home." for n in range(400)))
    return path
