"""The parts of the console: what a user typed stays text, and forms speak to screen readers."""

from __future__ import annotations

import pytest
from django import forms
from django.core.paginator import Paginator
from django.template import Context, Template
from django.test import RequestFactory
from django.utils.translation import override

from common.parts.signs import LAMPS, lamp_of

EVIL = "<img src=x onerror=alert(1)>"


def shown(source: str, **values: object) -> str:
    return Template("{% load ui %}" + source).render(Context(values))


@pytest.mark.parametrize(
    "source",
    [
        "{% lamp evil evil evil %}",
        "{% berth evil %}",
        "{% berth evil evil %}",
        "{% copyable evil %}",
        "{% domain_chip evil evil 1 %}",
        "{% panel evil note=evil id=evil %}{{ evil }}{% endpanel %}",
        "{% verdict evil more_url=evil more=evil %}{{ evil }}{% endverdict %}",
        "{% kpis %}{% kpi evil evil evil evil key=evil %}{% endkpis %}",
        "{% empty evil %}{{ evil }}{% endempty %}",
        "{% banner evil %}{{ evil }}{% endbanner %}",
        "{% dialog evil evil %}{{ evil }}{% enddialog %}",
        "{% confirm evil evil evil evil keep=evil %}{{ evil }}{% endconfirm %}",
        "{% tabs evil %}{% tab evil evil %}{% endtabs %}{% tabpanel evil %}{{ evil }}{% endtabpanel %}",
        "{% stations steps evil %}",
        "{% bar 1 2 kind=evil label=evil %}",
        "{% progress 1 2 evil %}",
        '<i data-x="{{ steps|as_json }}"></i>',
    ],
)
def test_what_a_user_typed_never_becomes_markup(source: str) -> None:
    steps = [{"title": EVIL, "note": EVIL, "url": EVIL, "key": EVIL, "state": "now"}]
    assert "<img" not in shown(source, evil=EVIL, steps=steps)


def test_every_known_state_has_one_of_the_six_lamps() -> None:
    assert set(LAMPS.values()) <= {"ok", "busy", "caution", "danger", "off", "unknown"}
    assert lamp_of("a word that nobody knows") == "off"


class OneField(forms.Form):
    name = forms.CharField(help_text="Small letters.", error_messages={"required": "A name is needed."})
    agreed = forms.BooleanField()


def test_a_field_ties_its_help_and_error_to_its_control() -> None:
    html = shown("{% field form.name %}", form=OneField({}))
    described = html.split('aria-describedby="')[1].split('"')[0].split()
    assert 'aria-invalid="true"' in html
    assert set(described) == {"id_name_error", "id_name_helptext"}
    assert all(f'id="{name}"' in html for name in described)
    assert "A name is needed." in html


def test_a_form_shows_all_its_fields_when_none_is_named() -> None:
    html = shown("{% fields form %}", form=OneField())
    assert 'name="name"' in html and 'name="agreed"' in html
    assert 'name="agreed"' not in shown("{% fields form 'name' %}", form=OneField())


def test_the_pager_keeps_the_other_parts_of_the_address() -> None:
    request = RequestFactory().get("/jobs/?state=failed&page=2")
    html = shown("{% pager page %}", page=Paginator(range(100), 10).get_page(2), request=request)
    assert "?state=failed&amp;page=1" in html and "?state=failed&amp;page=3" in html
    assert shown("{% pager page %}", page=Paginator(range(5), 10).get_page(1), request=request) == ""


def test_a_line_of_one_value_is_not_drawn() -> None:
    assert shown("{% sparkline values %}", values=[1]) == ""
    assert "<path" in shown("{% sparkline values %}", values=[1, 2])


def test_chinese_sentences_of_a_verdict_follow_without_a_space() -> None:
    source = "{% verdict 'ok' %}<b>{{ first }}</b> {{ rest }}{% endverdict %}"
    with override("zh-hans"):
        assert "<b>尚无内容。</b>下面即全程。" in shown(source, first="尚无内容。", rest="下面即全程。")
    assert "<b>Nothing.</b> Begin." in shown(source, first="Nothing.", rest="Begin.")
