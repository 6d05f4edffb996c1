"""The columns that a run keeps of its data: those that this package uses, and those that the user names."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from covid_fastai.data.cohort import COHORT_COLUMNS, Cohort, as_cohort
from covid_fastai.data.columns import list_columns
from covid_fastai.data.lung_tables import STORED
from covid_fastai.errors import UsageError

__all__ = ["keep_columns"]

# sex and age: the subgroups and the data sheet count them; fold: of a cross-validation
NEEDED = {*COHORT_COLUMNS, *STORED, "sex", "age", "fold"}


def keep_columns(cohort: pd.DataFrame, names: Sequence[str] | None = None) -> Cohort:
    """Return a cohort without the columns that a run does not need, such as a patient's name or a remark.

    Args:
        cohort: The result of `read_cohort` or a split.
        names: Columns of the data to keep as well; None for none.

    Returns:
        A copy; `facts.left_out` names the columns that it does not have.

    Raises:
        UsageError: The data have no column of one of these names.
    """
    cohort, named = as_cohort(cohort), set(names or ())
    for name in names or ():
        if name not in cohort:
            raise UsageError(f"keep_columns names {name!r}, which is no column of the data.", hint=list_columns(cohort))
    kept = [name for name in cohort if name in NEEDED or name in named]  # guard: kept_columns
    left_out = [str(name) for name in cohort if name not in kept]
    return cohort[kept].with_facts(left_out=tuple(dict.fromkeys([*cohort.facts.left_out, *left_out])))
