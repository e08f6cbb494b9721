"""What the text claims: a function writes nothing, and raises ClaimError where the numbers say otherwise."""

from __future__ import annotations

from numbers_text import find_pair, value
from pairs import Record, sign, turns


class ClaimError(ValueError):
    """The text claims what the numbers do not say."""


def claim(is_true: bool, text: str) -> str:
    if not is_true:
        raise ClaimError(f"the text says that {text}, and the numbers do not; mend paper.md.in")
    return ""


def ahead(results: Record, section: str, panel: str, first: str, second: str, *axes: str) -> str:
    gains = find_pair(results, section, panel, first, second)["gains"]
    return "".join(claim(sign(gains[a]) == 1, f"{first} lead {second} over {a} ({panel})") for a in axes)


def behind(results: Record, section: str, panel: str, first: str, second: str, *axes: str) -> str:
    gains = find_pair(results, section, panel, first, second)["gains"]
    return "".join(claim(sign(gains[a]) == -1, f"{first} trail {second} over {a} ({panel})") for a in axes)


def undecided(results: Record, section: str, panel: str, first: str, second: str, *axes: str) -> str:
    gains = find_pair(results, section, panel, first, second)["gains"]
    text = f"{first} and {second} cannot be told apart over"
    return "".join(claim(bool(gains[a]) and sign(gains[a]) == 0, f"{text} {a} ({panel})") for a in axes)


def apart(results: Record, section: str, panel: str, first: str, second: str, *axes: str) -> str:
    gains = find_pair(results, section, panel, first, second)["gains"]
    return "".join(claim(not gains[a], f"{first} and {second} share no {a} ({panel})") for a in axes)


def turned(results: Record, section: str, first: str, second: str, *panels: str) -> str:
    """Claim that exactly these panels turn."""
    of_pair = [p for p in results[section]["pairs"] if (p["first"], p["second"]) == (first, second)]
    turning = [pair["panel"] for pair in of_pair if turns(pair)]
    return claim(
        sorted(turning) == sorted(panels), f"{first} and {second} turn in {panels}, not in {turning}"
    )


def holds(results: Record, path: str, relation: str, bound: str) -> str:
    """Claim that the number at a path is below, above or equal to a bound."""
    number = float(value(results, path, ".12g"))
    relations = {"<": number < float(bound), ">": number > float(bound), "=": number == float(bound)}
    return claim(relations[relation], f"{path} {relation} {bound} (it is {number:g})")


def alike(results: Record, section: str, first: str, second: str, *excepted: str) -> str:
    """Claim that no axis shows a difference of two methods in any panel, but for those excepted."""
    pairs = [p for p in results[section]["pairs"] if (p["first"], p["second"]) == (first, second)]
    signs = [sign(g) for pair in pairs if pair["panel"] not in excepted for g in pair["gains"].values()]
    return claim(bool(signs) and not any(signs), f"{first} and {second} differ nowhere else")


def unmoved(results: Record, section: str, name: str) -> str:
    """Claim that no gain of this name survives the correction."""
    moved = [r for r in results[section] if sign(r[name])]
    return claim(not moved, f"no {name} of {section} differs from 0")
