"""Calibration chooses the range of real values that each tensor's integers represent.

    values -> StatisticsAccumulator -> TensorStatistics -> choose_range -> RealRange -> affine_parameters

This is one streaming pass with bounded memory. Weights are available in full, so their scales come directly from
``choose_weight_scales``. The package needs only NumPy.
"""

from twoscale._calibration.affine import RealRange, affine_parameters
from twoscale._calibration.methods import RangeMethod
from twoscale._calibration.ranges import choose_range, pixel_range
from twoscale._calibration.squared_error import expected_squared_error
from twoscale._calibration.statistics import StatisticsAccumulator, TensorStatistics, to_summary
from twoscale._calibration.weights import choose_weight_scales

__all__ = [
    "RangeMethod",
    "RealRange",
    "StatisticsAccumulator",
    "TensorStatistics",
    "affine_parameters",
    "choose_range",
    "choose_weight_scales",
    "expected_squared_error",
    "pixel_range",
    "to_summary",
]
