"""Files of `labkit.save` with something wrong in them: torn or spoiled files, pickles, tensors of another model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file

import labkit
from labkit import paths
from labkit.audit.subject import subject
from tests.hostile import Cases
from tests.hostile.words import WORDS


def weights(folder: Path, count: int) -> Cases:
    whole = (paths.CHECKPOINTS / "digits-vit.safetensors").read_bytes()
    state = labkit.load("digits-vit").state_dict()
    told = {"architecture": json.dumps(labkit.zoo.card("digits-vit")["architecture"])}
    for seed in range(count):
        dice, file = random.Random(seed), folder / f"weights{seed}.safetensors"
        kind = seed % 6
        if kind == 0:
            file.write_bytes(whole[: dice.randrange(len(whole))])
        elif kind == 1:
            spoiled = bytearray(whole)
            for _ in range(dice.choice([1, 5, 50])):
                spoiled[dice.randrange(3000)] = dice.randrange(256)
            file.write_bytes(spoiled)
        elif kind == 2:
            torch.save(dict(state), file)
        else:
            wrong = dict(state)
            key = dice.choice(sorted(wrong))
            if kind == 3:
                wrong.pop(key)
            elif kind == 4:
                wrong[key] = torch.full_like(wrong[key], dice.choice([float("nan"), float("inf")]))
            else:
                wrong[key] = torch.zeros(dice.randrange(5), dice.randrange(5))
            extra = dice.choice([told, None, {"architecture": dice.choice(WORDS)}, {"architecture": '{"dim": -3}'}])
            save_file(wrong, file, extra)
        yield lambda file=file: subject(str(file), images=str(paths.DATA / "images"), limit=2)
