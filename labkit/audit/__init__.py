"""The audit: point it at a ViT and at images, and read what tokens and bits it could give up, and what that is worth.

    found = labkit.audit.subject("deit_small_patch16_224", weights="my.safetensors", images="photos")
    labkit.audit.what.measure(found)          # one section; each is a dict that goes into audit.json as it is

`labkit report audit` runs all sections through papermill and writes one page.
"""

from labkit.audit.subject import Subject, subject

__all__ = ["Subject", "subject"]
