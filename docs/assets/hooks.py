"""What the site adds to Markdown: equations as MathML, which browsers draw by themselves, and the commands' own help."""

from __future__ import annotations

import html
import re
from typing import Any

import typer
from latex2mathml.converter import convert

from pinchpoint.cli import app

COMMANDS = "<!-- commands -->"
_EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\(|\\\[)(?P<tex>.*?)(?:\\\)|\\\])</(?P=tag)>', re.DOTALL
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The placeholder becomes one section a command."""
    return markdown.replace(COMMANDS, commands()) if COMMANDS in markdown else markdown


def on_page_content(content: str, **_: Any) -> str:
    """TeX between dollars becomes MathML."""
    return _EQUATION.sub(_equation, content)


def _equation(found: re.Match[str]) -> str:
    block = found["tag"] == "div"
    tex = html.unescape(found["tex"]).strip()
    drawn = convert(tex, display="block" if block else "inline")
    return f'<div class="equation" tabindex="0">{drawn}</div>' if block else drawn


def commands() -> str:
    """Every command with its usage, arguments and options, as Markdown."""
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="pinchpoint")
    return "\n".join(_sections(group, context))


def _sections(group: Any, context: Any) -> list[str]:
    lines = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            lines += _sections(command, inner)
        else:
            lines += _section(command, inner)
    return lines


def _section(command: Any, context: Any) -> list[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {context.command_path}", "", "```console", f"$ {usage}", "```", "", _plain(command.help or ""), ""]
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in record[0]:
            rows.append(f"| {_code(record[0])} | {_cell(record[1])} |")
    return [*lines, "| argument or option | what it is |", "| --- | --- |", *rows, ""] if rows else lines


def _plain(text: str) -> str:
    """Help as Markdown: rich's bold is kept, everything else is shown as it is."""
    bold = re.sub(r"\[bold\](.*?)\[/bold\]", r"**\1**", text, flags=re.DOTALL).replace("\\[", "[")
    return html.escape(bold, quote=False).replace("[", r"\[").replace(".*", r".\*")


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", r"\|")


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("|", r"\|") + "`"
