"""Read the pickle of a state dict as data: it creates no object, and calls nothing that the pickle names.

A pickle is a program for a small stack machine. This one knows the instructions that torch.save writes, and
of the functions that a pickle may name only those that stand for tensors and plain containers.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import torch

MOST_INSTRUCTIONS = 300_000  # efficientnet_v2_l's state dict takes 50,000
MOST_DIMENSIONS = 16
MOST_ARGUMENTS = 8
LARGEST_KEY = 2**64  # larger whole numbers can be chosen to have one hash, which makes dictionaries slow
Value = Any  # a plain value, a container of them, or one of the classes below

# The storages that a pickle may name, by torch's names for them.
DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}


class PickleError(ValueError):
    """It is no pickle of a state dict; the message says what is wrong."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, as `module.name`."""

    text: str


@dataclass(frozen=True)
class Storage:
    """The numbers of a tensor: their `key` in the file, `kind` by torch's name of the class, and `count`."""

    kind: str
    key: str
    count: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.kind]

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class TensorView:
    """A tensor, as the numbers of a storage that it consists of."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Pickled:
    """The object of a pickle, and by key every storage that it names."""

    value: Value
    storages: Mapping[str, Storage]


class Ignored:
    """A plain object beside the tensors, such as a device; its content is not read."""


def _view(storage: Value, offset: Value, shape: Value, strides: Value, *_: Value) -> TensorView:
    if not isinstance(storage, Storage) or max(len(shape), len(strides)) > MOST_DIMENSIONS:
        raise PickleError("a malformed tensor")
    if any(type(size) is not int or size < 0 for size in (offset, *shape, *strides)):
        raise PickleError("a malformed tensor")
    return TensorView(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Value, *_: Value) -> Value:
    return data


def _mapping(*pairs: Value) -> dict[Value, Value]:
    mapping: dict[Value, Value] = {}
    for items in pairs:  # one list, as Python 2 wrote it
        mapping |= {_key(key): value for key, value in items}
        items.clear()  # or a short pickle could have it read a million times
    return mapping


def _ignored(*_: Value) -> Ignored:
    return Ignored()


PLAIN = ["torch.Size", "torch.device", "collections.Counter", "collections.defaultdict"]
PLAIN += ["builtins.set", "__builtin__.set", "builtins.complex", "_codecs.encode"]
CALLS: dict[str, Callable[..., Value]] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "collections.OrderedDict": _mapping,
    **dict.fromkeys(PLAIN, _ignored),
}
TYPES = {str(dtype) for dtype in DTYPES.values() if not dtype.is_complex}
MARK = object()


def _key(value: Value) -> Value:
    is_small = not isinstance(value, int) or abs(value) < LARGEST_KEY
    if not isinstance(value, (str, int, float, type(None))) or not is_small:
        raise PickleError("a key that is neither a name nor a number")
    return value


@dataclass
class _Machine:
    """The stack and the memo of one pickle; methods carry out its instructions."""

    stack: list[Value] = field(default_factory=list)
    memo: dict[int, Value] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)

    def pop(self) -> Value:
        if not self.stack or self.stack[-1] is MARK:
            raise PickleError("an instruction without its arguments")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Value]:
        values: list[Value] = []
        while self.stack:
            value = self.stack.pop()
            if value is MARK:
                return values[::-1]
            values.append(value)
        raise PickleError("an instruction without its arguments")

    def top(self, kind: type) -> Value:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError("an instruction that needs a container")
        return self.stack[-1]

    def set_items(self, items: list[Value]) -> None:
        if len(items) % 2:
            raise PickleError("a key without a value")
        mapping = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            mapping[_key(key)] = value

    def append(self, items: list[Value]) -> None:
        self.top(list).extend(items)

    def add(self, items: list[Value]) -> None:
        self.top(Ignored)

    def pop_many(self, count: int) -> tuple[Value, ...]:
        return tuple([self.pop() for _ in range(count)][::-1])

    def push_name(self, text: str) -> None:
        if not (text in CALLS or text in TYPES or text in DTYPES):
            raise PickleError(f"it names {text[:80]}")
        self.stack.append(Name(text))

    def push_name_on_stack(self) -> None:
        module, name = self.pop_many(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        self.push_name(f"{module}.{name}")

    def call(self) -> None:
        function, arguments = self.pop_many(2)
        call = CALLS.get(function.text) if isinstance(function, Name) else None
        if call is None or not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
            raise PickleError("it calls a function that builds no tensor")
        try:
            self.stack.append(call(*arguments))
        except PickleError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise PickleError("it calls a function with the wrong arguments") from error

    def build(self) -> None:
        """Skip the attributes of a state dict: the versions of its modules."""
        self.pop()
        self.top(dict)

    def push_storage(self) -> None:
        value = self.pop()
        is_reference = isinstance(value, tuple) and len(value) in (5, 6) and value[0] == "storage"
        if not is_reference or value[5:] not in ((), (None,)):
            raise PickleError("a malformed storage")
        _, kind, key, location, count = value[:5]
        is_named = isinstance(kind, Name) and kind.text in DTYPES and isinstance(key, str)
        if not is_named or type(count) is not int or count < 0 or location == "meta":
            raise PickleError("a malformed storage")
        storage = Storage(kind.text, key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise PickleError("two storages of one key")
        self.stack.append(storage)


CONSTANTS: dict[str, Callable[[], Value]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: MARK,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": Ignored,
}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
LITERALS |= {"SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "PROTO": lambda machine: None,
    "FRAME": lambda machine: None,
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine: machine.stack.append(machine.pop_many(1)),
    "TUPLE2": lambda machine: machine.stack.append(machine.pop_many(2)),
    "TUPLE3": lambda machine: machine.stack.append(machine.pop_many(3)),
    "SETITEM": lambda machine: machine.set_items(list(machine.pop_many(2))),
    "SETITEMS": lambda machine: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine: machine.append(list(machine.pop_many(1))),
    "APPENDS": lambda machine: machine.append(machine.pop_to_mark()),
    "ADDITEMS": lambda machine: machine.add(machine.pop_to_mark()),
    "STACK_GLOBAL": _Machine.push_name_on_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.push_storage,
}


def read_pickle(file: IO[bytes], *, max_instructions: int = MOST_INSTRUCTIONS) -> Pickled:
    """Read the next pickle of a file, up to its end. PickleError for what is no pickle of a state dict."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > max_instructions:
                raise PickleError(f"more than {max_instructions:,} instructions")
            if opcode.name == "STOP":
                return Pickled(machine.pop(), machine.storages)
            _step(machine, opcode.name, argument)
    except PickleError:
        raise
    except (
        ValueError,
        LookupError,
        OverflowError,
    ) as error:  # of pickletools, at an early end or invalid UTF-8
        raise PickleError("it ends too early, or is no pickle") from error
    raise PickleError("it ends too early")


def _step(machine: _Machine, name: str, argument: Value) -> None:
    if name in LITERALS:
        machine.stack.append(argument)
    elif name in CONSTANTS:
        machine.stack.append(CONSTANTS[name]())
    elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
        if not machine.stack:
            raise PickleError("an instruction without its arguments")
        machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        if argument not in machine.memo:
            raise PickleError("it recalls a value that it has not stored")
        machine.stack.append(machine.memo[argument])
    elif name == "GLOBAL":
        machine.push_name(argument.replace(" ", ".", 1))
    elif name in ACTIONS:
        ACTIONS[name](machine)
    else:
        raise PickleError(f"the instruction {name}, which no state dict needs")
