"""The base of whatever watches torch's operators: a dispatch mode that leaves torch's compiler alone."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Subclasses define `__torch_dispatch__`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its whole compiler at the first operation, for seconds and tens of megabytes."""
        return False
