"""A tool: a command that is no study. Its fields are its settings, of which flags are made."""

import abc
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax

import sinkjax
from sinkjax.checkpoint.load import Dtype
from sinkjax.cli import terminal
from sinkjax.errors import InputError, about, explaining
from sinkjax.files import check_path, replace_file
from sinkjax.models.sharding import fit_mesh
from sinkjax.programs.compile import Layers
from sinkjax.programs.options import Attention
from sinkjax.studies.settings import setting
from sinkjax.studies.study import Study
from sinkjax.studies.subject import SHAPE, load_model, shape_config
from sinkjax.studies.timing.study import Timing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool(abc.ABC):
    """The settings of a command that is no study, and what it does with them.

    Attributes:
      renamed: settings of earlier versions, by name, and what each is called now.
    """

    renamed: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def run(self) -> None:
        """Does what the settings say."""


def as_in(study: type[Study], name: str) -> Any:
    """Returns a dataclass field with the default and the help that a study's setting has."""
    field = study.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The settings that name a model."""

    model: str = as_in(Study, "model")
    revision: str | None = as_in(Study, "revision")
    dtype: Dtype = as_in(Study, "dtype")
    mesh: str | None = as_in(Study, "mesh")

    def load_config(self) -> sinkjax.LlamaConfig:
        """Reads the model's config."""
        return sinkjax.load_config(self.model, revision=self.revision)

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Reads the model's tokenizer."""
        return sinkjax.load_tokenizer(self.model, revision=self.revision)

    def make_mesh(self) -> jax.sharding.Mesh | None:
        """Makes the mesh that the model is to lie over."""
        return fit_mesh(self.mesh, self.load_config(), self.dtype)

    def load(self, seed: int = 0) -> sinkjax.Llama:
        """Reads the weights, or draws those of a shape."""
        how = {"revision": self.revision, "dtype": self.dtype, "mesh": self.make_mesh()}
        return load_model(self.model, **how, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeSettings(ModelSettings):
    """The settings that name a model or a shape, which has neither tokenizer nor weights."""

    model: str = as_in(Timing, "model")

    def is_shape(self) -> bool:
        return self.model.startswith(SHAPE)

    def load_config(self) -> sinkjax.LlamaConfig:
        if self.is_shape():
            return shape_config(self.model, self.revision)
        return super().load_config()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramSettings:
    """The settings of how programs are compiled."""

    layers: Layers = setting(
        "unrolled",
        "How layers are compiled: each by itself, or equal ones as one loop, which compiles faster "
        "and runs slower on a CPU.",
    )
    attention: Attention = as_in(Timing, "attention")


def output_path(name: str | None) -> Path | None:
    """The file of `--output`, refused before any long work where it cannot be."""
    if name is None:
        return None
    path = Path(name)
    with about("output", path):
        with explaining("it cannot be written", "give the name of a file"):
            check_path(path)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError("give the name of a file, in a folder that exists")
    return path


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records to the file of `--output`, one a line, and says so."""
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
    write_whole("output", path, "".join(lines).encode())
    terminal.console().print(f"records: {path}", soft_wrap=True)


def write_whole(field: str, path: Path, content: bytes) -> None:
    """Writes a file of the setting `field`, whole or not at all."""
    with about(field, path), explaining("it cannot be written", "free space, or give another"):
        replace_file(path, content)
