"""Resolve a request's `model`, `task` and role among the served models.

A model string is `NAME[/TASK[.ROLE]]`, NAME being `family[-task][:QUANT]`, the name of a served file, or an alias.
Parts that it leaves open come from the request's fields; the defaults are retrieval and query. Parts that contradict
each other are refused. Loads nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nestling.errors import UsageError
from nestling.formats.quant_types import FILE_TYPES
from nestling.models import local
from nestling.models.local import ModelReference
from nestling.server.core.refusals import NotServedError, agreed, shown
from nestling.spec import ModelSpec, Role, Task

LATEST = ":latest"
"""Ollama's default tag: ignored at the end of a name."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model to embed with: its `reference`, the task, and the role, None if the request names none."""

    reference: str
    role: Role | None
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """One reference that the operator serves. `task` None: the whole family; `quant` None: any local file type.

    `base`: the whole family from one base with adapters.
    """

    family: str
    task: Task | None
    quant: str | None
    path: str | None = None
    base: bool = False

    @property
    def name(self) -> str:
        """The name that clients use."""
        return (
            Path(self.path).name.removesuffix(".gguf")
            if self.path
            else str(ModelReference(self.family, self.task, self.quant))
        )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that it serves."""
        return (self.task,) if self.task else tuple(Task)

    def name_of(self, task: Task) -> str:
        """The name that clients use for one of its tasks."""
        return str(ModelReference(self.family, task, self.quant))

    def served(self, spec: ModelSpec, images_refused: str | None) -> list["Served"]:
        """Itself under its own name and, for a family, each task under its name."""
        whole = Served(self.name, self.tasks, spec.max_tokens, spec.dimensions, images_refused)
        if len(self.tasks) == 1:
            return [whole]
        return [whole, *(replace(whole, name=self.name_of(task), tasks=(task,)) for task in self.tasks)]

    def reference(self, task: Task | None = None, quant: str | None = None) -> str:
        """The reference of one of its models, with its own defaults filled in."""
        chosen = None if self.base else self.chosen(task)
        wanted = ModelReference(self.family, chosen, quant or self.quant or local.DEFAULT_QUANT, base=self.base)
        return self.path or str(wanted)

    def chosen(self, task: Task | None) -> Task:
        """The task to use: the named one, if any, or the default."""
        return task or self.task or Task.RETRIEVAL


@dataclass(frozen=True, slots=True)
class Served:
    """A model that clients may name: its tasks, its longest text in tokens, its dimensions.

    `images_refused`: why it takes no images, None where it does.
    """

    name: str
    tasks: tuple[Task, ...]
    max_tokens: int
    dimensions: tuple[int, ...]
    images_refused: str | None


class Catalog:
    """The served references, in the operator's order; the first one answers for requests without a model."""

    def __init__(
        self,
        references: Sequence[str],
        *,
        specs_of_file: Callable[[str], Sequence[ModelSpec]],
        aliases: Mapping[str, str] | None = None,
        adapters: bool = False,
    ) -> None:
        self.offers = [_offer(reference, specs_of_file, adapters=adapters) for reference in references]
        self.aliases: Mapping[str, str] = {}
        self.refresh()
        self.rename(aliases or {})

    def rename(self, aliases: Mapping[str, str]) -> None:
        """Replace the aliases; UsageError for an alias of a model that is not served."""
        before, self.aliases = self.aliases, {}  # an alias names a model, never another alias
        for name, target in aliases.items():
            try:
                self.target(target)
            except (UsageError, NotServedError) as error:
                self.aliases = before
                raise UsageError(f"alias {name}: {error}", param="alias") from None
        self.aliases = dict(aliases)

    @property
    def default(self) -> Offer:
        """The model of requests that name none."""
        return self.offers[0]

    def target(
        self, model: str | None, *, task: str | None = None, roles: Mapping[str, str | None] | None = None
    ) -> Target:
        """Find the model. NotServedError, or UsageError for parts that contradict each other."""
        return self.found(model or self.default.name, task=task, roles=roles)[1]

    def found(
        self, model: str, *, task: str | None = None, roles: Mapping[str, str | None] | None = None
    ) -> tuple[Offer, Target]:
        """As `target` for a name, which may be empty, with the offer that it belongs to."""
        name, in_model = self._split(self._meant(model))
        in_field = _task_and_role("task", task)
        offer, named = self._find(name, model)
        in_name = named.task if named else None
        said = {"model": in_name, "model's end": in_model[0], "task": in_field[0], "served": offer.task}
        wanted = agreed("task", said)
        role = agreed("prompt_name", {"model": in_model[1], "task": in_field[1], **_roles(roles or {})})
        return offer, Target(offer.reference(wanted, named.quant if named else None), role, offer.chosen(wanted))

    def refresh(self) -> None:
        """Look again which files are on this machine; reads folders, so not for the event loop."""
        self._here = frozenset((model.family, model.quant, model.task) for model in local.available())

    def kinds(self, offer: Offer) -> list[Offer]:
        """An offer and, where the operator left the file type open, the same in each other local type."""
        if offer.quant or offer.path:
            return [offer]
        files = (None,) if offer.base else offer.tasks
        whole = [quant for quant in FILE_TYPES if all((offer.family, quant, task) in self._here for task in files)]
        return [offer, *(replace(offer, quant=quant) for quant in whole if quant != local.DEFAULT_QUANT)]

    def _meant(self, model: str) -> str:
        """A name without `:latest`, with an alias, alone or before `/TASK.ROLE`, replaced by its model."""
        head, slash, tail = model.rpartition("/")
        for name, rest in ((model, ""), (head, slash + tail)):
            if known := self.aliases.get(name) or self.aliases.get(name.removesuffix(LATEST)):
                return known + rest
        return head.removesuffix(LATEST) + slash + tail.removesuffix(LATEST)

    def _split(self, name: str) -> tuple[str, tuple[Task | None, Role | None]]:
        head, slash, tail = name.rpartition("/")
        if not slash or any(offer.path == name for offer in self.offers):
            return name, (None, None)
        try:
            return head, _task_and_role("model", tail)
        except UsageError:
            self._find(head, name)  # report an unknown model first: `org/name` is not a name with a task
            raise

    def _find(self, name: str, asked: str) -> tuple[Offer, ModelReference | None]:
        for offer in self.offers:
            if offer.path and name in (offer.path, offer.name, f"{offer.family}-{offer.task}"):
                return offer, None
        named = _parsed(name)
        for offer in self.offers:
            if named and (offer.base or not offer.path) and self._answers(offer, named):
                return offer, named
        served = ", ".join(offer.name for offer in self.offers)
        raise NotServedError(f"model={shown(asked)}: not served here; this server has {served}")

    def _answers(self, offer: Offer, named: ModelReference) -> bool:
        fits = offer.family == named.family and named.task in (None, *offer.tasks) and named.base <= offer.base
        quants = (None, offer.quant)
        return fits and (named.quant in quants or (offer.quant is None and not offer.path and self._is_here(named)))

    def _is_here(self, named: ModelReference) -> bool:
        """True for a file type that a client may choose: one on this machine, or one that is built in seconds."""
        if named.family == local.STARTER or named.quant == local.DEFAULT_QUANT:
            return True
        return any((family, quant) == (named.family, named.quant) for family, quant, _ in self._here)


def _offer(reference: str, specs_of_file: Callable[[str], Sequence[ModelSpec]], *, adapters: bool) -> Offer:
    if local.looks_like_path(reference):
        specs = specs_of_file(reference)
        base = len(specs) > 1
        offer = Offer(specs[0].family, None if base else specs[0].task, None, path=reference, base=base)
    else:
        named = ModelReference.parse(reference)
        offer = Offer(named.family, named.task, named.quant, base=named.base or (adapters and named.task is None))
    if adapters and not offer.base:
        raise UsageError(
            f"adapters: model={reference!r} is one task's ({offer.task}); expected a family or a base", param="adapters"
        )
    return offer


def _parsed(name: str) -> ModelReference | None:
    try:
        return ModelReference.parse(name)
    except UsageError:
        return None


def _task_and_role(param: str, text: str | None) -> tuple[Task | None, Role | None]:
    """Read `TASK[.ROLE]`."""
    if text is None:
        return None, None
    task, dot, role = text.partition(".")
    try:
        return Task.parse(task), Role.parse(role) if dot else None
    except UsageError as error:
        raise UsageError(f"{param}={shown(text)}: {error}", param=param) from None


def _roles(fields: Mapping[str, str | None]) -> dict[str, Role | None]:
    found: dict[str, Role | None] = {}
    for name, text in fields.items():
        try:
            found[name] = None if text is None else Role.parse(text)
        except UsageError as error:
            raise UsageError(str(error).replace("prompt_name", name, 1), param=name) from None
    return found
