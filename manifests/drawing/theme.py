"""The colours of all drawings and pages, for light and for dark screens."""

from __future__ import annotations

INK, SOFT, LINE, PAPER, WARN = "#1c2420", "#56615b", "#d7ddd8", "#fbfcfa", "#8a4b12"
SERIES = ("#2f7d4f", "#b4691f", "#4a6fa5", "#a0527a", "#6d7a1f", "#3b8a94", "#7a6a5a")
_DARK = {
    INK: "#e7ece8", SOFT: "#a3aea7", LINE: "#343c37", PAPER: "#151917", WARN: "#e3b26a",
    **dict(zip(SERIES, ("#58b27f", "#dcae57", "#7fa3d8", "#d084ac", "#b3c05a", "#6cc0ca", "#b8a794"), strict=True)),
}  # fmt: skip
NAMES = {
    INK: "ink", SOFT: "soft", LINE: "line", PAPER: "back", WARN: "warn",
    **{colour: f"series-{at}" for at, colour in enumerate(SERIES)},
}  # fmt: skip


def theme_css() -> str:
    """Return the colours as CSS variables, those for a dark screen included; paper is always light."""

    def block(colours: dict[str, str]) -> str:
        return " ".join(f"--{NAMES[light]}: {shown};" for light, shown in colours.items())

    light = block({colour: colour for colour in NAMES})
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {block(_DARK)} }} }}\n"
    )
