"""
Read a logging configuration file: YAML, in whose texts ``$SETTING`` stands for a setting.

`read_configuration` is all I/O there is; what it returns goes through
`runlog.configuration.overrides` to `runlog.configuration.installing`.

Settings are put into keys and values after the YAML is parsed, one scalar at a
time, so that a format with quotes, a Windows path or a colon can never change
the structure of the file. A scalar without quotes then gets the type of what
stands there: ``propagate: $NAME`` is true if the setting is. Comments are not
looked at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from runlog.exceptions import LoggingConfigError
from runlog.settings.catalog import by_name, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from runlog.settings import Settings

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast if PyYAML was built with libyaml; both give the same."""

_OPEN, _CLOSE = "\U00100000", "\U00100001"
"""
What stands for ``${`` and ``}`` while the YAML is parsed.

Without quotes, braces would begin a mapping inside ``[...]``. The two are
characters for private use, which no configuration has.
"""

_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_BRACED = re.compile(rf"\$\$|\$\{{({_NAME})\}}")
_REFERENCE = re.compile(rf"\$\$|\$({_NAME})|{_OPEN}({_NAME}){_CLOSE}|\$")


def read_configuration(path: Path, settings: Settings) -> dict[str, Any]:
    """
    Return what a file says, with settings in their places.

    Args:
        path: A YAML file in UTF-8 whose top is a mapping.
        settings: Where ``$NAME`` and ``${NAME}`` are looked up. A setting that
            is not set is replaced by nothing. ``$$`` is a dollar sign.

    Raises:
        LoggingConfigError: If the file cannot be read, is not such a file, has
            a key twice, or names a setting that does not exist or is a secret.
    """
    return _Reader(str(path), settings).read(_text_of(path))


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        why, remedy = f"byte {error.start} is not UTF-8", "save it as UTF-8"
    except IsADirectoryError:
        why, remedy = "it is a directory", "name the file in it"
    except OSError as error:
        why, remedy = (error.strerror or str(error)), "correct PREFECT_LOGGING_CONFIG_PATH, or unset it"
    raise LoggingConfigError(
        f"the logging configuration cannot be read: {why}",
        file=str(path),
        expected="a YAML file",
        remedy=remedy,
    )


class _Reader:
    """Turns the text of one file into a mapping. `file` is for messages."""

    def __init__(self, file: str, settings: Settings) -> None:
        self._file = file
        self._settings = settings

    def read(self, text: str) -> dict[str, Any]:
        """Parse *text*; see `read_configuration`."""
        marked = _BRACED.sub(lambda match: f"{_OPEN}{match[1]}{_CLOSE}" if match[1] else match[0], text)
        try:
            return self._parse(marked)
        except LoggingConfigError:
            raise
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
            raise self._not_yaml(error) from None

    def _parse(self, marked: str) -> dict[str, Any]:
        loader = _Loader(marked)
        try:
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                kind = "empty" if node is None else f"a {node.id}"
                raise LoggingConfigError(
                    f"the logging configuration is {kind}, expected a mapping",
                    file=self._file,
                    expected="a mapping",
                    got=kind,
                    remedy="it begins with: version: 1",
                )
            self._visit(node, loader, set())
            found: dict[str, Any] = loader.construct_document(node)
        finally:
            loader.dispose()
        return found

    def _not_yaml(self, error: Exception) -> LoggingConfigError:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        problem = problem.replace(_OPEN, "${").replace(_CLOSE, "}")
        return LoggingConfigError(
            f"this is not YAML: {problem}",
            file=f"{self._file}:{mark.line + 1}" if mark else self._file,
            expected="YAML",
            remedy="put quotes around a value with : # { [ % @ or ` in it, and indent with spaces"
            if mark
            else None,
        )

    def _visit(self, node: yaml.Node, loader: Any, seen: set[int]) -> None:
        """Substitute in a node and all below it, in place, and look for keys that are given twice."""
        if id(node) in seen:  # an alias of what was visited
            return
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            value = _REFERENCE.sub(lambda match: self._replacement(match, node), node.value)
            if value != node.value:
                node.value = value
                if not node.style:  # without quotes: what it is depends on what it says
                    node.tag = loader.resolve(yaml.ScalarNode, value, (True, False))
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._visit(item, loader, seen)
        else:
            lines: dict[str, int] = {}
            for key, value in node.value:
                self._visit(key, loader, seen)
                self._visit(value, loader, seen)
                if isinstance(key, yaml.ScalarNode):
                    self._check_unique(key, lines)

    def _check_unique(self, key: yaml.ScalarNode, lines: dict[str, int]) -> None:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise LoggingConfigError(
                f"the key {key.value!r} is given twice, here and on line {lines[key.value]}",
                key=key.value,
                file=f"{self._file}:{line}",
                remedy="remove one of the two",
            )
        lines[key.value] = line

    def _replacement(self, match: re.Match[str], node: yaml.ScalarNode) -> str:
        """Return what stands for a reference in the text of *node*."""
        if match[0] == "$$":
            return "$"
        name = match[1] or match[2]
        if name is None:
            problem, remedy = (
                "a lone $, expected the name of a setting after it",
                "write $$ for a dollar sign",
            )
        elif (info := by_name().get(name)) is None:
            near = nearest(name, by_name())
            problem = f"${name} is no setting"
            literally = f"write $${name} for the text itself"
            remedy = f"did you mean ${near}? If not, {literally}" if near else literally
        elif info.holds_credentials(self._settings):
            problem = f"${name} is a secret, which is never put into a logging configuration"
            remedy = "remove it: runlog's handlers read it themselves"
        else:
            return info.text(self._settings) or ""
        line = node.start_mark.line + 1 + match.string.count("\n", 0, match.start())
        if node.style in ("|", ">"):  # the text begins on the line after its mark
            line += 1
        raise LoggingConfigError(
            problem, key=name, file=f"{self._file}:{line}", got=f"${name or ''}", remedy=remedy
        )
