"""The documents say what is so: their links lead somewhere, and every setting stands in them with its default."""

import json
import re
from pathlib import Path

import pytest
import yaml

from serving.settings import Settings
from tests.helpers.state import ROOT
from training.config import CONFIG_DIR, compose
from training.settings import Settings as Group
from training.settings import TrainSettings

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
LARGEST_PICTURE = 200_000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    for link in links:
        assert link.startswith("https://") or (document.parent / link).exists(), link


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs").glob("*.png"))
    assert pictures
    assert not [path.name for path in pictures if path.stat().st_size > LARGEST_PICTURE]


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_targets_that_are_named_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for path in DOCUMENTS for name in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert named
    assert named <= targets


def table(text: str) -> dict[str, str]:
    """The defaults by key of all rows `| `key` | default | meaning |`."""
    return dict(re.findall(r"^\| `([\w.]+)` \| *(.*?) *\| ", text, re.MULTILINE))


def keys(group: type[Group], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in group.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, Group)
        found |= keys(kind, f"{prefix}{name}.") if nested else {prefix + name}  # type: ignore[arg-type]
    return found


def test_every_setting_of_training_is_documented_with_its_default() -> None:
    documented = {key: text for key, text in table(SETTINGS.partition("## The service")[0]).items() if key[0].islower()}
    documented = {key: text for key, text in documented.items() if "." in key or key in TrainSettings.model_fields}
    assert documented.keys() == keys(TrainSettings)
    values = compose([]).model_dump(mode="json")
    for key, text in documented.items():
        if text and "`" not in text:
            value = values
            for name in key.split("."):
                value = value[name]
            assert yaml.safe_load(text) == value, key


def test_every_option_of_every_group_is_documented() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", SETTINGS, re.MULTILINE))
    for folder in (path for path in Path(CONFIG_DIR).iterdir() if path.is_dir()):
        for option in (path.stem for path in folder.glob("*.yaml") if path.stem != "base"):
            assert f"`{option}`" in rows[folder.name], f"{folder.name}={option}"


def test_every_setting_of_the_service_is_documented_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    documented = {key: text for key, text in table(SETTINGS).items() if key.startswith("SERVING_")}
    del documented["SERVING_THREADS"]  # which training asks for too: serving/model/cpus.py
    fields = Settings.model_fields.keys() - {"state_dir"}
    assert documented.keys() == {f"SERVING_{name.upper()}" for name in fields}
    values = json.loads(Settings().model_dump_json())
    for key, text in documented.items():
        value = values[key.removeprefix("SERVING_").lower()]
        shown = ",".join(value) or "none" if isinstance(value, list) else value
        assert str(text.strip("`")) == str(shown if not isinstance(shown, float) else f"{shown:g}"), key
