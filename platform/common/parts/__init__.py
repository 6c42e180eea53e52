"""The parts of the console, by kind; `templatetags.ui` gathers them for `{% load ui %}`."""
