"""`python -m labkit.explain.judge`: the table of all methods and controls on the shapes, whose masks are the truth.

As an attribute of the package, `labkit.explain.judge` is the function of that name; this file is only the command.
"""

from __future__ import annotations

import sys

from labkit import data, results, zoo
from labkit.cli import Parser
from labkit.errors import LabkitError
from labkit.explain.methods import METHODS
from labkit.explain.trial import trial


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m labkit.explain.judge", description="Which explanation deserves trust?")
    parser.add_argument("--images", type=int, default=100, help="how many test images (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the test images (default: 0)")
    parser.add_argument("--model", default="shapes-vit", help="a model that reads shapes (default: shapes-vit)")
    parser.add_argument("--save", action="store_true", help="keep the table as data/results/judge-MODEL.json")
    args = parser.parse_args(arguments)
    model = zoo.load(args.model)
    if not args.model.startswith("shapes-"):
        raise LabkitError(f'"{args.model}" does not read shapes, and their masks are the truth here; take shapes-vit.')
    shown = data.shapes("test", args.images, seed=args.seed)
    assert shown.masks is not None
    right = zoo.accuracy(model, shown)["accuracy"]
    print(f"{args.model} on {len(shown)} test images of shapes with seed {args.seed}: {right:.1%} are named right.")
    print("Explained is the class that the model names, right or wrong; no image is left out.\n", flush=True)
    scores = trial(model, shown.images, shown.masks, METHODS, progress=True)
    print(scores)
    if args.save:
        summary = {name: {m: score._asdict() for m, score in row.items()} for name, row in scores.summary.items()}
        results.save(
            f"judge-{args.model}",
            {"images": len(shown), "accuracy": right, "scores": summary, "seconds": scores.seconds},
            command=f"python -m labkit.explain.judge --images {args.images} --model {args.model} --save",
            seed=args.seed,
            interval="95 % Wilson for pointing, 95 % bootstrap over images otherwise",
        )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LabkitError as error:
        sys.exit(f"labkit: {error}")
