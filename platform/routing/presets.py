"""The example map that a newcomer starts from."""

from __future__ import annotations

from django.utils.translation import gettext as _

from common.errors import Invalid
from routing.plan import DomainPlan, MapPlan

# The codes are those of the sample logs, so that the two fit together.
DOMAINS = (
    ("support", "Support replies", "客服回复", (
        "How long does a bathroom renovation take?", "I forgot my password.", "我需要为扩建申请许可吗？",
    )),
    ("copy", "Product copy", "商品文案", (
        "Write a short introduction for our progress bar library.",
        "Draft the copy under the heading “Features” for a web framework.", "为我们的新产品写一段简介。",
    )),
    ("analysis", "Data analysis", "数据分析", (
        "What does `numpy.percentile` compute, and when would I use it?",
        "Which parameters does `statistics.quantiles` take?", "如何计算一列数据的中位数？",
    )),
    ("contracts", "Contracts", "合同条款", (
        "Draft a clause on the limits of liability.",
        "How does the Apache License word the part about patents?", "请起草一条关于合同终止的条款。",
    )),
)  # fmt: skip


def example_plan(num_experts: int = 8) -> MapPlan:
    """Return four domains with an expert each; every other expert is general."""
    if not len(DOMAINS) < num_experts <= 1024:
        sentence = _("The example needs more than %(domains)s experts per layer; %(count)s were given.")
        raise Invalid(sentence % {"domains": len(DOMAINS), "count": num_experts})
    domains = [
        DomainPlan(code=code, name_en=en, name_zh=zh, examples=examples, experts=(index,), colour=index + 1)
        for index, (code, en, zh, examples) in enumerate(DOMAINS)
    ]
    return MapPlan(
        num_experts=num_experts,
        domains=tuple(domains),
        general_experts=tuple(range(len(DOMAINS), num_experts)),
    )
