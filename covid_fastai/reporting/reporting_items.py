"""The items that CLAIM 2024 and TRIPOD+AI ask a study to report, in our own short words, and what answers each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLAIM", "ITEMS", "Item", "SOURCES", "TRIPOD_AI"]

CLAIM, TRIPOD_AI = "CLAIM 2024", "TRIPOD+AI"
SOURCES = {
    CLAIM: "Tejani et al., Radiology: Artificial Intelligence 6(4), 2024, doi:10.1148/ryai.240300 (44 items)",
    TRIPOD_AI: "Collins et al., BMJ 385, 2024, doi:10.1136/bmj-2023-078378 (27 items, 52 with their parts)",
}


@dataclass(frozen=True)
class Item:
    """One thing that a guideline asks for.

    Attributes:
        guideline: `CLAIM` or `TRIPOD_AI`.
        number: As in the guideline, such as `"12a"`.
        asks: What it asks, in a few words of our own.
        topic: The name of what answers it in `reporting_answers.ANSWERS`; empty where no run can know it.
        missing: What there is to do where nothing answers it.
    """

    guideline: str
    number: str
    asks: str
    topic: str
    missing: str


MISSING = {
    "AUTHORS": "the authors have to write it; a run cannot know",
    "LABELLERS": "those who made the labels have to say; the data do not",
    "COLLECTORS": "those who collected the images have to say; the data do not",
    "TRAIN": "nothing in the run's folder says it",
    "AUDIT": "there was no audit: covid-fastai audit RUN",
    "PLACEBO": "there was no audit, or no class is both in an official TEST and in training",
    "EXTERNAL": "no external data were tried: covid-fastai validate RUN DATA",
    "GROUPS": "no two sources could be judged: give a column for the source, with ten patients of each or more",
    "UPDATED": "not done: the model was not recalibrated or updated after it was judged",
}

_CLAIM = """
1  | says in the title that it is AI, and of which kind          | title         | TRAIN
2  | summary of design, methods, results, conclusions             | summary       | TRAIN
3  | background; intended use and role                            |               | AUTHORS
4  | aims and hypotheses                                          | aims          | AUTHORS
5  | prospective or retrospective                                 | retrospective | COLLECTORS
6  | goal of the study                                            | goal          | TRAIN
7  | where the data come from                                     | sources       | COLLECTORS
8  | who and what was let in and left out                         | eligibility   | COLLECTORS
9  | preprocessing of the images                                  | preprocessing | TRAIN
10 | how subsets of the data were chosen                          | subsets       | COLLECTORS
11 | how patients' identities were removed                        |               | COLLECTORS
12 | how missing data were handled                                | missing_data  | COLLECTORS
13 | how the images were acquired                                 | acquisition   | COLLECTORS
14 | what the reference standard is, how it was obtained          |               | LABELLERS
15 | why that reference standard                                  |               | LABELLERS
16 | who labelled, with which training                            |               | LABELLERS
17 | how the test set was labelled                                |               | LABELLERS
18 | how far readers agree with each other and themselves         |               | LABELLERS
19 | how data were dealt into parts                               | partition     | TRAIN
20 | at which level the parts are disjoint                        | disjoint      | TRAIN
21 | sample size that was intended, and why                       |               | AUTHORS
22 | the model in detail                                          | architecture  | TRAIN
23 | software and its versions                                    | software      | TRAIN
24 | how the parameters began                                     | first_weights | TRAIN
25 | how it was trained                                           | training      | TRAIN
26 | how the final model was chosen                               | final_model   | TRAIN
27 | ensembles                                                    | ensemble      | TRAIN
28 | which figures measure the model                              | measures      | TRAIN
29 | statistical uncertainty and significance                     | uncertainty   | TRAIN
30 | robustness and sensitivity analysis                          | robustness    | AUDIT
31 | explanations, and whether they were checked                  | explanations  | TRAIN
32 | judged on internal data                                      | internal      | TRAIN
33 | tested on external data                                      | external      | EXTERNAL
34 | registration of the trial                                    |               | AUTHORS
35 | how many were let in and left out                            | flow          | TRAIN
36 | who the patients are, by part                                | patients      | COLLECTORS
37 | figures with their uncertainty, by part                      | figures       | TRAIN
38 | diagnostic performance and its precision                     | accuracy      | TRAIN
39 | analysis of failures                                         | failures      | TRAIN
40 | limitations                                                  | limitations   | TRAIN
41 | what follows for practice; intended use                      |               | AUTHORS
42 | the full protocol, or further technical details              | protocol      | AUTHORS
43 | where software, model and data can be had                    | availability  | AUTHORS
44 | funding, and the funders' role                               |               | AUTHORS
"""

_TRIPOD_AI = """
1   | title: a prediction model, its population and outcome       | title         | TRAIN
2   | structured abstract                                         | summary       | TRAIN
3a  | healthcare context, reasons, models that exist              |               | AUTHORS
3b  | population, purpose and users that are meant                |               | AUTHORS
3c  | known health inequalities                                   |               | AUTHORS
4   | objectives: development, evaluation or both                 | goal          | TRAIN
5a  | sources of the data, how far they represent the population  | sources       | COLLECTORS
5b  | dates of the data                                           |               | COLLECTORS
6a  | setting, number and place of the centres                    | centres       | COLLECTORS
6b  | eligibility of the participants                             | eligibility   | COLLECTORS
6c  | treatments                                                  |               | COLLECTORS
7   | preparation of the data, checks of their quality            | preparation   | TRAIN
8a  | what the outcome is, when and how it was assessed           |               | LABELLERS
8b  | who assessed a subjective outcome                           |               | LABELLERS
8c  | whether the assessment was blinded                          |               | LABELLERS
9a  | choice of the predictors                                    | predictors    | TRAIN
9b  | what the predictors are, how they were measured             | preprocessing | TRAIN
9c  | who assessed subjective predictors                          | no_reader     | TRAIN
10  | sample size and how it came about                           |               | AUTHORS
11  | missing data                                                | missing_data  | COLLECTORS
12a | which data served which purpose                             | partition     | TRAIN
12b | how predictors were handled                                 | preprocessing | TRAIN
12c | kind of model, how it was built, internal validation        | training      | TRAIN
12d | differences between centres                                 | clusters      | GROUPS
12e | measures and plots of performance                           | measures      | TRAIN
12f | model updating: method                                      | updating      | UPDATED
12g | how predictions were computed when judged                   | predicting    | TRAIN
13  | imbalance of the classes                                    | imbalance     | TRAIN
14  | what was done for fairness, and why                         |               | AUTHORS
15  | what the model gives out; thresholds                        | output        | TRAIN
16  | how training and evaluation data differ                     | differences   | TRAIN
17  | ethics approval and consent                                 |               | AUTHORS
18a | funding                                                     |               | AUTHORS
18b | conflicts of interest                                       |               | AUTHORS
18c | protocol                                                    | protocol      | AUTHORS
18d | registration                                                |               | AUTHORS
18e | whether the data are shared                                 |               | AUTHORS
18f | whether the code is shared                                  | code          | AUTHORS
19  | involvement of patients and the public                      |               | AUTHORS
20a | flow of participants, with and without the outcome          | flow          | TRAIN
20b | characteristics of the participants                         | patients      | COLLECTORS
20c | predictors' distribution: evaluation beside development     | batch_effect       | PLACEBO
21  | participants and outcomes in each analysis                  | counts        | TRAIN
22  | the whole model, so that others can predict with it         | model_files   | TRAIN
23a | performance with intervals, subgroups too                   | performance   | TRAIN
23b | performance by centre                                       | clusters      | GROUPS
24  | model updating: result                                      | updating      | UPDATED
25  | interpretation, fairness too                                | verdict       | AUDIT
26  | limitations and what they do                                | limitations   | TRAIN
27a | what to do with poor or missing input                       | poor_input    | TRAIN
27b | what users have to do and to know                           |               | AUTHORS
27c | next steps, with a view to other settings                   | next_steps    | AUDIT
"""


def _read(guideline: str, text: str) -> list[Item]:
    cells = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return [Item(guideline, number, asks, topic, MISSING[reason]) for number, asks, topic, reason in cells]


ITEMS = (*_read(CLAIM, _CLAIM), *_read(TRIPOD_AI, _TRIPOD_AI))
