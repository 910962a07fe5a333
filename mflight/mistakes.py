"""A user's mistake ends a command with one sentence and exit status 2; ``MFLIGHT_DEBUG=1`` shows where.

A mistake is what the command was asked or given: a ValueError, an OSError, a :class:`Mistake`, a config that
Hydra refuses. Anything else is a fault of the program and keeps its traceback. No torch: generators import
this too.
"""

import os
import re
import sys
import sysconfig
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

EXIT_STATUS = 2
DEBUG_VARIABLE = "MFLIGHT_DEBUG"


class Mistake(RuntimeError):  # noqa: N818
    """What a command cannot do although each value keeps its rule; raise it where no built-in type fits."""


_MISTAKES = (ValueError, OSError, Mistake, HydraException, OmegaConfBaseException)
_IN_A_CONSTRUCTOR = (*_MISTAKES, TypeError, ImportError)  # what a config asked for and cannot be had
_NOISE = re.compile(
    r"^\s*(full_key|object_type|reference_type)\b.*$|^\s*See https://hydra.*$|^Config search path:(.|\n)*",
    re.MULTILINE,
)
_REFERENCE = re.compile(r"\$\{([\w./]+)\}")

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class MistakeExit(SystemExit):
    """Ends the process with status 2; its text is the sentence, which has been printed."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = EXIT_STATUS


def tells_mistakes(command: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Decorate the ``main`` of a command; around ``hydra.main`` it tells Hydra's own errors too.

    Args:
        command: what may raise a mistake.

    Returns:
        The same, ending with :class:`MistakeExit` in place of a traceback.
    """

    @wraps(command)
    def told(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets its errors pass, and prints no traceback
        try:
            return command(*args, **kwargs)
        except Exception as error:
            if not is_to_be_told(error):
                raise
            config = next((each for each in args if isinstance(each, DictConfig)), None)
            sentence = tell(error, config)
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        raise MistakeExit(sentence)

    return told


def tell(error: BaseException, config: DictConfig | None = None) -> str:
    """Say in one line what is wrong.

    Args:
        error: a mistake; of one that Hydra wraps, the cause speaks.
        config: tells which key a constructor's argument was read from.

    Returns:
        The sentence.

    Example:
        >>> tell(FileNotFoundError(2, "No such file or directory", "pool"))
        'pool: No such file or directory'
    """
    cause, place = _unwrap(error)
    if isinstance(cause, ValidationError):
        return "; ".join(_tell_value(each, place, config) for each in cause.errors())
    if isinstance(cause, OSError) and cause.strerror and cause.filename is not None:
        text = f"{cause.filename}: {cause.strerror}"
    else:
        text = str(cause) or type(cause).__name__
    if isinstance(cause, OverrideParseException):
        text = f"{cause.override} cannot be read: {text}"
    if isinstance(cause, HydraException) and isinstance(cause.__cause__, OmegaConfBaseException):
        text = f"{text.splitlines()[0]} {cause.__cause__}"
    if isinstance(cause, TypeError | ImportError) and place:
        text = f"{place}: {text}"
    sentence = " ".join(_NOISE.sub("", text).split())
    return sentence if _is_ours(cause) else f"{sentence} ({DEBUG_VARIABLE}=1 shows where)"


def is_to_be_told(error: BaseException) -> bool:
    """Tell whether an error is a mistake, and nobody wants to see where it was raised."""
    if os.environ.get(DEBUG_VARIABLE) == "1":
        return False
    cause, _ = _unwrap(error)
    return isinstance(cause, _MISTAKES if cause is error else _IN_A_CONSTRUCTOR)


def _unwrap(error: BaseException) -> tuple[BaseException, str]:
    """Return what a constructor raised, and the key of its node in the config."""
    place = ""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        found = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
        place = found.group(1) if found else place
        error = error.__cause__
    return error, place


def _tell_value(error: Any, place: str, config: DictConfig | None) -> str:
    """Say which rule a value breaks, with the key that the user can set."""
    name = ".".join(str(part) for part in error["loc"])
    rule = error["msg"].removeprefix("Value error, ")
    return f"{_key_of(place, name, config)} is refused: {rule}, got {error['input']!r}"


def _key_of(place: str, name: str, config: DictConfig | None) -> str:
    if not place:
        return name
    node = None if config is None else OmegaConf.select(config, place)
    written = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
    reference = _REFERENCE.fullmatch(str(written.get(name, "")))
    own = node._get_full_key(None) if isinstance(node, DictConfig) else place  # where it is written
    return reference.group(1) if reference else f"{own}.{name}"


def _is_ours(error: BaseException) -> bool:
    """Tell whether the sentence was written for a user: by mflight, or about a file or the config."""
    if isinstance(error, OSError | HydraException | OmegaConfBaseException):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_globals.get("__name__", "").startswith("mflight"):
        return True
    libraries = {str(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "purelib", "platlib")}
    return not str(Path(trace.tb_frame.f_code.co_filename).resolve()).startswith(tuple(libraries))
