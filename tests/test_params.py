from pathlib import Path

import pytest

from flows.param_edits import set_params
from headstart.core.errors import InputError
from headstart.core.params import load_params
from tests.conftest import REPOSITORY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    copy = tmp_path / "params.yaml"
    copy.write_text((REPOSITORY / "params.yaml").read_text())
    return copy


def test_fixed_names_are_there():
    params = load_params(REPOSITORY / "params.yaml").model_dump()
    fixed = {
        "data": {"builtin", "source", "valid_fraction", "test_fraction"},
        "backbone": {"name", "weights", "image_size"},
        "precompute": {"views", "precision", "batch_size"},
        "find_lr": set(),
        "train_head": {"epochs", "lr", "head", "batch_size"},
        "fine_tune": {"epochs", "lr", "lr_ratio", "bn_freeze", "unfreeze_from", "batch_size"},
        "evaluate": {"tta"},
        "promote": {"alpha", "margin"},
        "runtime": {"threads", "workers", "device"},
    }
    assert set(params) == {"seed", *fixed}
    for section, keys in fixed.items():
        assert keys <= set(params[section])


def test_set_edits_in_place_and_keeps_every_comment(path):
    before = path.read_text().splitlines()
    params = set_params(path, ["train_head.epochs=3", "fine_tune.lr=auto"])
    after = path.read_text().splitlines()
    assert (params.train_head.epochs, params.fine_tune.lr) == (3, "auto")
    assert load_params(path) == params
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 2
    assert all(a.partition("#")[2] == b.partition("#")[2] for a, b in changed)


def test_set_of_nothing_writes_nothing(path):
    inode = path.stat().st_ino
    set_params(path, ["seed=0"])
    assert path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("train_head.epochs=2.5", ["train_head.epochs = 2.5", "integer"]),
        ("fine_tune.lr=fast", ["1 wrong", "fine_tune.lr = 'fast': a valid number, auto or a valid list"]),
        ("fine_tune.lr=[1.0e-3, 0, 1]", ["1 wrong", "fine_tune.lr.1 = 0: greater than 0"]),
        ("fine_tune.lr=[1.0e-4, 1.0e-3]", ["fine_tune.lr = [0.0001, 0.001]", "at least 3 items"]),
        (
            "fine_tune.gradual=[{unfreeze_from: late, epoch: 1}]",
            ["fine_tune.gradual.0.epoch", "epochs, image_size, lr, unfreeze_from"],
        ),
        ("fine_tune.gradual=3", ["fine_tune.gradual = 3", "list"]),
        ("fine_tune.bn_freeze=maybe", ["1 wrong", "fine_tune.bn_freeze = 'maybe': true, false or auto"]),
        ("find_lr.unfrozen.lr_max=1.0e-7", ["find_lr.unfrozen", "lr_min must be below lr_max"]),
        ("fine_tune.lr=-1", ["fine_tune.lr = -1", "greater than 0"]),
        ("fine_tune.bn_freeze=3", ["1 wrong", "fine_tune.bn_freeze = 3: true, false or auto"]),
        ("train_head.head=big", ["train_head.head = 'big': linear or mlp"]),
        ("fine_tune.batch_size=1", ["fine_tune.batch_size = 1", "greater than or equal to 2"]),
        ("precompute.views=-1", ["precompute.views = -1", "greater than or equal to 0"]),
        ("data.valid_fraction=0.9", ["valid_fraction + test_fraction"]),
        ("find_lr.lr_min=.nan", ["find_lr.lr_min = nan", "finite"]),
        ("train_head.epoch=3", ["train_head.epoch", "balance, batch_size, columns, cycle_len"]),
        ("no.such=3", ["no.such", "train_head"]),
        ("data.label_pattern=(", ["data.label_pattern = '('", "regular expression"]),
        ("data.fold=5", ["fold must be none, or 0 to 4"]),
        ("data.formats=[JPEG, SVG]", ["data.formats.1 = 'SVG'", "AVIF or HEIF"]),
        ("data.formats=[]", ["data.formats", "at least 1"]),
        ("data.file_timeout=0", ["data.file_timeout", "greater than 0"]),
        ("seed", ["no '='"]),
        ("seed=[", ["--set seed=[: cannot be read as YAML", "such as 3, auto"]),
        ("train_head.patience=soon", ["1 wrong", "train_head.patience = 'soon': a valid integer or none"]),
        ("data.fold=-1", ["1 wrong", "data.fold = -1: greater than or equal to 0 or none"]),
        ("runtime.workers=0.5", ["1 wrong", "runtime.workers = 0.5: a valid integer or auto"]),
        ("backbone.crop_pct=2", ["1 wrong", "backbone.crop_pct = 2: less than or equal to 1 or auto"]),
        (
            "fine_tune.gradual=[{unfreeze_from: x, epochs: a, lr: b}]",
            ["3 wrong", "fine_tune.gradual.0.lr = 'b': a valid number"],
        ),
        ("data.source=s3://bucket/photos", ["data.source = 's3://bucket/photos'", "on this machine"]),
        ("data.source=~nobody-of-this-name/x", ["data.source = '~nobody", "~ is not expanded here"]),
        ("runtime.cache_dir=~nobody-of-this-name/x", ["runtime.cache_dir", "no home folder is known for ~nobody"]),
        ("data.source=", ["data.source = ''", "at least 1 character"]),
        ("data.source=\udcff", ["not UTF-8"]),
    ],
)
def test_bad_values_are_refused_with_key_value_and_what_is_allowed(path, assignment, told):
    before = path.read_bytes()
    with pytest.raises(InputError) as error:
        set_params(path, [assignment])
    assert all(text in str(error.value) for text in told), str(error.value)
    assert path.read_bytes() == before


def test_a_typo_in_the_file_names_path_key_and_neighbours(path):
    path.write_text(path.read_text().replace("  lr_ratio:", "  lr_ration:"))
    with pytest.raises(InputError) as error:
        load_params(path)
    assert str(path) in str(error.value)
    assert "fine_tune.lr_ration" in str(error.value)
    assert "lr_ratio" in str(error.value).partition("allowed here")[2]


def test_missing_or_broken_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"seed: [\xff")
    with pytest.raises(InputError, match="UTF-8"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- just\n- a list\n")
    with pytest.raises(InputError):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed:  # a comment that ruamel.yaml cannot keep in its place\n  0\n\nmore: 1\n")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1\n- &a {b: *a}\n")
    with pytest.raises(InputError, match="contains itself"):
        load_params(tmp_path / "params.yaml")
