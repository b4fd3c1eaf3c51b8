"""Draw the ten images of data/images: `python tools/make_images.py [NAME ...]`, a quarter of an hour on one core."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from PIL import Image

from scenes import balloons, cat, city, daisies, fruit, goldfish, ladybird, lighthouse, mountains, mug
from scenes.render import render

MODULES = (cat, goldfish, ladybird, daisies, fruit, mug, balloons, mountains, lighthouse, city)
SCENES = {module.__name__.split(".")[-1]: module.scene for module in MODULES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SCENES), metavar="NAME", help=", ".join(SCENES))
    parser.add_argument("--size", type=int, default=256, help="pixels on a side")
    parser.add_argument("--rays", type=int, help="rays for each pixel, instead of the scene's own number")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "data" / "images")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SCENES):
        parser.error(f"there is no scene {', '.join(sorted(unknown))}; choose from {', '.join(SCENES)}")
    for name in options.names:
        start = time.process_time()
        scene = SCENES[name]()
        scene.rays = options.rays or scene.rays
        picture = Image.fromarray(render(scene, options.size))
        picture.save(options.out / f"{name}.jpg", quality=90)
        print(f"{name}: {time.process_time() - start:.0f} s")


if __name__ == "__main__":
    main()
