"""How ``--help`` shows a setting: its docstring as running text, its default as a shell spells it.

Loaded with the app, so it imports what draws a page only when one is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions


def shown_default(value: Any) -> str | None:
    """A default as it would be typed; None for one that says nothing (off, empty, unset).

    >>> shown_default(("noai", "noml"))
    'noai,noml'
    """
    if value is None or value is False or value == "" or value == ():
        return None
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class HelpPage:
    """Draws a help page as cyclopts does, after making its texts fit for a screen."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Draw one box.

        Docstrings are wrapped for the source: their lines are joined, to be wrapped for the screen.
        How to switch off what is off is left out.
        """
        from cyclopts.help import DefaultFormatter

        entries = []
        for entry in panel.entries:
            text = getattr(entry.description, "primary_renderable", None)
            if text is not None:
                text.plain = " ".join(text.plain.replace("``", "`").split())
            entries.append(entry if entry.default else entry.copy(negative_names=()))
        DefaultFormatter()(console, options, panel.copy(entries=entries))

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Draw the first line."""
        from cyclopts.help import DefaultFormatter

        DefaultFormatter().render_usage(console, options, usage)
