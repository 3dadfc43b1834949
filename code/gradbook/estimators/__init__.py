"""Gradient estimators: functions of an objective, a family, its parameters and the noise.

The objective is E[f(z, theta)] with z drawn from a family with parameters theta. Every estimator
takes n draws of noise and returns n gradients, one per draw, so that their mean estimates the
gradient, their spread is at hand, and the same noise replays the same gradients.
"""

from gradbook.estimators.conditioned import rebar, relax
from gradbook.estimators.draws import Family, Objective
from gradbook.estimators.local import local_expectation
from gradbook.estimators.mirrors import antithetic, mirror_gumbel
from gradbook.estimators.path import pathwise
from gradbook.estimators.regression import control_variate, regression_coefficient
from gradbook.estimators.score import (
    leave_one_out,
    moving_average,
    optimal_baseline,
    score_function,
    with_baseline,
)
from gradbook.estimators.summary import Summary, summarize
from gradbook.estimators.weak import measure_valued_mean, measure_valued_scale

__all__ = [
    "Family",
    "Objective",
    "Summary",
    "antithetic",
    "control_variate",
    "leave_one_out",
    "local_expectation",
    "measure_valued_mean",
    "measure_valued_scale",
    "mirror_gumbel",
    "moving_average",
    "optimal_baseline",
    "pathwise",
    "rebar",
    "regression_coefficient",
    "relax",
    "score_function",
    "summarize",
    "with_baseline",
]
