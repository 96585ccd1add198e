"""The nearest valid name, for every message about a wrong one."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


def suggest(word: str, names: Iterable[str]) -> str:
    """Say "; did you mean X?" with the name nearest to `word`, or what its section has, if any.

    Dotted keys: the same last part anywhere (`ratio`: `mask.ratio`), then a similar one in the same
    section (`mask.ratoi`), then anywhere (`maks.ratoi`).
    """
    section, _, last = word.rpartition(".")
    parts: dict[str, list[str]] = {}
    for name in sorted(names):
        parts.setdefault(name.rpartition(".")[2], []).append(name)
    siblings = [part for part in parts if f"{section}.{part}".lstrip(".") in parts[part]]
    near = [last] if last in parts else get_close_matches(last, siblings, 1)
    # What a section has says more than a distant likeness elsewhere.
    near = near or get_close_matches(last, parts, len(parts) or 1, 0.8 if siblings else 0.6)
    best = get_close_matches(word, [name for part in near for name in parts[part]], 1, 0)
    if best:
        return f"; did you mean {best[0]}?"
    return f"; {section} has {', '.join(siblings)}" if section and siblings else ""


def quoted(text: str) -> str:
    """`text` as Hydra's grammar reads it back, whatever characters it holds."""
    if re.fullmatch(r"/[A-Za-z0-9_./-]+", text):
        return text
    # Backslashes count only before a quote, the end's too, and before an interpolation.
    escaped = re.sub(r'(\\*)("|\$\{|$)', lambda m: m[1] * 2 + (m[2] and "\\" + m[2]), text)
    return f'"{escaped}"'
