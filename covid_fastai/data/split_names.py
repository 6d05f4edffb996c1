"""The words that data sets use for the parts of an official split, and for the columns that hold them."""

from __future__ import annotations

__all__ = ["FLAG_COLUMNS", "FOLD_COLUMNS", "SPLITS", "SPLIT_COLUMNS", "SPLIT_FOLDERS", "SPLIT_LISTS", "TRUTHS"]

# Each value of a split column, compared by `fold_text`, and its part. Missing are "eval", which can be valid or
# test, and "development", which can be train or valid.
SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "trainset", "trainingset", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "testset", "holdout", "heldout"), "test"),
    **dict.fromkeys(("valid", "val", "validate", "validation", "validating", "validationset", "valset"), "valid"),
    **dict.fromkeys(("dev", "devset", "tune", "tuning"), "valid"),
    "excluded": "excluded",
}
# Columns that may hold a split under a name of other uses: they count only where every value is a part of a split.
SPLIT_COLUMNS = ("set", "fold", "datasplit", "datasetsplit", "datatype", "phase", "usage", "mode", "stage", "splitname")
# Columns of a truth value, and the part that a true value stands for.
FLAG_COLUMNS = {
    **dict.fromkeys(("isvalid", "isval", "isvalidation"), "valid"),
    **dict.fromkeys(("istest", "istesting", "isholdout"), "test"),
    **dict.fromkeys(("istrain", "istraining"), "train"),
}
TRUTHS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "0.0"), False),
}
# Columns of fold numbers, which are no split into training and test.
FOLD_COLUMNS = ("fold", "kfold", "folds", "foldid", "foldnumber", "cvfold", "splitfold")
# Folders whose name states the part of the images in them. "dev" is missing: it names a developer's folder as well.
SPLIT_FOLDERS = {name: part for name, part in SPLITS.items() if name not in ("dev", "excluded", "tune", "tuning")}
# Lists of image names beside a table, compared by `fold_text`, and their part; NIH's `train_val_list.txt`.
SPLIT_LISTS = {
    **dict.fromkeys(("train", "trainlist", "training", "traininglist", "listtrain"), "train"),
    **dict.fromkeys(("trainval", "trainvallist", "trainvalidlist"), "train"),
    **dict.fromkeys(("val", "vallist", "valid", "validlist", "validation", "validationlist", "listval"), "valid"),
    **dict.fromkeys(("test", "testlist", "testing", "testinglist", "listtest"), "test"),
}
