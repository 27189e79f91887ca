"""The command palette's entries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.types import IgnoreReturnCallbackType

from .screens.chat import ChatScreen
from .widgets.expert_pane import MODES

_ACTIONS = (
    ("New chat", "new_chat", "The old one is kept"),
    ("Make the last reply again", "regenerate", "Beside the old one, with another seed"),
    ("Chats: search, go on, rename, export, delete", "app.sessions", "Those that were kept"),
    ("Open another model", "app.models", "Recent files, folders, the Hugging Face cache"),
    ("Parameters and system prompt", "app.parameters", "Temperature, top-k, seed, context and others"),
    ("Edit the last question", "last('edit')", "On a branch of its own"),
    ("Copy the last reply", "last('copy')", "To the clipboard"),
    ("Copy a code block of the last reply", "last('code')", "To the clipboard"),
    ("Stop the reply", "stop", "What was said stays"),
    ("Show or hide the experts", "toggle_experts", "The pane on the right"),
    ("The chat token by token", "tokens", "Which expert each went to, and its path"),
    ("Compare the experts: from here on, or with a saved run", "compare_from_here", "Also saves this chat's run"),
    ("Every layer's figures", "figures", "Entropy, busiest, dead, reuse, margin, working set, memory map"),
    ("Change how tokens are routed", "rules", "Top-k, experts left out or forced, a threshold; compare"),
    ("Route as the app was started", "reset_rules", "Top-k and rules back"),
    ("More experts a token", "used(1)", "Top-k up by one"),
    ("Fewer experts a token", "used(-1)", "Top-k down by one"),
)


class Commands(Provider):
    """Everything the chat screen can do, by name, then what Textual can; two providers would come in any order."""

    def _commands(self) -> Iterator[tuple[str, IgnoreReturnCallbackType, str]]:
        screen = self.screen
        if isinstance(screen, ChatScreen):
            actions = [*_ACTIONS]
            if screen.model.config.n_expert:
                hint = "What the heatmap shows"
                actions += [(f"Heatmap: {MODES[mode]}", f"mode('{mode}')", hint) for mode in screen.experts.modes]
            for name, action, hint in actions:
                if screen.check_action(action.partition("(")[0], ()) is not False:
                    yield name, partial(screen.run_action, action), hint
        for name, hint, callback, _ in self.app.get_system_commands(screen):
            yield name, callback, hint

    async def discover(self) -> Hits:
        for name, callback, hint in self._commands():
            yield DiscoveryHit(name, callback, help=hint)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, callback, hint in self._commands():
            if (score := matcher.match(name)) > 0:
                yield Hit(score, matcher.highlight(name), callback, help=hint)
