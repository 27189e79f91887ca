"""Chats that outlive the app: a tree of turns, kept in a SQLite file as it grows, and exported."""
