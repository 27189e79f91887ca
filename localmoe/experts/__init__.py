"""What the router does: traces and statistics."""
