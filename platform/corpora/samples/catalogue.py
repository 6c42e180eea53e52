"""The business domains of the demo: names in two languages, a few examples, where their logs come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from . import analysis, chinese, contracts, product_copy, support
from .dialogue import Dialogue


@dataclass(frozen=True, slots=True)
class SampleDomain:
    """One domain of the demo and the file that holds its logs."""

    code: str
    name_en: str
    name_zh: str
    description_en: str
    description_zh: str
    examples: tuple[str, ...]
    # The experts that the demo maps it to in a layer of eight; none means the general ones.
    experts: tuple[int, ...]
    file_format: Literal["jsonl", "csv"]
    sources: tuple[str, ...]
    dialogues: Callable[[], Iterator[Dialogue]]

    @property
    def file_name(self) -> str:
        """Where `build` writes the logs."""
        return f"{self.code}.{self.file_format}"


DOMAINS = (
    SampleDomain(
        code="support",
        name_en="Customer support",
        name_zh="客户支持",
        description_en="Questions that customers ask the help desk, and the replies they get.",
        description_zh="客户向服务台提出的问题以及得到的答复。",
        examples=(
            "How long does a bathroom renovation take?",
            "I forgot my password.",
            "我需要为扩建申请许可吗？",
        ),
        experts=(0,),
        file_format="jsonl",
        sources=support.SOURCES,
        dialogues=support.dialogues,
    ),
    SampleDomain(
        code="copy",
        name_en="Product copy",
        name_zh="产品文案",
        description_en="Briefs for product pages, and the copy that answers them.",
        description_zh="产品页面的写作要求以及对应的文案。",
        examples=(
            "Write a short introduction for our progress bar library.",
            "Draft the copy under the heading “Features” for a web framework.",
            "为我们的新产品写一段简介。",
        ),
        experts=(1,),
        file_format="jsonl",
        sources=product_copy.SOURCES,
        dialogues=product_copy.dialogues,
    ),
    SampleDomain(
        code="analysis",
        name_en="Data analysis",
        name_zh="数据分析",
        description_en="How to compute statistics and work with tables of numbers.",
        description_zh="如何计算统计量、处理数值表格。",
        examples=(
            "What does `numpy.percentile` compute, and when would I use it?",
            "Which parameters does `statistics.quantiles` take?",
            "如何计算一列数据的中位数？",
        ),
        experts=(2,),
        file_format="jsonl",
        sources=analysis.SOURCES,
        dialogues=analysis.dialogues,
    ),
    SampleDomain(
        code="contracts",
        name_en="Contracts",
        name_zh="合同条款",
        description_en="Clauses on warranty, liability, termination and the like.",
        description_zh="有关担保、责任、终止等事项的条款。",
        examples=(
            "Draft a clause on the limits of liability.",
            "How does the Apache License word the part about patents?",
            "请起草一条关于合同终止的条款。",
        ),
        experts=(3,),
        file_format="csv",
        sources=contracts.SOURCES,
        dialogues=contracts.dialogues,
    ),
    SampleDomain(
        code="chinese",
        name_en="Chinese interface texts",
        name_zh="中文界面文字",
        description_en="Translations of interface texts into Simplified Chinese.",
        description_zh="把界面文字译成简体中文。",
        examples=(
            "请把这句界面文字译成简体中文：Forgotten your password?",
            "“Saturday” 用中文怎么说？",
            "Translate this interface text into Simplified Chinese: Delete selected items",
        ),
        experts=(),
        file_format="jsonl",
        sources=chinese.SOURCES,
        dialogues=chinese.dialogues,
    ),
)
