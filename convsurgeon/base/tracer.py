"""A tracer of torch.fx that leaves other threads alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

_LOCK = threading.RLock()


class ThreadTracer(fx.Tracer):
    """Traces what its own thread runs; other threads may call any module meanwhile.

    While torch.fx traces, `nn.Module.__call__` and `__getattr__` are replaced for the whole process. Two traces at once
    would put back each other's replacements, so they wait for one another.
    """

    _thread = 0

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a module; one thread at a time."""
        with _LOCK:
            self._thread = threading.get_ident()
            try:
                return super().trace(root, concrete_args)
            finally:
                self._autowrap_function_ids.clear()  # or a late call of another thread would replace math functions
                # a circle of torch's holds the tracer: with the model in it the weights would stay until Python looks
                self.root, self.submodule_paths, self.tensor_attrs = nn.Module(), {}, {}

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a proxy of a parameter to its own thread, the parameter itself to others."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a call of a module; run it where another thread calls it."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return self.call_own_module(m, forward, args, kwargs)

    def call_own_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a call of a module by the tracer's own thread."""
        return super().call_module(m, forward, args, kwargs)
