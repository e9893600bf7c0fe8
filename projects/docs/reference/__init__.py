"""The references of the site, generated from the code: commands, config keys and Python names, as Markdown."""

from . import commands, config_keys, python_names
