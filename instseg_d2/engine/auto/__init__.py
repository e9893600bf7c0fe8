"""Recipes that configure themselves by the data and the machine."""

from .machine import Machine, this_machine
from .plan import Plan, make_plan
from .rules import shared_rules
from .training import auto_setup, fit_plan

__all__ = ["Machine", "Plan", "auto_setup", "fit_plan", "make_plan", "shared_rules", "this_machine"]
