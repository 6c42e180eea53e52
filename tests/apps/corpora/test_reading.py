"""Rows from strangers: bounded, judged one by one, whatever the encoding and the newlines."""

from __future__ import annotations

import codecs
import csv
import io
import json
import tracemalloc

import pytest
from django.utils.translation import override
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Invalid
from corpora.encodings import encoding_of
from corpora.exports import safe_cell
from corpora.lines import Line, split_lines, utf8_lines
from corpora.reasons import REASONS, reason
from corpora.rows import Refused, Row, normalised, row_from_json
from corpora.tables import table_rows


def talk(user="hi", assistant="hello", **more):
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}], **more}


def refusal(data, default=None):
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(Refused) as found:
        row_from_json(raw, default)
    assert found.value.code in REASONS
    assert "%(" not in reason(found.value.code, found.value.detail)
    return found.value.code


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"")), max_size=8),
    newline=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    size=st.integers(1, 7),
)
def test_lines_are_the_same_however_the_stream_is_cut(lines, newline, size):
    whole = newline.join(lines)
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    found = [line.raw for line in split_lines(iter(pieces))]
    while lines and lines[-1] == b"":
        lines.pop()
    while found and found[-1] == b"":
        found.pop()
    assert found == lines


def test_a_line_without_end_costs_no_memory():
    def endless():
        for _ in range(256):
            yield b"x" * (1 << 18)
        yield b'\n{"ok": 1}\n'

    tracemalloc.start()
    long, good = list(split_lines(endless()))
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert long.is_too_long
    assert (good.number, good.raw) == (2, b'{"ok": 1}')
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("你好，客服".encode(), "utf-8"),
        (codecs.BOM_UTF8 + "你好".encode(), "utf-8"),
        (codecs.BOM_UTF16_LE + "你好".encode("utf-16-le"), "utf-16-le"),
        (codecs.BOM_UTF16_BE + "你好".encode("utf-16-be"), "utf-16-be"),
        ("用户,回答\n怎么退货,请联系客服\n".encode("gb18030"), "gb18030"),
        ("你好".encode()[:-1], "utf-8"),
    ],
)
def test_an_encoding_is_told_from_the_bytes(raw, expected, tmp_path):
    assert encoding_of(raw).name == expected
    assert encoding_of(raw).is_guessed == (expected == "gb18030")
    path = tmp_path / "logs"
    path.write_bytes(raw)
    encoding, lines = utf8_lines(path)
    assert encoding.name == expected
    assert not next(lines).raw.startswith(codecs.BOM_UTF8)


GERMAN = "user,assistant\nWas kostet das Gerät?,Es kostet 20 Euro.\nÜber welche Größe?,Größe L ist möglich.\n"
RUSSIAN = "user,assistant\nпривет как вернуть товар,свяжитесь со службой поддержки\n"
KOREAN = "user,assistant\n안녕하세요 주문은 언제 도착하나요,내일 도착할 예정입니다 감사합니다\n"
JAPANESE = "user,assistant\n返品はどうすればいいですか,カスタマーサービスに連絡してください\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("user,assistant\nWas kostet das Gerät?,20 Euro\n", "latin-1"),
        (GERMAN, "cp1252"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (KOREAN, "euc-kr"),
        (JAPANESE, "shift-jis"),
        (JAPANESE, "euc-jp"),
        ("user,assistant\n請問如何退貨,請聯繫客服我們會儘快處理您的訂單\n", "big5"),
    ],
)
def test_an_encoding_that_would_be_a_wild_guess_is_refused_with_the_way_out(text, encoding):
    with pytest.raises(Invalid, match="save it as UTF-8"):
        encoding_of(text.encode(encoding))


def test_a_few_broken_bytes_do_not_make_a_file_of_utf8_another_encoding():
    assert encoding_of("怎么退货？请联系客服。".encode() + b"\xff\n").name == "utf-8"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"messages": [', "该行不是 JSON：缺少值（第 15 列）。"),
        (b'{"a": 1, "a": 2}', "键重复出现：'a'。"),
        (talk(user=7), "有消息包含文本以外的内容：数字。"),
        (talk(user=None), "有消息包含文本以外的内容：null。"),
        (b"{}", "没有列表“messages”；现有的键：无。"),
        (b'{"messages": "\\u0000"}', "文本含有日志不应出现的字符：NUL 或半个代理对。"),
    ],
)
def test_a_reason_is_chinese_to_the_last_word(data, words):
    with pytest.raises(Refused) as found:
        row_from_json(data if isinstance(data, bytes) else json.dumps(data).encode(), None)
    with override("zh-hans"):
        assert reason(found.value.code, found.value.detail) == words


def test_chats_are_read_with_their_domain_and_parts():
    row = row_from_json(json.dumps(talk(" hi ", domain="Support", model="gpt", id=7)).encode(), None)
    assert row == Row(
        ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}), "support"
    )
    parts = talk([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    assert row_from_json(json.dumps(parts).encode(), "copy").messages[0]["content"] == "ab"
    assert row_from_json(json.dumps(talk(domain=None)).encode(), "copy").domain == "copy"
    developer = {"messages": [{"role": "developer", "content": "be kind"}, *talk()["messages"]]}
    assert row_from_json(json.dumps(developer).encode(), None).messages[0]["role"] == "system"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", "not_json"),
        (b"\xff\xfe{}", "not_utf8"),
        (b"[" * 5000, "too_deep"),
        (b'{"a": 1e999}', "not_finite"),
        (b'{"messages": [], "messages": []}', "duplicate_key"),
        (b'{"messages": "\\ud800"}', "bad_text"),
        (b'"text"', "not_object"),
        ({"prompt": "x"}, "no_messages"),
        ({"messages": []}, "empty_messages"),
        ({"messages": "x"}, "empty_messages"),
        ({"messages": ["x"]}, "not_message"),
        ({"messages": [{"role": "user", "content": "x"}] * 1001}, "too_many_messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unknown_role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown_role"),
        ({"messages": [{"role": "user", "content": None}]}, "not_text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not_text"),
        (talk(" \n"), "empty_text"),
        (talk("bell \x07"), "bad_text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no_user"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no_answer"),
        (talk(domain="Not a code!"), "bad_domain"),
        (talk(domain=["support"]), "bad_domain"),
    ],
)
def test_each_kind_of_bad_row_is_refused_with_its_reason(data, code):
    assert refusal(data) == code


def test_rows_that_differ_only_in_what_does_not_count_are_repeats():
    first, second = (row_from_json(json.dumps(talk(user)).encode(), None) for user in ("How  ARE\tyou?", "ｈow are you? "))
    assert first.digest() == second.digest()
    assert first.digest() != row_from_json(json.dumps(talk("how are you!")).encode(), None).digest()


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_more(text):
    once = normalised(text)
    assert normalised(once) == once or normalised(normalised(once)) == normalised(once)


def rows_of(text: bytes, default=None):
    return list(table_rows(split_lines([text]), default))


@pytest.mark.parametrize("header", ["user,assistant", "Prompt,Response", "question;answer", "用户\t回答"])
def test_columns_are_found_by_name(header):
    mark = next(mark for mark in ",;\t" if mark in header)
    ((number, row, _begin),) = rows_of(f"{header}\nhi{mark}hello\n".encode(), "support")
    assert (number, row.domain, row.messages[1]["content"]) == (2, "support", "hello")


def test_a_broken_record_costs_only_itself():
    text = b'user,assistant,domain\na,b,support\n"open,b\n\xff,b,\nc,,support\nd,e\n"two\nlines",f,copy\n'
    found = rows_of(text.replace(b'"open,b\n', b'x"y"z,"q"r,s\n'))
    codes = [row.code if isinstance(row, Refused) else row.messages[0]["content"] for _number, row, _begin in found]
    assert codes == ["a", "bad_csv", "bad_text", "empty_text", "d", "two\nlines"]
    assert [number for number, _row, _begin in found] == [2, 3, 4, 5, 6, 7]


def test_an_open_quote_does_not_swallow_the_file():
    rest = b"".join(b"user %d,answer\n" % number for number in range(150_000))
    found = rows_of(b'user,assistant\n"open,b\n' + rest)
    codes = {row.code for _number, row, _begin in found if isinstance(row, Refused)}
    assert codes and codes <= {"open_quote", "bad_csv", "wrong_width"}
    assert len(found) > 1000


@pytest.mark.parametrize("num_rows", [3, 100_000])
def test_an_open_quote_is_told_with_the_row_that_opens_it(num_rows):
    rest = b"".join(b"user %d,answer\n" % number for number in range(num_rows))
    found = rows_of(b'user,assistant\na,b\n"open,b\n' + rest)
    number, row, begin = found[1]
    assert (number, row.code, begin) == (3, "open_quote", '"open,b')
    assert int(row.detail) == 4 if num_rows == 3 else int(row.detail) > 50_000
    assert row.detail in reason(row.code, row.detail)


def test_one_line_is_not_counted_as_many():
    assert "1 line was read" in reason("open_quote", "1") and "4 lines were read" in reason("open_quote", "4")
    with override("zh-hans"):
        assert "1 行" in reason("open_quote", "1") and "4 行" in reason("open_quote", "4")


def test_ten_million_columns_are_one_refused_row():
    found = rows_of(b"user,assistant\na" + b"," * 1_000_000 + b"\n" + b"," * 10_000_000 + b"\na,b\n")
    assert [row.code if isinstance(row, Refused) else "taken" for _number, row, _begin in found] == [
        "wrong_width", "row_too_long", "taken"
    ]  # fmt: skip


@pytest.mark.parametrize("text", [b"", b"\n", b"a,b\n1,2\n", b"user\nx\n", b"," * 2_000_000])
def test_a_table_without_the_columns_is_refused_as_a_whole(text):
    with pytest.raises(Invalid):
        rows_of(text)


@given(st.text(max_size=30))
def test_no_cell_of_an_export_is_a_formula(text):
    out = io.StringIO()
    csv.writer(out).writerow([safe_cell(text)])
    ((cell,),) = list(csv.reader(io.StringIO(out.getvalue(), newline=""))) or [("",)]
    assert not cell.lstrip(" \t\r\n'\"").startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) or cell.startswith("'")
    assert cell[:1] not in set("=+-@\t\r＝＋－＠")


def test_lines_keep_their_numbers():
    assert [line.number for line in split_lines([b"a\n\nb"])] == [1, 2, 3]
    assert next(split_lines([b"x"])) == Line(1, b"x")


def test_every_reason_is_documented(settings):
    page = (settings.ROOT / "docs/reference/logs.md").read_text("utf-8")
    assert [code for code in REASONS if f"`{code}`" not in page] == []
