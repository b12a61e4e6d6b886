"""Bits that say what they mean: what the flags of pixels, stars, fluxes and sources share."""

from __future__ import annotations

import enum
from typing import Self

__all__ = ["DescribedFlag"]


class DescribedFlag(enum.IntFlag):
    """Bits with a sentence each: a member is declared as its value and its meaning."""

    _sentence: str

    def __new__(cls, value: int, sentence: str) -> Self:
        flag = int.__new__(cls, value)
        flag._value_ = value
        flag._sentence = sentence
        return flag

    @property
    def meaning(self) -> str:
        """The sentence that goes into headers and tables, of a single bit."""
        return self._sentence
