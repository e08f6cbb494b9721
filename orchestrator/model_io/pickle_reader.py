"""The pickle of a state dict, read as data: no object of it is made, and nothing that it names is called.

A pickle is a program for a small stack machine. This one knows the instructions that torch.save writes,
and of the functions that a pickle may name those alone that stand for tensors and plain containers.
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
LARGEST_KEY = 2**64  # of whole numbers: many that are larger can be made to have one hash
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
    """What is no pickle of a state dict; the message says which part."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names, by module and name."""

    text: str


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers are: `key` in the file, `kind` by torch's name for it, `count` of them."""

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
class View:
    """A tensor: which numbers of a storage it is made of."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Pickled:
    """What a pickle comes to, and every storage that it speaks of, by its key."""

    value: Value
    storages: Mapping[str, Storage]


class Other:
    """Something plain beside the tensors, such as a device; what it holds is not looked at."""


def _view(storage: Value, offset: Value, shape: Value, strides: Value, *_: Value) -> View:
    if not isinstance(storage, Storage) or max(len(shape), len(strides)) > MOST_DIMENSIONS:
        raise PickleError("a tensor that is none")
    if any(type(size) is not int or size < 0 for size in (offset, *shape, *strides)):
        raise PickleError("a tensor that is none")
    return View(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Value, *_: Value) -> Value:
    return data


def _mapping(*pairs: Value) -> dict[Value, Value]:
    found: dict[Value, Value] = {}
    for items in pairs:  # one list, as Python 2 wrote it
        found |= {_key(key): value for key, value in items}
        items.clear()  # or a short pickle could have it read a million times
    return found


def _other(*_: Value) -> Other:
    return Other()


PLAIN = ["torch.Size", "torch.device", "collections.Counter", "collections.defaultdict"]
PLAIN += ["builtins.set", "__builtin__.set", "builtins.complex", "_codecs.encode"]
CALLS: dict[str, Callable[..., Value]] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "collections.OrderedDict": _mapping,
    **dict.fromkeys(PLAIN, _other),
}
TYPES = {str(dtype) for dtype in DTYPES.values() if not dtype.is_complex}
MARK = object()


def _key(value: Value) -> Value:
    small = not isinstance(value, int) or abs(value) < LARGEST_KEY
    if not isinstance(value, (str, int, float, type(None))) or not small:
        raise PickleError("a key that is no name")
    return value


@dataclass
class _Machine:
    """The stack and the memo of one pickle; every method is one or several of pickle's instructions."""

    stack: list[Value] = field(default_factory=list)
    memo: dict[int, Value] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)

    def pop(self) -> Value:
        if not self.stack or self.stack[-1] is MARK:
            raise PickleError("an instruction without its values")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Value]:
        values: list[Value] = []
        while self.stack:
            value = self.stack.pop()
            if value is MARK:
                return values[::-1]
            values.append(value)
        raise PickleError("an instruction without its values")

    def top(self, kind: type) -> Value:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError("an instruction for something that is no container")
        return self.stack[-1]

    def set_items(self, items: list[Value]) -> None:
        if len(items) % 2:
            raise PickleError("a key without a value")
        found = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            found[_key(key)] = value

    def append(self, items: list[Value]) -> None:
        self.top(list).extend(items)

    def add(self, items: list[Value]) -> None:
        self.top(Other)

    def take(self, count: int) -> tuple[Value, ...]:
        return tuple([self.pop() for _ in range(count)][::-1])

    def name(self, text: str) -> None:
        if not (text in CALLS or text in TYPES or text in DTYPES):
            raise PickleError(f"it names {text[:80]}")
        self.stack.append(Name(text))

    def named_on_stack(self) -> None:
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        self.name(f"{module}.{name}")

    def call(self) -> None:
        function, arguments = self.take(2)
        call = CALLS.get(function.text) if isinstance(function, Name) else None
        if call is None or not isinstance(arguments, tuple) or len(arguments) > MOST_ARGUMENTS:
            raise PickleError("it calls what is no function of torch's for tensors")
        try:
            self.stack.append(call(*arguments))
        except PickleError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise PickleError("it calls a function with values that are not its own") from error

    def build(self) -> None:
        """What torch keeps beside the names of a state dict: versions of its modules. It is left out."""
        self.pop()
        self.top(dict)

    def storage(self) -> None:
        found = self.pop()
        if isinstance(found, tuple) and len(found) in (5, 6) and found[0] == "storage":
            _, kind, key, location, count = found[:5]
            plain = isinstance(kind, Name) and kind.text in DTYPES and isinstance(key, str)
            if (
                plain
                and type(count) is int
                and count >= 0
                and location != "meta"
                and found[5:] in ((), (None,))
            ):
                storage = Storage(kind.text, key, count)
                if self.storages.setdefault(key, storage) != storage:
                    raise PickleError("a storage that is two")
                self.stack.append(storage)
                return
        raise PickleError("a storage that is none")


CONSTANTS: dict[str, Callable[[], Value]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: MARK,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": Other,
}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
LITERALS |= {"SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "PROTO": lambda machine: None,
    "FRAME": lambda machine: None,
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine: machine.stack.append(machine.take(1)),
    "TUPLE2": lambda machine: machine.stack.append(machine.take(2)),
    "TUPLE3": lambda machine: machine.stack.append(machine.take(3)),
    "SETITEM": lambda machine: machine.set_items(list(machine.take(2))),
    "SETITEMS": lambda machine: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine: machine.append(list(machine.take(1))),
    "APPENDS": lambda machine: machine.append(machine.pop_to_mark()),
    "ADDITEMS": lambda machine: machine.add(machine.pop_to_mark()),
    "STACK_GLOBAL": _Machine.named_on_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}


def read_pickle(file: IO[bytes], *, most: int = MOST_INSTRUCTIONS) -> Pickled:
    """What the next pickle of a file comes to; the file stands behind it. PickleError for anything else."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > most:
                raise PickleError(f"more than {most:,} instructions")
            if opcode.name == "STOP":
                return Pickled(machine.pop(), machine.storages)
            _step(machine, opcode.name, argument)
    except PickleError:
        raise
    except (ValueError, LookupError, OverflowError) as error:  # of pickletools: an end too early, no UTF-8
        raise PickleError("it ends too early, or is no pickle") from error
    raise PickleError("it ends too early")


def _step(machine: _Machine, name: str, argument: Value) -> None:
    if name in LITERALS:
        machine.stack.append(argument)
    elif name in CONSTANTS:
        machine.stack.append(CONSTANTS[name]())
    elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
        if not machine.stack:
            raise PickleError("an instruction without its values")
        machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        if argument not in machine.memo:
            raise PickleError("it recalls what was never there")
        machine.stack.append(machine.memo[argument])
    elif name == "GLOBAL":
        machine.name(argument.replace(" ", ".", 1))
    elif name in ACTIONS:
        ACTIONS[name](machine)
    else:
        raise PickleError(f"the instruction {name}, which no state dict needs")
