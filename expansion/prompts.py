"""Prompts: a template with the class name in it."""

from __future__ import annotations

from expansion.config import require


def class_prompt(template: str, class_name: str) -> str:
    """`template` with {} replaced by the class name; braces in the name are kept as they are."""
    require(
        template.count("{}") == 1,
        f"prompt template {template!r}: write {{}} once, where the class name goes",
    )
    return template.replace("{}", class_name)
