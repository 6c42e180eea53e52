"""The errors and log lines that people meet often: a code, its parameters, and one sentence with a place for each.

An error is stored and sent as its sentence; whoever reads it finds code and parameters again, so that a console can say it
in its reader's language. Standard library only.
"""

from __future__ import annotations

from moe_core.sentences.fields import FIELDS
from moe_core.sentences.files import FILES
from moe_core.sentences.form import Sentences
from moe_core.sentences.layouts import LAYOUTS
from moe_core.sentences.operations import OPERATIONS
from moe_core.sentences.runs import RUNS
from moe_core.sentences.serving import SERVING
from moe_core.sentences.training import TRAINING

__all__ = ["CORE", "RUN", "Sentences"]

CORE = Sentences({**LAYOUTS, **TRAINING, **OPERATIONS, **SERVING, **FIELDS, **FILES})
RUN = Sentences(RUNS)
