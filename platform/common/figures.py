"""Numbers as people read them: units, thin signs, and the habits of English and Chinese."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_UP, Decimal

from django.utils import timezone
from django.utils.translation import get_language, gettext, ngettext

MISSING = "—"
MINUS = "−"
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
ENGLISH_STEPS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
CHINESE_STEPS = ((1e8, "亿"), (1e4, "万"))


def is_chinese() -> bool:
    """Whether the words of this thread are Chinese."""
    return (get_language() or "en").startswith("zh")


def number(value: float | str | None, digits: int = 0) -> str:
    """18420.4 → '18,420'; negative numbers get a true minus; None is a dash."""
    if value is None or isinstance(value, str):  # a name that a template does not find is ""
        return MISSING
    # Django cuts digits off, and groups Chinese ones by none: both languages group by three here, rounded half upwards.
    rounded = Decimal(str(abs(value))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    text = f"{rounded:,.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and any(mark in "123456789" for mark in text) else text


def listed(entries: Iterable[object]) -> str:
    """Entries one after the other: Chinese parts those of a list with a comma of its own."""
    return ("、" if is_chinese() else ", ").join(map(str, entries))


def plain(value: object) -> str:
    """A value of JSON as people write it: lists without brackets, mappings as “name value”, yes and no."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return gettext("yes") if value else gettext("no")
    if isinstance(value, Mapping):
        return listed(f"{name} {plain(each)}" for name, each in value.items()) or MISSING
    if isinstance(value, list | tuple):
        return listed(map(plain, value)) or MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def sentences(*each: str) -> str:
    """Sentences one after the other, each of them once: English parts them with a space, Chinese does not."""
    return ("" if is_chinese() else " ").join(dict.fromkeys(sentence for sentence in each if sentence))


def named(name: object, value: object) -> str:
    """A value after its name: Chinese has a colon of its own."""
    return f"{name}：{value}" if is_chinese() else f"{name}: {value}"


def percent(share: float | str | None, digits: int = 0) -> str:
    """0.018 → '1.8 %', in Chinese '1.8%'."""
    if share is None or isinstance(share, str):
        return MISSING
    text = number(share * 100, digits)
    return f"{text}%" if is_chinese() else f"{text}\u202f%"


def compact_parts(value: float | str | None) -> tuple[str, str]:
    """134_515_008 → ('134.5', 'M'), in Chinese ('1.35', '亿')."""
    if value is None or isinstance(value, str):
        return MISSING, ""
    for step, unit in CHINESE_STEPS if is_chinese() else ENGLISH_STEPS:
        if abs(value) >= step:
            scaled = value / step
            return number(scaled, 0 if abs(scaled) >= 1000 else 1 if abs(scaled) >= 100 else 2), unit
    return number(value, 0 if float(value).is_integer() else 1), ""


def bytes_parts(size: float | str | None) -> tuple[str, str]:
    """538_070_000 → ('538', 'MB'): decimal units, three figures that count."""
    if size is None or isinstance(size, str):
        return MISSING, ""
    scaled, unit = float(size), BYTE_UNITS[0]
    for unit in BYTE_UNITS:
        if abs(scaled) < 999.5 or unit == BYTE_UNITS[-1]:
            break
        scaled /= 1000
    digits = 0 if unit == "B" or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 10 else 2
    return number(scaled, digits), unit


def flops_parts(operations: int) -> tuple[str, str]:
    """Floating-point operations in the unit that suits them."""
    scales = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"))
    scale, unit = next(((scale, unit) for scale, unit in scales if operations >= scale), (1.0, "FLOP"))
    return number(operations / scale, 2 if scale > 1 else 0), unit


def joined(parts: tuple[str, str]) -> str:
    """A figure and its unit as plain text, for sentences."""
    figure, unit = parts
    if not unit:
        return figure
    return f"{figure}\u202f{unit}" if unit.isascii() else f"{figure} {unit}"


def duration(seconds: float | None) -> str:
    """75 → '1 min 15 s', in Chinese '1 分 15 秒'."""
    if seconds is None:
        return MISSING
    if seconds < 1:
        return gettext("%(ms)s ms") % {"ms": number(seconds * 1000)}
    if seconds < 10:
        return gettext("%(seconds)s s") % {"seconds": number(seconds, 1)}
    whole = round(seconds)
    if whole < 60:
        return gettext("%(seconds)s s") % {"seconds": whole}
    if whole < 3600:
        return gettext("%(minutes)s min %(seconds)s s") % {"minutes": whole // 60, "seconds": whole % 60}
    return gettext("%(hours)s h %(minutes)s min") % {"hours": whole // 3600, "minutes": whole % 3600 // 60}


def ago(moment: dt.datetime | None) -> str:
    """How long since that moment, in one unit."""
    if moment is None:
        return MISSING
    seconds = max(0, int((timezone.now() - moment).total_seconds()))
    if seconds < 5:
        return gettext("just now")
    if seconds < 60:
        return ngettext("%(count)s second ago", "%(count)s seconds ago", seconds) % {"count": seconds}
    if seconds < 3600:
        return ngettext("%(count)s minute ago", "%(count)s minutes ago", seconds // 60) % {
            "count": seconds // 60
        }
    if seconds < 86400:
        return ngettext("%(count)s hour ago", "%(count)s hours ago", seconds // 3600) % {
            "count": seconds // 3600
        }
    return ngettext("%(count)s day ago", "%(count)s days ago", seconds // 86400) % {"count": seconds // 86400}


def clock(moment: dt.datetime | None) -> str:
    """14:06 today, otherwise with its date."""
    if moment is None:
        return MISSING
    local = timezone.localtime(moment)
    if local.date() == timezone.localdate():
        return local.strftime("%H:%M")
    return local.strftime("%Y-%m-%d %H:%M")


def spark_path(values: list[float], width: int = 52, height: int = 20) -> tuple[str, float, float]:
    """The SVG path of a small line, and where its last point lies."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = (width - 2) / max(1, len(values) - 1)
    points = [
        (index * step, height - 2 - (height - 4) * (value - low) / span) for index, value in enumerate(values)
    ]
    path = "".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    return path, *points[-1]
