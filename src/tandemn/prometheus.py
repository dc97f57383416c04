"""What Prometheus reads (text format 0.0.4), line by line. Pure."""

from __future__ import annotations

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def family(name: str, kind: str, text: str) -> tuple[str, str]:
    """What stands before a family's samples."""
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def sample(name: str, value: float | str, **labels: str) -> str:
    """One sample; a value that is text is written as it is."""
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{told}}} {_number(value)}" if told else f"{name} {_number(value)}"


def _number(value: float | str) -> str:
    return str(value) if isinstance(value, (int, str)) else f"{value:.6g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
