"""Names of a package that are imported when they are first used: options are read, and `--help` answers, before torch is imported."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: dict[str, str], extra: str = "") -> Callable[[str], Any]:
    """The `__getattr__` (PEP 562) of a package.

    modules: name -> the package's module that has it, or that it is. extra: what installs the packages that these modules need.
    """

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(f"{package}.{modules[name]}")
        except ModuleNotFoundError as error:
            if not extra:
                raise
            message = f'No module named {error.name.partition(".")[0]!r}: pip install -e ".[{extra}]"'
            raise ModuleNotFoundError(message, name=error.name) from error
        return module if name == modules[name] else getattr(module, name)

    return __getattr__
