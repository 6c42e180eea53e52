"""What OpenAI's API has and this server has not, refused by name with the way out; sent empty it is taken."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

CODE = "unsupported_parameter"


def _refused(words: str) -> BeforeValidator:
    def check(value: Any) -> None:
        if value not in (None, False, [], "", {}):
            raise PydanticCustomError(CODE, words)

    return BeforeValidator(check)


NoTools = Annotated[
    None,
    _refused(
        "models here do not call functions; describe the choice in the prompt and ask for a response_format"
    ),
]
NoEcho = Annotated[None, _refused("the prompt is not repeated; put it before the answer yourself")]
NoSuffix = Annotated[
    None, _refused("text is completed at its end only; send what follows as a part of the prompt")
]
NoStore = Annotated[None, _refused("answers are not kept")]
NoAudio = Annotated[None, _refused("answers are text")]
NoPrediction = Annotated[None, _refused("answers are not compared with a predicted text; leave it out")]
NoSearch = Annotated[None, _refused("this server does not search; put what is to be known into the messages")]
NoReasoning = Annotated[None, _refused("the effort cannot be set; leave it out")]
NoVerbosity = Annotated[None, _refused("the length is set by max_completion_tokens and by the messages")]
