"""What an exercise is: a question, a stub, seeded cases, the package's own answer, and the mistakes a tutor knows.

One file of `labkit/check/exercises` holds one exercise, written with four decorators::

    task = Exercise(lesson="01_attention", reference=dense.scaled_dot_product, axes=("batch", "query", "d"),
                    hints=("...", "..."))

    @task.stub
    def attention(q, k, v):
        return torch.zeros(*q.shape[:-1], v.shape[-1])  # your code here

    @task.cases
    def cases(dice): yield normal(dice, 1, 2, 3), ...

    @task.mistake("You divided by d, not by its root: compare the entropy of row 0.")
    def divided_by_d(q, k, v): ...

`task(fn)` judges an answer and returns a `Verdict`; `task.hint(1)` and `task.hint(2)` say a little more each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from labkit.errors import LabkitError

if TYPE_CHECKING:
    from labkit.check.verdict import Verdict

Answer = Callable[..., Any]
SEED = 0


@dataclass(frozen=True)
class Mistake:
    answer: Answer
    says: str


def call(fn: Answer, *arguments: Any) -> Any:
    return fn(*arguments)


@dataclass
class Exercise:
    """`observe(fn, *arguments)` is what is compared, where that is more than the result: a gradient, an order."""

    lesson: str
    reference: Answer
    hints: tuple[str, str]
    axes: tuple[str, ...] = ()  # names of the result's axes
    parts: tuple[str, ...] = ()  # names of the results, when there are several
    tolerance: float = 1e-4
    praise: str = ""  # what has been won, said behind "Right."
    source: str = ""  # where labkit does it; found from the reference when it is not named
    observe: Callable[..., Any] = call
    mistakes: list[Mistake] = field(default_factory=list, init=False)
    name: str = field(default="", init=False)
    placeholder: Answer = field(default=call, init=False)
    make: Callable[[torch.Generator], Iterable[tuple[Any, ...]]] = field(default=lambda dice: (), init=False)

    def stub(self, placeholder: Answer) -> Answer:
        """The function as the learner finds it: right-shaped, empty, its docstring the question."""
        self.placeholder = placeholder
        self.name = placeholder.__name__
        self.source = self.source or f"{self.reference.__module__}.{self.reference.__qualname__}"
        return placeholder

    def cases(self, make: Callable[[torch.Generator], Iterable[tuple[Any, ...]]]) -> Callable[..., Any]:
        """Arguments, the smallest first."""
        self.make = make
        return make

    def mistake(self, says: str) -> Callable[[Answer], Answer]:
        def note(answer: Answer) -> Answer:
            self.mistakes.append(Mistake(answer, says))
            return answer

        return note

    @property
    def prompt(self) -> str:
        return inspect.getdoc(self.placeholder) or ""

    @property
    def parameters(self) -> list[str]:
        return list(inspect.signature(self.placeholder).parameters)

    def arguments(self) -> list[tuple[Any, ...]]:
        """The cases, made anew: whoever changes them changes nobody else's."""
        return list(self.make(torch.Generator().manual_seed(SEED)))

    def hint(self, number: int) -> str:
        if number not in (1, 2):
            raise LabkitError(f"{self.name} has hint 1 and hint 2; there is no hint {number}.")
        return self.hints[number - 1]

    def __call__(self, fn: Any) -> Verdict:
        from labkit.check.judge import judge

        return judge(self, fn)

    def __repr__(self) -> str:
        return f"labkit.check.{self.name}({', '.join(self.parameters)}), lesson {self.lesson}: {self.prompt}"


def normal(dice: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=dice)


def uniform(dice: torch.Generator, *shape: int) -> torch.Tensor:
    """Positive numbers below one."""
    return torch.rand(*shape, generator=dice)
