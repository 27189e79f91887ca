"""What `localmoe chat` keeps of a chat, and goes on with: the same file of chats as the app's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmoe.cli.common import say
from localmoe.engine.sampling import SamplingParams
from localmoe.errors import LocalMoeError, UsageError
from localmoe.sessions.record import Record
from localmoe.sessions.schema import default_path
from localmoe.sessions.store import Saved, Store
from localmoe.tui.parameters import changed, checked
from localmoe.tui.rules import in_words, kept_rules, rules_of

if TYPE_CHECKING:
    from localmoe.engine.api import Model

ROUTING = ("n_expert_used", "leave_out", "force_experts", "expert_threshold")


def load_kept(number: int) -> Saved:
    """A chat that was kept."""
    with Store(default_path()) as store:
        return store.load(number)


def parameters_of(saved: Saved | None, given: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """What goes with a chat, from sampling to `overflow`: as kept, but for what the command names."""
    kept: dict[str, Any] = {}
    if saved is not None:
        kept, wrong = checked(saved.parameters)
        if wrong:
            say(f"note: parameters of this chat left out: {', '.join(wrong)}")
    return {**given, **{name: value for name, value in kept.items() if name in given and name not in named}}


def open_record(path: Path, kept: Saved | None, system: str, parameters: Mapping[str, Any], *, save: bool) -> Record:
    """The chat to go on with, or a new one; without a store where chats are not kept, or cannot be.

    LocalMoeError where the file of chats refuses one that is to go on.
    """
    store = None
    if save:
        try:
            store = Store(default_path())
        except LocalMoeError as error:
            if kept is not None:
                raise
            say(f"note: this chat is not kept: {error}")
    if store is not None and store.read_only:
        say(f"note: this chat is not kept: {store.path} may not be written")
        store.close()
        store = None
    if kept is None:
        return Record(store, str(path.absolute()), system, changed(parameters))
    record = Record.resumed(store, kept)
    settings = dict.fromkeys(record.parameters) | changed(parameters)
    record.configure(model=str(path.absolute()), system=system or None, **settings)
    return record


def routing_of(record: Record, model: Model, load: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """Keywords of `Model.chat` about experts: those kept with a chat, unless the command names some itself.

    Whatever holds is kept with the chat from now on.
    """
    config = model.config
    if not config.n_expert:
        return {}
    if record.routing and not any(name in named for name in ROUTING):
        try:
            rules = kept_rules(config, record.routing)
        except UsageError as error:
            say(f"note: not routed as in this chat ({in_words(record.routing)}): {error}")
        else:
            say(f"routing as in this chat: {rules.routing.describe(config.n_expert)}")
            return rules.options
    rules = rules_of(config, load)
    record.route(rules.kept(config))
    return {}


def sampling_of(parameters: Mapping[str, Any], sampling: SamplingParams) -> SamplingParams:
    """The flags' sampling with what `parameters` say in its place."""
    return SamplingParams(**{name: parameters.get(name, value) for name, value in asdict(sampling).items()})


def show_last(record: Record) -> None:
    """Say which chat goes on, and the last thing that was asked and answered in it."""
    say(f"chat {record.key}, {record.title}: {len(record.turns)} turns")
    for turn in record.turns[-2:]:
        say(f"> {turn.text}" if turn.role == "user" else turn.text)


def kept_until_the_end(record: Record) -> Any:
    """Closes the store at the end."""
    return nullcontext() if record.store is None else closing(record.store)
