"""The checked contents of config.json and adapter_config.json. Does not know tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from nestling.errors import CheckpointError
from nestling.spec import DEFAULT_DIMENSIONS, Task

MAX_LAYERS = 1000
MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Hyperparameters of the text model, the trained vector sizes and the tasks."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rms_eps: float
    rope_theta: float
    mrope_sections: tuple[int, int, int]
    max_positions: int
    dimensions: tuple[int, ...]
    task_names: tuple[str, ...]

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, path: object) -> Self:
        """Read config.json, with text settings at the top or in `text_config`; CheckpointError naming a wrong field."""
        outer = Fields(raw, path)
        text = Fields({**raw, **outer.mapping("text_config")}, path)
        refuse(text, _UNSUPPORTED)
        rope = Fields({**text.mapping("rope_scaling"), **text.mapping("rope_parameters")}, path)
        hidden, heads = text.count("hidden_size"), text.count("num_attention_heads")
        config = cls(
            layers=text.count("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=text.count("num_key_value_heads"),
            head_dim=text.count("head_dim", hidden // heads),
            intermediate=text.count("intermediate_size"),
            vocab=text.count("vocab_size"),
            rms_eps=text.positive("rms_norm_eps"),
            rope_theta=rope.positive("rope_theta") if "rope_theta" in rope.raw else text.positive("rope_theta"),
            mrope_sections=_sections(rope),
            max_positions=text.count("max_position_embeddings"),
            dimensions=_dimensions(outer, hidden),
            task_names=_names(outer, "task_names", tuple(Task)),
        )
        config._check(path)
        return config

    def _check(self, path: object) -> None:
        rules = {
            f"num_hidden_layers={self.layers}: expected at most {MAX_LAYERS}": self.layers <= MAX_LAYERS,
            f"num_attention_heads={self.heads}: times head_dim={self.head_dim}: expected hidden_size={self.hidden}": (
                self.heads * self.head_dim == self.hidden
            ),
            f"num_key_value_heads={self.kv_heads}: expected a divisor of num_attention_heads={self.heads}": (
                self.heads % self.kv_heads == 0
            ),
            f"mrope_section={list(self.mrope_sections)}: expected a sum of half of head_dim={self.head_dim}": (
                2 * sum(self.mrope_sections) == self.head_dim
            ),
        }
        for fault, holds in rules.items():
            if not holds:
                raise CheckpointError(f"{path}: {fault}")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The LoRA settings that all adapters share: delta = alpha / rank * B @ A."""

    rank: int
    alpha: float
    task_names: tuple[str, ...]

    @property
    def scaling(self) -> float:
        """The factor of B @ A: alpha / rank."""
        return self.alpha / self.rank

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, task_names: tuple[str, ...], path: object) -> Self:
        """Read adapter_config.json; `task_names` from config.json is the default for a file without them."""
        fields = Fields(raw, path)
        refuse(fields, _UNSUPPORTED_ADAPTER)
        return cls(fields.count("r"), fields.positive("lora_alpha"), _names(fields, "task_names", task_names))


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed access to a JSON object; CheckpointError naming the file and the field."""

    raw: Mapping[str, Any]
    path: object

    def count(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self.raw.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= MAX_COUNT:
            raise CheckpointError(f"{self.path}: {name}={value!r}: expected a positive integer")
        return value

    def positive(self, name: str) -> float:
        """A positive number."""
        value = self.raw.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-30 < value < 1e30:  # noqa: PLR2004
            raise CheckpointError(f"{self.path}: {name}={value!r}: expected a positive number that float32 holds")
        return float(value)

    def mapping(self, name: str) -> dict[str, Any]:
        """An object; an empty one if the field is missing."""
        value = self.raw.get(name) or {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path}: {name}={value!r}: expected an object")
        return value


def _sections(rope: Fields) -> tuple[int, int, int]:
    value = rope.raw.get("mrope_section")
    kind = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise CheckpointError(f"{rope.path}: rope_type={kind!r}: only default and mrope can be converted")
    if not isinstance(value, list) or len(value) != 3 or any(type(n) is not int or n < 0 for n in value):  # noqa: PLR2004
        raise CheckpointError(f"{rope.path}: rope_scaling.mrope_section={value!r}: expected three whole numbers")
    return value[0], value[1], value[2]


def _dimensions(outer: Fields, hidden: int) -> tuple[int, ...]:
    """The Matryoshka sizes; the published configuration omits them, the default is the table in its code."""
    sizes = outer.raw.get("matryoshka_dims") or [size for size in DEFAULT_DIMENSIONS if size <= hidden]
    if not isinstance(sizes, list) or any(type(size) is not int or not 1 <= size <= hidden for size in sizes):
        raise CheckpointError(f"{outer.path}: matryoshka_dims={sizes!r}: expected sizes from 1 to {hidden}")
    return tuple(sorted({*sizes, hidden}))


def _names(fields: Fields, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = fields.raw.get(name) or list(default)
    if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
        raise CheckpointError(f"{fields.path}: {name}={value!r}: expected a list of task names")
    return tuple(str(item) for item in value)


_UNSUPPORTED: dict[str, Callable[[Any], bool]] = {
    "hidden_act": lambda value: value == "silu",
    "use_sliding_window": lambda value: not value,
}
_UNSUPPORTED_ADAPTER: dict[str, Callable[[Any], bool]] = {
    "peft_type": lambda value: value == "LORA",
    "bias": lambda value: value == "none",
    **dict.fromkeys(
        (
            "use_dora", "use_rslora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
            "modules_to_save", "layer_replication", "trainable_token_indices",
        ),
        lambda value: not value,
    ),
}  # fmt: skip
"""Settings that would change the arithmetic: field -> whether a value is supported."""


def refuse(fields: Fields, supported: Mapping[str, Callable[[Any], bool]]) -> None:
    """CheckpointError for the first field with an unsupported value; missing fields are fine."""
    for name, accepts in supported.items():
        if name in fields.raw and not accepts(fields.raw[name]):
            raise CheckpointError(f"{fields.path}: {name}={fields.raw[name]!r} is not supported")
