"""What every dial is turned to: patches, mixing, tokens and bits, as one recipe that fits into a JSON file.

As it stands, without a choice, a stack is the plain model, logit for logit. In which order the dials are turned is
`labkit.stack.build`.

    stack = Stack(reducer="merge", keep=0.5, where="1, 2", weights=8, activations=8, backend="int8")
    quick = stack.build(labkit.load("shapes-vit"), calibration=images)
    stack.to_json("mine.json")              # names and values that `labkit report lesson ... --parameters` takes
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from labkit import choices, cost, quant
from labkit.errors import LabkitError, closest
from labkit.quant.recipe import Backend, Clip, Fold, Softmax
from labkit.stack.build import build
from labkit.stack.reduce import ATTENTION, Reduction
from labkit.stack.swap import Mixing
from labkit.vit import ViT

FLOAT = 32  # this many bits leave numbers as they are
Sight = Literal["stack", "whole"]
CHOICES = {"mixer": Mixing, "reducer": Reduction, "per": Literal["channel", "tensor"], "clip": Clip, "fold": Fold}
CHOICES |= {"softmax": Softmax, "backend": Backend, "calibrate": Sight}


@dataclass(frozen=True)
class Stack:
    """Blocks are counted from 0 and written "0, 1". Bits are 2 to 16, or 32 for floats.

    All values are words and numbers, so that a stack is a JSON object, and the parameters of a lesson.
    """

    patch: int = 0  # side of a patch in pixels; 0: the model's own
    mixer: Mixing = "dense"
    mixed: str = ""  # the blocks that mix so
    reducer: Reduction = "none"  # `labkit.stack.reduce` says what each is; "random" drops patches by dice
    keep: float = 1.0  # share of the patches that is left behind the last of the blocks in `where`
    where: str = ""  # the blocks that reduce, each by the same share; "entry" is in front of the first
    weights: int = FLOAT
    activations: int = FLOAT
    attention: int = FLOAT  # queries, keys, probabilities, values
    per: Literal["channel", "tensor"] = "channel"
    clip: Clip = "min_max"
    fold: Fold = "none"
    softmax: Softmax = "uniform"
    backend: Backend = "simulate"
    calibrate: Sight = "stack"  # where grids lie is read from the reduced model, or from the whole one
    seed: int = 0  # of the dice

    def __post_init__(self) -> None:
        for field in fields(self):
            choices.check_kind(field.name, getattr(self, field.name), field.default)
        for name, kind in CHOICES.items():
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise LabkitError(
                    f"{name}={value!r} is unknown; choose one of {', '.join(known)}.{closest(value, known)}"
                )
        self._check_ranges()
        self._check_pairs(self.mixers, self.reducers)
        self.recipe()  # says what is wrong with the bits

    def _check_ranges(self) -> None:
        if self.patch < 0 or self.seed < 0:
            raise LabkitError(f"patch={self.patch}, seed={self.seed}; expected 0 or more.")
        if not 0 < self.keep <= 1:
            raise LabkitError(f"keep={self.keep} is not a share; expected a number above 0 and at most 1.")

    def _check_pairs(self, mixers: tuple[int, ...], reducers: tuple[int, ...]) -> None:
        """Choices that have no effect, or that exclude each other: nobody should measure what was not done."""
        mixes, reduces = self.mixer != "dense", self.reducer != "none"
        for dial, told, name in (("mixer", mixes, "mixed"), ("reducer", reduces, "where")):
            if told != bool(getattr(self, name)):
                raise LabkitError(
                    f'{dial}="{getattr(self, dial)}" and {name}="{getattr(self, name)}"; '
                    "give a dial and its blocks together, or neither."
                )
        if self.keep < 1 and not reduces:
            raise LabkitError(f"keep={self.keep} needs a reducer; choose one of {', '.join(get_args(Reduction)[1:])}.")
        if -1 in reducers and self.reducer in ATTENTION:
            raise LabkitError(f'In front of the first block nobody attends yet; "{self.reducer}" works from 0 on.')
        if mixes and reduces and mixers[-1] > reducers[0]:
            raise LabkitError(
                f'The "{self.mixer}" mixing of block {mixers[-1]} needs all patches in their places, and they are '
                f"reduced before ({self.where}); mix so in earlier blocks, or reduce in later ones."
            )
        if mixes and self.attention != FLOAT:
            raise LabkitError(f'attention={self.attention} and mixer="{self.mixer}": other mixings multiply in float.')

    @property
    def mixers(self) -> tuple[int, ...]:
        """The blocks in `mixed`."""
        return _numbers("mixed", self.mixed)

    @property
    def reducers(self) -> tuple[int, ...]:
        """The blocks in `where`; -1 is the entry."""
        entry, comma, rest = self.where.partition(",")
        if entry.strip() != "entry":
            return _numbers("where", self.where)
        return -1, *(_numbers("where", rest) if comma else ())

    @property
    def rounds(self) -> bool:
        return (self.weights, self.activations, self.attention) != (FLOAT,) * 3

    def recipe(self) -> quant.Recipe:
        """What `labkit.quant` is told."""
        numbers = (self.weights, self.activations, self.attention)
        weights, activations, attention = (None if bits == FLOAT else bits for bits in numbers)
        how: dict[str, Any] = {name: getattr(self, name) for name in ("per", "clip", "fold", "softmax")}
        return quant.Recipe(weights, activations, attention, **how)

    def build(self, model: ViT, calibration: Tensor | None = None) -> ViT:
        """A copy of the model with all dials turned; `calibration` images say where the grids of rounded inputs lie."""
        return build(self, model, calibration)

    def cost(self, model: ViT, calibration: Tensor | None = None) -> cost.Cost:
        """MACs and bytes of the built model, counted."""
        return cost.count(self.build(model, calibration))

    def describe(self) -> str:
        """Every choice that is not the default, dial by dial."""
        told = [f"{self.patch}-pixel patches"] if self.patch else []
        told += [f"{self.mixer} mixing {_words(self.mixers)}"] if self.mixed else []
        told += [f"{self.reducer} to {self.keep:.0%} {_words(self.reducers)}"] if self.where else []
        if self.rounds:
            seen = "" if self.calibrate == "stack" else " · grids of the whole model"
            told.append(f"{self.recipe().describe()}{seen} · {self.backend}")
        return "; ".join(told) or "the plain model"

    def choices(self) -> dict[str, Any]:
        """Names and values, as JSON and as parameters of a lesson."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_json(self, path: str | Path) -> None:
        choices.write(path, self.choices())

    @classmethod
    def from_json(cls, path: str | Path) -> Stack:
        return cls(**choices.read(path, {field.name: field.default for field in fields(cls)}))


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """The blocks that a text like "0, 1" names."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    blocks = [int(part) for part in parts if part.isdecimal()]
    if len(blocks) < len(parts) or blocks != sorted(set(blocks)):
        raise LabkitError(f'{name}="{text}" names no blocks; expected numbers from 0 on, rising, each once, as "0, 1".')
    return tuple(blocks)


def _words(blocks: tuple[int, ...]) -> str:
    later = [block for block in blocks if block >= 0]
    told = ["at the entry"] if -1 in blocks else []
    numbers = ", ".join(map(str, later))
    if len(later) > 2 and later[-1] - later[0] == len(later) - 1:
        numbers = f"{later[0]} to {later[-1]}"
    return " and ".join([*told, *([f"in block{'s' * (len(later) > 1)} {numbers}"] if later else [])])
