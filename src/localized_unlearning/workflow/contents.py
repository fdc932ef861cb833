"""The data of a run, opened before anything is queued: facts, questions, text, and whether prompts fit the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from localized_unlearning.config.source import Source
from localized_unlearning.costs import sizes
from localized_unlearning.errors import UserError
from localized_unlearning.workflow.findings import Requirement
from localized_unlearning.workflow.plan import Plan


def findings(plan: Plan) -> Iterator[Requirement]:
    """What is wrong with the data that are there; of what is still to be fetched nothing is said."""
    places = {name: sizes.local_path(s, plan.places.source(name)) for name, s in _sources(plan).items()}
    own = plan.config.athletes.own_prompts is not None  # then a job makes facts and prompts
    for name, check in (
        ("athletes.source", _facts),
        ("mmlu.source", _questions),
        ("series.source", _questions),
    ):
        path = places.get(name)
        if path is not None and not (own and name == "athletes.source"):
            try:
                yield from check(plan, name, path)
            except UserError as error:
                yield _missing(error)
    for name in ("text.train", "text.held_out"):
        path = places.get(name)
        if path is not None and path.is_file():
            # here, since with these come pandas and transformers, which no other command needs
            from localized_unlearning.data.documents import read_documents

            try:
                read_documents(path, 1)
            except UserError as error:
                yield _missing(error)
    if not own:
        yield from _fits(plan, places)


def _sources(plan: Plan) -> dict[str, Source]:
    config = plan.config
    found = {
        "athletes.source": config.athletes.source,
        "mmlu.source": config.mmlu.source,
        "text.train": config.text.train,
        "text.held_out": config.text.held_out,
    }
    return found if config.series.source is None else {**found, "series.source": config.series.source}


def _missing(error: UserError) -> Requirement:
    what, _, remedy = str(error).rpartition(": ")
    return Requirement("missing", what or str(error), remedy if what else "")


def _facts(plan: Plan, name: str, path: Path) -> Iterator[Requirement]:
    # here, since with these come pandas and transformers, which no other command needs
    from localized_unlearning.data.answers import candidates, occurring
    from localized_unlearning.data.facts import load_facts  # likewise
    from localized_unlearning.data.prompts import load_prompts
    from localized_unlearning.data.splits import enough  # likewise

    book = load_prompts(Path(plan.config.prompts.file))
    table, odd = load_facts(path, book.answers, plan.config.athletes.relation)
    answers = occurring(candidates(book, table), table)
    enough(table)
    yield Requirement("ok", f"{name} has {len(table):,} subjects with {len(answers)} answers")
    for one, other in odd.twins[:3]:
        yield Requirement(
            "unchecked",
            f"'{one}' and '{other}' differ in case or accents alone",
            "is this one subject twice?",
        )


def _questions(plan: Plan, name: str, path: Path) -> Iterator[Requirement]:
    # here, since with these come pandas and transformers, which no other command needs
    from localized_unlearning.data.mmlu import load_questions

    questions = load_questions(path)
    yield Requirement("ok", f"{name} has {len(questions.test):,} questions")


def _fits(plan: Plan, places: dict[str, Path | None]) -> Iterator[Requirement]:
    """The longest prompts beside the model's context length, where its tokenizer is there."""
    config = plan.config
    made, named = plan.places.base_model(), Path(config.model.name).expanduser()
    folder = next((f for f in (made, named) if (f / "config.json").is_file()), None)
    if folder is None or any(places[name] is None for name in ("athletes.source", "mmlu.source")):
        return
    # here, since with these come pandas and transformers, which no other command needs
    from localized_unlearning.data.tokens import load_tokenizer
    from localized_unlearning.evaluation.suitability import prompts_fit  # likewise
    from localized_unlearning.models.loading import context_length, read_config

    try:
        limit = context_length(read_config(folder))
        inputs = {
            "athletes": places["athletes.source"],
            "prompts": Path(config.prompts.file),
            "mmlu": places["mmlu.source"],
            "series": places.get("series.source"),
        }
        found = prompts_fit(config, load_tokenizer(folder), limit, inputs)
    except UserError as error:
        yield _missing(error)
        return
    name, longest = max(found.items(), key=lambda item: int(item[1]["tokens"]))
    fewer = sum(part.get("fewer_shots", 0) for part in found.values())
    more = f"; {fewer} questions get fewer worked examples to fit" if fewer else ""
    allowed = f"{limit:,}" if limit else "no stated limit"
    yield Requirement(
        "ok", f"the longest prompt has {longest['tokens']:,} tokens of {allowed} ({name}){more}"
    )
