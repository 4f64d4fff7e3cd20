"""Op rules as einops-like lines.

``"*n (g i) *s, (g o) i *k, (g o) -> *n (g o) *t"`` says of conv2d's input, weight, bias and output
which dims are one: a letter is a dim, equal letters are the same dim, parentheses are a row-major
product whose first factors have known sizes, a star stands for any number of dims. A letter that
only inputs bear is summed over where ``contracts`` names it, else it is fixed; a letter that only
the output bears is a new constant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from nestify.dims import Const, Expr, product, tag
from nestify.rules.call import Call, Dims

WINDOW = "slides over this dim"
_BY_POSITION = "{} reads this dim by position"
_TOKEN = re.compile(r"\(([\w ]+)\)|(\*?\w+)")
_RANKED = ("*s", "*k", "*t")


@dataclass(frozen=True, slots=True)
class Line:
    """A rule line with the facts that letters alone do not carry.

    ``args``: names of the tensor arguments, in the order of the operands (``a|b``: whichever the
    overload has; an absent tensor is skipped); ``sizes``: letter -> argument that holds its size;
    ``literals``: argument -> letters whose sizes it spells out; ``contracts``, ``fixes``,
    ``normalises``, ``macs``: letters, blank-separated; ``paths``: the letter of the groups and the
    letter of a group's width; ``rank``: how many dims ``*s``, ``*k``, ``*t`` stand for, if fixed.
    """

    text: str
    args: tuple[str, ...]
    sizes: Mapping[str, str] = field(default_factory=dict[str, str])
    literals: Mapping[str, str] = field(default_factory=dict[str, str])
    contracts: str = ""
    fixes: str = ""
    normalises: str = ""
    macs: str = ""
    paths: str = ""
    rank: int = 0

    def __call__(self, call: Call) -> None:
        """Run the line as the rule of ``call``."""
        _apply(self, call)


@cache
def parse(text: str) -> tuple[list[list[tuple[str, ...]]], list[tuple[str, ...]]]:
    """Split a line into operands and output; a token is a tuple of letters.

    >>> parse("(g i) *s, o -> o *s")
    ([[('g', 'i'), ('*s',)], [('o',)]], [('o',), ('*s',)])

    Raises:
        ValueError: something in the line is no token.
    """
    inputs, arrow, output = text.partition("->")
    if not arrow:
        raise ValueError(f"rule line {text!r} has no ->")
    return [_tokens(part, text) for part in inputs.split(",")], _tokens(output, text)


def _tokens(text: str, line: str) -> list[tuple[str, ...]]:
    left = _TOKEN.sub("", text).strip()
    if left:
        raise ValueError(f"rule line {line!r}: {left!r} is no letter, *letter or (product)")
    return [tuple((group or single).split()) for group, single in _TOKEN.findall(text)]


class _Match:
    """Letters bound to expressions while one line is matched against one call."""

    def __init__(self, line: Line, call: Call) -> None:
        self.line = line
        self.call = call
        self.bound: dict[str, Expr] = {}
        self.stars: dict[str, Dims] = {}

    def operand(self, names: str, tokens: list[tuple[str, ...]]) -> None:
        name = next((n for n in names.split("|") if n in self.call.args), names)
        dims = self.call.dims(name)
        if dims is None:
            return
        widths = self.widths(tokens, len(dims))
        position = 0
        for token in tokens:
            if token[0].startswith("*"):
                self.star(token[0], dims[position : position + widths[token[0]]])
                position += widths[token[0]]
                continue
            self.token(token, dims[position])
            if any(letter in self.line.contracts.split() for letter in token):
                self.call.contract(name, position)
            position += 1

    def widths(self, tokens: list[tuple[str, ...]], rank: int) -> dict[str, int]:
        """How many dims each star stands for: as many as it is bound to, else what is left over."""
        stars = [token[0] for token in tokens if token[0].startswith("*")]
        known = {star: self.line.rank for star in stars if self.line.rank and star in _RANKED}
        known |= {star: len(self.stars[star]) for star in stars if star in self.stars}
        left = rank - (len(tokens) - len(stars)) - sum(known.values())
        free = [star for star in stars if star not in known]
        if left < 0 or len(free) != bool(free) or (left and not free):
            raise ValueError(f"{self.line.text!r} does not fit a tensor of {rank} dims")
        return known | dict.fromkeys(free, left)

    def star(self, name: str, dims: Dims) -> None:
        for mine, other in zip(self.stars.setdefault(name, dims), dims, strict=True):
            self.call.unify(mine, other)

    def token(self, letters: tuple[str, ...], expr: Expr) -> None:
        for letter in letters[:-1]:
            size = self.size(letter)
            if size is None:  # the one letter of unknown size takes what the others leave
                size = expr.size
                for other in letters[letters.index(letter) + 1 :]:
                    size //= self.size(other) or 1
            head, expr = self.call.factor(expr, size)
            self.bind(letter, head)
        self.bind(letters[-1], expr)

    def size(self, letter: str) -> int | None:
        if letter in self.line.sizes:
            return int(self.call.args[self.line.sizes[letter]])
        return self.bound[letter].size if letter in self.bound else None

    def bind(self, letter: str, expr: Expr) -> None:
        if letter in self.bound:
            self.call.unify(self.bound[letter], expr)
        else:
            self.bound[letter] = expr

    def exprs(self, letters: str) -> list[Expr]:
        found: list[Expr] = []
        for letter in letters.split():
            found.extend(self.stars.get(letter, ()) if letter[0] == "*" else [self.bound[letter]])
        return found


def _apply(line: Line, call: Call) -> None:
    inputs, output = parse(line.text)
    match = _Match(line, call)
    for name, tokens in zip(line.args, inputs, strict=True):
        match.operand(name, tokens)
    _fix_consumed(line, match, {letter for token in output for letter in token})
    call.give(_output(match, output))
    if line.paths:
        group, width = match.exprs(line.paths)
        if width.size > 1:  # else depthwise: the groups are the channels
            tag(group, "path")
    for arg, letters in line.literals.items():
        call.literals[arg] = match.exprs(letters)[0]
    call.normalised.extend(match.exprs(line.normalises))
    if line.macs:
        call.macs.append(tuple(match.exprs(line.macs)))


def _fix_consumed(line: Line, match: _Match, kept: set[str]) -> None:
    """Fix the letters that the op neither passes on nor sums over: it reads them by position."""
    contracts, fixes = line.contracts.split(), line.fixes.split()
    for letter, expr in match.bound.items():
        if letter in fixes or (letter not in kept and letter not in contracts):
            match.call.fix(expr, _BY_POSITION.format(match.call.op))
    for name, exprs in match.stars.items():
        if name not in kept:
            for expr in exprs:
                match.call.fix(expr, WINDOW, "window" if name == "*k" else "positions")


def _output(match: _Match, tokens: list[tuple[str, ...]]) -> Dims:
    shape = match.call.out_shape
    widths = match.widths(tokens, len(shape))
    out: list[Expr] = []
    for token in tokens:
        if token[0].startswith("*"):
            new = shape[len(out) : len(out) + widths[token[0]]]
            out.extend(match.stars.setdefault(token[0], tuple(Const(n) for n in new)))
            continue
        for letter in token:
            if letter not in match.bound:
                match.bound[letter] = match.call.constant(
                    shape[len(out)], _BY_POSITION.format(match.call.op)
                )
        out.append(product(match.bound[letter] for letter in token))
    return tuple(out)
