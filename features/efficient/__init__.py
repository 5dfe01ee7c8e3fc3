"""The feature set `efficient`: every feature of tsfresh's ``EfficientFCParameters``, at tsfresh's values, in batches.

Christ et al., "Time Series FeatuRe Extraction on basis of Scalable Hypothesis tests", Neurocomputing 307 (2018). The
definitions are those of tsfresh 0.21.2's ``feature_calculators``; ``differences.md`` in this folder lists the columns
whose values cannot or do not always agree with it, and why.
"""

from features.efficient.extraction import CALCULATORS, efficient, efficient_names
from features.kernel import compilation_told

__all__ = ["CALCULATORS", "compilation_told", "efficient", "efficient_names"]
