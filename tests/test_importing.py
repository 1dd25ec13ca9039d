"""Laws of import: an exported model arrives whole, says where it came from, and works like one trained here."""

import json
import shutil
from pathlib import Path

import pytest

from bardflow.errors import BardError
from bardflow.flows.compare_models import compare_models
from bardflow.model.training import load_model
from bardflow.pages.experiment import ExperimentPage
from bardflow.storage.garbage import collect_garbage
from bardflow.storage.handles import Model
from bardflow.tasks.exporting import export
from bardflow.tasks.importing import ImportRefused, import_model, read_provenance
from bardflow.tasks.run import refs, store
from tests.quick import run
from tests.test_compare_models import write_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module")
def export_of_a_friend(tmp_path_factory: pytest.TempPathFactory, quick_home: Path) -> Path:
    """The folder of a model that a friend trained and exported in a project of their own."""
    folder = tmp_path_factory.mktemp("friend")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARDFLOW_HOME", str(quick_home))
        export(Model(digest=refs().history("own/champion")[0].digest), folder / "export")
    return folder / "export"


@pytest.fixture
def exported(answers: None, export_of_a_friend: Path, tmp_path: Path) -> Path:
    """A copy of the friend's folder; the present project is another one, with an empty home."""
    return shutil.copytree(export_of_a_friend, tmp_path / "friend")


def test_an_exported_model_is_imported_with_its_history(exported: Path, tmp_path: Path) -> None:
    known = read_provenance(exported)
    assert known is not None and known.scores is not None
    model, entry = import_model(str(exported), "friend", by="test")
    assert refs().head("models/friend") == entry and entry.handle == model
    assert f"model {known.model[:8]} of A test's own text" in entry.why and str(exported) in entry.why
    assert f"{known.scores.bits_per_character:.4f} bits per character" in entry.why
    facts = store().facts(model)
    assert (facts["step"], facts["vocabulary_kind"]) == (4, "char")
    mine, theirs = (load_model(folder).state_dict() for folder in (store().folder(model), exported))
    assert all(weight.equal(theirs[name]) for name, weight in mine.items())
    # A second import changes nothing, and garbage collection keeps the model.
    assert import_model(str(exported), "friend", by="test") == (model, entry)
    collect_garbage(store(), refs(), dry_run=False)
    assert store().damage(model) is None
    # An export of the import is the same model again, with the same history.
    export(model, tmp_path / "again")
    assert read_provenance(tmp_path / "again") == known


def test_an_imported_model_is_compared_and_trained_further(exported: Path) -> None:
    import_model(str(exported), "friend", by="test")
    further = run(base_model="models/friend")
    report = compare_models(["models/friend", "own/champion"], "own")
    page = ExperimentPage.model_validate_json((Path(report).parent / "page.json").read_bytes())
    bits = {row[0]: row[1] for row in page.parts[0].tables[0].rows}
    assert bits["own/champion"] == f"{further.bits_per_character:.4f}" and float(str(bits["models/friend"])) > 0
    assert store().facts(Model(digest=further.model))["base"].startswith(f"{exported.name} (")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "bardflow.json"])
@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_changed_export_is_refused_and_nothing_is_stored(name: str, how: str, exported: Path) -> None:
    path = exported / name
    if how == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x20
        path.write_bytes(content)
    if (name, how) == ("bardflow.json", "gone"):
        _, entry = import_model(str(exported), "friend", by="test")
        assert "a model of another program" in entry.why
        return
    if (name, how) == ("bardflow.json", "flipped"):
        path.write_text(path.read_text(errors="replace")[:200])
    with pytest.raises(BardError, match=r"as it was exported|exported with the model|damaged|has no"):
        import_model(str(exported), "friend", by="test")
    assert refs().head("models/friend") is None and not list(store().handles())


def test_a_model_of_transformers_is_imported_as_of_another_program(project: Path, tmp_path: Path) -> None:
    model, entry = import_model(str(write_model(tmp_path / "gpt2")), "small-gpt2", by="test")
    assert "a model of another program" in entry.why and store().facts(model)["gpt"]["architecture"] == "classic"


@pytest.mark.parametrize(("name", "said"), [("A b", "is not a name"), ("../x", "is not a name"), ("", "is not a name")])
def test_a_name_that_is_none_is_refused(name: str, said: str, exported: Path) -> None:
    with pytest.raises(ImportRefused, match=said):
        import_model(str(exported), name, by="test")


def test_the_provenance_says_what_the_model_was_made_from(exported: Path) -> None:
    known = json.loads((exported / "bardflow.json").read_text())
    kinds = [step["kind"] for step in known["lineage"]]
    assert kinds[0] == "Source" and kinds[-1] == "Model" and kinds.count("Checkpoint") == 3
    assert known["corpus"]["name"] == "own" and set(known["files"]) >= {"README.md", "model.safetensors"}
    shutil.rmtree(exported)
