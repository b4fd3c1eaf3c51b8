"""Every exercise, and every mistake it names: does the check say that mistake's own sentence?"""

from __future__ import annotations

import sys

from labkit import check
from labkit.check.judge import examine
from labkit.notebook import table


def main() -> int:
    rows, mistakes, all_caught, missed = [], 0, 0, 0
    for exercise in sorted(map(check.find, check.NAMES), key=lambda task: (task.lesson, task.name)):
        caught = sum(examine(exercise, mistake.answer).says == mistake.says for mistake in exercise.mistakes)
        right, empty = examine(exercise, exercise.reference), examine(exercise, exercise.placeholder)
        mistakes, all_caught = mistakes + len(exercise.mistakes), all_caught + caught
        missed += len(exercise.mistakes) - caught + (not right) + (empty.word != "not started yet")
        cases = len(exercise.arguments())
        rows.append([exercise.lesson, exercise.name, cases, len(exercise.mistakes), caught, right.word, empty.word])
    print(table(rows, ["lesson", "exercise", "cases", "mistakes", "caught", "reference", "placeholder"]))
    print(f"\n{len(rows)} exercises, {mistakes} named mistakes, {all_caught} caught by their own sentence.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
