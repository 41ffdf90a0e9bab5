"""The work of a compiled executable, read from its own optimized HLO.

XLA's `cost_analysis` gives totals, counts a loop's body once however often it runs, and is silent
on some platforms. Here every instruction is counted where it stands: by the `jax.named_scope` that
it came from, and as often as its loop runs, so that the work of one layer or one path can be told
from the rest, on every platform alike.

A loop whose number of turns the compiler does not know counts once; a conditional counts its
largest branch.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_CALLERS = frozenset({"call", "fusion", "while", "conditional", "async-start", "custom-call"})
_BUNDLES = frozenset({"tuple", "get-tuple-element"})  # of values that have nothing in common
_COLLECTIVES = frozenset(
    {
        *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
        *("collective-permute", "collective-broadcast"),
    }
)
_GEMMS = ("__cublas$gemm", "__cublas$lt$matmul")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^\]}]*)')
_VIEWS = frozenset(
    {
        *("bitcast", "convert", "copy", "get-tuple-element", "pad", "reshape", "slice"),
        *("transpose", "tuple"),
    }
)
_SUMS = frozenset({"dot", "convolution", "reduce", "reduce-window"})
_ARITHMETIC = frozenset(
    {
        *("add", "subtract", "multiply", "divide", "remainder", "power", "maximum", "minimum"),
        *("negate", "abs", "sign", "floor", "ceil", "round-nearest-even", "sqrt", "rsqrt", "cbrt"),
        *("exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "erf"),
        *("tanh", "sine", "cosine", "tan", "atan2"),
    }
)
_FLOATS = frozenset({"f16", "bf16", "f32", "f64"})
# The JAX primitive, whatever XLA made of it, or what `attention.products` writes in its place.
_MATMUL_SOURCE = re.compile(r"/dot_general(/(mul|reduce|reduce_sum))?$")


Scopes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Work:
    """The FLOPs of one instruction each time the executable runs.

    Attributes:
      scopes: where it came from, as `jit(f)/layer_0/attention/...`. Passes that rewrite an
        instruction may forget it: then where its operands came from, and where its result goes.
      flops: a multiply and an add are two.
      is_matmul: whether they belong to a matrix product, as XLA calls it or as JAX did.
    """

    scopes: Scopes
    flops: int
    is_matmul: bool


@dataclasses.dataclass(frozen=True)
class CustomCall:
    """A custom call whose FLOPs the HLO does not show.

    Attributes:
      scopes: as of `Work`.
      target: what is called.
      shapes: of its results.
      times: how often it is made each time the executable runs.
    """

    scopes: Scopes
    target: str
    shapes: tuple[tuple[int, ...], ...]
    times: int


@dataclasses.dataclass(frozen=True)
class Argument:
    """One array that the executable is given.

    Attributes:
      name: the path within the arguments of the jitted function, as `state['norm']['scale'].value`.
      size: bytes of its elements, without a platform's padding.
    """

    name: str
    size: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """An instruction by which the devices of a mesh exchange arrays.

    Attributes:
      kind: the opcode, `all-reduce`.
      scope: where it came from; empty where the compiler does not say.
      size: bytes of its result on a device.
    """

    kind: str
    scope: str
    size: int


@dataclasses.dataclass(frozen=True)
class _Type:
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    types: tuple[_Type, ...]  # of the result; several for a tuple
    opcode: str
    operands: tuple[str, ...]  # of a parameter its number, of a constant its value
    attributes: str

    @functools.cached_property
    def scope(self) -> str:
        name = _OP_NAME.search(self.attributes)
        return name[1].replace("\\'", "'") if name else ""


class Module:
    """The optimized HLO of one executable.

    Attributes:
      arguments: what it is given, in order.
      work: of all instructions but `calls`.
      calls: custom calls whose FLOPs the HLO does not show, kernels among them.
    """

    def __init__(self, text: str):
        """Args: text, of a compiled executable: `jax.stages.Compiled.as_text()`."""
        self._computations: dict[str, list[_Instruction]] = {}
        self._entry = ""
        self._read(text)
        self.arguments = tuple(self._arguments())
        calls: list[CustomCall] = []
        self.work = tuple(self._work(self._entry, 1, [], (), [], calls))
        self.calls = tuple(calls)

    def flops(self) -> int:
        """FLOPs of all instructions."""
        return sum(item.flops for item in self.work)

    def collectives(self) -> tuple[Collective, ...]:
        """All collectives, a loop's and a branch's once."""
        return tuple(
            Collective(kind, item.scope, sum(t.elements * _bytes(t.dtype) for t in item.types))
            for block in self._computations.values()
            for item in block
            if (kind := item.opcode.removesuffix("-start")) in _COLLECTIVES
        )

    def _read(self, text: str) -> None:
        block: list[_Instruction] = []
        for line in _whole_lines(text):
            if (head := _COMPUTATION.match(line)) is not None:
                block = self._computations[head[2]] = []
                self._entry = head[2] if head[1] else self._entry
            elif (start := _INSTRUCTION.match(line)) is not None:
                block.append(_parse(start[1], line[start.end() :]))

    def _arguments(self) -> Iterator[Argument]:
        parameters = (i for i in self._computations[self._entry] if i.opcode == "parameter")
        for parameter in sorted(parameters, key=lambda i: int(i.operands[0])):
            (array,) = parameter.types
            yield Argument(parameter.scope, array.elements * _bytes(array.dtype))

    def _work(
        self,
        computation: str,
        times: int,
        passed: Sequence[Scopes],
        caller: Scopes,
        passed_sums: Sequence[bool],
        calls: list[CustomCall],
    ) -> Iterator[Work]:
        """The work of one computation, run `times` times; adds to `calls` what cannot be counted.

        The other arguments are those of `_scopes` and `_sums`.
        """
        block = self._computations[computation]
        types = {instruction.name: instruction.types for instruction in block}
        sources, uses = _scopes(block, passed, caller)
        sums = self._sums(computation, passed_sums)
        for instruction in block:
            own = (instruction.scope,) if instruction.scope else ()
            scopes = own or _joined([sources[instruction.name], uses[instruction.name]])
            called = _called(instruction) if instruction.opcode in _CALLERS else []
            inside = (
                [sources.get(operand, ()) for operand in instruction.operands],
                scopes,
                [sums.get(operand, False) for operand in instruction.operands],
                calls,
            )
            if instruction.opcode == "conditional":
                branches = [list(self._work(name, times, *inside)) for name in called]
                yield from max(branches, key=lambda work: sum(item.flops for item in work))
                continue
            turns = times * self._turns(instruction)
            for name in called:
                yield from self._work(name, turns, *inside)
            if _is_opaque(instruction):
                shapes = tuple(result.shape for result in instruction.types)
                calls.append(CustomCall(scopes, _target(instruction), shapes, times))
                continue
            came_from = own or uses[instruction.name]
            flops, is_matmul = self._count(instruction, types, sums, came_from)
            if flops:
                yield Work(scopes, flops * times, is_matmul)

    def _turns(self, instruction: _Instruction) -> int:
        """The number of turns of a loop; 1 where that is not known, and for all else.

        Where the compiler does not say, as for TPUs, the loop's condition may: JAX's loops of known
        length count from 0, while below it.
        """
        if instruction.opcode != "while":
            return 1
        if known := _TRIPS.search(instruction.attributes):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", instruction.attributes)[1]
        block = {instruction.name: instruction for instruction in self._computations[condition]}
        *_, root = block.values()
        if root.opcode == "compare" and "direction=LT" in root.attributes:
            counter, bound = (block[operand] for operand in root.operands)
            if (counter.opcode, bound.opcode) == ("get-tuple-element", "constant"):
                return int(bound.operands[0])
        return 1

    def _sums(self, computation: str, passed: Sequence[bool]) -> dict[str, bool]:
        """Tells which values of a computation are sums of products already, of a part at least.

        `passed` says so of the caller's arguments.
        """
        sums: dict[str, bool] = {}
        for instruction in self._computations[computation]:
            operands = [sums.get(operand, False) for operand in instruction.operands]
            is_sum = instruction.opcode in _SUMS or _is_gemm(instruction)
            if instruction.opcode == "parameter":
                number = int(instruction.operands[0])
                is_sum = number < len(passed) and passed[number]
            elif instruction.opcode in _VIEWS:
                is_sum = any(operands)
            elif instruction.opcode == "fusion":
                (fused,) = _called(instruction)
                is_sum = list(self._sums(fused, operands).values())[-1]
            sums[instruction.name] = is_sum
        return sums

    def _count(
        self,
        instruction: _Instruction,
        types: Mapping[str, tuple[_Type, ...]],
        sums: Mapping[str, bool],
        scopes: Scopes,
    ) -> tuple[int, bool]:
        """FLOPs of one instruction, run once, and whether they are a matrix product's.

        XLA, and on a CPU `attention.products`, make products of few rows a multiplication and a
        reduction, of several products at once where they share a row: they count as the products
        that they are, at the reduction. One that adds up the parts of a product that was split
        along its inner axis is no product again.
        """
        result = instruction.types[0]
        if instruction.opcode == "dot" or _is_gemm(instruction):
            shape = types[instruction.operands[0]][0].shape
            contracted = re.findall(r"\d+", _CONTRACTED.search(instruction.attributes)[1])
            return 2 * result.elements * math.prod(shape[int(axis)] for axis in contracted), True
        if instruction.opcode == "convolution":
            shapes = [types[operand][0].shape for operand in instruction.operands[:2]]
            return _convolution(instruction, *shapes), True
        if instruction.opcode == "custom-call":
            return 0, True
        if result.dtype not in _FLOATS:
            return 0, False
        is_matmul = bool(scopes) and all(map(_MATMUL_SOURCE.search, scopes))
        if instruction.opcode in ("reduce", "reduce-window"):
            is_matmul = is_matmul and not sums.get(instruction.operands[0], False)
            reduced = instruction.operands[: len(instruction.operands) // 2]
            elements = sum(types[name][0].elements for name in reduced)
            return (1 + is_matmul) * elements, is_matmul
        if instruction.opcode not in _ARITHMETIC or (
            is_matmul and instruction.opcode == "multiply"
        ):
            return 0, False
        return result.elements, False


def _whole_lines(text: str) -> Iterator[str]:
    """Lines with an instruction each; those of a TPU's kernels break lines in attributes."""
    whole = ""
    for line in text.splitlines():
        if line[:1] not in ('"', "}") or line == "}":
            yield whole
            whole = ""
        whole += line
    yield whole


def _target(instruction: _Instruction) -> str:
    """The target of a custom call."""
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return target[1] if target else ""


def _is_gemm(instruction: _Instruction) -> bool:
    return instruction.opcode == "custom-call" and _target(instruction).startswith(_GEMMS)


def _is_opaque(instruction: _Instruction) -> bool:
    """Tells whether a custom call computes something that the HLO does not show."""
    if instruction.opcode != "custom-call" or _is_gemm(instruction):
        return False
    moves_data = r"(?i)bitcast|alloc|sharding|gather\w*indices|topk|sort|annotate|custom-barrier"
    return not re.search(moves_data, _target(instruction))


def _parse(name: str, rest: str) -> _Instruction:
    """An instruction from what follows its `name = `: type, opcode, operands, attributes."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    types = tuple(
        _Type(dtype, tuple(int(n) for n in axes.split(",") if n))
        for dtype, axes in _ARRAY.findall(rest[:end])
    )
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    opcode = rest[end:opening].strip()
    inside = rest[opening + 1 : closing]
    operands = (inside,) if opcode in ("parameter", "constant") else tuple(_NAME.findall(inside))
    return _Instruction(name, types, opcode, operands, rest[closing + 1 :])


def _scopes(
    block: list[_Instruction], passed: Sequence[Scopes], caller: Scopes
) -> tuple[dict[str, Scopes], dict[str, Scopes]]:
    """Tells where each instruction of a computation came from, and where its result goes.

    `passed` says it of the caller's arguments, `caller` of the caller.
    """
    sources: dict[str, Scopes] = {}
    for instruction in block:
        scopes: Scopes = ()
        if instruction.scope:
            scopes = (instruction.scope,)
        elif instruction.opcode == "parameter":
            number = int(instruction.operands[0])
            scopes = passed[number] if number < len(passed) else ()
        elif instruction.opcode not in _BUNDLES:
            scopes = _joined(sources.get(operand, ()) for operand in instruction.operands)
        sources[instruction.name] = scopes
    uses: dict[str, list[Scopes]] = collections.defaultdict(list)
    for instruction in reversed(block):
        if instruction.opcode in _BUNDLES:
            continue
        own = (instruction.scope,) if instruction.scope else _joined(uses[instruction.name])
        for operand in instruction.operands:
            uses[operand].append(own)
    return sources, {
        instruction.name: _joined(uses[instruction.name]) or caller for instruction in block
    }


def _joined(scopes: Iterable[Scopes]) -> Scopes:
    """All scopes, each once, in order."""
    return tuple(dict.fromkeys(scope for several in scopes for scope in several))


def _closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"a parenthesis does not close: {text[:80]}")


def _called(instruction: _Instruction) -> list[str]:
    """Computations that an instruction runs, each once a turn."""
    names = []
    for name, branches in _CALLED.findall(instruction.attributes):
        names += [name] if name else [branch.strip().lstrip("%") for branch in branches.split(",")]
    return names


def _bytes(dtype: str) -> int:
    """Bytes of an element: `pred` has one, `bf16` two."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


def _convolution(instruction: _Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> int:
    """FLOPs of a convolution, without those that fall on padding or dilation.

    XLA's TPU compiler writes matrix products this way, batch axes as spatial ones, so that most of
    a window's positions fall on nothing.
    """
    inputs, kernel, outputs = re.search(
        r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes
    ).groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(item.split("=") for item in window[1].split()) if window else {}
    result = instruction.types[0].shape
    total = 2 * rhs[kernel.index("i")]
    total *= math.prod(result[axis] for axis, label in enumerate(outputs) if label.isalpha())
    for label in filter(str.isdigit, outputs):

        def field(key: str, default: str, axis: int = int(label)) -> str:
            return fields[key].split("x")[axis] if key in fields else default

        stride, dilation = int(field("stride", "1")), int(field("lhs_dilate", "1"))
        kernel_dilation = int(field("rhs_dilate", "1"))
        padding = int(field("pad", "0_0").split("_")[0])
        size = lhs[inputs.index(label)]
        places = (
            out * stride - padding + k * kernel_dilation
            for out in range(result[outputs.index(label)])
            for k in range(rhs[kernel.index(label)])
        )
        # Pairs of output and kernel positions along this axis that meet an input.
        total *= sum(place % dilation == 0 and 0 <= place // dilation < size for place in places)
    return total
