"""
Put a logging configuration in force, touching nothing that it does not name.

Takes a checked mapping in the form of `logging.config.dictConfig`, after
substitution and overrides, and does what `dictConfig` does, except for what
would harm others in the same process. `dictConfig` closes every handler there
is, takes the handlers off the children of the loggers that it names, enables
what was disabled on purpose, and loses lines that other threads log meanwhile.
Here:

- everything is built before anything is changed, so that a mistake changes nothing;
- a logger's handlers are exchanged in one step;
- only handlers of an earlier installation are closed;
- handlers that the program added to ``runlog`` loggers stay.

An `Installation` is what one call put in force. Not thread-safe: the caller
holds a lock.
"""

from __future__ import annotations

import copy
import logging
import logging.config
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runlog.configuration.checking import ROOT, sections_of_loggers
from runlog.configuration.overrides import show_path
from runlog.exceptions import LoggingConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

EXTRA = "runlog.extra"
"""The logger whose handlers the extra loggers get."""


@dataclass(frozen=True)
class Installation:
    """
    What one call put in force.

    Args:
        config: The configuration, from `checked`.
        extra_loggers: Loggers that got the handlers of `EXTRA`.
        handlers: What was built, by name; also what no logger has, but another handler.
        attached: The handlers that each logger got.
        filters: The filters that each logger got.
    """

    config: dict[str, Any]
    extra_loggers: tuple[str, ...]
    handlers: dict[str, logging.Handler]
    attached: dict[str, list[logging.Handler]] = field(default_factory=dict)
    filters: dict[str, list[Any]] = field(default_factory=dict)

    def is_intact(self, name: str | None = None) -> bool:
        """Say whether all handlers, or those of one logger, are still where they were put."""
        return all(
            handler in logging.getLogger(logger).handlers
            for logger, handlers in self.attached.items()
            if name is None or name == logger
            for handler in handlers
        )

    def differs_in_levels_only(self, config: dict[str, Any], extra_loggers: tuple[str, ...]) -> bool:
        """Say whether a configuration needs no other handlers than those that are there."""
        same_extra = self.extra_loggers == extra_loggers
        return same_extra and _without_levels(self.config) == _without_levels(config)

    def all_handlers(self) -> list[logging.Handler]:
        """Return each handler once, also those that were taken over from an earlier installation."""
        attached = [handler for handlers in self.attached.values() for handler in handlers]
        return list({id(handler): handler for handler in (*self.handlers.values(), *attached)}.values())


def _without_levels(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without what can be changed in place."""
    bare = copy.deepcopy(config)
    for section in bare.get("handlers", {}).values():
        section.pop("level", None)
    for _, section in sections_of_loggers(bare):
        section.pop("level", None)
        section.pop("propagate", None)
    return bare


def is_ours(name: str) -> bool:
    """Say whether a logger is runlog's."""
    return name == "runlog" or name.startswith("runlog.")


# --- building -------------------------------------------------------------------------------------


class _Builder(logging.config.DictConfigurator):
    """Makes formatters, filters and handlers as `dictConfig` does, and nothing else."""

    def __init__(self, config: dict[str, Any], file: str) -> None:
        super().__init__(config)
        self._file = file

    def build(self) -> dict[str, logging.Handler]:
        """
        Return the handlers by name.

        Raises:
            LoggingConfigError: If something cannot be made; then nothing is left behind.
        """
        for group, make in (("formatters", self.configure_formatter), ("filters", self.configure_filter)):
            objects = self.config[group]
            for name in list(objects):
                try:
                    objects[name] = make(objects[name])
                except Exception as error:  # whatever a class of the user's raises
                    raise self._cannot(group, name, error) from error
        handlers = self.config["handlers"]
        made: dict[str, logging.Handler] = {}
        try:
            # One that refers to another comes after it; two rounds, as in `dictConfig`.
            for last_round in (False, True):
                for name in sorted(handlers.keys() - made.keys()):
                    handler = self._make_handler(name, last_round=last_round)
                    if handler is not None:
                        handlers[name] = made[name] = handler
        except LoggingConfigError:
            close(made.values())
            raise
        return made

    def _make_handler(self, name: str, *, last_round: bool) -> logging.Handler | None:
        try:
            handler: logging.Handler = self.configure_handler(self.config["handlers"][name])
        except Exception as error:  # whatever a class of the user's raises
            if not last_round and "not configured yet" in f"{error} {error.__cause__}":
                return None
            raise self._cannot("handlers", name, error) from error
        return handler

    def _cannot(self, group: str, name: str, error: Exception) -> LoggingConfigError:
        """`dictConfig` wraps errors in errors: the innermost says what is wrong."""
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        key = show_path((group, name))
        why = " ".join(str(cause).split()) or "no reason given"
        return LoggingConfigError(
            f"{key} cannot be made: {type(cause).__name__}: {why}", key=key, file=self._file, got=why
        )


# --- installing -----------------------------------------------------------------------------------


def install(
    config: dict[str, Any],
    file: str,
    former: Installation | None = None,
    *,
    extra_loggers: tuple[str, ...] = (),
    ours_only: bool = False,
) -> Installation:
    """
    Put a whole configuration in force.

    Args:
        config: From `checked`; without ``root`` the root logger is not touched.
        file: Where it was read, for messages.
        former: What this replaces; handlers of it that are not used any more are closed.
        extra_loggers: Loggers that get the handlers of `EXTRA`; a line reaches
            each of these handlers once, also if a parent has it as well.
        ours_only: Leave other loggers than runlog's as they are; *config* names none.

    Raises:
        LoggingConfigError: If something cannot be made; then nothing is changed.
    """
    builder = _Builder(copy.deepcopy(config), file)
    new = Installation(config, extra_loggers, builder.build())
    sections = dict(sections_of_loggers(config))
    for name, section in sections.items():
        new.attached[name] = [new.handlers[handler] for handler in section.get("handlers", ())]
        new.filters[name] = [builder.config["filters"][filter_] for filter_ in section.get("filters", ())]
    _add_extra_loggers(new, extra_loggers)
    former = former or Installation({}, (), {})
    for name in {*new.attached, *former.attached}:
        if ours_only and not is_ours(name):
            new.attached[name], new.filters[name] = former.attached[name], former.filters.get(name, [])
        else:
            replaces = "handlers" in sections.get(name, ()) and name != ROOT and not is_ours(name)
            _exchange(name, new, former, replaces=replaces)
    for name, section in sections.items():
        _set_levels(logging.getLogger(name), section)
        logging.getLogger(name).disabled = False
    if config.get("disable_existing_loggers", False) and not ours_only:
        _disable_others(new)
    used = new.all_handlers()
    close(handler for handler in former.all_handlers() if handler not in used)
    for name, handler in new.handlers.items():
        handler.name = name  # last, because a handler that is closed frees the name, whoever has it by then
    return new


def _add_extra_loggers(new: Installation, names: tuple[str, ...]) -> None:
    extra = new.attached.get(EXTRA, [])
    for name in sorted({ROOT if name == "root" else name for name in names}):  # parents come first
        own = new.attached.setdefault(name, [])
        own += [handler for handler in extra if handler not in own and not _inherits(name, handler, new)]
        for other in [other for other in new.attached if other != name]:
            new.attached[other] = [
                handler
                for handler in new.attached[other]
                if handler not in extra or handler not in own or not _inherits(other, handler, new)
            ]


def _inherits(name: str, handler: logging.Handler, new: Installation) -> bool:
    """Say whether a line of a logger reaches a handler at one of the logger's parents."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        propagates = new.config["loggers"].get(logger.name, {}).get("propagate", logger.propagate)
        logger = logger.parent if propagates else None
        if logger is not None and handler in new.attached.get(
            ROOT if logger is logging.root else logger.name, ()
        ):
            return True
    return False


def _exchange(name: str, new: Installation, former: Installation | None, *, replaces: bool) -> None:
    """Give a logger its new handlers and filters for the former ones, or for all that it has."""
    logger = logging.getLogger(name)
    old = former.attached.get(name, []) if former else []
    own = new.attached.get(name, [])
    kept = [] if replaces else [handler for handler in logger.handlers if handler not in old]
    # In one step, so that a line that is logged meanwhile reaches the former or the new.
    logger.handlers = kept + own
    old_filters = former.filters.get(name, []) if former else []
    kept_filters = [filter_ for filter_ in logger.filters if filter_ not in old_filters]
    logger.filters = kept_filters + new.filters.get(name, [])


def _set_levels(logger: logging.Logger, section: dict[str, Any]) -> None:
    if "level" in section:
        logger.setLevel(section["level"])
    if "propagate" in section and logger is not logging.root:
        logger.propagate = section["propagate"]


def _disable_others(new: Installation) -> None:
    """Do what the file asks for with ``disable_existing_loggers: true``; runlog's own loggers stay."""
    named = [name for name in new.attached if name]
    for name, logger in list(logging.root.manager.loggerDict.items()):
        is_child = any(name == other or name.startswith(other + ".") for other in named)
        if isinstance(logger, logging.Logger) and not is_child and not is_ours(name):
            logger.disabled = True


def adjust(config: dict[str, Any], installation: Installation) -> None:
    """
    Change levels and propagation in place, and nothing else: what `dictConfig` calls incremental.

    Args:
        config: From `checked`. Its handlers must all be of the installation.
        installation: What is in force.

    Raises:
        ValueError: If a handler is not there; then nothing is changed.
    """
    missing = config["handlers"].keys() - installation.handlers.keys()
    if missing:
        raise ValueError(f"no handler is named {', '.join(sorted(missing))}")
    for name, section in config["handlers"].items():
        if "level" in section:
            installation.handlers[name].setLevel(section["level"])
    for name, section in sections_of_loggers(config):
        _set_levels(logging.getLogger(name), section)


def close(handlers: Iterable[logging.Handler]) -> None:
    """Flush and close handlers; one that fails does not keep the others from it."""
    for handler in handlers:
        try:
            handler.flush()
            handler.close()
        except Exception:  # its stream may be closed already, and it is thrown away anyway
            logging.getLogger("runlog.configuration").debug("cannot close %r", handler, exc_info=True)
