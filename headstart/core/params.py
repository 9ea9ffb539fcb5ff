"""The schema of params.yaml. Objects are frozen, unknown keys are refused, and loading has no side effects.

It is long because it holds a class for each section, and nothing else; `schema_errors.py` words what is wrong.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from headstart.core.errors import InputError
from headstart.core.schema_errors import explain, model_in
from headstart.core.yaml_text import read_yaml

NO_BACKBONE = "none"  # the value of backbone.name for columns alone
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
TrainingBatch = Annotated[int, Field(ge=2)]  # batch norm cannot normalise one row
ImageSize = Annotated[int, Field(ge=16, le=2048)]
Formats = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"]
LearningRate = Annotated[float, Field(gt=0, le=10)] | Literal["auto"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"a regular expression or `none` ({error})") from None
    return pattern


def _without_home(path: str) -> str:
    """Refuse `~`: the shell expands it, but DVC and the libraries do not."""
    if path.startswith("~"):
        raise ValueError(f"~ is not expanded here: write {os.path.expanduser(path)}, or ./{path} for a folder of that name")
    return path


def _on_this_machine(path: str) -> str:
    if "://" in path:
        raise ValueError("a folder on this machine, not an address")
    return path


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _with_a_home(path: str) -> str:
    if os.path.expanduser(path).startswith("~"):
        raise ValueError(f"no home folder is known for {path.partition('/')[0]}: write the full path")
    return path


Pattern = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_compiles)]
Cell = Annotated[str, BeforeValidator(_as_text)]  # of a table, where 0 means "0"
PathText = Annotated[str, Field(min_length=1), AfterValidator(_without_home)]


class Section(BaseModel):
    """A section of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Names = Literal["auto"] | list[Annotated[str, Field(min_length=1)]]


class Columns(Section):
    """Columns to learn from, beside images or alone; `auto` takes those of the role's type that are named nowhere."""

    categorical: Names
    continuous: Names
    date: Names


class Join(Section):
    """A further table of the source, whose columns are added by keys that both tables have."""

    file: Annotated[str, Field(min_length=1)]
    on: Annotated[list[str], Field(min_length=1)]
    columns: list[str] = []


class LeftOut(Section):
    """Rows that are not learned from: those that hold one of these values in a column. Days between events count them."""

    column: Annotated[str, Field(min_length=1)]
    values: list[Cell]


class Elapsed(Section):
    """Days since and until the last and the next event of an entity; with `date: auto` by the dates of `data.split_by`.

    Args:
        values: what the column `event` holds where the event took place, if that is not 1 or true.
        window: days around each date in which events are counted; 0 counts none.
    """

    event: Annotated[str, Field(min_length=1)]
    by: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(min_length=1)] = "auto"
    values: list[Cell] = []
    window: Annotated[int, Field(ge=0, le=3660)] = 0


class Data(Section):
    builtin: Literal["digits", "digit-pages", "turned-digits", "two-notations", "flights", "oxford-pets", "oxford-pets-breeds"]
    source: Annotated[PathText, AfterValidator(_on_this_machine)]
    labels_file: Annotated[str, Field(min_length=1)]
    path_column: Annotated[str, Field(min_length=1)]
    label_column: Annotated[str, Field(min_length=1)]
    group_column: Annotated[str, Field(min_length=1)]
    target: Literal["auto", "single_label", "multi_label", "number"]
    label_separator: Annotated[str, Field(min_length=1, max_length=10)]
    label_columns: list[Annotated[str, Field(min_length=1)]]
    log_target: bool
    bound_target: bool
    columns: Columns
    joins: list[Join]
    elapsed: list[Elapsed]
    leave_out: list[LeftOut]
    split_by: Annotated[str, Field(min_length=1)]
    valid_fraction: Fraction
    test_fraction: Fraction
    folds: Annotated[int, Field(ge=2, le=100)]
    fold: Annotated[int, Field(ge=0)] | Literal["none"]
    label_pattern: Pattern
    group_pattern: Pattern
    nested_folders: bool
    follow_external_links: bool
    on_label_conflict: Literal["refuse", "quarantine"]
    near_duplicates: Literal["exclude", "keep"]
    max_quarantined: Annotated[float, Field(ge=0, le=1)]
    formats: Annotated[list[Formats], Field(min_length=1)]
    max_pixels: Annotated[int, Field(gt=0, le=178_000_000)]  # Pillow refuses more by itself
    min_side: PositiveInt
    file_timeout: Annotated[float, Field(gt=0, le=3600)]

    @model_validator(mode="after")
    def leave_something_to_train_on(self) -> Data:
        if self.valid_fraction + self.test_fraction >= 0.95:
            raise ValueError("valid_fraction + test_fraction must stay below 0.95: the rest is the training set")
        if not self.valid_fraction or not self.test_fraction:
            raise ValueError("valid_fraction and test_fraction must be above 0: one chooses the model, the other judges it")
        return self

    @model_validator(mode="after")
    def several_labels_only_where_they_are_learned(self) -> Data:
        if self.target not in ("auto", "multi_label") and (self.label_columns or self.label_separator != "none"):
            raise ValueError(f"label_separator and label_columns give several labels, but target is {self.target}")
        if self.target in ("single_label", "multi_label") and (self.log_target or self.bound_target):
            raise ValueError(f"log_target and bound_target are for numbers, but target is {self.target}")
        return self

    @model_validator(mode="after")
    def one_rule_for_splits(self) -> Data:
        if self.split_by != "none" and (self.fold != "none" or self.group_column != "none" or self.group_pattern != "none"):
            raise ValueError("split_by splits by time: fold, group_column and group_pattern must be none with it")
        return self

    @model_validator(mode="after")
    def rows_to_leave_out(self) -> Data:
        if self.leave_out and self.path_column != "none":
            raise ValueError("leave_out is for a table alone: path_column must be none with it")
        return self

    @model_validator(mode="after")
    def a_fold_there_is(self) -> Data:
        if self.fold != "none" and self.fold >= self.folds:
            raise ValueError(f"fold must be none, or 0 to {self.folds - 1} (folds is {self.folds})")
        return self


class Backbone(Section):
    name: Annotated[str, Field(min_length=1)]
    weights: PathText
    weights_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64}|none)$")]
    image_size: ImageSize
    crop_pct: Annotated[float, Field(ge=0.5, le=1)] | Literal["auto"]


class Augment(Section):
    preset: Literal["side_on", "top_down", "none"]
    flip: bool
    rotate: Annotated[float, Field(ge=0, le=180)]
    zoom: Annotated[float, Field(ge=1, le=4)]
    lighting: Annotated[float, Field(ge=0, lt=1)]


class Precompute(Section):
    views: Annotated[int, Field(ge=0, le=64)]
    view_seed: Annotated[int, Field(ge=0, lt=2**32)]
    augment: Augment
    cache_map_after: Literal["none", "early", "late"]
    engine: Literal["auto", "openvino", "torch"]
    precision: Literal["auto", "float32", "bfloat16"]
    storage: Literal["auto", "float32", "float16"]
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    max_gb: Annotated[float, Field(gt=0)]


class RangeTest(Section):
    """Settings of the second range test, on the unfrozen network."""

    lr_min: Annotated[float, Field(gt=0)]
    lr_max: Annotated[float, Field(gt=0)]
    steps: Annotated[int, Field(ge=20, le=10_000)]
    seeds: Annotated[int, Field(ge=1, le=100)]

    @model_validator(mode="after")
    def ascending(self) -> Self:
        if self.lr_min >= self.lr_max:
            raise ValueError("lr_min must be below lr_max")
        return self


class FindLR(RangeTest):
    default: Annotated[float, Field(gt=0, le=10)]
    unfrozen: RangeTest


class Training(Section):
    """Settings that the training of the head and fine-tuning share."""

    epochs: PositiveInt
    batch_size: TrainingBatch
    schedule: Literal["one_cycle", "sgdr"]
    cycle_len: PositiveInt
    cycle_mult: PositiveInt
    optimizer: Literal["adamw", "sgd"]
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    loss: Literal["auto", "mse", "l1", "huber"]
    label_smoothing: Annotated[float, Field(ge=0, le=0.5)]
    balance: Literal["none", "weights", "sampling"]
    patience: PositiveInt | Literal["none"]

    @model_validator(mode="after")
    def end_a_cycle(self) -> Self:
        if self.schedule == "sgdr":
            self.refuse_part_of_a_cycle(self.epochs)
        return self

    def refuse_part_of_a_cycle(self, epochs: int) -> None:
        """Refuse epochs that end within a cycle: training must end at the lowest rate."""
        ends = [sum(self.cycle_len * self.cycle_mult**i for i in range(n)) for n in range(1, 40)]
        if epochs not in ends and not (self.cycle_mult == 1 and epochs % self.cycle_len == 0):
            near = sorted(sorted(ends, key=lambda end: abs(end - epochs))[:3])
            raise ValueError(f"with sgdr, epochs must end a cycle: {', '.join(map(str, near))}, not {epochs}")


class ColumnHead(Section):
    """The layers of a head that takes columns."""

    layers: list[PositiveInt]
    dropouts: list[Fraction]
    embedding: Literal["lesson", "fastai"]
    embedding_dropout: Fraction
    bins: Annotated[int, Field(ge=1, le=4096)]
    time_bins: Annotated[int, Field(ge=1, le=4096)]
    members: Annotated[int, Field(ge=1, le=64)]

    @model_validator(mode="after")
    def a_dropout_each(self) -> Self:
        if len(self.layers) != len(self.dropouts):
            raise ValueError(f"{len(self.layers)} layers, but {len(self.dropouts)} dropouts: one for each layer")
        return self


class TrainHead(Training):
    lr: LearningRate
    head: Literal["linear", "mlp"]
    columns: ColumnHead


UnfreezeFrom = Annotated[str, Field(pattern="^(all|early|late|head|last-[0-9]+)$")]
GroupRates = LearningRate | Annotated[list[Annotated[float, Field(gt=0, le=10)]], Field(min_length=3, max_length=3)]


class PhaseParams(Section):
    """A phase of gradual unfreezing."""

    unfreeze_from: UnfreezeFrom
    epochs: PositiveInt
    lr: GroupRates
    image_size: ImageSize | Literal["none"] = "none"


class FineTune(Training):
    lr: GroupRates
    lr_ratio: Annotated[float, Field(ge=1, le=1000)]
    unfreeze_from: UnfreezeFrom
    gradual: list[PhaseParams]
    bn_freeze: bool | Literal["auto"]
    precision: Literal["auto", "float32", "bfloat16"]

    @model_validator(mode="after")
    def end_cycles(self) -> Self:
        if self.schedule == "sgdr":
            for phase in self.gradual:
                self.refuse_part_of_a_cycle(phase.epochs)
        return self

    def own_sizes(self) -> dict[str, int]:
        """Return the image sizes of the phases that set their own, by parameter."""
        sizes = {f"fine_tune.gradual[{i}].image_size": phase.image_size for i, phase in enumerate(self.gradual)}
        return {key: size for key, size in sizes.items() if size != "none"}

    def phases(self) -> list[PhaseParams]:
        """Return all phases in order; the last is the section's own."""
        return [*self.gradual, PhaseParams(unfreeze_from=self.unfreeze_from, epochs=self.epochs, lr=self.lr)]


class Evaluate(Section):
    tta: Literal["mean", "blend"]
    beta: Annotated[float, Field(gt=0, le=100)]
    thresholds: Literal["one", "per_class"]


class Promote(Section):
    alpha: Annotated[float, Field(gt=0, lt=1)]
    margin: Annotated[float, Field(ge=0, lt=1)]


class Runtime(Section):
    threads: PositiveInt | Literal["auto"]
    workers: PositiveInt | Literal["auto"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    cache_dir: Annotated[str, Field(min_length=1), AfterValidator(_with_a_home)]
    stage_timeout: Annotated[float, Field(gt=0)]


class Params(Section):
    """All of params.yaml. README has the table of what each key does."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    data: Data
    backbone: Backbone
    precompute: Precompute
    find_lr: FindLR
    train_head: TrainHead
    fine_tune: FineTune
    evaluate: Evaluate
    promote: Promote
    runtime: Runtime

    @model_validator(mode="after")
    def something_to_learn_from(self) -> Params:
        rows, no_backbone = self.data.path_column == "none", self.backbone.name == NO_BACKBONE
        columns = self.data.columns
        if rows and not no_backbone:
            raise ValueError("data.path_column is none (rows without images), so backbone.name must be none")
        if no_backbone and not (columns.categorical or columns.continuous or columns.date):
            raise ValueError("backbone.name is none, so data.columns must name columns to learn from, or be auto")
        return self


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing or no YAML, or keys or values are wrong; the message lists all of them.
    """
    return check_params(read_yaml(path), path)


def check_params(value: Any, path: Path) -> Params:
    """Check parsed YAML against the schema; `path` is only for the message."""
    try:
        return Params.model_validate(value)
    except ValidationError as error:
        raise InputError(explain(error, path, Params), fix=f"edit {path.name}; README has the table of params") from None


def is_text(key: str) -> bool:
    """Return whether a parameter, such as `data.source`, is free text in which every character counts."""
    annotation: Any = Params
    for part in key.split("."):
        model = model_in(annotation)
        if model is None or part not in model.model_fields:
            return False
        annotation = model.model_fields[part].annotation
    return annotation is str
