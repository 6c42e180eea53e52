"""Which encoding a file of logs is in: told by its mark, by fitting UTF-8, or guessed, and then only plausibly.

Nearly any bytes fit GB 18030: a table that a German spreadsheet wrote in Latin-1 does, and reads as rare Han characters.
So what fits is taken for Chinese only if it looks like Chinese: hardly any character outside the 3,755 of GB 2312's
first level, and many of those that every Chinese text repeats.
Source: GB/T 2312-1980, level 1; character frequencies of modern Chinese (Jun Da, 2004).
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from corpora.reasons import Unusable

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What an uploader may name, when the guess is wrong or none is made: Python's codecs, each with its name for people.
NAMED: dict[str, str | Promise] = {
    "utf-8": "UTF-8",
    "utf-16-le": "UTF-16 LE",
    "utf-16-be": "UTF-16 BE",
    "gb18030": _("GB 18030 / GBK (Chinese)"),
    "big5": _("Big5 (Chinese)"),
    "shift_jis": _("Shift JIS (Japanese)"),
    "euc_kr": _("EUC-KR (Korean)"),
    "cp1252": _("Windows-1252 / Latin-1 (Western)"),
    "cp1250": _("Windows-1250 (Central European)"),
    "cp1251": _("Windows-1251 (Cyrillic)"),
    "koi8_r": _("KOI8-R (Cyrillic)"),
}
# What an unreadable byte becomes; in a file that is UTF-8 nearly none does.
REPLACED = "\ufffd"
MIN_FIRST_LEVEL_SHARE = 0.85
# Real texts have half or more; Russian in KOI8-R and Korean in EUC-KR fit the first level too, and have a seventh.
MIN_COMMON_SHARE = 0.25
# So many characters tell as much as all.
JUDGED_CHARACTERS = 20_000
COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方"
    "多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情"
    "明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给"
    "世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太"
    "量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象"
    "完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运请您吗谢客服退货款订单快递购买"
    "支付怎答户密码帮助联系呢否需"
)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the bytes of a file become text, how long its mark is, and whether that is only a guess."""

    name: str
    mark_bytes: int = 0
    is_guessed: bool = False


def encoding_of(sample: bytes, named: str = "") -> Encoding:
    """Return the encoding of a file that begins like this; raise Unusable when none can be told.

    What its uploader has named counts; rows that do not fit it are refused one by one, as they are in a file that is
    UTF-8 but for a few bytes.
    """
    for mark, name in BOMS:
        if sample.startswith(mark) and named in ("", name):
            return Encoding(name, len(mark))
    if named:
        return Encoding(named)
    if _decoded(sample, "utf-8") is not None or _is_nearly_utf8(sample):
        return Encoding("utf-8")
    text = _decoded(sample, "gb18030")
    if text is not None and _is_plausible_chinese(text):
        return Encoding("gb18030", is_guessed=True)
    raise Unusable("unknown_encoding")


def _decoded(sample: bytes, name: str) -> str | None:
    try:
        # An unfinished character at the end of the sample is no fault.
        return codecs.getincrementaldecoder(name)("strict").decode(sample)
    except UnicodeDecodeError:
        return None


def _is_nearly_utf8(sample: bytes) -> bool:
    """Whether far more characters than not are well-formed UTF-8 of more than one byte."""
    text = sample.decode("utf-8", "replace")
    broken = text.count(REPLACED)
    return sum(not mark.isascii() for mark in text) - broken > 4 * broken


def _is_plausible_chinese(text: str) -> bool:
    marks = [mark for mark in text if not mark.isascii()][:JUDGED_CHARACTERS]
    codes = [mark.encode("gb18030") for mark in marks]
    han = [(mark, code) for mark, code in zip(marks, codes, strict=True) if not _is_punctuation(code)]
    if not han:
        return True
    first_level = sum(_is_first_level(code) for _mark, code in han)
    common = sum(mark in COMMON for mark, _code in han)
    return first_level >= MIN_FIRST_LEVEL_SHARE * len(han) and common >= MIN_COMMON_SHARE * len(han)


def _is_punctuation(code: bytes) -> bool:
    """Rows 1 and 3 of GB 2312: marks, and the full-width forms of ASCII."""
    return len(code) == 2 and code[0] in (0xA1, 0xA3) and code[1] >= 0xA1


def _is_first_level(code: bytes) -> bool:
    return len(code) == 2 and 0xB0 <= code[0] <= 0xD7 and code[1] >= 0xA1
