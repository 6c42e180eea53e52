"""What a tuning run cannot begin with, and how learning ends before its time."""

from __future__ import annotations

from collections.abc import Mapping

TRAINING: Mapping[str, str] = {
    "only_exploring": "gate_noise, capacity and twin_hold are for gates that explore; leave explore at true",
    "room_when_serving": (
        "capacity.eval_factor ({factor}) does nothing while gates learn, and a run's capacity is not saved with the model; "
        "leave it out, and set eval_factor in the layout's capacity"
    ),
    "hold_without_steps": (
        "twin_hold ({hold}) falls to 0 from the first step of the routers to the last, and route_steps is {steps}; give "
        "route_steps of 2 or more, or leave twin_hold out and release twins by hand"
    ),
    "no_bias_to_move": (
        "balance_bias_rate ({rate}) moves the bias that picks experts, and gate '{gate}' has none; "
        "set selection_bias in the layout's gate, or balance_bias_rate to 0"
    ),
    "bias_is_solved": (
        "balance_bias_rate ({rate}) would move nothing: gate '{gate}' solves the bias that picks experts anew for each "
        "batch while it explores; set balance_bias_rate to 0, or explore to false"
    ),
    "no_learned_overflow": (
        "capacity.overflow 'learned' needs the correction that a layout with that overflow gives its gates; "
        "set it in the layout, or choose drop, residual or next_best"
    ),
    "not_tuned": "gate '{gate}' cannot be tuned: {why}",
    "tokens_of_the_batch": (
        "whether an expert takes a token hangs on the other tokens of the batch, so what a job measures on its windows "
        "says nothing about other batches; choose a gate whose tokens choose, such as quantile for even loads"
    ),
    "slots_read_ahead": (
        "its slots mix every token of a window, later ones included, so that a language-model loss rewards reading "
        "ahead; choose a gate that sends each token by itself, such as softmax_topk"
    ),
    "no_router": "a {family} model has no router to tune; lay experts over it first",
    "no_derangement": (
        "domain number {domain} cannot be given another domain's experts: the expert sets overlap; "
        "map at least two domains to experts of their own"
    ),
    "no_window_for_expert": (
        "the training logs hold no window for expert {expert} ({domains}); "
        "upload logs of that domain or unmap it"
    ),
    "no_window_for_general": (
        "the training logs hold no window for the general experts; upload logs of that domain or unmap it"
    ),
    "no_window": "the training logs hold no window for {name}; upload logs of that domain or unmap it",
    "no_held_out_window": "the held-out logs hold no window; upload more logs so that some can be held out",
    "loss_of_expert_not_finite": "the loss of expert {expert} is {loss}",
    "loss_not_finite": "the loss is {loss}",
    "learning_not_finite": "the loss became {loss} at step {step}; lower learning_rate ({learning_rate})",
    "nothing_to_learn": (
        "each of the {count} prompts has one token, and none has a next one to learn; "
        "give prompts of at least two tokens"
    ),
    "gradient_not_finite": "the gradient of {name} is not finite",
    "stopped_at_step": (
        "stopped at step {step} of stage {stage}: {why}; no weight of that step was kept. "
        "Lower the learning rate ({rate}) or look for damaged logs"
    ),
    "another_run": (
        "{path}: belongs to a run with other settings or inputs; resume with those, or start a new job"
    ),
}
