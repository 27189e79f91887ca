"""The kept table of categories against Python's own."""

from __future__ import annotations

import unicodedata

from localmoe.text.unicode_class import COLLAPSE, LETTER, MARK, NUMBER, OTHER, PUNCTUATION, SPACE, SYMBOL

CLASS = {"L": LETTER, "N": NUMBER, "P": PUNCTUATION, "M": MARK, "S": SYMBOL}


def test_categories_agree_with_unicodedata_where_both_know_a_character() -> None:
    """The versions of Unicode may differ in which characters exist, not in what one is."""
    unknown = 0
    for code in range(128, 0x110000, 1 if unicodedata.unidata_version.startswith("15.1") else 3):
        char = chr(code)
        kept = COLLAPSE[code]
        if char.isspace() and not 0x1C <= code <= 0x1F:
            assert kept == SPACE
        elif unicodedata.category(char) == "Cn" or kept == OTHER:
            unknown += unicodedata.category(char)[0] in CLASS
        else:
            assert kept == CLASS.get(unicodedata.category(char)[0], OTHER), hex(code)
    assert unknown < 6000


def test_versions_of_unicode() -> None:
    assert COLLAPSE[0x2EBF0] == LETTER  # CJK extension I, Unicode 15.1
    assert COLLAPSE[0x0897] == OTHER  # Arabic pepet, Unicode 16
    assert COLLAPSE[0x41] == "A"
    assert COLLAPSE[0x3000] == SPACE
