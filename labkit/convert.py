"""From timm and back: a plain timm `VisionTransformer` becomes our `ViT` with the same weights and logits.

Every part of the timm model is rebuilt from our own blocks (`labkit.timm_parts`); one that has no counterpart
is refused by name. The weights need no translation, because our parameters carry timm's names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from labkit import files, timm_parts
from labkit.errors import LabkitError, closest
from labkit.vit import ViT


def from_timm(
    model: str | nn.Module, pretrained: bool = False, weights: str | Path | None = None, **timm_kwargs: Any
) -> ViT:
    """Our ViT with the weights and the logits of a plain timm model, given by its name or as an instance.

    With a name come timm's own arguments (`num_classes=10`, `img_size=384`) and its published weights
    (`pretrained=True`, fetched once) or those in a file (`weights="file.safetensors"`), with a new head when
    another number of classes is asked for. dtype, device and the train or eval mode are timm's. Dropout stays
    behind: it changes nothing in eval mode. Feed the result what you would feed timm: images normalised with
    the mean and std that its weights were trained with.
    """
    if isinstance(model, str):
        name, model = model, create(model, pretrained, weights, timm_kwargs)
    elif pretrained or weights is not None or timm_kwargs:
        raise LabkitError("The model is built already; weights and timm's arguments go with a name.")
    else:
        name = "This model"
    try:
        with torch.device("meta"):  # shapes only: every tensor comes from timm
            vit = timm_parts.vit(model)
        _take_weights(vit, model)
    except LabkitError as reason:
        raise LabkitError(f"{name} is not a plain ViT: {reason}") from None
    return vit.train(model.training)


def to_timm_state_dict(vit: ViT) -> dict[str, Tensor]:
    """The weights under timm's names, for `load_state_dict` of a timm model of the same measures.

    Mind the norms of a model that was born here: torch's LayerNorm, our default, has eps=1e-5, timm's 1e-6;
    its twin is a `VisionTransformer(…, norm_layer=partial(nn.LayerNorm, eps=1e-5))`.
    """
    for name, module in vit.named_modules():
        odd = None if type(module) in timm_parts.PLAIN else f"{name or 'a model'}, {type(module).__name__}"
        if getattr(module, "reducer", None) is not None:
            odd = f"the token reducer of {name}"
        if odd:
            raise LabkitError(f"timm's VisionTransformer has no place for {odd}; write back a plain model.")
    return dict(vit.state_dict())


def _take_weights(vit: ViT, model: nn.Module) -> None:
    """Copy every tensor; one that is missing on either side or has another shape is a refusal."""
    ours, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (vit, model))
    for name in {**theirs, **ours}:
        here, there = (tuple(side[name].shape) if name in side else None for side in (ours, theirs))
        if here != there:
            raise LabkitError(f"its {name} is {there}, here it would be {here}; {timm_parts.WOULD_WORK}")
    vit.load_state_dict({name: t.detach().clone() for name, t in theirs.items()}, assign=True)


# --- a timm model by its name -------------------------------------------------------------------------------
def create(name: str, pretrained: bool, weights: str | Path | None, timm_kwargs: dict[str, Any]) -> nn.Module:
    import timm

    arch = name.partition(".")[0]
    if not timm.is_model(arch):
        hint = closest(arch, timm.list_models())
        raise LabkitError(f'timm knows no model "{name}".{hint} timm.list_models() gives all names.')
    if "checkpoint_path" in timm_kwargs:
        raise LabkitError('timm would read checkpoint_path as a pickle; use weights="file.safetensors".')
    file = _local(Path(weights)) if weights is not None else _published(name) if pretrained else None
    overlay: dict[str, Any] = {}
    if file is not None:
        # With a "file", timm looks nowhere else; it adapts the weights to other classes, channels and sizes.
        overlay = {"file": str(file), "custom_load": False}
        if (classes := _classes(file)) is not None:
            # Without this, timm drops a head whose classes are not as many as the published one's, silently.
            overlay["num_classes"] = classes
            timm_kwargs = {"num_classes": classes, **timm_kwargs}
    try:
        return timm.create_model(name, file is not None, pretrained_cfg_overlay=overlay or None, **timm_kwargs)
    except Exception as error:  # timm asserts, and passes on what torch and safetensors raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise LabkitError(f"timm cannot build {name} like this: {why[:300]}") from error


def _local(file: Path) -> Path:
    if file.suffix != ".safetensors":
        raise LabkitError(
            f"{file.name} is not a .safetensors file, and loading a pickle runs whatever code is inside it; "
            "convert it where you trust it: safetensors.torch.save_file(state_dict, path)."
        )
    files.check_readable(file, "weights file", "give the path of a .safetensors file")
    return file


def _classes(file: Path) -> int | None:
    try:
        with safe_open(file, "pt") as tensors:
            has_head = "head.weight" in tensors.keys()  # noqa: SIM118
            return tensors.get_slice("head.weight").get_shape()[0] if has_head else None
    except SafetensorError as error:
        raise LabkitError(f"{file.name} is not a readable safetensors file ({error}); fetch it again.") from error


def _published(name: str) -> Path:
    """The published weights, from the local cache or, unless LABKIT_OFFLINE=1, from the network."""
    import timm
    from huggingface_hub import hf_hub_download

    cfg = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    if cfg is None or not cfg.hf_hub_id:
        hint = closest(name, timm.list_pretrained(name.partition(".")[0] + ".*"))
        raise LabkitError(
            f'No weights are published for "{name}".{hint} Use pretrained=False or weights="x.safetensors".'
        )
    offline = os.environ.get("LABKIT_OFFLINE", "0") not in ("", "0")
    try:
        return Path(hf_hub_download(cfg.hf_hub_id, "model.safetensors", local_files_only=offline))
    except (OSError, ValueError) as error:
        why = "LABKIT_OFFLINE forbids a download" if offline else f"cannot be fetched ({type(error).__name__})"
        raise LabkitError(
            f"The weights of {name} are not on this machine and {why}; fetch model.safetensors of "
            f'{cfg.hf_hub_id} where there is a network, and use weights="model.safetensors".'
        ) from error
