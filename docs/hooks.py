"""
Render the reference pages that are made from code, when mkdocs builds the site.

A page says where with a comment, ``<!-- generated: settings -->``; what stands
around the comment is written by hand. Settings come from
`runlog.settings.iter_settings`, commands from the click command tree, and the
packaged ``logging.yml`` and the changelog are quoted as they are. A comment
that names nothing known stops the build, so that no page is silently empty.

``tests/test_docs.py`` calls the same functions, so the pages are checked
without building the site.
"""

from __future__ import annotations

import html
import importlib.resources
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runlog.settings import SettingInfo

ROOT = Path(__file__).resolve().parent.parent

_MARKER = re.compile(r"^<!-- generated: (?P<what>[\w. -]+?) -->$", re.MULTILINE)
_RFC = re.compile(r":rfc:<code>(\d+)</code>")
_PEP = re.compile(r":pep:<code>(\d+)</code>")


def on_page_markdown(markdown: str, **_kwargs: Any) -> str:
    """Replace each marker of a page; mkdocs calls this with every page's source."""
    return _MARKER.sub(lambda match: GENERATORS[match["what"]](), markdown)


def on_page_content(content: str, **_kwargs: Any) -> str:
    """
    Render what docstrings have of reStructuredText; mkdocs calls this with every page's HTML.

    Docstrings are read in editors, too, where Sphinx's ``::`` and ``:rfc:`` are what people know.
    """
    content = content.replace("<p>::</p>", "").replace("::</p>", ":</p>")
    content = _RFC.sub(r'<a href="https://www.rfc-editor.org/rfc/rfc\1">RFC \1</a>', content)
    return _PEP.sub(
        lambda found: f'<a href="https://peps.python.org/pep-{found[1]:0>4}/">PEP {found[1]}</a>', content
    )


def settings_markdown() -> str:
    """All settings, grouped by their block, each under a heading of its own name."""
    from runlog.settings import iter_settings  # noqa: PLC0415 - pydantic is slow, and half of the tests need no settings

    blocks: dict[str, list[SettingInfo]] = {}
    for info in iter_settings():
        blocks.setdefault(".".join(info.path[:-1]), []).append(info)
    parts: list[str] = []
    for block, infos in blocks.items():
        parts.append(f"## `settings.{block}`" if block else "## `settings`")
        parts.extend(_setting_markdown(info) for info in infos)
    return "\n\n".join(parts)


def _setting_markdown(info: SettingInfo) -> str:
    facts = [
        ("value", info.type_text),
        ("default", f"`{info.default}`" if info.default else "none"),
        ("in code", f"`settings.{'.'.join(info.path)}`"),
    ]
    if info.aliases:
        facts.append(("also read from", ", ".join(f"`{alias}`" for alias in info.aliases)))
    if info.secret:
        facts.append(("secret", "never shown, logged or carried to another process"))
    rows = "\n".join(f"- {name}: {text}" for name, text in facts)
    return f"### `{info.name}` {{: #{info.name} }}\n\n{info.description}\n\n{rows}"


def commands_markdown() -> str:
    """Each command with its help, usage and options, in the order of the command tree."""
    return "\n\n".join(_command_markdown(path, command) for path, command in iter_commands())


def iter_commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command as its full name, such as ``runlog server start``, and its click object."""
    from runlog.cli.app import cli  # noqa: PLC0415 - the same as in settings_markdown

    def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=path)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None and not child.hidden:
                    yield from walk(f"{path} {name}", child)

    return walk("runlog", cli)


def _command_markdown(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
    text = inspect.cleandoc(command.help or command.short_help or "").replace("\b\n", "")
    usage = command.get_usage(context).removeprefix("Usage: ")
    parts = [f"## `{path}` {{: #{path.replace(' ', '-')} }}", text, f"```text\n{usage}\n```"]
    options = [record for param in command.params if (record := param.get_help_record(context))]
    if options:
        rows = [f"| <code>{_cell(names)}</code> | {_cell(meaning)} |" for names, meaning in options]
        parts.append("\n".join(["| option | meaning |", "| --- | --- |", *rows]))
    return "\n\n".join(part for part in parts if part)


def _cell(text: str) -> str:
    """Write text such that neither a table nor Markdown reads anything into it."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[|\[\]*_`\\]", lambda found: f"&#{ord(found[0])};", text)


def logging_yml_markdown() -> str:
    """Quote the packaged ``logging.yml``."""
    text = importlib.resources.files("runlog").joinpath("logging.yml").read_text(encoding="utf-8")
    return f"```yaml\n{text.rstrip()}\n```"


def changelog_markdown() -> str:
    """Quote the changelog without its title, which the page has itself."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2].strip()


GENERATORS: dict[str, Callable[[], str]] = {
    "settings": settings_markdown,
    "commands": commands_markdown,
    "logging.yml": logging_yml_markdown,
    "changelog": changelog_markdown,
}
"""What a marker may name, and who renders it."""
