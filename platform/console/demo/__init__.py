"""The main job, driven from outside through the public REST API: what CI would do, and what `./turnout demo` runs."""
