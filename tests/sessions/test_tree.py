"""A chat as a tree: versions of turns, and the line that is read."""

from __future__ import annotations

from localmoe.sessions.tree import Conversation


def talked() -> Conversation:
    chat = Conversation("Be brief.")
    for question in ("one", "two"):
        chat.ask(question)
        chat.begin_reply().text = f"{question}!"
    return chat


def texts(chat: Conversation) -> list[str]:
    return [turn.text for turn in chat.turns]


def test_a_line_is_what_the_model_reads() -> None:
    """System prompt first; a reply that says nothing is left out."""
    chat = talked()
    chat.ask("three")
    chat.begin_reply()
    assert [m["role"] for m in chat.messages()] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert chat.messages()[0]["content"] == "Be brief."


def test_editing_makes_a_sibling_and_keeps_the_old_branch() -> None:
    chat = talked()
    first = chat.turns[0]
    other = chat.edit(first, "uno")
    assert texts(chat) == ["uno"]
    assert chat.siblings(other) == [first, other]
    chat.begin_reply().text = "uno!"
    assert chat.step(other, -1) is first
    assert texts(chat) == ["one", "one!", "two", "two!"]
    assert chat.step(first, -1) is other
    assert texts(chat) == ["uno", "uno!"]


def test_a_branch_is_read_on_as_it_was_left() -> None:
    """Coming back to a branch leads to the leaf that was read there, not to the newest."""
    chat = talked()
    reply = chat.turns[3]
    again = chat.reply_again(reply)
    again.text = "two?"
    chat.step(again, -1)
    other = chat.edit(chat.turns[0], "uno")
    chat.step(other, -1)
    assert texts(chat)[-1] == "two!"


def test_a_turn_taken_out_leaves_the_other_versions() -> None:
    chat = talked()
    reply = chat.turns[3]
    again = chat.reply_again(reply)
    assert chat.remove_last() is again
    assert chat.turns[-1] is reply
    chat.remove_last()
    assert texts(chat) == ["one", "one!", "two"]


def test_all_turns_come_parents_first() -> None:
    chat = talked()
    chat.edit(chat.turns[2], "zwei")
    assert [turn.text for turn in chat.all_turns()] == ["one", "one!", "two", "two!", "zwei"]
