"""How conversations are written, as a table: what stands before and after the messages of each role.

Each format is recognised by control tokens of the vocabulary and by marks in the text of a model's template, which is
never run. "plain" is for logs alone, where a model has no format that is known: paragraphs with the role in words, an
answer closed by the end token.
Source: the prompts of SmolLM2 and Qwen (chatml), Llama 3 (arXiv 2407.21783), Tülu 2 and OLMoE (arXiv 2311.10702,
2409.02060), DeepSeek-V2 (arXiv 2405.04434; the plain format names the system too), DeepSeek-V3 (arXiv 2412.19437) and V3.1,
Mixtral (arXiv 2401.04088), Mixtral-8x22B and Mistral-7B-Instruct-v0.3 (tokenizer v3 of mistral_common), Kimi-K2 (arXiv
2507.20534), Kimi-K2-Thinking and gpt-oss ("harmony"); each compared with its template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Role = Literal["system", "user", "assistant"]
FormatName = Literal[
    "chatml",
    "llama3",
    "llama3_1",
    "tulu",
    "deepseek_v2",
    "deepseek_r1",
    "deepseek_v3",
    "deepseek_v3_1",
    "mistral",
    "mistral_spaced",
    "mistral_v3",
    "kimi",
    "kimi_thinking",
    "harmony",
]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
THOUGHT = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by its text."""

    text: str


class Named(Enum):
    """A control token by what the tokenizer calls it."""

    EOS = "the end token"


Part = str | Control | Named


@dataclass(frozen=True, slots=True)
class Turn:
    """What stands around a message. An assistant is trained to say `lead`, the message and `end`."""

    head: tuple[Part, ...] = ()
    lead: str = ""
    end: tuple[Part, ...] = ()
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Wording:
    """A format: the turn of each role, and how its template is known."""

    turns: Mapping[Role, Turn]
    # An assistant's turn where the conversation ends with it, if that is another.
    closing: Turn | None = None
    # What asks for the assistant's next message, if that is more than the head of its turn.
    asks: tuple[Part, ...] = ()
    # A system's messages: turns like others, together at the front, or before the first or the last message of a user.
    system: Literal["turn", "front", "user", "last_user"] = "turn"
    # Whose messages are said without the blanks around them.
    strips: tuple[Role, ...] = ()
    # All of these stand in the template, in the spelling of `chat.in_one_spelling`; none of those does.
    marks: tuple[str, ...] = ()
    not_marks: tuple[str, ...] = ()
    # What is text in this format is no control token of the vocabulary.
    not_tokens: tuple[str, ...] = ()
    # Answers begin with thoughts in a channel of their own, which serving cannot tell apart.
    is_for_logs_only: bool = False

    @property
    def opening(self) -> tuple[Part, ...]:
        """What asks for the assistant's next message."""
        return self.asks or self.turns["assistant"].head

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything that stands around messages."""
        turns = [*self.turns.values(), *([self.closing] if self.closing else [])]
        return (*self.asks, *(part for turn in turns for part in (*turn.head, *turn.end)))

    @property
    def tokens(self) -> frozenset[str]:
        """The control tokens that a vocabulary must have."""
        return frozenset(part.text for part in self.parts if isinstance(part, Control))

    @property
    def needs_eos(self) -> bool:
        """Whether a tokenizer must name its end token."""
        return Named.EOS in self.parts


def _chatml(role: Role) -> Turn:
    return Turn((Control("<|im_start|>"), f"{role}\n"), end=(Control("<|im_end|>"),), tail="\n")


def _llama3(role: Role, before: str = "") -> Turn:
    head = (Control("<|start_header_id|>"), role, Control("<|end_header_id|>"), f"\n\n{before}")
    return Turn(head, end=(Control("<|eot_id|>"),))


def _kimi(role: Role, *after: Part) -> Turn:
    head = (Control(f"<|im_{role}|>"), role, Control("<|im_middle|>"), *after)
    return Turn(head, end=(Control("<|im_end|>"),))


def _kimi_mark(role: Role) -> str:
    """A head as the template of Kimi-K2-Thinking has it, which takes the role from the message."""
    return f"<|im_{role}|>{{{{role_name}}}}<|im_middle|>"


def _harmony(name: str, *, before: str = "", after: str = "", end: str = "<|end|>") -> Turn:
    head: tuple[Part, ...] = (Control("<|start|>"), name, Control("<|message|>"), before)
    return Turn(head, end=(after, Control(end)))


def _answer(end: str) -> Turn:
    head = (Control("<|start|>"), "assistant", Control("<|channel|>"), "final", Control("<|message|>"))
    return Turn(head, end=(Control(end),))


def _deepseek(*after: Part) -> Mapping[Role, Turn]:
    answer = Turn((Control("<｜Assistant｜>"), *after), end=(Named.EOS,))
    return {"system": Turn(), "user": Turn((Control("<｜User｜>"),)), "assistant": answer}


def _mistral(before: str) -> Mapping[Role, Turn]:
    user = Turn((f"{before}[INST] ",), end=(" [/INST]",))
    return {"system": user, "user": user, "assistant": Turn(lead=before, end=(Named.EOS,))}


def _mistral_v3() -> Mapping[Role, Turn]:
    user = Turn((Control("[INST]"), " "), end=(Control("[/INST]"),))
    return {"system": user, "user": user, "assistant": Turn(lead=" ", end=(Named.EOS,))}


def _words(system: Turn, answer: Turn) -> Mapping[Role, Turn]:
    return {"system": system, "user": Turn(("User:",), lead=" ", tail="\n\n"), "assistant": answer}


_LLAMA3: Mapping[Role, Turn] = {role: _llama3(role) for role in ROLES}
_LLAMA3_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "trim")
# Llama 3.1 to 3.3 say them before every system prompt; the second is the templates' own date.
_LLAMA3_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
_TULU = Turn(("<|assistant|>\n",), end=(Named.EOS,), tail="\n")
_SAID = Turn(("Assistant:",), lead=" ", end=(Named.EOS,))
_SYSTEM = Turn(("System:",), lead=" ", tail="\n\n")
_CONTENT = "message['content']"
_THOUGHT_ENDS = "{{'</think>'}}"
_DEEPSEEK = f"'<｜User｜>' + {_CONTENT}"

# In the order in which they are tried; the first is what a vocabulary with its tokens and no known template means.
WORDINGS: Mapping[FormatName, Wording] = {
    "chatml": Wording({role: _chatml(role) for role in ROLES}),
    "llama3_1": Wording(
        {**_LLAMA3, "system": _llama3("system", _LLAMA3_DATES)},
        strips=ROLES,
        marks=(*_LLAMA3_MARKS, _LLAMA3_DATES.split("\n")[0]),
    ),
    "llama3": Wording(_LLAMA3, strips=ROLES, marks=_LLAMA3_MARKS),
    "deepseek_v3_1": Wording(
        _deepseek(Control(THOUGHT[1])), system="front", marks=(_DEEPSEEK, _THOUGHT_ENDS)
    ),
    "deepseek_r1": Wording(
        _deepseek(),
        asks=(Control("<｜Assistant｜>"), Control(THOUGHT[0]), "\n"),
        system="front",
        marks=(_DEEPSEEK, "{{'<｜Assistant｜><think>\n'}}"),
    ),
    "deepseek_v3": Wording(
        _deepseek(), system="front", marks=(_DEEPSEEK, "{{'<｜Assistant｜>'}}"), not_marks=(_THOUGHT_ENDS,)
    ),
    "deepseek_v2": Wording(
        _words(Turn(tail="\n\n"), _SAID),
        marks=(f"'User: ' + {_CONTENT} + '\n\n'", f"'Assistant: ' + {_CONTENT} + eos_token"),
    ),
    "tulu": Wording(
        {
            "system": Turn(("<|system|>\n",), tail="\n"),
            "user": Turn(("<|user|>\n",), tail="\n"),
            "assistant": _TULU,
        },
        closing=Turn(_TULU.head, end=_TULU.end),
        marks=(f"'<|user|>\n' + {_CONTENT} + '\n'", f"'<|assistant|>\n' + {_CONTENT} + eos_token + '\n'"),
        not_tokens=("<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "mistral_spaced": Wording(
        _mistral(" "),
        system="user",
        marks=("' [INST] '", "' [/INST]'", f"' ' + {_CONTENT} + eos_token"),
        not_marks=("<<SYS>>",),
        not_tokens=("[INST]", "[/INST]"),
    ),
    "mistral": Wording(
        _mistral(""),
        system="user",
        marks=("'[INST] '", "' [/INST]'", f"{_CONTENT} + eos_token"),
        not_marks=("<<SYS>>", f"' ' + {_CONTENT}", "' [INST] '", "eos_token + ' '"),
        not_tokens=("[INST]", "[/INST]"),
    ),
    "mistral_v3": Wording(
        _mistral_v3(),
        # The template says it in a last question alone: in a log, which an answer ends, where that answer was asked for.
        system="last_user",
        strips=("assistant",),
        marks=(
            "if loop.last and system_message is defined",
            f"'[INST] ' + system_message + '\n\n' + {_CONTENT} + '[/INST]'",
            f"{{{{'[INST] ' + {_CONTENT} + '[/INST]'}}}}",
            f"' ' + {_CONTENT}|trim + eos_token",
        ),
        # A prompt that it puts where none is given would be left out.
        not_marks=tuple(f"set system_message{sign}'" for sign in (" = ", "= ", " =", "=")),
    ),
    "kimi": Wording(
        {role: _kimi(role) for role in ROLES},
        marks=("<|im_user|>user<|im_middle|>", "<|im_assistant|>assistant<|im_middle|>"),
        not_marks=("<think>",),
    ),
    "kimi_thinking": Wording(
        {**{role: _kimi(role) for role in ROLES}, "assistant": _kimi("assistant", *map(Control, THOUGHT))},
        # Answers of the past have no thoughts; whether the next one has is the model's to say.
        asks=_kimi("assistant").head,
        marks=(
            *map(_kimi_mark, ROLES),
            "".join(THOUGHT) + "{{render_content(message)}}",
            "{%- if add_generation_prompt -%}\n <|im_assistant|>assistant<|im_middle|>\n{%- endif -%}",
        ),
    ),
    "harmony": Wording(
        {
            "system": _harmony("developer", before="# Instructions\n\n", after="\n\n"),
            "user": _harmony("user"),
            "assistant": _answer("<|end|>"),
        },
        closing=_answer("<|return|>"),
        marks=("<|start|>developer<|message|>", "<|channel|>final<|message|>", "# Instructions\n\n"),
        is_for_logs_only=True,
    ),
}
PLAIN = Wording(_words(_SYSTEM, _SAID))
# For a tokenizer without an end token: an answer ends as a paragraph does.
PLAIN_WITHOUT_EOS = Wording(_words(_SYSTEM, Turn(("Assistant:",), lead=" ", end=("\n\n",))))
