"""Champion and challenger: who is promoted and why, and that no death or second promoter can spoil it."""

import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch

from flows.register import judge, promote, register
from headstart.core.errors import InputError
from headstart.core.params import load_params
from headstart.manifest import read_manifest, write_manifest
from headstart.models.trained import Outdated
from headstart.targets.single_label import SingleLabel, aligned
from headstart.targets.target import Answered
from headstart.tracking import promotion
from headstart.tracking.promotion import PromotionRule, against_guess
from headstart.tracking.registry import CHALLENGER, CHAMPION, NAME, Registry, find_model
from tests import forks, templates
from tests.projects import ENVIRONMENT, how

# a head that has hardly trained
BAD = ("train_head.head=mlp", "train_head.lr=1e-7", "fine_tune.unfreeze_from=head", "fine_tune.lr=1e-7")
GOOD = ("train_head.head=linear", "train_head.lr=auto", "fine_tune.unfreeze_from=all", "fine_tune.lr=1e-3")


@pytest.fixture(scope="session")
def judged(done) -> Path:
    """A project with a registry of two versions: a poor one that was the first, and a good one that beat it."""

    def judge_two(folder: Path) -> None:
        project = folder / "project"
        shutil.copytree(done, project, symlinks=True, ignore=shutil.ignore_patterns("mlartifacts"))
        templates.add_mlflow(project)
        how(project, *BAD)
        assert verdict(project, 1).startswith("version 1 stays challenger: it is the first; of 34 test images it classifies")
        assert promote(project, 1).reason == "by hand"
        how(project, *GOOD)

    return templates.made_once("judged", judge_two) / "project"


@pytest.fixture
def mine(judged, tmp_path) -> Path:
    """A copy of it, artifacts included."""
    return templates.copy_project(judged, tmp_path / "project")


def verdict(project: Path, number: int) -> str:
    client = Registry(project).client
    return client.get_model_version(NAME, str(number)).tags["headstart.verdict"]


def versions(project: Path) -> int:
    return len(Registry(project).client.search_model_versions(f"name = '{NAME}'"))


def holders(project: Path) -> tuple[int, int]:
    registry = Registry(project)
    champion, challenger = registry.get_alias(CHAMPION), registry.get_alias(CHALLENGER)
    assert champion and challenger
    return champion.number, challenger.number


def command(project: Path, *arguments: str, code: int = 0) -> str:
    """What `python -m flows.register` says."""
    done = forks.run("-m", "flows.register", *arguments, cwd=project, env=ENVIRONMENT)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def again(project: Path):
    return register(project, load_params(project / "params.yaml"))


def test_a_better_model_is_promoted_and_the_numbers_are_told(judged):
    assert holders(judged) == (2, 2)
    sentence = verdict(judged, 2)
    assert sentence.startswith("version 2 is the champion: of ") and "it alone is right on" in sentence and "p = " in sentence
    manifest = pd.read_parquet(judged / "data/manifest.parquet")
    assert f"of {(manifest['split'] == 'test').sum()} test images" in sentence, "neither saw any of them"


def test_a_model_that_is_no_better_stays_challenger(mine):
    how(mine, "fine_tune.lr=2e-3")
    assert holders(mine) == (2, 3)
    assert "stays challenger" in verdict(mine, 3)


def test_registering_again_changes_nothing(mine):
    for _ in range(2):
        found = again(mine)
        assert (found.version, found.promoted, found.reason) == (2, True, "it was the champion before")
    assert versions(mine) == 2 and holders(mine) == (2, 2)


def test_rollback_is_one_command_and_the_flow_does_not_undo_it(mine):
    assert "version 1 is the champion: rolled back" in command(mine, "--rollback")
    assert holders(mine) == (1, 2)
    assert "was rolled back" in again(mine).reason
    assert holders(mine) == (1, 2)
    assert "there is no earlier champion to return to" in command(mine, "--rollback", code=2)
    assert "by hand" in command(mine, "--champion", "2")
    assert holders(mine) == (2, 2)
    assert "no version 9" in command(mine, "--champion", "9", code=2)


def test_a_rollback_leads_back_from_a_choice_by_hand(mine):
    assert promote(mine, 1).version == 1 and holders(mine) == (1, 2)
    assert promote(mine, 1).version == 1, "again: nothing to remember"
    assert promote(mine, None).version == 2 and holders(mine) == (2, 2)


def test_a_version_that_was_made_elsewhere_is_refused(mine):
    registry = Registry(mine)
    made = registry.client.create_model_version(NAME, mine.as_uri())
    registry.client.set_registered_model_alias(NAME, CHAMPION, made.version)
    with pytest.raises(InputError, match="was not registered by this project"):
        again(mine)


def test_a_damaged_champion_is_noticed_and_a_rollback_works(mine):
    file = find_model(mine, "champion")
    assert file.is_relative_to(mine), "nobody else's file is damaged here"
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged"):
        find_model(mine, "champion")
    with pytest.raises(InputError, match="damaged"):
        again(mine)
    assert promote(mine, None).version == 1
    assert find_model(mine, "champion") != file


def test_images_that_the_champion_learned_from_are_not_asked(mine):
    """Another seed of the split: what was trained on must not judge."""
    how(mine, "seed=1", "data.test_fraction=0.8")
    manifest = pd.read_parquet(mine / "data/manifest.parquet")
    seen = Registry(mine).trained_on(Registry(mine).version(2))
    test = manifest[manifest["split"] == "test"]
    fair = (~test["key"].isin(seen)).sum()
    assert 0 < fair < len(test)
    sentence = verdict(mine, 3)
    assert f"{fair} test images" in sentence


def test_models_are_found_by_alias_number_and_run(judged):
    registry = Registry(judged)
    second = registry.version(2)
    assert find_model(judged, "champion") == find_model(judged, "2") == find_model(judged, second.run_id) == second.file
    for name in ("grandmaster", "77", "0" * 32):
        with pytest.raises(InputError, match="no "):
            find_model(judged, name)


def test_a_run_is_found_however_many_came_after_it(mine):
    """MLflow answers in pages of 100."""
    registry = Registry(mine)
    first = registry.version(1)
    for _ in range(101):
        model = registry.client.create_logged_model(registry.experiment, "model")
        registry.client.finalize_logged_model(model.model_id, "READY")
    assert find_model(mine, first.run_id) == first.file
    registry.client.delete_registered_model(NAME)
    assert registry.add(first.digest).run_id == first.run_id


def test_the_first_must_beat_the_most_frequent_class(done, tmp_path):
    project = templates.copy_project(done, tmp_path / "project")
    params, registry = load_params(project / "params.yaml"), Registry(project)
    assert "it is the first; of 34 test images it classifies 34 correctly; always answering" in verdict(project, 1)
    version = registry.version(1)
    found = judge(project, params, registry, version, None)
    assert found.promoted
    strict = params.model_copy(update={"promote": params.promote.model_copy(update={"alpha": 1e-12})})
    assert not judge(project, strict, registry, version, None).promoted, "beyond chance, at the level asked for"
    assert "fine-tun" in registry.client.get_model_version(NAME, "1").tags["headstart.kept"]


def test_below_30_test_images_nothing_is_decided_and_a_person_may(done, tmp_path):
    project = templates.copy_project(done, tmp_path / "project")
    _forget_models(project)
    how(project, "data.test_fraction=0.3")
    sentence = verdict(project, 1)
    assert sentence.startswith("version 1 stays challenger: ")
    assert "are too few for a decision, which needs at least 30" in sentence
    assert "python -m flows.register --champion 1" in sentence
    assert Registry(project).get_alias(CHAMPION) is None
    assert promote(project, 1).promoted and holders(project) == (1, 1)
    assert again(project).promoted, "and stays it"


def test_whoever_replaces_a_champion_must_beat_the_most_frequent_class_too():
    """A champion without the data's classes cannot be right, and its successor was right on half of one class alone."""
    target, rule = SingleLabel(("ok", "defect")), PromotionRule(alpha=0.05, margin=0.0, seed=0)
    trained_on = pd.DataFrame({"label": ["defect", "ok", "ok", *["defect"] * 9], "split": ["train"] * 3 + ["test"] * 9})

    def judged(answers: list[list[float]], labels: list[str]) -> tuple[bool, str]:
        answered = Answered(torch.tensor(answers, dtype=torch.float64), target)
        return against_guess(answered, target.truth(labels), promotion.PresentData(trained_on, target), rule)

    labels = ["ok"] * 65
    assert judged([[0.9, 0.1]] * 32 + [[0.1, 0.9]] * 33, labels)[0] is False
    found, sentence = judged([[0.9, 0.1]] * 65, labels)
    assert found is False, "no better than that"
    assert "it classifies 65 correctly; always answering 'ok' would be correct for 65" in sentence
    assert judged([[0.9, 0.1]] * 35 + [[0.1, 0.9]] * 30, ["ok"] * 35 + ["defect"] * 30)[0] is True


DYING = """
import os, signal, sys
from pathlib import Path
import mlflow
from mlflow import MlflowClient
from headstart.core.params import load_params
from headstart.manifest import read_manifest, write_manifest
from headstart.models.trained import Outdated
from flows.register import register
name, when = sys.argv[1:]
original = getattr(MlflowClient, name)
def dies(self, *arguments, **options):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, *arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(MlflowClient, name, dies)
register(Path.cwd(), load_params(Path("params.yaml")))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "step", ["create_registered_model", "create_model_version", "set_registered_model_alias", "set_model_version_tag"]
)
def test_a_death_at_any_step_leaves_a_sound_registry_and_a_rerun_completes_it(done, tmp_path, step, when):
    project = templates.copy_project(done, tmp_path / "project")
    _forget_models(project)
    died = forks.run("-c", DYING, step, when, cwd=project, env=ENVIRONMENT)
    assert died.returncode == -signal.SIGKILL, died.stderr
    for alias in (CHAMPION, CHALLENGER):
        Registry(project).get_alias(alias)  # raises where it points at what is not whole
    assert again(project).promoted
    assert versions(project) == 1 and holders(project) == (1, 1)


def _forget_models(project: Path) -> None:
    client = Registry(project).client
    client.delete_registered_model(NAME)


def test_two_promoters_make_one_version(done, tmp_path):
    project = templates.copy_project(done, tmp_path / "project")
    _forget_models(project)
    both = [forks.start("-m", "flows.register", cwd=project, env=ENVIRONMENT) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert versions(project) == 1 and holders(project) == (1, 1)
    assert any("the model registry is held by process" in text for text in said)


def test_alpha_and_margin_decide(judged):
    """The same two versions, judged by other rules."""
    params = load_params(judged / "params.yaml")
    registry = Registry(judged)
    first, second = registry.version(1), registry.version(2)
    for rule, promoted in (({"margin": 0.99}, False), ({"alpha": 1e-9}, False), ({"margin": 0.2}, True)):
        changed = params.model_copy(update={"promote": params.promote.model_copy(update=rule)})
        assert judge(judged, changed, registry, second, first).promoted is promoted
    assert not judge(judged, params, registry, first, second).promoted


def test_classes_are_matched_by_name():
    p = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    assert aligned(p, ("b", "a"), ["a", "b", "c"]).tolist() == [
        [pytest.approx(0.8), pytest.approx(0.2), 0],
        [pytest.approx(0.4), pytest.approx(0.6), 0],
    ]


def test_a_champion_of_an_earlier_version_blocks_nothing_and_it_is_said_what_to_do(mine, monkeypatch):
    """Its file lacks what is needed to build its network; it cannot be asked, and running the pipeline again does not help."""
    from headstart.tracking import promotion as module

    champion, load = Registry(mine).get_alias(CHAMPION), module.load_card

    def loaded(path):
        if path == champion.file:
            raise Outdated(f"{path}: this model was written by an earlier version of Headstart")
        return load(path)

    monkeypatch.setattr(module, "load_card", loaded)
    how(mine, "fine_tune.lr=2e-3")
    sentence = verdict(mine, 3)
    assert sentence.startswith("version 3 stays challenger: the champion, version 2, was written by an earlier version")
    assert "python -m flows.register --champion 3" in sentence
    assert holders(mine) == (2, 3)


def test_what_a_version_was_trained_on_is_read_from_an_earlier_version_s_manifest(tmp_path):
    frame = pd.DataFrame({"path": ["a", "b"], "key": ["k", "l"], "split": ["train", "test"], "label": ["x", "y"]})
    write_manifest(tmp_path / "m.parquet", frame)
    assert list(read_manifest(tmp_path / "m.parquet", ("key", "split"))["key"]) == ["k", "l"]
    with pytest.raises(InputError, match="columns fold, group are missing"):
        read_manifest(tmp_path / "m.parquet")
