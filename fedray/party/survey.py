"""A site's survey before round 1: sums, label names, categories; no sample leaves."""

import dataclasses

import numpy as np

from fedray import data
from fedray.errors import DataError
from fedray.party.failures import READING, sanitize_errors
from fedray.party.loading import GroupPlan
from fedray.party.text import count_words
from fedray.survey import DataCodes, DataSurvey, SurveyRequest, ValueCounts


def survey_parties(plan: GroupPlan, request: SurveyRequest) -> DataSurvey:
    """Survey the data of the parties of one site, merged."""
    if request.words:
        return DataSurvey(words=count_words(plan), n_parties=len(plan.parties))
    with sanitize_errors(plan, READING), plan.open_source() as source:
        return _survey_source(plan, request, source)


def _survey_source(plan: GroupPlan, request: SurveyRequest, source: str) -> DataSurvey:
    handler = data.make(plan.handler, source, plan.data_args, plan.origin)
    own = DataSurvey()
    if data.is_surveyed(handler):
        own = data.own_survey(handler, source)
    if plan.config.partition is not None:
        return _survey_partition(plan, request, handler, own)
    if not data.needs_samples(own, request):
        return data.complete_survey(own, None, request, source)
    codes = own.codes(False, request.missing)
    samples = _load_samples(plan, handler, source, codes)
    return data.complete_survey(own, samples, request, source)


def _survey_partition(
    plan: GroupPlan, request: SurveyRequest, handler: data.Handler, own: DataSurvey
) -> DataSurvey:
    """Survey each party of a partition; names exist that none of them got."""
    config, parties, partition = plan.config, plan.parties, plan.config.partition
    if partition is None:
        raise TypeError("parties that are not cut from one data set")
    source, codes = partition.source, own.codes(False, request.missing)
    whole = _load_samples(plan, handler, source, codes)
    n_parties = config.num_parties or len(parties)
    if partition.by:
        whole = data.add_column(whole, handler, source, partition.by)
    pieces, _ = data.partition_rows(whole, n_parties, partition, config.seed)
    surveys = []
    for rows in pieces[parties.start : parties.stop]:
        part = DataSurvey()
        if data.is_surveyed(handler):
            part = data.own_survey(handler, source, rows)
        samples = whole.take(rows, np.arange(0))
        surveys.append(data.complete_survey(part, samples, request, source))
    names_only = SurveyRequest(classes=request.classes)
    own = data.complete_survey(own, whole, names_only, source)
    return DataSurvey.merge([*surveys, _only_names(own)])


def _only_names(survey: DataSurvey) -> DataSurvey:
    """The names of labels and categories in a survey, of no samples."""
    categories = survey.categories.items()
    return dataclasses.replace(
        survey,
        moments={},
        categories={name: ValueCounts.uncounted(c.counts) for name, c in categories},
        labels=survey.labels and ValueCounts.uncounted(survey.labels.counts),
        n_samples=0,
        n_parties=0,
    )


def _load_samples(
    plan: GroupPlan, handler: data.Handler, source: str, codes: DataCodes
) -> data.Samples:
    """Samples of numbers, by codes of these data alone."""
    samples = data.load_by_codes(handler, source, codes)
    if isinstance(samples, data.Documents):
        needed = f"what model_type: {plan.config.model_type} trains on"
        raise DataError(plan.name, "documents from the data_handler", needed)
    if isinstance(samples, data.LazySamples):
        got, needed = "a dataset from the data_handler", "arrays: they are surveyed"
        raise DataError(plan.name, got, needed)
    return samples
