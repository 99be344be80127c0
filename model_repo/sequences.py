"""Owns `sequence_batching` of config.pbtxt: which requests belong together, what the model is told of it, its state.

What is told goes in as further inputs of the model (controls); state goes out as further outputs and comes back as
inputs with the sequence's next request. Neither is seen by callers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from model_repo.errors import ConfigError

Kind = Literal["START", "END", "READY", "CORRID"]
#: Where a configuration names none, as in Triton.
IDLE_US: Final = 1_000_000
CANDIDATES_MAX: Final = 1 << 16
_CONTROLS_MAX: Final = 16
_STATES_MAX: Final = 16
_KINDS: Final[dict[str, Kind]] = {
    "CONTROL_SEQUENCE_START": "START",
    "CONTROL_SEQUENCE_END": "END",
    "CONTROL_SEQUENCE_READY": "READY",
    "CONTROL_SEQUENCE_CORRID": "CORRID",
}
_CORRID_TYPES: Final = frozenset({"UINT64", "INT64", "UINT32", "INT32", "BYTES"})
_FALSE_TRUE: Final = (("int32_false_true", "INT32"), ("fp32_false_true", "FP32"), ("bool_false_true", "BOOL"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """An input of the model, of one element a row. `values`: for false and true; none for the correlation id."""

    name: str
    kind: Kind
    datatype: str
    values: tuple[float, float] = (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A tensor that the model hands on to the sequence's next request. It begins as zeros, or as `file` holds."""

    input_name: str
    output_name: str
    datatype: str
    dims: tuple[int, ...]
    initial_dims: tuple[int, ...]
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBatching:
    """`slots`: sequences that one instance keeps; `idle_ns_max`: how long one may send nothing."""

    slots: int
    idle_ns_max: int
    delay_ns_max: int
    preferred_rows: tuple[int, ...]
    controls: tuple[Control, ...]
    states: tuple[State, ...]


def read_sequences(message: Any, rows_max: int, datatype_name: Callable[[int], str]) -> SequenceBatching | None:
    """The checked value; None where the model has no sequences.

    Raises:
        ConfigError: names the field.
    """
    if not message.HasField("sequence_batching"):
        return None
    own = message.sequence_batching
    is_oldest = own.WhichOneof("strategy_choice") == "oldest"
    strategy = own.oldest if is_oldest else own.direct
    rows = max(rows_max, 1)
    slots = own.oldest.max_candidate_sequences if is_oldest else rows
    if not 0 <= slots <= CANDIDATES_MAX:
        raise ConfigError(f"sequence_batching.oldest.max_candidate_sequences: {slots} is outside 0..{CANDIDATES_MAX}")
    preferred = tuple(sorted(set(own.oldest.preferred_batch_size))) if is_oldest else ()
    if any(not 1 <= size <= rows for size in preferred):
        raise ConfigError(f"sequence_batching.oldest.preferred_batch_size: {list(preferred)} is outside 1..{rows}")
    controls = _controls(own, datatype_name)
    states = _states(own, datatype_name)
    known = {tensor.name for tensor in (*message.input, *message.output)}
    added = [control.name for control in controls]
    added += [name for state in states for name in (state.input_name, state.output_name)]
    for name in added:
        if name in known or not name:
            raise ConfigError(f"sequence_batching: tensor '{name}' is missing a name, or is another tensor's")
        known.add(name)
    return SequenceBatching(
        slots=slots or rows,
        idle_ns_max=(own.max_sequence_idle_microseconds or IDLE_US) * 1000,
        delay_ns_max=strategy.max_queue_delay_microseconds * 1000,
        preferred_rows=preferred,
        controls=controls,
        states=states,
    )


def _controls(own: Any, datatype_name: Callable[[int], str]) -> tuple[Control, ...]:
    controls = [_control(item.name, entry, datatype_name) for item in own.control_input for entry in item.control]
    if len(own.control_input) != len(controls):
        raise ConfigError("sequence_batching.control_input: each needs exactly one control")
    if len({control.kind for control in controls}) != len(controls) or len(controls) > _CONTROLS_MAX:
        raise ConfigError("sequence_batching.control_input: a kind of control is given twice")
    return tuple(controls)


def _control(name: str, entry: Any, datatype_name: Callable[[int], str]) -> Control:
    where = f"sequence_batching.control_input '{name}'"
    number = entry.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number.get(entry.kind)
    kind = _KINDS.get(number.name) if number is not None else None
    if kind is None:
        raise ConfigError(f"{where}: kind {entry.kind} is not served")
    given = [(datatype, list(getattr(entry, field))) for field, datatype in _FALSE_TRUE if getattr(entry, field)]
    if kind == "CORRID":
        datatype = datatype_name(entry.data_type)
        if given or datatype not in _CORRID_TYPES:
            raise ConfigError(f"{where}: a correlation id needs a data_type of {', '.join(sorted(_CORRID_TYPES))}")
        return Control(name=name, kind=kind, datatype=datatype)
    if len(given) != 1 or len(given[0][1]) != 2:
        raise ConfigError(f"{where}: needs two values in one of int32_false_true, fp32_false_true, bool_false_true")
    datatype, values = given[0]
    return Control(name=name, kind=kind, datatype=datatype, values=(values[0], values[1]))


def _states(own: Any, datatype_name: Callable[[int], str]) -> tuple[State, ...]:
    if len(own.state) > _STATES_MAX:
        raise ConfigError(f"sequence_batching.state: more than {_STATES_MAX}")
    return tuple(_state(item, datatype_name) for item in own.state)


def _state(item: Any, datatype_name: Callable[[int], str]) -> State:
    where = f"sequence_batching.state '{item.input_name}'"
    datatype = datatype_name(item.data_type)
    dims = tuple(item.dims)
    if datatype in ("INVALID", "BYTES") or not dims or any(size != -1 and size < 1 for size in dims):
        raise ConfigError(f"{where}: needs a data_type of numbers, and dims")
    if len(item.initial_state) > 1:
        raise ConfigError(f"{where}: has more than one initial_state")
    initial_dims, file = dims, ""
    for initial in item.initial_state:
        initial_dims, file = tuple(initial.dims) or dims, initial.data_file
        if datatype_name(initial.data_type) != datatype or not _fits(dims, initial_dims):
            raise ConfigError(f"{where}: initial_state has another type or shape")
        if "/" in file or file in (".", ".."):
            raise ConfigError(f"{where}: initial_state.data_file must be a plain file name")
    if -1 in initial_dims:
        raise ConfigError(f"{where}: variable dims need an initial_state with fixed ones")
    return State(
        input_name=item.input_name,
        output_name=item.output_name,
        datatype=datatype,
        dims=dims,
        initial_dims=initial_dims,
        file=file,
    )


def _fits(dims: tuple[int, ...], initial: tuple[int, ...]) -> bool:
    return len(dims) == len(initial) and all(size in (-1, given) for size, given in zip(dims, initial, strict=True))
