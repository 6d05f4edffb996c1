"""The cohort: its facts survive what users do with tables, and its files restore every value with its type."""

from __future__ import annotations

import copy
import datetime
import json
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_fastai.data.cohort import COHORT_CSV, COHORT_JSON, Cohort, CohortInfo, as_cohort, load_cohort, save_cohort
from covid_fastai.errors import DataError, ResourceError, UsageError
from tests.examples import examples

CLASSES = ["Normal", "COVID-19"]  # sorted they would be exchanged
PROBLEM = {"row": 3, "path": "a.png", "kind": "unreadable", "severity": "error", "reason": "ö", "remedy": ""}
FACTS = CohortInfo(classes=CLASSES, positive="COVID-19", task="covid", data="/d/a.csv", root="/d", problems=[PROBLEM])


def make_cohort(n: int = 6, facts: CohortInfo | None = FACTS) -> Cohort:
    numbers = np.arange(n)
    return Cohort(
        {
            "path": [f"/d/{i}.png" for i in numbers],
            "label": [CLASSES[i % 2] for i in numbers],
            "patient": [f"{i // 2:03d}" for i in numbers],
            "patient_known": numbers % 3 != 0,
            "split": np.resize(["train", "valid", "excluded"], n),
            "age": np.where(numbers % 2, np.nan, numbers + 0.1),
        },
        facts=facts,
    )


@pytest.fixture
def cohort() -> Cohort:
    return make_cohort()


# pandas operations

OPERATIONS = {
    "rows by a mask": lambda c: c[c["label"] == "Normal"],
    "columns": lambda c: c[["path", "label"]],
    "loc": lambda c: c.loc[[1, 3]],
    "iloc": lambda c: c.iloc[::2],
    "head": lambda c: c.head(2),
    "no rows": lambda c: c.iloc[:0],
    "copy": lambda c: c.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "assign": lambda c: c.assign(split="valid"),
    "query": lambda c: c.query("split == 'train'"),
    "sample": lambda c: c.sample(frac=1, random_state=0),
    "sort_values": lambda c: c.sort_values("path", ascending=False),
    "drop rows": lambda c: c.drop(index=0),
    "drop columns": lambda c: c.drop(columns="age"),
    "drop_duplicates": lambda c: c.drop_duplicates("patient"),
    "dropna": lambda c: c.dropna(),
    "fillna": lambda c: c.fillna({"age": 0.0}),
    "rename": lambda c: c.rename(columns={"age": "years"}),
    "astype": lambda c: c.astype({"label": "category"}),
    "replace": lambda c: c.replace({"Normal": "normal"}),
    "reset_index": lambda c: c.iloc[2:].reset_index(drop=True),
    "set_index and back": lambda c: c.set_index("path").reset_index(),
    "reindex": lambda c: c.reindex(columns=["path", "label", "split", "sex"]),
    "insert": lambda c: (c := c.copy(), c.insert(0, "fold", 1))[0],
    "pipe": lambda c: c.pipe(lambda t: t[t["age"] > 0]),
    "groupby.head": lambda c: c.groupby("label").head(1),
    "groupby.sample": lambda c: c.groupby("label").sample(1, random_state=0),
    "where": lambda c: c.where(c["age"] > 0),
    "merge": lambda c: c.merge(pd.DataFrame({"patient": ["000"], "sex": ["F"]}), how="left", on="patient"),
    "join": lambda c: c.join(pd.DataFrame({"sex": list("FMFMFM")})),
    "concat of itself": lambda c: pd.concat([c, c], ignore_index=True),
    "concat with rows of a plain table": lambda c: pd.concat([c, pd.DataFrame(c).assign(split="test")]),
    "concat of columns": lambda c: pd.concat([c, pd.DataFrame({"sex": list("FMFMFM")})], axis=1),
    "pickle": lambda c: pickle.loads(pickle.dumps(c)),
    "as_cohort": as_cohort,
    "Cohort": Cohort,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_pandas_operations_preserve_facts(cohort, name):
    result = OPERATIONS[name](cohort)
    assert isinstance(result, Cohort) and result.facts == FACTS
    assert cohort.facts == FACTS and not cohort.attrs and not result.attrs


def test_facts_go_to_another_process(cohort):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_facts_of, cohort).result() == FACTS


def _facts_of(cohort: Cohort) -> CohortInfo:
    return cohort[cohort["split"] == "train"].facts


def test_columns_and_rows_are_plain_series(cohort):
    assert type(cohort["label"]) is pd.Series and type(cohort.iloc[0]) is pd.Series
    assert [type(row) for _, row in cohort.iterrows()] == [pd.Series] * 6
    assert isinstance(cohort.to_dict("records")[0]["patient_known"], bool)


def test_a_column_may_be_called_as_the_facts_are(cohort):
    cohort["facts"], cohort["_facts"] = 1, 2
    assert cohort.facts == FACTS and cohort["facts"].eq(1).all() and cohort.copy().facts == FACTS


def test_pandas_own_summary_works(cohort, capsys):
    cohort.info()
    assert "6 entries" in capsys.readouterr().out
    assert "patient_known" in repr(cohort) and "<table" in cohort._repr_html_()


# two cohorts

OTHER = {"row": 4, "path": "b.png", "kind": "unreadable", "severity": "error", "reason": "", "remedy": ""}


def test_cohorts_of_one_task_merge_their_problems(cohort):
    other = cohort.with_facts(data="/d/e/b.csv", root="/d/e", problems=[PROBLEM, OTHER], leaked_fraction=0.5)
    for joined in (pd.concat([cohort, other]), pd.concat([cohort, other, cohort]), cohort.merge(other, on="path")):
        assert joined.facts.problems == (PROBLEM, OTHER)
        assert (joined.facts.data, joined.facts.root) == ("/d/a.csv, /d/e/b.csv", "/d")
        assert joined.facts.classes == tuple(CLASSES) and joined.facts.leaked_fraction is None


def test_an_unknown_root_stays_unknown(cohort):
    assert pd.concat([cohort, cohort.with_facts(root="")]).facts.root == ""


DIFFERENT = [{"classes": CLASSES[::-1]}, {"classes": [*CLASSES, "Viral"]}, {"positive": None}, {"task": "pneumonia"}]


@pytest.mark.parametrize("change", DIFFERENT, ids=str)
def test_cohorts_of_different_tasks_have_no_facts(cohort, change):
    joined = pd.concat([cohort, cohort.with_facts(**change)], ignore_index=True)
    assert len(joined) == 12
    for use in (lambda: joined.facts, lambda: as_cohort(joined), lambda: joined[joined["age"] > 0].facts):
        with pytest.raises(DataError, match="The classes of this cohort are not known.*with_facts"):
            use()
    named = joined.with_facts(classes=CLASSES, positive="COVID-19")  # the remedy works
    assert as_cohort(named).facts == CohortInfo(classes=CLASSES, positive="COVID-19")


def test_a_cohort_without_facts_raises_an_error(tmp_path):
    bare = make_cohort(facts=None)
    with pytest.raises(DataError, match="The classes of this cohort are not known"):
        save_cohort(bare, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError):
        _ = pd.concat([make_cohort(), bare]).facts


# facts


def test_facts_are_changed_in_a_copy(cohort):
    changed = cohort.with_facts(positive=None, task="mine")
    assert changed.facts.task == "mine" and changed.facts.problems == (PROBLEM,) and cohort.facts == FACTS
    changed.loc[0, "label"] = "changed"
    assert cohort.loc[0, "label"] == "Normal"
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        cohort.facts.task = "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clases": CLASSES}, "clases"),
        ({"classes": ["A", "A"]}, "repeat a class"),
        ({"positive": "Covid"}, "'Covid' is not one of the classes"),
        ({"classes": "Normal"}, "classes"),
        ({"task": 3}, "task"),
    ],
)
def test_invalid_facts_raise_an_error(cohort, change, message):
    with pytest.raises(UsageError, match=message) as caught:
        cohort.with_facts(**change)
    assert "classes, positive, task" in caught.value.hint


texts = st.text(max_size=8)
problems = st.fixed_dictionaries(
    {"row": st.none() | st.integers(0, 9), **dict.fromkeys(("path", "kind", "severity", "reason", "remedy"), texts)}
)


@given(
    classes=st.lists(texts, unique=True, max_size=4),
    data=st.data(),
    task=texts,
    found=st.lists(problems, max_size=3),
    leaked=st.none() | st.floats(0, 1),
)
@examples(50)
def test_info_survives_json(classes, data, task, found, leaked):
    positive = data.draw(st.sampled_from([None, *classes]))
    info = CohortInfo(classes=classes, positive=positive, task=task, problems=found, leaked_fraction=leaked)
    assert CohortInfo.from_json(info.to_json()) == info
    table = info.problem_table().astype(object)
    assert table.where(table.notna(), None).to_dict("records") == found


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"classes": ["A", "A"]}', '{"classes": [], "colour": "red"}', b"\xff"]
)
def test_invalid_json_of_info_raises_an_error(text):
    with pytest.raises(DataError, match="not a cohort's info"):
        CohortInfo.from_json(text)


def test_patients_are_known_if_every_used_row_has_one(cohort):
    assert not cohort.patients_known
    assert cohort[cohort["patient_known"]].patients_known
    assert cohort.assign(patient_known=cohort["split"] != "excluded").patients_known
    assert cohort.drop(columns="patient_known").patients_known


# plain tables


def test_a_plain_table_is_taken_as_a_cohort():
    table = pd.DataFrame(make_cohort()).assign(label=["b", "a", "c", "", "b", "c"])
    cohort = as_cohort(table)
    assert cohort.facts == CohortInfo(classes=["a", "b"])  # "c" is excluded
    cohort["split"] = "test"
    assert not (table["split"] == "test").any()
    assert as_cohort(table[["label"]]).facts == CohortInfo(classes=["a", "b", "c"])
    with pytest.raises(DataError, match="no column label; it has path, patient"):
        as_cohort(table.drop(columns="label"))


@pytest.mark.parametrize("name", ["patient_known", "in_pretraining"])
@pytest.mark.parametrize("value", ["False", 0, None])
@pytest.mark.parametrize("kind", [pd.DataFrame, Cohort])
def test_flags_must_be_boolean(cohort, name, value, kind):
    table = kind(cohort.assign(**{name: pd.Series([value] * 6, dtype=object)}))
    with pytest.raises(DataError, match=f"{name} of the cohort is not boolean") as caught:
        as_cohort(table)
    assert "load_cohort" in caught.value.hint
    remedy = caught.value.hint.split("Convert it: ")[1].removesuffix(".")
    exec(remedy, {"cohort": table})
    assert not as_cohort(table)[name].any()


def test_a_table_without_rows_has_no_flag_to_check():
    empty = pd.DataFrame({name: pd.Series(dtype=object) for name in ("path", "label", "split", "patient_known")})
    assert as_cohort(empty).facts == CohortInfo(classes=[])


# files


def assert_same(found: pd.DataFrame, expected: pd.DataFrame):
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_exact=True)
    for name in expected:  # assert_frame_equal takes 1, True and 1.0 in an object column for the same
        same = [type(a) is type(b) for a, b in zip(found[name], expected[name], strict=True) if not pd.isna(b)]
        assert all(same), name


def test_a_cohort_comes_back_with_its_types(cohort, tmp_path):
    path = save_cohort(cohort.iloc[::-1], tmp_path)
    assert path == tmp_path / "cohort.csv" and {file.name for file in tmp_path.iterdir()} == {COHORT_CSV, COHORT_JSON}
    again = load_cohort(tmp_path)
    assert_same(again, cohort.iloc[::-1])
    assert again.facts == cohort.facts and again["patient"].tolist()[-1] == "000"
    # the file is a CSV as others expect it
    assert path.read_text().splitlines()[0] == "path,label,patient,patient_known,split,age"
    assert pd.read_csv(path)["age"].isna().sum() == 3


COLUMNS = {
    "text that looks like numbers": ["007", "1e5", "1.0", "NaN"],
    "text that looks missing": ["", "NA", "nan", "None"],
    "text with a missing value": ["", "NA", np.nan, "<NA>"],
    "text with quotes and lines": ['"', 'a,"b"', "one\ntwo", "one\r\ntwo"],
    "text with a carriage return": ["\r", " ", "\ttab", "ö\0"],
    "nothing": [None, np.nan, None, pd.NaT],
    "booleans": [True, False, True, False],
    "booleans as objects": pd.Series([True, False, None, True], dtype=object),
    "booleans that may miss": pd.array([True, None, False, True], dtype="boolean"),
    "integers": np.array([0, -1, 2**62, 7]),
    "small integers": np.array([0, 1, 255, 7], dtype="uint8"),
    "integers that may miss": pd.array([1, None, 2**62 + 1, -4], dtype="Int64"),
    "large integers": pd.Series([2**80, 1, None, 2], dtype=object),
    "floats": [0.1, np.nan, np.inf, -np.inf],
    "fine floats": [1 / 3, 5e-324, -0.0, 1.7976931348623157e308],
    "single floats": np.array([0.1, 1 / 3, np.nan, 3e38], dtype="float32"),
    "floats that may miss": pd.array([0.1, None, 2.0, 1e300], dtype="Float64"),
    "strings": pd.array(["a", None, "", "NA"], dtype="string"),
    "str": pd.Series(["a", None, "", "007"], dtype="str"),
    "days": pd.to_datetime(["2020-01-02", None, "1903-05-06", "2261-01-01"]),
    "moments": pd.to_datetime(["2020-01-02 03:04:05.123456789", None, "2020", "2021"], format="ISO8601").as_unit("ns"),
    "coarse moments": np.array(["1066-10-14", "NaT", "2020-01-02", "9999-01-01"], dtype="datetime64[s]"),
    "moments with a zone": pd.date_range("2020-10-25", periods=4, freq="h", tz="Europe/Berlin"),
    "spans": pd.to_timedelta([1, None, -3, 10**15]),
    "dates": [datetime.date(2020, 1, 2), None, datetime.date(1903, 5, 6), datetime.date(1, 1, 1)],
    "categories": pd.Categorical(["a", "", None, "b"], categories=["b", "a", "", "never"], ordered=True),
    "categories of numbers": pd.Categorical([3, 1, None, 3]),
    "categories of days": pd.Categorical(pd.to_datetime(["2020-01-02", "2021-01-02", None, "2020-01-02"])),
    "categories of booleans": pd.Categorical([True, None, False, True]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_each_type_comes_back(cohort, tmp_path, name):
    cohort = cohort.iloc[:4].assign(**{name: COLUMNS[name]})
    save_cohort(cohort, tmp_path)
    assert_same(load_cohort(tmp_path), cohort)
    for rows in (cohort.iloc[:1], cohort.iloc[:0]):
        save_cohort(rows, tmp_path)
        assert load_cohort(tmp_path)[name].dtype == cohort[name].dtype


def test_other_objects_come_back_as_text(cohort, tmp_path):
    values = [(1, 2), "a", 1.5, None, True, {"b": 1}]
    save_cohort(cohort.assign(mixed=pd.Series(values, dtype=object), complex=np.arange(6) * 1j), tmp_path)
    again = load_cohort(tmp_path)
    assert again["mixed"].tolist()[:3] == ["(1, 2)", "a", "1.5"] and pd.isna(again["mixed"][3])
    assert again["complex"].tolist()[1] == "1j"


values = st.one_of(
    st.lists(st.none() | st.text(max_size=6), min_size=3, max_size=3).map(lambda v: pd.Series(v, dtype=object)),
    st.lists(st.none() | st.sampled_from(["", "NA", "<NA>", "nan", "True", "1"]), min_size=3, max_size=3).map(
        lambda v: pd.Series(v, dtype=object)
    ),
    st.lists(st.none() | st.booleans(), min_size=3, max_size=3).map(lambda v: pd.Series(v, dtype="boolean")),
    st.lists(st.booleans(), min_size=3, max_size=3).map(pd.Series),
    st.lists(st.floats(), min_size=3, max_size=3).map(pd.Series),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3).map(pd.Series),
    st.lists(st.none() | st.datetimes(), min_size=3, max_size=3).map(
        lambda v: pd.Series(np.array([d and np.datetime64(d) for d in v], dtype="datetime64[us]"))
    ),
    st.lists(st.none() | st.text(max_size=3), min_size=3, max_size=3).map(lambda v: pd.Series(pd.Categorical(v))),
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), values, max_size=4))
@examples(50)
def test_any_table_comes_back(tmp_path_factory, columns):
    tmp_path = tmp_path_factory.mktemp("tables")
    cohort = make_cohort(3).assign(**columns)
    save_cohort(cohort, tmp_path)
    again = load_cohort(tmp_path)
    assert_same(again, cohort)
    assert again.facts == cohort.facts
    first = [(tmp_path / name).read_bytes() for name in (COHORT_CSV, COHORT_JSON)]
    save_cohort(again, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in (COHORT_CSV, COHORT_JSON)] == first


def test_a_plain_table_can_be_saved(cohort, tmp_path):
    save_cohort(pd.DataFrame(cohort), tmp_path)
    assert load_cohort(tmp_path).facts.classes == ("COVID-19", "Normal")


def test_a_duplicate_column_raises_an_error(cohort, tmp_path):
    twice = pd.concat([cohort, cohort[["age"]]], axis=1)
    with pytest.raises(DataError, match="'age' twice"):
        save_cohort(twice, tmp_path)


def test_a_missing_folder_raises_an_error(cohort, tmp_path):
    with pytest.raises(ResourceError, match="cohort.json"):
        save_cohort(cohort, tmp_path / "gone")
    with pytest.raises(DataError, match="gone/cohort.json"):
        load_cohort(tmp_path / "gone")


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def change_json(folder, change):
    described = json.loads((folder / COHORT_JSON).read_text())
    change(described)
    (folder / COHORT_JSON).write_text(json.dumps(described))


DAMAGES = {
    "no json": (COHORT_JSON, lambda f: (f / COHORT_JSON).unlink()),
    "no csv": (COHORT_CSV, lambda f: (f / COHORT_CSV).unlink()),
    "json is a folder": (COHORT_JSON, lambda f: ((f / COHORT_JSON).unlink(), (f / COHORT_JSON).mkdir())),
    "torn json": (COHORT_JSON, lambda f: rewrite(f / COHORT_JSON, lambda raw: raw[: len(raw) // 2])),
    "empty json": (COHORT_JSON, lambda f: (f / COHORT_JSON).write_text("")),
    "json of another format": (COHORT_JSON, lambda f: change_json(f, lambda d: d.update(format=2))),
    "json without info": (COHORT_JSON, lambda f: change_json(f, lambda d: d.pop("info"))),
    "json with a class twice": (COHORT_JSON, lambda f: change_json(f, lambda d: d["info"].update(classes=["A", "A"]))),
    "json with more": (COHORT_JSON, lambda f: change_json(f, lambda d: d.update(more=1))),
    "empty csv": (COHORT_CSV, lambda f: (f / COHORT_CSV).write_text("")),
    "csv without rows": (COHORT_CSV, lambda f: rewrite(f / COHORT_CSV, lambda raw: raw.partition(b"\n")[0] + b"\n")),
    "torn csv": (COHORT_CSV, lambda f: rewrite(f / COHORT_CSV, lambda raw: raw[:-20])),
    "csv with a row more": (
        COHORT_CSV,
        lambda f: rewrite(f / COHORT_CSV, lambda raw: raw + raw.splitlines()[1] + b"\n"),
    ),
    "csv with a long row": (COHORT_CSV, lambda f: rewrite(f / COHORT_CSV, lambda raw: raw[:-1] + b",1\n")),
    "csv with another column": (COHORT_CSV, lambda f: rewrite(f / COHORT_CSV, lambda raw: raw.replace(b"age", b"eag"))),
    "csv with a wrong flag": (COHORT_CSV, lambda f: rewrite(f / COHORT_CSV, lambda raw: raw.replace(b"True", b"yes"))),
    "csv with a wrong number": (COHORT_CSV, lambda f: rewrite(f / COHORT_CSV, lambda raw: raw.replace(b"0.1", b"o.1"))),
    "csv with an open quote": (
        COHORT_CSV,
        lambda f: rewrite(f / COHORT_CSV, lambda raw: raw.replace(b"000", b'"00', 1)),
    ),
    "csv in Latin-1": (COHORT_CSV, lambda f: rewrite(f / COHORT_CSV, lambda raw: raw.replace(b"000", b"\xf600"))),
    "unknown dtype": (COHORT_CSV, lambda f: change_json(f, lambda d: d["columns"][5].update(dtype="flat64"))),
    "unknown object": (
        COHORT_CSV,
        lambda f: change_json(f, lambda d: d["columns"][0].update(dtype="object", holds="x")),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_names_the_file_and_the_remedy(cohort, tmp_path, name):
    save_cohort(cohort, tmp_path)
    file, damage = DAMAGES[name]
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        load_cohort(tmp_path)
    assert str(tmp_path / file) in caught.value.message and "Restore cohort.csv and cohort.json" in caught.value.hint
    assert caught.value.exit_code == 3


def test_a_cohort_needs_no_torch():
    code = "import sys, covid_fastai.data.cohort; print({'torch', 'fastai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
